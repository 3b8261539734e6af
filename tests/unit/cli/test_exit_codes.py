"""Every command, with each exit code that it can end with; README has the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from volflow import errors
from volflow.cli import COMMANDS, run
from volflow.store.journal.journal import Journal, journal_dir

DONE, FAILED, REFUSED, DAMAGED, LOCKED = range(5)


def damage(folder: Path, what: str) -> None:
    """Cut a file short; "" leaves all as it is."""
    if what:
        path = folder / what
        path.write_bytes(path.read_bytes()[:-9])


SHARD = "a.zarr/0/c/0/0/0"
PREDICT = "predict a.zarr p.zarr -m bundle --memory 1GiB -q"


@pytest.fixture(autouse=True)
def _pipeline(folder):
    (folder / "p.yaml").write_text(
        "variables: {levels: 1}\nrecord: p.jsonl\nsteps:\n"
        '  - {name: levels, pyramid: {volume: a.zarr, levels: "${levels}"}}\n'
    )


@pytest.mark.parametrize(
    ("line", "damaged", "code"),
    [
        ("", "", DONE),
        ("nonsense", "", REFUSED),
        ("demo nonsense", "", REFUSED),
        ("convert a.nii n.zarr -q", "", DONE),
        ("convert a.nii n.tif -q", "", REFUSED),
        ("convert a.nii n.zarr -q", "a.nii", DAMAGED),
        ("convert a.zarr n.zarr -q", SHARD, DAMAGED),
        ("convert a.nii a.zarr -q", "a.zarr.volflow/plan.json", DAMAGED),
        ("info a.zarr", "", DONE),
        ("info gone.zarr", "", REFUSED),
        ("info a.zarr", "a.zarr/zarr.json", DAMAGED),
        ("statistics v2.zarr -q", "", DONE),
        ("statistics gone.zarr -q", "", REFUSED),
        ("statistics v2.zarr -q", "v2.zarr/s/0.0.0", DAMAGED),
        ("resample a.zarr n.zarr --spacing 2 -q", "", DONE),
        ("resample a.zarr n.zarr --spacing 0 -q", "", REFUSED),
        ("resample a.zarr n.zarr --spacing 2 -q", SHARD, DAMAGED),
        ("evaluate labels.npy labels.npy -q", "", DONE),
        ("evaluate labels.npy gone.npy -q", "", REFUSED),
        ("evaluate labels.npy labels.npy -q", "labels.npy", DAMAGED),
        ("sample labels.npy --sampler uniform --patch 4 -o s.png", "", DONE),
        ("sample labels.npy --sampler uniform --patch 4.5 -o s.png", "", REFUSED),
        ("sample labels.npy --sampler uniform --patch 4 -o s.png", "labels.npy", DAMAGED),
        (PREDICT, "", DONE),
        (f"{PREDICT} --patch 0", "", REFUSED),
        (f"{PREDICT} --memory 1KiB", "", REFUSED),
        ("predict a.zarr /proc/p.zarr -m bundle -q", "", REFUSED),
        ("predict a.nii /proc/p.zarr -m bundle -q", "", REFUSED),
        (PREDICT, SHARD, DAMAGED),
        (PREDICT, "bundle/bundle.json", DAMAGED),
        (PREDICT, "bundle/weights.safetensors", DAMAGED),
        ("halo bundle", "", DONE),
        ("halo gone", "", REFUSED),
        ("halo bundle", "bundle/weights.safetensors", DAMAGED),
        ("pyramid a.zarr --levels 1 -q", "", DONE),
        ("pyramid v2.zarr -q", "", REFUSED),
        ("pyramid a.zarr --levels 1 -q", SHARD, DAMAGED),
        ("verify a.zarr -q", "", DONE),
        ("verify v2.zarr -q", "", REFUSED),
        ("verify a.zarr -q", SHARD, DAMAGED),
        ("verify a.zarr -q", "a.zarr.volflow/done/00000000.json", FAILED),
        ("status a.zarr", "", DONE),
        ("status v2.zarr", "", REFUSED),
        ("status a.zarr", "a.zarr.volflow/plan.json", DAMAGED),
        ("cancel a.zarr", "", DONE),
        ("cancel v2.zarr", "", REFUSED),
        ("export a.zarr n.nii.gz", "", DONE),
        ("export a.zarr n.xyz", "", REFUSED),
        ("export a.zarr n.nii.gz", SHARD, DAMAGED),
        ("preview a.zarr -o p.png --dpi 30", "", DONE),
        ("preview a.zarr -o p.tif", "", REFUSED),
        ("preview a.zarr -o p.png --dpi 30", SHARD, DAMAGED),
        ("run p.yaml -q", "", DONE),
        ("run p.yaml -q --set levels=many", "", REFUSED),
        ("run gone.yaml -q", "", REFUSED),
        ("run p.yaml -q", SHARD, DAMAGED),
        ("view --napari a.zarr", "", DONE),
        ("view gone.zarr", "", REFUSED),
        ("view --napari a.zarr", "a.zarr/zarr.json", DAMAGED),
    ],
)
def test_codes(folder, capsys, line, damaged, code):
    damage(folder, damaged)
    assert run(line.split()) == code
    told = capsys.readouterr().err
    assert told.count("\n") == (code in (REFUSED, DAMAGED) and "verify a.zarr" not in line), told


@pytest.mark.parametrize(
    ("line", "holds"),
    [
        ("convert a.nii a.zarr --overwrite -q", "a.zarr"),
        (PREDICT, "p.zarr"),
        ("pyramid a.zarr --levels 1 -q", "a.zarr"),
        ("verify a.zarr -q", "a.zarr"),
        ("run p.yaml -q", "p.jsonl"),
    ],
)
def test_another_run_holds_the_output(folder, capsys, line, holds):
    with Journal(journal_dir(holds)).lock():
        assert run(line.split()) == LOCKED
    assert f"{holds} is being written by process" in capsys.readouterr().err


def test_the_table_of_readme_is_the_tree_of_errors(root):
    rows = re.findall(r"^\| ([0-9]) \|.*\| ?`?(\w*)`? \|$", (root / "README.md").read_text(), re.M)
    assert [int(code) for code, _ in rows] == [DONE, FAILED, REFUSED, DAMAGED, LOCKED]
    for code, name in rows[1:]:
        assert getattr(errors, name).exit_code == int(code)


def test_every_command_is_here():
    (marks,) = (m for m in test_codes.pytestmark if m.name == "parametrize")
    found = {line.split()[0] for line, _, _ in marks.args[1] if line}
    assert found == {*COMMANDS, "nonsense"}


def test_an_error_is_an_object_for_machines(tmp_path, capsys):
    assert run(["convert", str(tmp_path / "none.nii"), str(tmp_path / "made.zarr"), "--json"]) == 2
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert said.err == f"volflow: {told['message']}\n"
    assert told["message"].endswith("none.nii does not exist; check the path")
    assert (told["error"], told["exit_code"]) == ("InvalidInput", 2)
    assert run(["convert", "--json", "--no-such-thing"]) == 2
    assert json.loads(capsys.readouterr().out)["exit_code"] == 2


def test_quiet_is_quiet(tmp_path, capsys):
    np.save(tmp_path / "made.npy", np.ones((4, 5, 6), "u1"))
    words = ["convert", str(tmp_path / "made.npy"), str(tmp_path / "made.zarr")]
    assert run([*words, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert run([*words, "-q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [4, 5, 6]
