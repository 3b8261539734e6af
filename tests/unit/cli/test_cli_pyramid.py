"""The command ``volflow pyramid``, on real volumes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import volflow as vf
from volflow.cli import run
from volflow.store.journal.journal import Journal, journal_dir


@pytest.fixture
def volume(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 255, (20, 70, 90), "u1")
    return vf.convert(voxels, tmp_path / "a.zarr", chunk=8, shard=16, progress=False).path


@pytest.mark.slow
def test_levels_are_written_and_told(volume, capsys):
    assert run(["pyramid", volume]) == 0
    assert "levels       2: 1 × 1 × 1, 2 × 2 × 2" in capsys.readouterr().out
    assert len(vf.open(volume).levels) == 2
    assert run(["pyramid", volume, "--levels", "3", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [level["path"] for level in facts["levels"]] == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_plan_writes_nothing(volume, capsys):
    assert run(["pyramid", volume, "--plan", "--memory", "1GiB"]) == 0
    assert "  level 1      10 × 35 × 45, spacing 2 × 2 × 2\n" in capsys.readouterr().out
    assert run(["pyramid", volume, "--plan", "--json", "--levels", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["operation"] == "pyramid"
    assert plan["level_2"] == "5 × 18 × 23, spacing 4 × 4 × 4"
    assert plan["units"] == 10 * 35 * 45 + 5 * 18 * 23
    assert len(vf.open(volume).levels) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--levels", "0"], "levels must be a whole number from 1 to 7 for (20, 70, 90) voxels,"),
        (["--memory", "1MiB"], 'level 1 needs 48 MiB per worker but memory is 1 MiB; use memory="'),
        (["--levels", "two"], "Invalid value for '--levels'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(volume, capsys, words, line):
    assert run(["pyramid", volume, *words]) == 2
    told = capsys.readouterr()
    assert line in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


@pytest.mark.slow
def test_verify_tells_of_levels_too(volume, capsys):
    run(["pyramid", volume, "-q"])
    Journal(journal_dir(volume) / "levels" / "1").forget([0])
    capsys.readouterr()
    assert run(["verify", volume]) == 1
    told = capsys.readouterr().out
    assert f"{volume}: 60 of 60 blocks verified\n{volume}/1: 8 of 9 blocks verified" in told
    assert run(["pyramid", volume, "-q"]) == 0
    capsys.readouterr()
    assert run(["verify", volume, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"]
    assert facts["levels"][0]["path"] == f"{volume}/1"
    assert facts["levels"][0]["done"] == 9
