"""What a network sees of cases that are found with more than their images."""

from __future__ import annotations

import pytest

import volflow as vf
from volflow.jobs.batch.asked_cases import AskedBatch
from volflow.jobs.batch.batch_options import BatchOptions


@pytest.fixture
def folder(tmp_path):
    for name in ("images/a.npy", "labels/a.npy", "weights/a.npy", "out/a.npy"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    return tmp_path


def test_labels_weights_and_results_of_the_batch_are_no_inputs(folder):
    found = vf.find_cases(folder)
    assert list(found["a"]) == ["image", "label", "out", "weight"]
    for cases in (folder, found):
        batch = AskedBatch.of(cases, folder / "out" / "{case}.npy", BatchOptions())
        assert batch.cases == {"a": {"image": str(folder / "images" / "a.npy")}}
        assert batch.dropped == 0
