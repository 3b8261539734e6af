"""The public names: exactly these, documented, loaded on first use."""

from __future__ import annotations

import inspect
import types

import pytest

import volflow

NAMES = {
    "Augment",
    "GridAggregator",
    "GridSampler",
    "LabelSampler",
    "PatchStream",
    "Roi",
    "UniformSampler",
    "Volume",
    "VolumeLike",
    "WeightedSampler",
    "compare",
    "contact_sheet",
    "convert",
    "errors",
    "export",
    "halo",
    "load_model",
    "map_model",
    "map_overlap",
    "napari_snippet",
    "open",
    "predict",
    "preview",
    "pyramid",
    "sample",
    "save_model",
    "statistics",
    "verify",
    "view",
    "write",
}


def test_public_names_are_exactly_these():
    assert set(volflow.__all__) == NAMES
    assert set(dir(volflow)) == NAMES | {"__version__"}
    assert set(volflow._PUBLIC) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_name_exists_and_is_documented(name):
    value = getattr(volflow, name)
    assert inspect.getdoc(value) or name == "VolumeLike"  # an alias; the text stands below it
    if isinstance(value, types.FunctionType):
        assert "Parameters\n" in inspect.getdoc(value)
        assert inspect.signature(value).return_annotation is not inspect.Signature.empty


def test_unknown_name_is_named():
    with pytest.raises(AttributeError, match="module 'volflow' has no attribute 'opne'"):
        volflow.opne  # noqa: B018


def test_errors_form_the_tree_of_their_docstring():
    errors = volflow.errors
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.VolflowError)
        own = {"Damaged": 3, "Unreadable": 3, "Locked": 4}
        assert error.exit_code == own.get(name, 2 if issubclass(error, errors.InvalidInput) else 1)
        assert name in errors.__doc__
