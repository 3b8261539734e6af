"""Values of a case beside its arrays: an age, a site; numbers and texts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.store.opening import is_url

__all__ = ["Text", "Value", "Values", "alike", "check_values", "names_file", "value_of"]

Value = bool | int | float | str
Values = Mapping[str, Value]

LONGEST_NAME = 255  # of a file, in bytes
# What ends like the name of a file is one, also where it is mistyped: never a value in silence.
SUFFIX = re.compile(r"\.[A-Za-z]\w*$")


class Text(str):
    """A text of a table that is a value, whatever lies in a folder of that name."""

    __slots__ = ()


def names_file(text: str) -> bool:
    """Return whether a text holds a slash or ends like the name of a file, there or not.

    Examples
    --------
    >>> names_file("a/b"), names_file("scan.nii"), names_file("site A"), names_file("0.5")
    (True, True, False, False)
    """
    return bool("/" in text or "\\" in text or SUFFIX.search(text) or is_url(text))


def value_of(x: Any) -> Value | None:
    """Return a number or a text as Python's own; None for all that is to be opened as a volume.

    A text is a path where it names something, holds a slash, or ends like the name of a file.

    Examples
    --------
    >>> value_of("Basel"), value_of("scan.zarr"), value_of(45), value_of([1, 2])
    ('Basel', None, 45, None)
    """
    if isinstance(x, Text):
        return str(x)
    if isinstance(x, str):
        name = 0 < len(x.encode(errors="replace")) <= LONGEST_NAME
        return None if names_file(x) or (name and Path(x).exists()) else str(x)
    if getattr(x, "ndim", None) == 0 and hasattr(x, "item"):
        x = x.item()
    if isinstance(x, float):
        return float(x)
    return x if isinstance(x, int) else None


def check_values(first: str, expected: Values, name: str, values: Values) -> None:
    """Refuse values of a case that cannot share a batch with those of the first.

    Raises
    ------
    InvalidInput
        If they differ in names or kind, or a number is too large for a batch.
    """
    if set(values) != set(expected):
        raise InvalidInput(
            f'cases must hold the same values, but "{first}" holds {_listed(expected)} and'
            f' "{name}" {_listed(values)}; give each all of them, float("nan") for what is unknown'
        )
    for key, value in values.items():
        if isinstance(value, str) != isinstance(expected[key], str):
            raise InvalidInput(
                f"a value is a number or a text in all cases alike, but {key} is"
                f' {expected[key]!r} in "{first}" and {value!r} in "{name}"; give one kind'
            )
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidInput(
                f'whole numbers must lie within 64 bits, but {key} is {value} in "{name}"; give it'
                " as a text"
            )


def alike(values: Sequence[Values]) -> list[Values]:
    """Return the values of all cases in one type each, so that all batches are alike.

    Examples
    --------
    >>> alike([{"age": 45}, {"age": 61.5}])
    [{'age': 45.0}, {'age': 61.5}]
    """
    types = {key: _shared_type([one[key] for one in values]) for key in values[0]}
    return [{key: kind(one[key]) for key, kind in types.items()} for one in values]


def _shared_type(values: Sequence[Value]) -> type[Value]:
    kinds = {type(value) for value in values}
    return next(kind for kind in (str, float, int, bool) if kind in kinds)


def _listed(values: Values) -> str:
    return ", ".join(values) or "none"
