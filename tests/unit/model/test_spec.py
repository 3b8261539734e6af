from __future__ import annotations

import dataclasses
import pickle

import pytest

from volflow.errors import InvalidInput
from volflow.model.spec import Spec, make_spec


def test_lists_become_tuples_and_defaults_leave_it_open():
    spec = make_spec({"channels": ["t1", "flair"], "patch": [32, 64, 1], "overlap": [0, 0.5, 8]})
    assert spec == Spec(channels=("t1", "flair"), patch=(32, 64, 1), overlap=(0, 0.5, 8))
    assert (spec.blend, spec.frame, spec.spacing, spec.output) == (None, None, None, "scores")
    hash(spec)
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_spec_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec().patch = 3


@pytest.mark.parametrize("overlap", [0, 16, 0.0, 0.25])
def test_whole_overlaps_stay_voxels_and_fractions_fractions(overlap):
    found = make_spec({"overlap": overlap}).overlap
    assert (found, type(found)) == (overlap, type(overlap))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pach": 64}, "unknown key 'pach'; known are channels"),
        ({"patch": 0}, "patch is 0; expected a whole number from 1, or three"),
        ({"patch": [64, 64]}, r"patch is \[64, 64\]; expected"),
        ({"patch": 64.0}, r"patch is 64\.0"),
        ({"patch": "64"}, "patch is '64'"),
        ({"overlap": 1.0}, r"overlap is 1\.0; expected whole voxels"),
        ({"overlap": -1}, "overlap is -1"),
        ({"spacing": [1, 1, float("nan")]}, "three positive sizes"),
        ({"spacing": [1, 0, 1]}, "three positive sizes"),
        ({"spacing": 1}, r"three positive sizes along its axes, such as \[3, 1, 1\]"),
        ({"unit": "pixel"}, "unit must be one of length, such as millimeter or mm, got 'pixel'"),
        ({"unit": ""}, "unit must be one of length, such as millimeter or mm, got ''"),
        ({"blend": "mean"}, "blend is 'mean'; expected crop, average, gaussian, hann or exact"),
        ({"frame": "RAX"}, "frame must be three letters"),
        ({"output": "labels"}, 'expected "scores" or "classes"'),
        ({"classes": "abc"}, "expected a list of names"),
        ({"classes": ["a", "a"]}, "classes must have different names"),
        ({"classes": ["a"], "background": 1}, "background is class 1, but there are 1 classes"),
        ({"channels": []}, "at least one channel"),
        ({"unit": 3}, "unit is 3; expected a text"),
    ],
)
def test_wrong_values_are_one_line_naming_file_and_key(values, says):
    with pytest.raises(InvalidInput, match=f"^card.json: .*{says}") as caught:
        make_spec(values, "card.json")
    assert "\n" not in str(caught.value)


def test_exact_is_a_blend():
    assert make_spec({"blend": "exact"}).blend == "exact"
