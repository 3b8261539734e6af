"""The public names: exactly these, documented, loaded on first use."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types

import pytest

import volflow

NAMES = {
    "Augment",
    "DetachedBatch",
    "DetachedRun",
    "GridAggregator",
    "GridSampler",
    "LabelSampler",
    "ModelLike",
    "PatchStream",
    "Roi",
    "UNet",
    "UniformSampler",
    "Volume",
    "VolumeLike",
    "WeightedSampler",
    "WholeVolume",
    "certify_seams",
    "check_cases",
    "compare",
    "connect",
    "contact_sheet",
    "convert",
    "convert_cases",
    "demo",
    "errors",
    "evaluate",
    "export",
    "find_cases",
    "halo",
    "load_model",
    "losses",
    "map_model",
    "map_overlap",
    "napari_snippet",
    "observe",
    "open",
    "open_cases",
    "patch_sheet",
    "patch_stats",
    "plan_convert",
    "plan_predict",
    "plan_pyramid",
    "plan_resample",
    "plan_run",
    "predict",
    "predict_cases",
    "preview",
    "pyramid",
    "resample",
    "run",
    "sample",
    "save_model",
    "seams_figure",
    "statistics",
    "time_limit",
    "verify",
    "view",
    "write",
}
ALIASES = {"ModelLike", "VolumeLike"}  # of types; their texts stand below them
MODULES = {"demo", "errors", "losses"}
# Keywords of what the user hands over, or of the model's spec, which checks them itself.
OPEN_ENDED = {"map_overlap", "save_model"}


def test_public_names_are_exactly_these():
    assert set(volflow.__all__) == NAMES
    assert set(dir(volflow)) == NAMES | {"__version__"}


def test_what_is_loaded_is_what_the_stub_declares(root):
    """Type checkers parse the stub whole; what is loaded is read from it line by line."""
    stub = ast.parse((root / "volflow" / "__init__.pyi").read_text())
    imports = [line for line in stub.body if isinstance(line, ast.ImportFrom)]
    names = [(alias.asname, line.module, alias.name) for line in imports for alias in line.names]
    assert len(names) == len(NAMES)
    for public, module, name in names:
        assert volflow._PUBLIC[public] == (module, name)
        own = importlib.import_module(f"{module}.{name}") if public in MODULES else None
        assert getattr(volflow, public) is (own or getattr(importlib.import_module(module), name))


def test_no_wing_bears_the_name_of_a_public_function(root):
    """Its import would put the wing in the place of the function."""
    wings = {path.stem for path in (root / "volflow").iterdir()}
    assert wings & NAMES <= MODULES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_name_exists_and_is_documented(name):
    value = getattr(volflow, name)
    assert inspect.getdoc(value) or name in ALIASES
    if isinstance(value, types.FunctionType):
        assert "Parameters\n" in inspect.getdoc(value)


@pytest.mark.parametrize("name", sorted(NAMES - ALIASES - MODULES))
def test_signature_says_what_each_parameter_takes(name):
    """An annotation that is Any, alone or among others, says nothing."""
    for function in _functions(getattr(volflow, name)):
        signature = inspect.signature(function)
        for parameter in signature.parameters.values():
            open_ended = parameter.kind is inspect.Parameter.VAR_KEYWORD and name in OPEN_ENDED
            if parameter.name != "self" and not open_ended:
                assert not _is_bare(parameter.annotation), f"{function.__qualname__}: {parameter}"
        assert not _is_bare(signature.return_annotation), function.__qualname__


def _functions(value):
    """A function itself, or how an object is made and its public methods."""
    if not inspect.isclass(value):
        return [value]
    methods = {key: each for key, each in vars(value).items() if inspect.isfunction(each)}
    return [each for key, each in methods.items() if key == "__init__" or key[0] != "_"]


def _is_bare(annotation):
    if annotation is inspect.Signature.empty:
        return True
    return "Any" in {part.strip() for part in re.split(r"\|(?![^\[]*\])", str(annotation))}


def test_what_users_copy_takes_public_names_only(root):
    """Notebooks, pipelines and the README import volflow, or a module of its that is public."""
    places = [*(root / "notebooks").glob("*.ipynb"), *(root / "pipelines").glob("*.py")]
    deep = [
        f"{path.name}: {found}"
        for path in [*places, root / "README.md"]
        for found in re.findall(r"(?:from|import) volflow\.([\w.]+)", path.read_text())
        if found not in MODULES
    ]
    assert deep == []


def test_unknown_name_is_named():
    with pytest.raises(AttributeError, match="module 'volflow' has no attribute 'opne'"):
        volflow.opne  # noqa: B018


def test_errors_form_the_tree_of_their_docstring():
    errors = volflow.errors
    for name in (name for name in errors.__all__ if name[0].isupper()):
        error = getattr(errors, name)
        assert issubclass(error, errors.VolflowError)
        own = {"Damaged": 3, "Unreadable": 3, "Locked": 4}
        assert error.exit_code == own.get(name, 2 if issubclass(error, errors.InvalidInput) else 1)
        assert name in errors.__doc__
