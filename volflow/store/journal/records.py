"""The records in the files of a journal, validated when they are read."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from volflow.geometry.grid import MOST_BLOCKS
from volflow.store.atomic import differences
from volflow.store.layout import ShardEntry

__all__ = [
    "FORMAT",
    "Record",
    "as_entries",
    "as_record",
    "change_between",
    "process_name",
    "run_named",
    "typed",
]

FORMAT = 1
T = TypeVar("T")
MOST_LINES = 4  # listed in a refusal


@dataclass(frozen=True)
class Record:
    """The identity of a run, compared when it is resumed.

    Parameters
    ----------
    operation
        Name of the operation, such as "predict".
    fingerprint
        Everything that the result depends on, by name: input, weights, code, settings, version.
    settings
        Settings that a resumed run adopts from the first: "grid" (blocks per axis), batch, threads.
    """

    operation: str
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def process_name() -> str:
    """Return the name of this process in records: its host and its number."""
    return f"{socket.gethostname()}:{os.getpid()}"


def change_between(before: Record, given: Record) -> str:
    """Return why a run cannot be resumed, with a remedy; empty if it can.

    Examples
    --------
    >>> change_between(Record("predict", {"mask": None}), Record("predict", {"mask": "1a2b"}))
    'with different inputs or settings: mask: null → 1a2b; use those again'
    """
    old, new = (record.fingerprint.get("version") for record in (before, given))
    if before.operation == given.operation and None not in (old, new) and old != new:
        return (
            f"by a volflow whose {given.operation} gives other values (version {old}, now"
            f" version {new}); finish it with that volflow"
        )
    old_parts, new_parts = asdict(before), asdict(given)
    if old_parts["fingerprint"] != new_parts["fingerprint"]:  # from which the settings follow
        old_parts["settings"] = new_parts["settings"] = {}
    lines = [line.removeprefix("fingerprint.") for line in differences(old_parts, new_parts)]
    more = f"; and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    changes = "; ".join(lines[:MOST_LINES]) + more
    return f"with different inputs or settings: {changes}; use those again" if lines else ""


def as_record(saved: Any) -> Record:
    """Return the record of a plan file, validated.

    Raises
    ------
    ValueError
        If it is invalid, naming the fault.

    Examples
    --------
    >>> as_record({"format": 1, "operation": "convert", "fingerprint": {}, "settings": {}})
    Record(operation='convert', fingerprint={}, settings={})
    """
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        found = saved.get("format") if isinstance(saved, dict) else type(saved).__name__
        raise ValueError(f"its format is {found!r:.40}, expected {FORMAT}")
    names = ("operation", "fingerprint", "settings")
    operation, fingerprint, settings = (saved.get(name) for name in names)
    if not (isinstance(fingerprint, dict) and isinstance(settings, dict)):
        raise ValueError("parts of it are missing")
    if not isinstance(operation, str):
        raise ValueError(f"its operation is {operation!r:.40}, expected a name")
    grid = settings.get("grid", [1])
    if not isinstance(grid, list) or not grid or any(type(n) is not int or n < 1 for n in grid):
        raise ValueError(f"its grid is {grid!r:.40}, expected blocks per axis")
    if math.prod(grid) > MOST_BLOCKS:
        raise ValueError(f"its grid {grid!r:.80} has more than {MOST_BLOCKS} blocks")
    return Record(operation, fingerprint, settings)


def typed(kind: type[T], saved: Any) -> T:
    """Return a dataclass made from its JSON value: lists become tuples, dicts dataclasses.

    Raises
    ------
    ValueError
        If the value does not fit the dataclass, naming the field.

    Examples
    --------
    >>> typed(ShardEntry, {"array": "0", "start": [0], "stop": ["a"], "crc32c": 1})
    Traceback (most recent call last):
    ValueError: stop.0 is 'a': Input should be a valid integer, unable to parse string as an integer
    """
    try:
        return TypeAdapter(kind).validate_python(saved)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{where} is {first['input']!r:.40}: {first['msg']}") from error


def run_named(saved: Any) -> str:
    """Return the name of the run of a plan file; empty in those of earlier versions.

    Raises
    ------
    ValueError
        As `as_record`.
    """
    as_record(saved)
    return str(saved.get("run", ""))


def as_entries(saved: Any) -> tuple[tuple[ShardEntry, ...], dict[str, float]]:
    """Return the entries of the shards that a block wrote, and its seconds by stage.

    Raises
    ------
    ValueError
        If the value is not what `Journal.mark` writes.
    """
    try:
        entries = tuple(_shard_entry(entry) for entry in saved["entries"])
        return entries, {str(name): float(s) for name, s in saved["stages"].items()}
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _shard_entry(saved: Mapping[str, Any]) -> ShardEntry:
    start, stop = (tuple(int(v) for v in saved[name]) for name in ("start", "stop"))
    return ShardEntry(str(saved["array"]), start, stop, int(saved["crc32c"]))
