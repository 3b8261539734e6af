"""Commands that look at runs, and the demo."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volflow.cli.values import Json, Quiet, inputs, say
from volflow.errors import Damaged, InvalidInput, RunFailed, first_line
from volflow.infer.predict_options import VerifyOptions

if TYPE_CHECKING:
    from volflow.engine.detached.handle import Handle
    from volflow.jobs.batch.batch_state import BatchState
    from volflow.jobs.pipeline.pipeline_state import PipelineState

__all__ = ["cancel", "demo", "status", "verify"]

Out = Annotated[str, typer.Argument(help="An output of volflow.", metavar="OUT")]


def verify(out: Out, options: VerifyOptions, as_json: Json = False, quiet: Quiet = False) -> None:
    """Read an output back and compare it with its checksums: every block, and an exported file.

    With --recompute, blocks of a prediction are also computed anew from its input and its model,
    and compared with what is stored. Blocks that are bad are marked undone: running the same
    command again repairs just these. Exit code 3 where a block is bad, or a file is damaged,
    changed or missing; 1 where blocks are only missing.
    """
    from volflow.infer.audit.audit import verify as read_back
    from volflow.report.facts.run_state import coverage_facts

    typed: Any = options.input
    given = {**vars(options), "input": None if typed is None else inputs(typed)}
    coverage = read_back(out, **{**given, "progress": False if quiet else _count})
    say(coverage_facts(coverage), as_json, f"{coverage}\n{coverage.map()}".rstrip())
    if not coverage.ok:
        raise typer.Exit(Damaged.exit_code if coverage.damaged else RunFailed.exit_code)


def status(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Outputs of volflow, folders that hold some, 'out/{case}.nii.gz' of many, or a"
            " pipeline's record.",
        ),
    ],
    as_json: Json = False,
    watch: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Look again after so many seconds, as long as a run is at work."
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write the state to a file as OpenMetrics text, for monitoring."
        ),
    ] = None,
) -> None:
    """Say how far outputs have come, how fast, and who is at work; only their journals are read.

    Any machine that sees the outputs may ask, at any time. Exit code 0 where all are done; 4 where
    a run is at work; 1 where blocks are left and nobody is at work on them; 2 where a path is no
    output, which is said, and the others are shown; 3 where a journal is damaged.
    """
    from volflow.report.facts.gauges import write_metrics
    from volflow.report.facts.overview import look_at

    while True:
        found = look_at([path for path in paths if not _is_job(path)])
        jobs, refused = _look_at_jobs([path for path in paths if _is_job(path)])
        found = replace(found, refused=(*found.refused, *refused))
        if metrics is not None:
            write_metrics(metrics, found.gauges())
        if found.runs or jobs or as_json:
            texts = [*(one.text() for one in jobs), *([found.text()] if found.runs else [])]
            more = {"jobs": [one.to_dict() for one in jobs]} if jobs else {}
            say({**found.to_dict(), **more}, as_json, "\n".join(texts))
        if watch is None or not (found.running or any(one.running for one in jobs)):
            break
        sys.stdout.flush()
        time.sleep(watch)
    for _, error in found.refused:
        sys.stderr.write(f"volflow: {first_line(error)}\n")
    codes = {found.exit_code, *(one.exit_code for one in jobs)}
    worst = next((code for code in (2, 3, 1, 4) if code in codes), 0)
    if worst:
        raise typer.Exit(worst)


def _is_job(path: str) -> bool:
    """Return True for the results of a batch, and for the record of a pipeline."""
    return "{case}" in path or path.endswith(".jsonl")


def _look_at_jobs(
    paths: Sequence[str],
) -> tuple[list[BatchState | PipelineState], list[tuple[str, InvalidInput]]]:
    """Return the states of batches and pipelines, and of paths that are none, the errors."""
    from volflow.jobs.batch.batch_state import batch_state
    from volflow.jobs.pipeline.pipeline_state import pipeline_state

    states: list[BatchState | PipelineState] = []
    refused: list[tuple[str, InvalidInput]] = []
    for path in paths:
        try:
            states.append(batch_state(path) if "{case}" in path else pipeline_state(path))
        except InvalidInput as error:
            refused.append((path, error))
    return states, refused


def cancel(
    out: Out,
    as_json: Json = False,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="The scheduler, where another address leads to it from here."
        ),
    ] = None,
) -> None:
    """Stop a run that was detached (predict --detach), and wait until it has stopped.

    Of many cases OUT is their pattern, in quotes. What is done is kept: the command that began it
    does the rest. A run that has ended already is left as it is, which is said. Exit code 2 where
    no run was detached.
    """
    from volflow.store.journal.detachment import CANCELLED

    run = _handle_of(out, cluster)
    run.cancel()
    facts = run.status()
    how = facts["detached"]["ended"]
    said = "was cancelled" if how == CANCELLED else f"had ended already ({how})"
    if "{case}" in out:
        done = f"{facts['counts'].get('done', 0)} of {facts['cases']} cases are done"
    else:
        done = f"{facts['done']} of {facts['total']} blocks are done"
    say(facts, as_json, f"{out}: the detached run {said}; {done}")


def _handle_of(out: str, cluster: str | None) -> Handle[Any]:
    """Return the handle of what was detached to an output, or to a pattern of many."""
    if "{case}" in out:
        from volflow.jobs.batch.detached_batch import DetachedBatch

        return DetachedBatch.of(out, cluster)
    from volflow.engine.detached.detached_run import DetachedRun

    return DetachedRun.of(out, cluster)


def demo(
    which: Annotated[
        str | None,
        typer.Argument(metavar="huge", help="A CT of 1.04 GiB in 768 MiB of memory, instead."),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", help="Folder for what the demo writes.")
    ] = "demo-output",
) -> None:
    """Segment a real MRI with a small network: convert, predict, verify, preview.

    With the word huge, a CT larger than the memory it is given; killed at half, resumed, verified.
    """
    if which is None:
        from volflow.demo.journey import run_demo

        run_demo(out=out)
    elif which == "huge":
        from volflow.demo.huge import run_huge

        run_huge(out=out)
    else:
        raise InvalidInput(
            f"there is no demo {which!r}; run volflow demo, or volflow demo huge for the large one"
        )


def _count(done: int, total: int) -> None:
    """Show how many blocks have been read, on a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\rverify: {done}/{total} blocks{end}")
        sys.stderr.flush()
