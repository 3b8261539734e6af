"""Labels of several channels, a class each: the patches are those of classes as numbers."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests.stores import store
from volflow.errors import InvalidInput
from volflow.report.pictures.patch_counts import PatchCounts, each_patch

SAMPLER = vf.LabelSampler((5, 4, 6), probabilities={0: 1, 2: 3, 3: 1})


def one_hot(path, dtype="uint8"):
    return (vf.open(path)[:] == np.arange(4)[:, None, None, None]).astype(dtype)


def places(cases, sampler=SAMPLER, count=400, **options):
    stream = vf.PatchStream(cases, sampler, count, seed=3, **options)
    found = stream.take(0, 0, stream.share)
    return [(one["case"], *one["location"].tolist()) for one in found]


@pytest.mark.slow
@pytest.mark.usefixtures("small_superchunks")
@pytest.mark.parametrize("border", ["inside", "pad"])
def test_patches_are_those_of_numbers(cases, tmp_path, border):
    sampler = vf.LabelSampler(SAMPLER.patch, probabilities=SAMPLER.probabilities, border=border)
    held = {name: {**case, "label": one_hot(case["label"], bool)} for name, case in cases.items()}
    stored = {
        name: {**case, "label": store(tmp_path / f"{name}.zarr", one_hot(case["label"]))}
        for name, case in cases.items()
    }
    expected = places(cases, sampler)
    assert places(held, sampler) == places(stored, sampler) == expected
    assert places(stored, sampler) == expected  # whose counts are kept by now
    (sample, *_) = vf.PatchStream(stored, sampler, 1)
    assert sample["label"].shape == (4, 5, 4, 6)


def test_a_voxel_may_be_of_several_classes():
    label = np.zeros((3, 9, 9, 9), "uint8")
    label[0, 4, 4, 4] = label[1, 4:6, 4, 4] = label[2, 7, 7, 7] = 1
    sampler = vf.LabelSampler(3, probabilities={0: 1, 1: 1})
    found = places({"image": label[0], "label": label}, sampler)
    starts, counts = np.unique([one[1] for one in found], return_counts=True)
    assert starts.tolist() == [3, 4]
    assert 60 < counts[1] < 140  # half of those of class 1, and none of class 0


def test_what_was_drawn_is_counted_by_channel():
    label = np.stack([np.ones((9, 9, 9)), np.zeros((9, 9, 9))]).astype("uint8")
    label[:, 4, 4, 4] = 0, 1
    sampler = vf.LabelSampler(3, probabilities={1: 1})
    stream = vf.PatchStream({"image": label[0], "label": label}, sampler, 5)
    counts = PatchCounts.of(stream, None, label="label")
    for patch in each_patch(stream):
        counts.add(patch)
    (none, one) = counts.facts()["classes"]
    assert (none["centres"], none["patches"], one["centres"], one["patches"]) == (0, 5, 1, 5)


@pytest.mark.parametrize("numbers", [True, False])
def test_a_class_that_a_case_lacks_is_drawn_from_the_others(numbers):
    labels = np.zeros((2, 9, 9, 9), "uint8")
    labels[:, 4] = 1
    labels[1, 4, 4, 4] = 2
    if not numbers:
        labels = (labels[:, None] == np.arange(3)[:, None, None, None]).astype("uint8")
    cases = [{"image": np.zeros((9, 9, 9)), "label": label} for label in labels]
    found = places(cases, vf.LabelSampler(3, probabilities={1: 1, 2: 1}))
    rare = [one for one in found if one[1:4] == (3, 3, 3) and one[0] == "case1"]
    assert abs(len(rare) - 200) <= 1  # half of all, but for the rounding of one visit


@pytest.mark.parametrize(
    ("change", "sampler", "line"),
    [
        (2, SAMPLER, "labels of several channels are 0 or 1, a channel for each class; the array"
         " holds 2 in channel 1; store them as one array"),
        (1, vf.LabelSampler(3), '"label" of case case0 has 4 channels, each a class; say which are'
         " drawn: probabilities={0: 1, 1: 3}"),
        (1, SAMPLER, "no voxel of class 0, 2, 3 that can be the centre of a patch"),
        (1, vf.WeightedSampler(3, weight="label"), "weights must be one number per voxel, given 4"),
    ],
)  # fmt: skip
def test_what_is_no_choice_of_classes_is_refused(change, sampler, line):
    label = np.zeros((4, 9, 9, 9), "uint8")
    label[1, 4, 4, 4] = change
    with pytest.raises(InvalidInput, match=line):
        places({"image": label[0], "label": label}, sampler)
