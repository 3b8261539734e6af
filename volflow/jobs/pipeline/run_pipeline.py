"""Run a pipeline file, on one set of inputs or on each of many cases."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from volflow.engine.cluster import Cluster
from volflow.engine.progress import Progress, announce
from volflow.engine.run_options import RunOptions
from volflow.errors import InvalidInput, ResumeRefused, StoreFull, first_line
from volflow.jobs.batch.batch_log import now
from volflow.jobs.batch.case_record import batch_dir
from volflow.jobs.batch.result_table import CaseRow, CaseTable
from volflow.jobs.pipeline.pipeline_file import CASE, PipelineFile, read_pipeline
from volflow.jobs.pipeline.run_steps import (
    PipelinePlan,
    PipelineRun,
    SharedClient,
    plan_steps,
    run_steps,
)
from volflow.option import from_keywords
from volflow.sampling.cases.find_cases import find_cases
from volflow.store.journal.journal import Journal

__all__ = ["Variable", "plan_run", "run"]

Variable = str | os.PathLike[str] | int | float | bool | Sequence[object] | Mapping[str, object]


def run(
    pipeline: str | os.PathLike[str],
    *,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Progress = None,
    **variables: Variable,
) -> PipelineRun | CaseTable:
    """Run the steps of a pipeline file, one after the other, but for those that are unchanged.

    All of the file is checked before anything runs. A step is skipped where its operation,
    settings, inputs and code are those of its last run, and its outputs are as that wrote them. A
    step that fails ends the run; the same call goes on from there. Each run is recorded in a file
    of JSON lines, whose lock refuses a second run at the same time.

    Where an input has ``{case}`` in it, such as ``input="in/{case}.nii.gz"``, the pipeline runs for
    each case that is found, and a case that fails stops no other.

    Parameters
    ----------
    pipeline
        A YAML file; ``volflow run --help`` shows one.
    cluster, workers, resources, wait, memory
        As in `predict`, for all steps that take them and set none of their own; by default what
        the top of the file says. One client serves the whole pipeline.
    overwrite
        Replace outputs that hold something else than their step would write: by default they are
        refused, naming what has changed.
    progress
        As in `predict`; False: no line of the pipeline either.
    **variables
        Values of the file's variables.

    Returns
    -------
    PipelineRun
        What became of each step; of cases a `CaseTable`, with a row for each.

    Raises
    ------
    InvalidPipeline
        Before any work, with all mistakes of the file, one a line.
    Locked
        Where another run of the same pipeline is at work.
    VolflowError
        As the operation of a step raises, with file, line and name of the step.

    Examples
    --------
    >>> from pathlib import Path
    >>> import numpy as np
    >>> np.save("scan.npy", np.ones((8, 8, 8), "uint8"))
    >>> text = "steps: [{name: scan, convert: {source: scan.npy, out: scan.zarr}}]"
    >>> _ = Path("scan.yaml").write_text(text)
    >>> [print(run("scan.yaml", progress=False).describe()) for _ in range(2)]
    scan.yaml, recorded in ...scan.zarr.run.jsonl
      scan  convert done in ... s: it has not run to its end yet
    scan.yaml, recorded in ...scan.zarr.run.jsonl
      scan  convert skipped: unchanged
    [None, None]
    """
    asked = from_keywords(RunOptions, locals())
    file = read_pipeline(pipeline, variables)
    shared = _shared(file, asked)
    with ExitStack() as stack:
        client = SharedClient(stack)
        if not file.patterns:
            return run_steps(file, shared, client, overwrite=overwrite)
        _check_apart(file)
        stack.enter_context(Journal(batch_dir(str(file.record))).lock())
        began_s, rows = time.monotonic(), []
        for case, one in _cases(file, variables):
            rows.append(_run_case(case, one, shared, client, overwrite))
            said = f"{rows[-1].status} {rows[-1].reason}".strip()
            announce(f"{file.path}: case {case}: {said}", progress)
        return CaseTable(tuple(rows), round(time.monotonic() - began_s, 3))


def plan_run(
    pipeline: str | os.PathLike[str],
    *,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Progress = None,
    **variables: Variable,
) -> PipelinePlan | CaseTable:
    """Return what `run` would do, with the plans of steps whose inputs are there; writes nothing.

    Parameters
    ----------
    pipeline, cluster, workers, resources, wait, memory, overwrite, progress, **variables
        As in `run`.
    """
    asked = from_keywords(RunOptions, locals())
    file = read_pipeline(pipeline, variables)
    shared = _shared(file, asked)
    if not file.patterns:
        return plan_steps(file, shared, overwrite=overwrite)
    _check_apart(file)
    return CaseTable(tuple(_plan_case(case, one) for case, one in _cases(file, variables)))


def _cases(file: PipelineFile, variables: Mapping[str, Any]) -> Iterator[tuple[str, PipelineFile]]:
    """Yield each case and its pipeline; cases are found by the inputs with ``{case}`` in them."""
    patterns = {f"input {number}": path for number, path in enumerate(file.patterns, 1)}
    for case in find_cases(patterns):
        yield case, read_pipeline(file.path, variables, case)


def _run_case(
    case: str, file: PipelineFile, shared: Mapping[str, Any], client: SharedClient, overwrite: bool
) -> CaseRow:
    """Run the pipeline of a case, and return what became of it."""
    began_s, reason = time.monotonic(), ""
    try:
        done = run_steps(file, shared, client, overwrite=overwrite)
        status = "done" if any(one.outcome == "done" for one in done.steps) else "kept"
    except StoreFull:  # other cases would find no space either
        raise
    except ResumeRefused as error:
        status, reason = "refused", first_line(error)
    except Exception as error:  # whatever it is, other cases are done
        status, reason = "failed", first_line(error)
    seconds = round(time.monotonic() - began_s, 3)
    return CaseRow(case, status, reason, seconds, out=_last_output(file), at=now())


def _plan_case(case: str, file: PipelineFile) -> CaseRow:
    """Return what would be done with a case: the first step that would run, and why."""
    left = [one for one in plan_steps(file, None).steps if one.outcome == "runs"]
    why = f"{left[0].name}: {left[0].why}" if left else ""
    return CaseRow(case, "new" if left else "kept", why, out=_last_output(file))


def _last_output(file: PipelineFile) -> str:
    return next((step.outputs[-1] for step in reversed(file.steps) if step.outputs), "")


def _check_apart(file: PipelineFile) -> None:
    """Refuse a path that all cases would write to, one over the other."""
    written = [str(file.record), *(path for step in file.steps for path in step.outputs)]
    for path in written:
        if CASE not in path:
            raise InvalidInput(
                f"{file.path}: {path} has no {CASE} in it, and each case would replace what the one"
                " before it wrote there; write for example out/{case}"
            )


def _shared(file: PipelineFile, asked: RunOptions) -> dict[str, Any]:
    """Return what all steps share: what the caller asked for, else what the file says."""
    given = {name: value for name, value in vars(asked).items() if value is not None}
    return {**file.everywhere, **given}
