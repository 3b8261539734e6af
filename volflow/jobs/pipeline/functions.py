"""Steps that are functions of the user's own, ``package.module:function``."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any, get_args, get_origin

from volflow.errors import InvalidInput, first_line
from volflow.jobs.pipeline.operations import Operation
from volflow.jobs.pipeline.setting import Setting, settings_of, written
from volflow.model.imports import search_here
from volflow.option import nearest
from volflow.volumes.volume_options import WriteOptions

__all__ = ["FUNCTION", "called", "function_operation", "hints_of"]

FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def function_operation(name: str) -> Operation:
    """Return the operation of a function, whose settings are its parameters.

    ``out``, and what begins with ``out_``, names what it writes. A function that has no parameter
    ``out`` may return an array, a lazy one, too, which is stored there as `vf.write` does; the
    options of that are then settings of the step.

    Raises
    ------
    InvalidInput
        Where it cannot be imported, or is no function.

    Examples
    --------
    >>> operation = function_operation("volflow.volumes.overlap.map_overlap:map_overlap")
    >>> "depth" in operation.settings, "like" in operation.settings, sorted(operation.writes)
    (True, True, ['out'])
    """
    function = called(name)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:  # of C
        raise InvalidInput(f"{name} does not say what it takes; wrap it in a function") from error
    hints = hints_of(function)
    settings = {
        one.name: Setting(
            _simple(hints.get(one.name, Any)),
            needed=one.default is one.empty,
        )
        for one in parameters
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    }
    stores: dict[str, Setting] = {}
    if "out" not in settings:
        stores = settings_of(WriteOptions) | {
            "out": Setting(str, "Where what it returns is stored.", needed=False),
            "like": Setting(str, "The volume on whose grid that lies.", needed=False),
        }
    return Operation(
        name,
        {**stores, **settings},
        writes=frozenset(one for one in {**stores, **settings} if re.match(r"out(_|$)", one)),
        stores=frozenset(stores) - frozenset(settings),
        own=True,
        open_ended=any(one.kind is one.VAR_KEYWORD for one in parameters),
    )


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the types with which a function is annotated; none where they cannot be resolved."""
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError):  # annotated with what is not there at run time
        return {}


def _simple(kind: Any) -> Any:
    """Return a type of texts, numbers and switches; Any for others, which the function checks."""
    kind = written(kind)
    parts = get_args(kind) if get_origin(kind) is not None else (kind,)
    return kind if {*parts} <= {str, int, float, bool, type(None)} else Any


def called(name: str) -> Callable[..., Any]:
    """Import ``module:function``; the current folder is searched, too, after what is installed.

    Raises
    ------
    InvalidInput
        Where it cannot be imported, or is no function.

    Examples
    --------
    >>> called("math:sqrt")(4.0)
    2.0
    >>> called("math:sqrd")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: math has no function 'sqrd'; did you mean 'sqrt'?
    """
    module, _, attribute = name.partition(":")
    search_here()
    try:
        place: Any = importlib.import_module(module)
    except Exception as error:
        raise InvalidInput(
            f"importing {module!r} failed: {type(error).__name__}: {first_line(error)}; run where"
            " it can be imported, or install it"
        ) from error
    found = getattr(place, attribute, None)
    if not callable(found):
        others = [one for one in dir(place) if one[0] != "_" and callable(getattr(place, one))]
        raise InvalidInput(f"{module} has no function {attribute!r}; {nearest(attribute, others)}")
    function: Callable[..., Any] = found
    return function
