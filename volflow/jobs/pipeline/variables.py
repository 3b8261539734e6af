"""The variables of a pipeline: their values, and texts with ``${name}`` in them filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from volflow.jobs.pipeline.document import Fields, Items, Mistakes, Scalar
from volflow.option import nearest

__all__ = ["filled", "values_of"]

# $${name} stands for the text ${name} itself.
_USE = re.compile(r"(?<!\$)\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_]\w*")


def values_of(
    declared: Fields, given: Mapping[str, Any], reserved: frozenset[str], mistakes: Mistakes
) -> dict[str, Any]:
    """Return the value of each variable: the one given, else its default, filled in.

    Parameters
    ----------
    declared
        The file's ``variables:``, by name; an empty one has no default and must be given.
    given
        Nodes by name.
    reserved
        Names that mean something else to `run`.
    mistakes
        Where unknown, missing and circular ones are noted.
    """
    known = dict(declared.values)
    for name, line in declared.lines.items():
        if name in reserved or not _NAME.fullmatch(name):
            why = f"is an option of run ({', '.join(sorted(reserved))})"
            mistakes.add(
                line,
                f"a variable cannot be called {name!r}, which"
                f" {why if name in reserved else 'is no word'}; choose another name",
            )
    for name in given.keys() - known.keys():
        mistakes.add(declared.line, f"there is no variable {name!r}; {nearest(name, [*known])}")
    for name, default in known.items():
        if name not in given and isinstance(default, Scalar) and default == _empty(default):
            mistakes.add(
                declared.line_of(name), f"variable {name!r} has no value; give it: --set {name}=…"
            )
            known[name] = Scalar(f"$${{{name}}}")  # what uses it cannot be checked
    known |= {name: value for name, value in given.items() if name in known}
    values: dict[str, Any] = {}

    def value(name: str, path: tuple[str, ...]) -> Any:
        if name in path:
            circle = " → ".join((*path[path.index(name) :], name))
            mistakes.add(declared.line_of(name), f"variables use each other in a circle: {circle}")
            return Scalar(f"${{{name}}}")
        if name not in values:
            needed = {use: value(use, (*path, name)) for use in _uses(known[name]) if use in known}
            values[name] = filled(known[name], needed, mistakes, [*known])
        return values[name]

    return {name: value(name, ()) for name in known}


def filled(
    node: Any, values: Mapping[str, Any], mistakes: Mistakes, known: list[str] | None = None
) -> Any:
    """Return a node with the variables in its texts replaced by their values.

    A text that is one variable and nothing else becomes its value, of any type. Within a text,
    variables are texts; what is bare gets its type afterwards, by what it looks like then.

    Examples
    --------
    >>> values = {"folder": Scalar("007"), "patch": Items((Scalar("96"),))}
    >>> filled(Scalar("${folder}/scan.zarr"), values, Mistakes("a.yaml")).text
    '007/scan.zarr'
    >>> filled(Scalar("${patch}"), values, Mistakes("a.yaml")).items[0].text
    '96'
    """
    names = [*values] if known is None else known
    if isinstance(node, Fields):
        inside = {name: filled(one, values, mistakes, names) for name, one in node.values.items()}
        return replace(node, values=inside)
    if isinstance(node, Items):
        return replace(
            node, items=tuple(filled(one, values, mistakes, names) for one in node.items)
        )

    for name in _uses(node):
        if name not in names:
            mistakes.add(node.line, f"there is no variable {name!r}; {nearest(name, names)}")
    alone = _USE.fullmatch(node.text)
    if alone and alone[1] in values:
        found = values[alone[1]]
        return replace(found, line=node.line) if isinstance(found, Scalar) else found

    def text(match: re.Match[str]) -> str:
        found = values.get(match[1], Scalar(match[0]))
        if isinstance(found, Scalar):
            return found.text
        mistakes.add(
            node.line, f"variable {match[1]!r} is a list or a mapping, and no part of a text"
        )
        return ""

    return replace(node, text=_USE.sub(text, node.text).replace("$${", "${"))


def _empty(node: Scalar) -> Scalar:
    return replace(node, text="", bare=True)


def _uses(node: Any) -> list[str]:
    if isinstance(node, Fields):
        return [name for one in node.values.values() for name in _uses(one)]
    if isinstance(node, Items):
        return [name for one in node.items for name in _uses(one)]
    return _USE.findall(node.text)
