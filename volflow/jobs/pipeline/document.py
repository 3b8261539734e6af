"""YAML with the line of everything in it; text alone is read, and nothing is constructed.

Scalars mean what they mean in YAML 1.2 and JSON, as editors show them: ``on`` is a text, ``1e-3`` a
number. What a file says is three kinds of nodes, so that a mistake can name its line, and a text
with variables in it gets its type after they are filled in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from volflow.errors import InvalidInput, InvalidPipeline

__all__ = [
    "Fields",
    "Items",
    "Mistakes",
    "Scalar",
    "node_of",
    "of_case",
    "parse_document",
    "plain_of",
]

MOST_BYTES = 2**20
MOST_NODES = 20_000  # aliases of aliases multiply without end
DEEPEST = 32
_CASE = re.compile(r"(?<!\$)\{case\}")
_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?")


@dataclass(frozen=True)
class Scalar:
    """One value: its text, and whether it stood there without quotes."""

    text: str
    line: int = 0
    bare: bool = True


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple[Any, ...]
    line: int = 0


@dataclass(frozen=True)
class Fields:
    """A mapping of names to values; ``lines`` says where each name stands."""

    values: Mapping[str, Any]
    line: int = 0
    lines: Mapping[str, int] = field(default_factory=dict)

    def line_of(self, name: str) -> int:
        """Return the line of a name, or of the mapping where it has none."""
        return self.lines.get(name, self.line)


@dataclass
class Mistakes:
    """What is wrong with a file: collected, so that all of it is said at once."""

    file: str
    found: list[tuple[int, str]] = field(default_factory=list)

    def add(self, line: int, text: str) -> None:
        """Note a mistake; line 0 is that of none."""
        if (line, text) not in self.found:
            self.found.append((line, text))

    def require_none(self) -> None:
        """Refuse the file where anything is wrong with it, one line for each mistake."""
        if self.found:
            lines = sorted(self.found, key=lambda one: one[0])
            raise InvalidPipeline("\n".join(self.place(n, text) for n, text in lines))

    def place(self, line: int, text: str) -> str:
        """Return a text with the file and the line before it."""
        return f"{self.file}:{line}: {text}" if line else f"{self.file}: {text}"


def parse_document(path: str | os.PathLike[str], mistakes: Mistakes) -> Fields:
    """Return what a YAML file says.

    Raises
    ------
    InvalidInput
        Where there is no such file, or it is no YAML.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise InvalidInput(f"{file} has more than {MOST_BYTES} bytes, and is no pipeline")
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InvalidInput(f"{file} does not exist; check the path of the pipeline") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InvalidInput(f"{file} cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{file} is no text in UTF-8, and so no YAML") from error
    found = _parse(text, mistakes)
    mistakes.require_none()
    if not isinstance(found, Fields):
        mistakes.add(1, "a pipeline is a mapping with steps: in it; see volflow run --help")
        mistakes.require_none()
    assert isinstance(found, Fields)
    return found


def _parse(text: str, mistakes: Mistakes) -> Any:
    try:
        # The loader that knows no types and calls no constructor.
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = error.problem or "it cannot be read"
        mistakes.add(mark.line + 1 if mark else 0, f"this is no YAML: {problem}")
        return None
    except (yaml.YAMLError, RecursionError) as error:
        mistakes.add(0, f"this is no YAML: {str(error).splitlines()[0]}")
        return None
    budget = [MOST_NODES]
    return None if node is None else _node(node, mistakes, budget, 0)


def _node(node: Any, mistakes: Mistakes, budget: list[int], depth: int) -> Any:
    line = node.start_mark.line + 1
    budget[0] -= 1
    if budget[0] < 0 or depth > DEEPEST:
        mistakes.add(0, f"it nests more than {DEEPEST} deep, or has more than {MOST_NODES} values")
        return Scalar("", line)
    if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rpartition(":")[2] not in (
        "str", "map", "seq",
    ):  # fmt: skip
        mistakes.add(line, f"tags such as {node.tag!r} are not taken; write the value alone")
    if isinstance(node, yaml.ScalarNode):
        return Scalar(node.value, line, node.style is None)
    if isinstance(node, yaml.SequenceNode):
        return Items(tuple(_node(one, mistakes, budget, depth + 1) for one in node.value), line)
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        at = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
            mistakes.add(at, "a name must be a plain text")
            continue
        if key.value in values:
            mistakes.add(at, f"{key.value!r} is given twice, first in line {lines[key.value]}")
        values[key.value], lines[key.value] = _node(value, mistakes, budget, depth + 1), at
    return Fields(values, line, lines)


def plain_of(node: Any) -> Any:
    """Return a node as plain values: a bare scalar by what it looks like, a quoted one as text.

    Examples
    --------
    >>> [plain_of(Scalar(text)) for text in ("96", "1e-3", "true", "", "a.zarr", "007")]
    [96, 0.001, True, None, 'a.zarr', 7]
    >>> plain_of(Scalar("96", bare=False))
    '96'
    """
    if isinstance(node, Fields):
        return {name: plain_of(value) for name, value in node.values.items()}
    if isinstance(node, Items):
        return [plain_of(one) for one in node.items]
    text = node.text
    if not node.bare:
        return text
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def node_of(value: Any, line: int = 0) -> Any:
    """Return the node of a value of Python, such as one handed to `vf.run`.

    Raises
    ------
    InvalidInput
        Where a pipeline cannot hold it.

    Examples
    --------
    >>> plain_of(node_of({"patch": (96, 96, 48), "input": Path("a.zarr")}))
    {'patch': [96, 96, 48], 'input': 'a.zarr'}
    """
    if isinstance(value, str | os.PathLike):
        return Scalar(os.fspath(value), line)
    if value is None or isinstance(value, bool | int | float):
        return Scalar(json.dumps(value), line)
    if isinstance(value, Mapping):
        fields = {str(name): node_of(one, line) for name, one in value.items()}
        return Fields(fields, line, dict.fromkeys(fields, line))
    if isinstance(value, Sequence):
        return Items(tuple(node_of(one, line) for one in value), line)
    raise InvalidInput(
        f"a pipeline takes texts, paths, numbers, lists and mappings, given {type(value).__name__}"
    )


def of_case(node: Any, case: str) -> Any:
    """Return a node with the name of a case in place of each ``{case}`` in its texts.

    Examples
    --------
    >>> of_case(Scalar("in/{case}.nii.gz"), "p01").text, of_case(Scalar("${case}"), "p01").text
    ('in/p01.nii.gz', '${case}')
    """
    if isinstance(node, Fields):
        return replace(node, values={key: of_case(one, case) for key, one in node.values.items()})
    if isinstance(node, Items):
        return replace(node, items=tuple(of_case(one, case) for one in node.items))
    return replace(node, text=_CASE.sub(lambda _: case, node.text))
