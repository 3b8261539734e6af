"""Cases as they are given, each by its arrays; nothing is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from volflow.errors import InvalidInput
from volflow.geometry.outside import Padding
from volflow.sampling.cases.find_cases import find_cases, names_cases
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.cases.values import Text, Values, value_of
from volflow.volumes.normalizing import Normalize

__all__ = ["Draft", "drafts_of"]


@dataclass(frozen=True)
class Draft:
    """A case before its arrays are opened."""

    name: str | None
    arrays: Mapping[str, Any]
    classes: frozenset[str] | None = None  # known of a case that is open already
    values: Values = field(default_factory=dict)
    normalize: Mapping[str, Normalize] = field(default_factory=dict)  # as of the stream before,
    padding: Mapping[str, Padding] = field(default_factory=dict)  # and what lies outside there


def drafts_of(x: Any) -> list[Draft]:
    """Return what is given as cases, one by one; see `open_cases`."""
    if isinstance(x, Case):
        return [Draft(x.name, x.sources, x.classes, x.values, x.normalize, x.padding)]
    if isinstance(x, Mapping):
        return _drafts_of_mapping(x)
    if names_cases(x):
        return [_found(name, given) for name, given in find_cases(x).items()]
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [draft for one in x for draft in drafts_of(one)]
    return [Draft(None, {"image": x})]


def _found(name: str, given: Mapping[str, Any]) -> Draft:
    """Return a case that was found: paths, and the values of a table."""
    found = {k: value_of(one) for k, one in given.items() if isinstance(one, Text | int | float)}
    values = {key: one for key, one in found.items() if one is not None}
    arrays = {key: one for key, one in given.items() if key not in values}
    return Draft(name, arrays, values=values)


def _drafts_of_mapping(x: Mapping[str, Any]) -> list[Draft]:
    nested = [key for key, value in x.items() if isinstance(value, Mapping)]
    if nested and len(nested) == len(x):
        return [replace(draft, name=key) for key in x for draft in drafts_of(x[key])]
    if nested:
        raise InvalidInput(
            f"a mapping names either the arrays of one case or cases, given both:"
            f" {', '.join(map(str, x))}"
        )
    name = x.get("name")
    named = isinstance(name, str)
    given = {key: value for key, value in x.items() if not (named and key == "name")}
    found = {key: value_of(one) for key, one in given.items()}
    values = {key: value for key, value in found.items() if value is not None}
    arrays = {key: one for key, one in given.items() if key not in values}
    if not arrays:
        raise InvalidInput(
            'a case holds at least one array, given none; name one: {"image": …}'
            + (f"; {', '.join(map(str, values))} names no file" if values else "")
        )
    return [Draft(name if named else None, arrays, values=values)]
