"""A pipeline file, read and checked whole: its steps with their settings, in order."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from volflow.engine.run_options import OutputOptions, RunOptions
from volflow.errors import InvalidInput
from volflow.jobs.pipeline.checked import checked_settings, checked_value
from volflow.jobs.pipeline.document import (
    Fields,
    Items,
    Mistakes,
    Scalar,
    node_of,
    of_case,
    parse_document,
)
from volflow.jobs.pipeline.functions import FUNCTION, function_operation
from volflow.jobs.pipeline.operations import OPERATIONS, Operation
from volflow.jobs.pipeline.setting import Setting, settings_of
from volflow.jobs.pipeline.variables import filled, values_of
from volflow.option import nearest
from volflow.store.formats.sources import split_part
from volflow.store.opening import is_url

__all__ = ["CASE", "EVERYWHERE", "PipelineFile", "PipelineStep", "read_pipeline"]

# What may stand at the top of a file, for all steps that take it.
EVERYWHERE: Mapping[str, Setting] = {
    name: setting for name, setting in settings_of(RunOptions).items() if name != "progress"
}
CASE = "{case}"
RECORD = Setting(str, "Where the record of runs is kept. Default: beside the last output.")
_TOP = ("variables", *EVERYWHERE, "record", "steps")
# What `run` takes itself, and no variable may be called.
RESERVED = frozenset({one.name for one in fields(OutputOptions)} | {"pipeline", "case"})


@dataclass(frozen=True)
class PipelineStep:
    """A step, checked.

    Parameters
    ----------
    name, does
        Its own name, and the operation's.
    operation
        What that takes.
    settings
        As the file gives them, with variables filled in; the top of the file adds nothing to them.
    place
        File and line, for messages.
    """

    name: str
    does: str
    operation: Operation
    settings: Mapping[str, Any]
    place: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the paths that it writes."""
        named = (self.settings.get(name) for name in sorted(self.operation.writes))
        return tuple(path for path in named if isinstance(path, str))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return the paths, URLs and models that it reads, in the order of their settings."""
        found: list[str] = []
        for name, value in self.settings.items():
            if self.operation.own and name not in self.operation.writes:
                found += [one for one in _texts(value) if _is_there(one) or CASE in one]
            elif name in self.operation.reads or (
                name == "blend" and str(value).endswith(".npy")  # weights, where others are names
            ):
                found += _texts(value)
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class PipelineFile:
    """A pipeline, checked.

    Parameters
    ----------
    path
        The file.
    steps
        In their order.
    everywhere
        Settings from the top of the file, for all steps that take them.
    record
        Where the record of its runs is kept.
    """

    path: str
    steps: tuple[PipelineStep, ...]
    everywhere: Mapping[str, Any]
    record: Path

    @property
    def patterns(self) -> tuple[str, ...]:
        """Return the inputs with ``{case}`` in them, by which cases are found."""
        made: list[str] = []
        found: list[str] = []
        for step in self.steps:
            found += [path for path in step.inputs if CASE in path and path not in made]
            made += step.outputs
        return tuple(dict.fromkeys(found))


def read_pipeline(
    path: str | os.PathLike[str], given: Mapping[str, Any], case: str | None = None
) -> PipelineFile:
    """Read a pipeline and check all of it: nothing is run, nothing is written.

    Parameters
    ----------
    path
        The YAML file.
    given
        Values of variables, by name.
    case
        What ``{case}`` stands for in all texts; None leaves it there.

    Raises
    ------
    InvalidPipeline
        With all mistakes of the file, one a line.
    InvalidInput
        Where there is no such file.
    """
    mistakes = Mistakes(os.fspath(path))
    file = parse_document(path, mistakes)
    nodes = {name: node_of(value) for name, value in given.items()}
    if case is not None:
        file, nodes = of_case(file, case), {key: of_case(one, case) for key, one in nodes.items()}
    for name in file.values.keys() - {*_TOP}:
        mistakes.add(file.line_of(name), f"a pipeline has no {name!r}; {nearest(name, [*_TOP])}")
    declared = file.values.get("variables", Fields({}, 0))
    if not isinstance(declared, Fields):
        mistakes.add(file.line_of("variables"), "variables must be names with their defaults")
        declared = Fields({}, 0)
    values = values_of(declared, nodes, RESERVED, mistakes)
    everywhere = {
        name: checked_value(name, setting, filled(file.values[name], values, mistakes), mistakes)
        for name, setting in EVERYWHERE.items()
        if name in file.values
    }
    steps = _steps(file, values, mistakes)
    _check_names(steps, mistakes)
    _check_paths(steps, mistakes)
    record = file.values.get("record")
    if record is not None:
        record = checked_value("record", RECORD, filled(record, values, mistakes), mistakes)
    elif not any(step.outputs for _, step in steps):
        mistakes.add(1, "no step has an output that the record could lie beside; add record: PATH")
    mistakes.require_none()
    place = record or f"{[step.outputs for _, step in steps if step.outputs][-1][-1]}.run.jsonl"
    if is_url(place):
        raise InvalidInput(f"a record needs a local file, given {place}; set record: PATH")
    return PipelineFile(
        os.fspath(path), tuple(step for _, step in steps), everywhere, Path(place).absolute()
    )


def _steps(
    file: Fields, values: Mapping[str, Any], mistakes: Mistakes
) -> list[tuple[int, PipelineStep]]:
    listed = file.values.get("steps")
    if not isinstance(listed, Items) or not listed.items:
        mistakes.add(file.line_of("steps") or 1, "a pipeline needs steps: a list, - name: …")
        return []
    found = (_step(node, number, values, mistakes) for number, node in enumerate(listed.items, 1))
    return [one for one in found if one is not None]


def _step(
    node: Any, number: int, values: Mapping[str, Any], mistakes: Mistakes
) -> tuple[int, PipelineStep] | None:
    """Return a step and its line; None where it cannot be told what it does."""
    example = "write - name: scan, and below it an operation with its settings"
    if not isinstance(node, Fields):
        mistakes.add(node.line, f"step {number} is no mapping; {example}")
        return None
    name = node.values.get("name")
    if not isinstance(name, Scalar) or not name.text:
        mistakes.add(node.line, f"step {number} has no name; {example}")
    does = [key for key in node.values if key != "name"]
    if len(does) != 1:
        lot = f"{len(does)} operations ({', '.join(does)})" if does else "no operation"
        mistakes.add(node.line, f"step {number} has {lot}; {example}")
        return None
    line, operation = node.line_of(does[0]), _operation(does[0], node.line_of(does[0]), mistakes)
    given = filled(node.values[does[0]], values, mistakes)
    if given == Scalar("", getattr(given, "line", 0)):
        given = Fields({}, line)
    if operation is None:
        return None
    if not isinstance(given, Fields):
        mistakes.add(line, f"{does[0]} takes settings by name, such as out: a.zarr")
        return None
    settings = checked_settings(
        does[0], operation, Fields(given.values, line, given.lines), mistakes
    )
    title = name.text if isinstance(name, Scalar) else ""
    return line, PipelineStep(title, does[0], operation, settings, f"{mistakes.file}:{line}")


def _operation(name: str, line: int, mistakes: Mistakes) -> Operation | None:
    if name in OPERATIONS:
        return OPERATIONS[name]
    if re.fullmatch(FUNCTION, name):
        try:
            return function_operation(name)
        except InvalidInput as error:
            mistakes.add(line, str(error))
            return None
    remedy = nearest(name, [*OPERATIONS], "there are")
    mistakes.add(line, f"there is no operation {name!r}; {remedy}, or write module:function")
    return None


def _check_names(steps: list[tuple[int, PipelineStep]], mistakes: Mistakes) -> None:
    """Refuse two steps of one name, or with one output."""
    names: dict[str, int] = {}
    outputs: dict[Path, int] = {}
    for line, step in steps:
        if step.name and names.setdefault(step.name, line) != line:
            first = names[step.name]
            mistakes.add(line, f"two steps are named {step.name!r}, the first in line {first}")
        for out in step.outputs:
            if outputs.setdefault(Path(out).absolute(), line) != line:
                first = outputs[Path(out).absolute()]
                mistakes.add(line, f"{out} is written by the step in line {first}, too")


def _check_paths(steps: list[tuple[int, PipelineStep]], mistakes: Mistakes) -> None:
    """Refuse inputs that are not there and that no step before makes, and folders likewise."""
    made: list[Path] = []
    for line, step in steps:
        if step.operation.own and not step.outputs:
            return  # it may make anything
        for path in step.inputs:
            # A variable without a value is said already; cases are still to be found.
            missing = not ("${" in path or CASE in path or _is_there(path))
            from_step = any(Path(path).absolute().is_relative_to(one) for one in made)
            if missing and not from_step and not re.fullmatch(FUNCTION, path):
                mistakes.add(line, f"{path} does not exist, and no step before this one makes it")
        for out in step.outputs:
            folder, unknown = Path(out).parent, "${" in out or "://" in out or CASE in out
            inside = any(folder.absolute().is_relative_to(one) for one in made)
            if not (unknown or inside or folder.is_dir()):
                mistakes.add(line, f"the folder {folder} does not exist; make it first")
            made.append(Path(out).absolute())


def _is_there(path: str) -> bool:
    return is_url(path) or split_part(path)[0].exists()


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for one in value.values() for text in _texts(one)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return []
