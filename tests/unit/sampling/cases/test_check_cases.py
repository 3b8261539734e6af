"""All that is wrong with cases is told in one table, each fault by its case and with a remedy."""

from __future__ import annotations

import json

import numpy as np
import pytest

import volflow as vf
from tests.stores import store
from volflow.errors import InvalidInput
from volflow.sampling.cases.check_cases import voxels_of_classes
from volflow.store.formats.sources import open_source

SHAPE = (5, 6, 7)


def save(path, array, **meta):
    path.parent.mkdir(parents=True, exist_ok=True)
    store(path, array, **meta)


@pytest.fixture
def untidy(tmp_path):
    """A folder of which only the case a is as it should be."""
    image, label = np.ones(SHAPE, "int16"), np.ones(SHAPE, "uint8")
    for case in "abcde":
        save(tmp_path / "images" / f"{case}.zarr", image, orientation="SAR")
    save(tmp_path / "labels" / "a.zarr", label, orientation="SAR")
    save(tmp_path / "labels" / "b.zarr", label[1:], orientation="SAR")
    save(tmp_path / "labels" / "c.zarr", label, orientation="SPR")
    save(tmp_path / "labels" / "d.zarr", label * 7)
    (tmp_path / "labels" / "e.npy").write_bytes(b"\x93NUMPY")
    save(tmp_path / "labels" / "f.zarr", label)
    save(tmp_path / "images" / "g.zarr", image)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"0": "nothing", "1": "liver"}}))
    return tmp_path


def test_each_fault_is_named(untidy):
    found = vf.check_cases(untidy, labels=True)
    what = {row.case: row.what for row in found}
    assert sorted(what) == ["b", "c", "d", "e", "f", "g"]
    assert "shape (5, 6, 7) and label (4, 6, 7)" in what["b"]
    assert "orientation SAR and label SPR" in what["c"]
    assert what["d"] == "label holds 7, and dataset.json names the classes 0, 1"
    assert "e.npy" in what["e"]
    assert (what["f"], what["g"]) == ("no file in images/", "no file in labels/")
    assert found.cases == 7
    assert all(row.remedy for row in found if row.case != "e")
    assert str(found).endswith("6 of 7 cases have faults")
    assert found.to_dict()["faults"][2]["remedy"] == "correct the label, or dataset.json"


def test_voxels_are_read_only_if_asked(untidy):
    assert "d" not in vf.check_cases(untidy).names
    assert [case.name for case in vf.open_cases(untidy, skip_bad=True)] == ["a", "d"]


def test_nothing_wrong():
    scan = np.zeros(SHAPE, "uint8")
    found = vf.check_cases([{"image": scan, "label": scan}], labels=True)
    assert found.ok
    assert str(found) == "1 case without faults"


@pytest.mark.parametrize("labels", [{"a": 0, "b": [1, 2]}, {"0": "a", "1": "b", "2": "c"}])
def test_both_spellings_of_classes(tmp_path, labels):
    save(tmp_path / "imagesTr" / "p.zarr", np.ones(SHAPE))
    save(tmp_path / "labelsTr" / "p.zarr", np.full(SHAPE, 2, "uint8"))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert vf.check_cases(tmp_path, labels=True).ok
    save(tmp_path / "imagesTr" / "q.zarr", np.ones(SHAPE))
    save(tmp_path / "labelsTr" / "q.zarr", np.full(SHAPE, 3, "uint8"))
    assert vf.check_cases(tmp_path, labels=True).names == ("q",)


def test_classes_are_counted_as_numpy_does():
    label = np.random.default_rng(0).integers(-2, 5, (9, 40, 50))
    values, counts = np.unique(label, return_counts=True)
    expected = dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert voxels_of_classes(open_source(label.astype("int16"))) == expected
    assert voxels_of_classes(open_source(label.astype("f4"))) == expected


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_classes_are_whole_numbers(value, text):
    label = np.zeros(SHAPE, "f4")
    label[1, 2, 3] = value
    with pytest.raises(InvalidInput, match=rf"it holds {text}, and classes are whole numbers; "):
        voxels_of_classes(open_source(label))


def test_a_real_folder_with_cases_without_a_pair(shared_data):
    pytest.importorskip("nibabel")
    found = vf.check_cases(shared_data("hippocampus_msd"))
    assert found.names == ("hippocampus_010", "hippocampus_118", "hippocampus_281")
    assert found.cases == 198
