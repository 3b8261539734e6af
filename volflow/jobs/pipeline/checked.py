"""Settings of a step checked against its operation, by the types that their options declare."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from volflow.errors import InvalidInput
from volflow.jobs.pipeline.document import Fields, Mistakes, Scalar, plain_of
from volflow.jobs.pipeline.operations import Operation
from volflow.jobs.pipeline.setting import Setting
from volflow.option import nearest

__all__ = ["checked_settings", "checked_value", "form_of"]

_STRICT = ConfigDict(strict=True)  # a text is no number, and a number no switch


def checked_settings(
    name: str, operation: Operation, given: Fields, mistakes: Mistakes
) -> dict[str, Any]:
    """Return the settings of a step as its function takes them; what is wrong is noted.

    Parameters
    ----------
    name
        The operation, as the file names it.
    operation, given
        What it takes, and what the file gives.
    mistakes
        Where unknown and missing settings and wrong types are noted, with their lines.
    """
    known = list(operation.settings)
    values: dict[str, Any] = {}
    for key, node in given.values.items():
        line = given.line_of(key)
        if key not in operation.settings and not operation.open_ended:
            remedy = nearest(key, known, "its settings are")
            mistakes.add(line, f"{name} has no setting {key!r}; {remedy}")
            continue
        setting = operation.settings.get(key, Setting(Any))
        values[key] = checked_value(f"{name}: {key}", setting, node, mistakes)
    for key, setting in operation.settings.items():
        if setting.needed and key not in values:
            mistakes.add(given.line, f"{name} needs {key}: {setting.help}".rstrip(": "))
    return values


def checked_value(what: str, setting: Setting, node: Any, mistakes: Mistakes) -> Any:
    """Return a value of its setting's type; a wrong one is noted.

    A text is read as the command line reads it, where that has a reading of its own.
    """
    if isinstance(node, Scalar) and "${" in node.text:
        return node.text  # a variable without a value, which is said already
    form = form_of(setting)
    value = plain_of(node)
    if isinstance(node, Scalar) and value is not None and _kinds(form) == {"string"}:
        value = node.text  # a folder may be called 007
    if isinstance(value, str) and setting.read is not None:
        try:
            return setting.read(what, value)
        except InvalidInput as error:
            mistakes.add(node.line, str(error))
            return value
    try:
        TypeAdapter(setting.kind, config=_STRICT).validate_python(value)
    except ValidationError:
        given = "nothing" if value is None else repr(value)
        mistakes.add(node.line, f"{what} must be {_wanted(form)}, given {given:.60}")
    return _frozen(value)


def form_of(setting: Setting) -> dict[str, Any]:
    """Return the JSON schema of a setting's values, as pydantic makes it."""
    form = TypeAdapter(setting.kind, config=_STRICT).json_schema()
    form.pop("title", None)
    return form


def _frozen(value: Any) -> Any:
    """Return a list of numbers as the tuple that a Python call would give."""
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return tuple(value)
    return value


def _kinds(form: Mapping[str, Any]) -> set[str]:
    kinds = {str(one.get("type")) for one in form.get("anyOf", [form])}
    return kinds - {"null"}


def _wanted(form: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema takes.

    Examples
    --------
    >>> _wanted({"anyOf": [{"type": "integer"}, {"type": "null"}]})
    'a whole number'
    >>> _wanted({"type": "array", "items": {"type": "integer"}, "minItems": 3})
    'a list of 3 whole numbers'
    """
    words = {
        "integer": "a whole number",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "object": "a mapping of names",
    }
    said = []
    for one in form.get("anyOf", [form]):
        if one.get("type") == "array":
            item = re.sub(r"^an? ", "", _wanted(one.get("items", {})))
            said.append(f"a list of {one.get('minItems', '')} {item}s".replace("  ", " "))
        elif one.get("type") in words:
            said.append(words[one["type"]])
    if "a number" in said and "a whole number" in said:
        said.remove("a whole number")
    return " or ".join(dict.fromkeys(said)) or "a value"
