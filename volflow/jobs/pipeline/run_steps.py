"""The steps of a pipeline, run or planned in their order; what is unchanged is skipped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from distributed import Client

from volflow.engine.cluster import connect
from volflow.engine.plan import Plan
from volflow.engine.progress import announce
from volflow.engine.run_options import RunOptions
from volflow.errors import RunFailed, first_line
from volflow.jobs.pipeline.perform import perform, plan_step, repair_outputs
from volflow.jobs.pipeline.pipeline_file import PipelineFile, PipelineStep
from volflow.jobs.pipeline.run_record import RunRecord
from volflow.jobs.pipeline.step_state import (
    ABSENT,
    CHANGED,
    StepState,
    outputs_of,
    reason_to_run,
    state_of_step,
    versions,
)
from volflow.option import from_keywords

__all__ = ["PipelinePlan", "PipelineRun", "SharedClient", "StepResult", "plan_steps", "run_steps"]


@dataclass(frozen=True)
class StepResult:
    """What became of a step, or would.

    Parameters
    ----------
    name, operation
        As in the file.
    outcome
        ``"done"`` or ``"skipped"``; of a plan, ``"runs"`` or ``"skipped"``.
    why
        Why it runs; "" where it is skipped, as nothing has changed.
    seconds
        It took.
    plan
        The plan of its operation, where that has one and its inputs are there.
    """

    name: str
    operation: str
    outcome: str
    why: str = ""
    seconds: float = 0.0
    plan: Plan | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        facts = {key: value for key, value in vars(self).items() if key != "plan"}
        return facts if self.plan is None else {**facts, "plan": self.plan.to_dict()}


@dataclass(frozen=True)
class PipelineRun:
    """A pipeline that has run, or, as a `PipelinePlan`, would.

    Parameters
    ----------
    pipeline, record
        The file, and the record of its runs.
    steps
        What became of each, in their order.
    """

    pipeline: str
    record: str
    steps: tuple[StepResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for machines."""
        return {**asdict(self), "steps": [one.to_dict() for one in self.steps]}

    def describe(self) -> str:
        """Return it as lines for people, one for each step."""
        width = max(len(one.name) for one in self.steps)
        lines = [f"{self.pipeline}, recorded in {self.record}"]
        for one in self.steps:
            took = f" in {one.seconds:.1f} s" if one.seconds else ""
            why = f": {one.why}" if one.why else ": unchanged"
            lines.append(f"  {one.name:<{width}}  {one.operation} {one.outcome}{took}{why}")
            if one.plan is not None:
                lines += [f"    {line}" for line in one.plan.describe().splitlines()]
        return "\n".join(lines)


class PipelinePlan(PipelineRun):
    """What a run of a pipeline would do."""


@dataclass
class SharedClient:
    """The one client of a run, made when the first step needs it; the stack closes it."""

    stack: ExitStack
    client: Client | None = None

    def serve(self, shared: Mapping[str, Any]) -> dict[str, Any]:
        """Return what all steps share, with the client in place of the cluster's name."""
        if self.client is None:
            asked = from_keywords(RunOptions, shared)
            self.client = self.stack.enter_context(connect(asked.cluster, **asked.connection))
        return {**shared, "cluster": self.client}


def run_steps(
    file: PipelineFile, shared: Mapping[str, Any], client: SharedClient, *, overwrite: bool
) -> PipelineRun:
    """Run the steps that are not as they were, under the lock of the record.

    Parameters
    ----------
    file
        Checked.
    shared
        Cluster, memory and progress, for all steps that take them.
    client
        Made where a step runs.
    overwrite
        Whether outputs that hold something else are replaced.
    """
    record, results, progress = RunRecord(file.record), [], shared.get("progress")
    with record.lock():
        record.begin_run(file.path, versions())
        for number, step in enumerate(file.steps, 1):
            state = state_of_step(step)
            why = reason_to_run(step, state, record.last_done(step.name))
            title = f"{file.path}: step {number} of {len(file.steps)}, {step.name}"
            if not why:
                announce(f"{title}: unchanged, skipped", progress)
                record.add("end", step=step.name, outcome="skipped", fingerprint=state.fingerprint)
                results.append(StepResult(step.name, step.does, "skipped"))
                continue
            announce(f"{title}: {step.does} runs; {why}", progress)
            served = shared if "cluster" in step.settings else client.serve(shared)
            seconds = _recorded(step, state, why, record, served, overwrite)
            results.append(StepResult(step.name, step.does, "done", why, seconds))
    return PipelineRun(file.path, str(file.record), tuple(results))


def plan_steps(
    file: PipelineFile, shared: Mapping[str, Any] | None, *, overwrite: bool = False
) -> PipelinePlan:
    """Return what `run_steps` would do, with plans of operations unless ``shared`` is None."""
    steps = tuple(_planned(file, RunRecord(file.record), shared, overwrite))
    return PipelinePlan(file.path, str(file.record), steps)


def _planned(
    file: PipelineFile, record: RunRecord, shared: Mapping[str, Any] | None, overwrite: bool
) -> Iterator[StepResult]:
    made: dict[str, str] = {}  # outputs by the step that would write them before this one
    for step in file.steps:
        state = state_of_step(step)
        why = reason_to_run(step, state, record.last_done(step.name))
        waits = next((path for path in step.inputs if path in made), None)
        if not why and waits is not None:
            why = f"step {made[waits]} writes {waits}"
        if not why:
            yield StepResult(step.name, step.does, "skipped")
            continue
        plan = None
        if why.startswith(CHANGED) and _would_be_refused(step, overwrite):
            why += "; what is there is replaced only with overwrite=True (--overwrite)"
        if shared is not None and ABSENT not in state.parts["inputs"].values():
            plan = plan_step(step, shared, overwrite=overwrite)
        made |= dict.fromkeys(step.outputs, step.name)
        yield StepResult(step.name, step.does, "runs", why, plan=plan)


def _would_be_refused(step: PipelineStep, overwrite: bool) -> bool:
    """Return True where a step whose settings or inputs have changed finds a result of others."""
    may = overwrite or step.settings.get("overwrite", False)
    there = any(state != ABSENT for state in outputs_of(step).values())
    return there and not may and "overwrite" in step.operation.settings


def _recorded(
    step: PipelineStep,
    state: StepState,
    why: str,
    record: RunRecord,
    shared: Mapping[str, Any],
    overwrite: bool,
) -> float:
    """Run a step, with its beginning and its end in the record; return the seconds it took."""
    before, began_s = record.last_done(step.name), time.monotonic()
    facts: dict[str, Any] = {"step": step.name, "fingerprint": state.fingerprint}
    if before is not None and before.get("fingerprint") == state.fingerprint:
        repair_outputs(step)
    settings = dict(step.settings)
    record.add("begin", **facts, operation=step.operation.call, settings=settings, why=why)
    try:
        perform(step, shared, overwrite=overwrite)
        outputs = outputs_of(step)
        missing = [path for path in step.outputs if outputs[path] == ABSENT]
        if missing:
            raise RunFailed(f"{step.place}: step {step.name}: it ended, and wrote no {missing[0]}")
    except BaseException as error:
        outcome = "failed" if isinstance(error, Exception) else "stopped"
        seconds, code = time.monotonic() - began_s, getattr(error, "exit_code", 1)
        facts |= {"outcome": outcome, "seconds": round(seconds, 3)}
        record.add("end", **facts, error=first_line(error), exit_code=code)
        raise
    seconds = round(time.monotonic() - began_s, 3)
    facts |= {"outcome": "done", "seconds": seconds}
    record.add("end", **facts, outputs=outputs, parts=state.parts)
    return seconds
