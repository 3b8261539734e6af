"""The command ``volflow resample``, and the step of its name, on small volumes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import volflow as vf
from volflow.cli import run


@pytest.fixture
def stack(tmp_path):
    """A volume with thick slices, as an image and as what looks like labels."""
    voxels = np.random.default_rng(0).integers(0, 250, (6, 20, 24), "u1")
    grid = {"spacing": (4, 1, 1), "unit": "mm", "progress": False}
    vf.write(voxels, tmp_path / "a.zarr", orientation="SAR", **grid)
    vf.write(voxels // 100, tmp_path / "seg.zarr", orientation="SAR", **grid)
    return tmp_path


def test_it_is_written_and_told(stack, capsys):
    words = ["resample", f"{stack}/a.zarr", f"{stack}/o.zarr", "--spacing", "2mm,1,0.5mm", "-q"]
    assert run([*words, "--order", "nnunet", "--plan"]) == 0
    assert "values       image, order (0, 3, 3)" in capsys.readouterr().out
    assert run([*words, "--json", "--order", "0,1,1"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["shape"] == [12, 20, 48]
    assert told.err == ""
    want = vf.resample(stack / "a.zarr", spacing=(2, 1, 0.5), order=(0, 1, 1))
    assert np.array_equal(vf.open(stack / "o.zarr")[:], want.compute())


def test_what_looks_like_labels_is_named(stack, capsys):
    words = ["resample", f"{stack}/seg.zarr", f"{stack}/o.zarr", "--spacing", "1", "-q"]
    assert run(words) == 0
    assert "it holds only 3 different whole numbers; if these are classes" in (
        capsys.readouterr().err
    )
    assert run([*words, "--labels", "--overwrite"]) == 0
    assert capsys.readouterr().err == ""
    made = vf.open(stack / "o.zarr")
    assert made.meta.kind == "classes"
    assert set(np.unique(made[:])) == {0, 1, 2}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--spacing", "1,2"], "spacing must be one voxel size or three with commas"),
        (["--spacing", "2 miles away"], "spacing must be one voxel size or three"),
        (["--spacing", "1", "--order", "4"], "order must be 0"),
        (["--spacing", "1", "--order", "linear"], "order must be 0 (nearest), 1 (linear) or 3"),
        (["--spacing", "1", "--order", "1,2"], "each of z, y, x, or \"nnunet\"; got '1,2'"),
        ([], "needs either spacing="),
        (["--spacing", "1", "--memory", "20MiB"], "use memory="),
    ],
)
def test_a_mistake_is_one_line(stack, capsys, words, line):
    assert run(["resample", f"{stack}/a.zarr", f"{stack}/o.zarr", *words]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert line in told[0]


def test_as_a_step(stack, monkeypatch):
    monkeypatch.chdir(stack)
    steps = [
        {
            "name": "iso",
            "resample": {"volume": "a.zarr", "out": "iso.zarr", "spacing": "1mm", "order": 3},
        },
        {
            "name": "back",
            "resample": {"volume": "iso.zarr", "out": "back.nii.gz", "like": "a.zarr"},
        },
    ]
    file = stack / "p.yaml"
    file.write_text(json.dumps({"steps": steps}))
    vf.run(file, progress=False)
    assert vf.open(stack / "iso.zarr").shape == (24, 20, 24)
    back = vf.open(stack / "back.nii.gz.volflow" / "output.zarr")
    assert back.shape == (6, 20, 24)
