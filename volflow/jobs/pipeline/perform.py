"""One step, performed or planned: its function called with its settings and with what all share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from volflow.errors import (
    Damaged,
    InvalidInput,
    Locked,
    MemoryRefused,
    NoExactRule,
    RunFailed,
    VolflowError,
    first_line,
)
from volflow.jobs.pipeline.functions import called, hints_of
from volflow.jobs.pipeline.pipeline_file import PipelineStep
from volflow.store.verify import Coverage, verify
from volflow.store.volume import Volume, open_volume

__all__ = ["perform", "plan_step", "repair_outputs"]

# What another beginning would not change.
_FINAL = (Locked, MemoryRefused, NoExactRule)


def perform(step: PipelineStep, shared: Mapping[str, Any], *, overwrite: bool) -> None:
    """Run a step.

    Parameters
    ----------
    step
        Checked.
    shared
        Cluster, memory and progress, for a step that takes them and does not set its own.
    overwrite
        Whether an output that holds something else is replaced.

    Raises
    ------
    VolflowError
        As its function raises, with file, line and name of the step before it; another error of a
        user's function is a `RunFailed`.
    """
    try:
        result = _call(step, step.operation.call, shared, overwrite)
    except VolflowError as error:
        raise type(error)(f"{step.place}: step {step.name}: {error}") from error
    except (OSError, MemoryError):
        raise  # whose lines and exit codes the command knows
    except Exception as error:
        if not step.operation.own:
            raise
        raise RunFailed(
            f"{step.place}: step {step.name}: {step.does} raised {type(error).__name__}:"
            f" {first_line(error)}"
        ) from error
    if isinstance(result, Coverage) and not result.ok:
        kind = Damaged if result.damaged else RunFailed
        raise kind(f"{step.place}: step {step.name}: {result}")


def plan_step(step: PipelineStep, shared: Mapping[str, Any], *, overwrite: bool) -> Any:
    """Return the plan of a step whose inputs are there; None for an operation without plans."""
    if not step.operation.plan:
        return None
    try:
        return _call(step, step.operation.plan, shared, overwrite)
    except VolflowError as error:
        raise type(error)(f"{step.place}: step {step.name}: {error}") from error


def repair_outputs(step: PipelineStep) -> None:
    """Have the blocks of a step's volumes that were changed since computed anew when it runs.

    A file that was exported is left to its operation, which refuses one that was changed.
    """
    volume = (step.settings["volume"],) if step.does == "pyramid" else ()
    for path in (*step.outputs, *volume):
        with suppress(InvalidInput):  # no journal: its operation says what to do
            verify(path)


def _call(step: PipelineStep, name: str, shared: Mapping[str, Any], overwrite: bool) -> Any:
    """Call a function of a step; what is there already is gone on with, before it is replaced.

    So a step that may overwrite, and was interrupted, does not begin again at each attempt.
    """
    function = called(name)
    settings = {key: value for key, value in step.settings.items() if key != "overwrite"}
    wanted = overwrite or step.settings.get("overwrite", False)
    takes = "overwrite" in step.operation.settings
    try:
        return _handed_over(step, function, settings, shared)
    except _FINAL:
        raise
    except InvalidInput:
        if not (wanted and takes):
            raise
    return _handed_over(step, function, {**settings, "overwrite": True}, shared)


def _handed_over(
    step: PipelineStep,
    function: Callable[..., Any],
    settings: Mapping[str, Any],
    shared: Mapping[str, Any],
) -> Any:
    stores, own = step.operation.stores, step.operation.own
    parameters = inspect.signature(function).parameters
    given = {key: value for key, value in settings.items() if key not in stores}
    shows_progress = own or "cluster" in parameters
    given |= {
        key: value
        for key, value in shared.items()
        if key in parameters and key not in given and (key != "progress" or shows_progress)
    }
    result = function(**(_opened(function, given) if own else given))
    keep = {key: value for key, value in settings.items() if key in stores}
    if "out" not in keep:
        return result
    if result is None:
        raise InvalidInput(f"{step.does} has no parameter out, and returns no array to store there")
    from volflow.volumes.write import write

    return write(result, **{**shared, **keep})


def _opened(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a user's function; what it declares as a Volume is opened."""
    hints = hints_of(function)
    return {
        key: open_volume(value) if hints.get(key) is Volume and isinstance(value, str) else value
        for key, value in given.items()
    }
