"""What the result of a step depends on, and the state of what it wrote: why it is to run, or not.

Inputs are identified as journals identify them: a volume by names, sizes and times of its files, a
file by size, time and first bytes, what lies on an object store by keys, sizes and ETags. A step
that reads what cannot be identified, such as behind plain HTTP, is never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from volflow import __version__
from volflow.errors import InvalidInput
from volflow.jobs.pipeline.functions import FUNCTION
from volflow.jobs.pipeline.operations import WHERE
from volflow.jobs.pipeline.pipeline_file import PipelineStep
from volflow.model.imports import code_of, search_here
from volflow.store.atomic import differences, plain, read_json
from volflow.store.formats.sources import open_source, split_part
from volflow.store.opening import is_url, is_zarr
from volflow.store.slabs import file_identity
from volflow.store.volume import open_volume
from volflow.volumes.arrays.leaves import hash_of

__all__ = ["StepState", "outputs_of", "reason_to_run", "state_of_step", "versions"]

ABSENT = "absent"
CHANGED = "changed: "


@dataclass(frozen=True)
class StepState:
    """What the result of a step depends on.

    Parameters
    ----------
    parts
        Operation, settings, inputs and code, as JSON has them.
    unknown
        What of it cannot be identified, for people; empty where everything can.
    """

    parts: Mapping[str, Any] = field(default_factory=dict)
    unknown: str = ""

    @property
    def fingerprint(self) -> str:
        """Return a hash of all that the result depends on."""
        return hash_of(sorted(plain(self.parts).items()))


def state_of_step(step: PipelineStep) -> StepState:
    """Return the state of a step now; no voxel is read."""
    inputs: dict[str, str] = {}
    unknown = ""
    for path in step.inputs:
        inputs[path] = _identity(path)
        if not inputs[path]:
            unknown = unknown or f"{path} cannot be identified"
    if step.operation.own and not step.outputs:
        unknown = unknown or "what it writes is not known, as it has no setting out"
    settings = {name: value for name, value in step.settings.items() if name not in WHERE}
    parts = {
        "operation": step.operation.call,
        "settings": plain(settings),
        "inputs": inputs,
        "code": _code_of_step(step),
    }
    return StepState(parts, unknown)


def outputs_of(step: PipelineStep) -> dict[str, str]:
    """Return the state of each output of a step, by path: a hash that changes when it does."""
    found = {path: _identity(path) for path in step.outputs}
    if step.does == "pyramid" or step.settings.get("levels") is True:
        volume = str(step.settings["volume" if step.does == "pyramid" else "out"])
        found[f"levels of {volume}"] = _levels(volume)
    return found


def reason_to_run(step: PipelineStep, state: StepState, before: Mapping[str, Any] | None) -> str:
    """Return why a step is to run; "" where nothing has changed since it ended.

    Parameters
    ----------
    step, state
        The step, and what its result depends on now.
    before
        The line of the record that says how it ended last; None where it never did.
    """
    if before is None:
        return "it has not run to its end yet"
    if state.unknown:
        return state.unknown
    old, new = before.get("parts"), plain(state.parts)
    if not isinstance(old, dict) or before.get("fingerprint") != state.fingerprint:
        changes = differences(old if isinstance(old, dict) else {}, new)
        shown = "; ".join(changes[:3]) or "its record is damaged"
        return f"{CHANGED}{shown}" + (f"; and {len(changes) - 3} more" if changes[3:] else "")
    written = before.get("outputs")
    for path, now in outputs_of(step).items():
        if not now:
            return f"{path} cannot be identified"
        if not isinstance(written, dict) or written.get(path) != now:
            return f"{path} is {'missing' if now == ABSENT else 'not as it was written'}"
    return ""


def versions(step: PipelineStep | None = None) -> dict[str, str]:
    """Return the versions of what computes: of volflow, and of the packages that a step needs."""
    names = ["numpy", "zarr", "dask"] if step is None else []
    if step is None or step.does == "predict":
        names.append("torch")
    return {"volflow": __version__, **{name: metadata.version(name) for name in names}}


def _code_of_step(step: PipelineStep) -> dict[str, Any]:
    modules = [step.operation.call] if step.operation.own else []
    if "model" in step.operation.reads and "model" in step.settings:
        modules += [name for name in (_network(str(step.settings["model"])),) if name]
    search_here()
    code = code_of([name.partition(":")[0] for name in modules])
    return {**versions(step), **code.packages, **code.modules}


def _network(model: str) -> str:
    """Return the import path of a model's network; "" where volflow makes it itself."""
    if not Path(model).exists():
        return model if re.fullmatch(FUNCTION, model) else ""
    try:
        made = str(read_json(Path(model) / "bundle.json").get("architecture"))
    except (OSError, ValueError, AttributeError):  # no bundle, which its operation says
        return ""
    return made if re.fullmatch(FUNCTION, made) else ""


def _identity(path: str) -> str:
    """Return a hash of what lies at a path; "" of what cannot be identified."""
    if is_url(path):
        return _of_url(path)
    place, part = split_part(path)
    if place.is_file() or part:
        with suppress(InvalidInput):  # its voxels may lie in another file
            return open_source(path).identity()
    if place.is_file():
        return file_identity(str(place))
    if not place.is_dir():
        return ABSENT
    if not is_zarr(place):
        return _of_folder(place)
    try:
        return open_volume(place).identity()
    except InvalidInput:  # a group of several, such as a model's outputs by name
        inner = sorted(one for one in place.iterdir() if one.is_dir() and is_zarr(one))
        return hash_of(*((one.name, _identity(str(one))) for one in inner)) if inner else ABSENT


def _of_url(url: str) -> str:
    try:
        volume = open_volume(url)
    except InvalidInput:  # not there, or not reached, which its operation says
        return ""
    return "" if volume.unidentified else volume.identity()


def _of_folder(folder: Path) -> str:
    files = sorted(one for one in folder.rglob("*") if one.is_file())
    return hash_of(*((one.relative_to(folder), file_identity(str(one))) for one in files))


def _levels(volume: str) -> str:
    """Return a hash of a volume's coarser levels."""
    try:
        finest = open_volume(volume)
        coarser = [open_volume(volume, level=n) for n in range(1, len(finest.levels))]
        return hash_of(*(one.identity() for one in coarser)) if coarser else ABSENT
    except InvalidInput:
        return ABSENT
