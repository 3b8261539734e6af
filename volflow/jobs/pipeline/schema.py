"""The JSON schema of pipeline files, by which editors complete and check them."""

from __future__ import annotations

from typing import Any

from volflow.jobs.pipeline.checked import form_of
from volflow.jobs.pipeline.functions import FUNCTION
from volflow.jobs.pipeline.operations import OPERATIONS, Operation
from volflow.jobs.pipeline.pipeline_file import EVERYWHERE, RECORD
from volflow.jobs.pipeline.setting import Setting

__all__ = ["pipeline_schema"]

_VARIABLE = {"type": "string", "pattern": r"\$\{"}


def pipeline_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a pipeline file.

    Examples
    --------
    >>> schema = pipeline_schema()
    >>> sorted(schema["$defs"])
    ['convert', 'evaluate', 'export', 'predict', 'preview', 'pyramid', 'resample', ...]
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A pipeline of volflow",
        "type": "object",
        "additionalProperties": False,
        "required": ["steps"],
        "properties": {
            "variables": {
                "description": "Names with defaults; empty ones are given: --set input=scan.nii.gz."
                " Used as ${name}.",
                "type": "object",
            },
            **{name: _property(setting) for name, setting in EVERYWHERE.items()},
            "record": _property(RECORD),
            "steps": {
                "description": "Run in this order; what is unchanged is skipped.",
                "type": "array",
                "minItems": 1,
                "items": {"$ref": "#/$defs/step"},
            },
        },
        "$defs": {
            "step": _step(),
            **{name: _operation(operation) for name, operation in OPERATIONS.items()},
        },
    }


def _step() -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["name"],
        "minProperties": 2,
        "maxProperties": 2,
        "properties": {
            "name": {"description": "Of the step, in records and messages.", "type": "string"},
            **{name: {"$ref": f"#/$defs/{name}"} for name in OPERATIONS},
        },
        "patternProperties": {
            FUNCTION: {
                "description": "A function of your own, with its parameters; an array that it"
                " returns is stored at out.",
                "type": ["object", "null"],
            }
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, one in operation.settings.items() if one.needed],
        "properties": {name: _property(one) for name, one in operation.settings.items()},
    }


def _property(setting: Setting) -> dict[str, Any]:
    """Return the schema of a setting: its type, a variable, or a text that is read."""
    form = form_of(setting)
    kinds = form.pop("anyOf", [form] if form else [])
    text: dict[str, Any] = _VARIABLE if setting.read is None else {"type": "string"}
    if kinds and not any(one.get("type") == "string" for one in kinds):
        kinds = [*kinds, text]
    return {"description": setting.help, **({"anyOf": kinds} if kinds else {})}
