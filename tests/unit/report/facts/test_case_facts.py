"""The facts of many cases against NumPy on all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

import volflow as vf
from tests.stores import store
from volflow.cli import run


@pytest.fixture
def cases(tmp_path):
    rng = np.random.default_rng(0)
    arrays = []
    for n, case in enumerate("abc"):
        (tmp_path / "in" / case).mkdir(parents=True)
        image = rng.integers(-50, 50 + n, (4 + n, 6, 7)).astype("int16")
        label = rng.integers(0, 3, image.shape).astype("uint8")
        meta = {"spacing": (1.0 + n, 0.5, 0.5), "unit": "millimeter"}
        store(tmp_path / "in" / case / "image.zarr", image, **meta)
        store(tmp_path / "in" / case / "label.zarr", label, **meta)
        arrays.append((image, label, 0.25 * (1 + n)))
    return tmp_path / "in", arrays


def test_facts(cases, capsys):
    folder, arrays = cases
    assert run(["info", str(folder), "--json", "--statistics"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["cases"], facts["used"], facts["faults"]) == (3, 3, [])
    assert facts["shape"] == {"min": [4, 6, 7], "median": [5, 6, 7], "max": [6, 6, 7]}
    assert facts["spacing"]["max"] == [3.0, 0.5, 0.5]
    image = facts["arrays"]["image"]
    assert image["dtypes"] == {"int16": 3}
    values = [one for one, _, _ in arrays]
    assert image["intensities"]["min"] == min(one.min() for one in values)
    assert image["intensities"]["max"] == max(one.max() for one in values)
    middles = [np.percentile(one, 50) for one in values]
    assert image["intensities"]["percentiles"]["50.0"] == np.median(middles)
    assert image["intensities"]["from"] == "of 3 cases 3 read whole"
    for value, found in facts["arrays"]["label"]["classes"].items():
        counts = [int((label == int(value)).sum()) for _, label, _ in arrays]
        volumes = [n * voxel for n, (_, _, voxel) in zip(counts, arrays, strict=True)]
        assert found["voxels"] == sum(counts)
        assert found["cases"] == 3
        assert found["volume"]["median"] == pytest.approx(np.median(volumes))


def test_what_is_cheap_says_where_it_is_from(cases, capsys):
    folder, _ = cases
    vf.statistics(folder / "b" / "image.zarr", progress=False)
    (folder / "c" / "label.zarr" / "zarr.json").write_text("{")
    assert run(["info", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "3, 2 of them without faults" in shown
    assert "of 2 cases 1 sampled, 1 by stored statistics" in shown
    assert "4 × 6 × 7 (zyx) to 5 × 6 × 7 (zyx)" in shown
    assert "1 of 3 cases has faults" in shown


def test_what_is_of_one_volume_is_refused(cases, capsys):
    folder, _ = cases
    assert run(["info", str(folder), "--labels"]) == 2
    assert "is many cases; name one of their volumes" in capsys.readouterr().err
    assert run(["info", str(folder / "a" / "image.zarr"), "--statistics"]) == 2
    assert "--statistics is of cases" in capsys.readouterr().err


def test_a_file_that_is_cut_short_is_a_fault_where_it_is_read(tmp_path, capsys):
    nib = pytest.importorskip("nibabel")
    image = np.random.default_rng(0).integers(0, 99, (20, 20, 20)).astype("int16")
    for case in "ab":
        nib.Nifti1Image(image, np.eye(4)).to_filename(tmp_path / f"{case}.nii.gz")
    data = (tmp_path / "b.nii.gz").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(data[: len(data) // 2])
    assert run(["info", str(tmp_path), "--json"]) == 0
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert (fault["case"], fault["remedy"]) == ("b", "copy it again")
