"""Predict many cases with one model: new and changed ones, each under its own journal."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from volflow.errors import VolflowError, first_line
from volflow.jobs.batch.asked_cases import AskedBatch
from volflow.jobs.batch.batch_log import BatchLog, logged
from volflow.jobs.batch.batch_options import BatchOptions
from volflow.jobs.batch.batch_state import note_run
from volflow.jobs.batch.case_record import CaseRecord, batch_dir
from volflow.jobs.batch.night import Night
from volflow.jobs.batch.result_table import CaseTable
from volflow.option import from_keywords, journey
from volflow.report.summary_page import summary_page
from volflow.store.atomic import write_file
from volflow.store.journal.journal import Journal

if TYPE_CHECKING:
    from volflow.engine.cluster import Cluster
    from volflow.engine.progress import Progress
    from volflow.model.bundle import ModelLike
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["SUMMARY", "predict_cases"]

SUMMARY = "VOLFLOW_SUMMARY"  # the environment variable that the command of a failure is given


@journey
def predict_cases(  # noqa: PLR0913 - a public journey takes flat options
    cases: str | os.PathLike[str] | Mapping[str, VolumeLike | Mapping[str, VolumeLike]],
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    since: str | None = None,
    retry_failed: bool = False,
    at_once: int | None = None,
    on_failure: str | None = None,
    dry_run: bool = False,
    patch: int | tuple[int, int, int] | None = None,
    overlap: float | tuple[float, float, float] | None = None,
    blend: str | None = None,
    frame: str | None = None,
    normalize: str | Callable[[Any], Any] | None = None,
    activation: str | Callable[[Any], Any] | None = None,
    output: str | None = None,
    dtype: str | None = None,
    batch_size: int | str = "auto",
    device: str = "auto",
    device_memory: str | int | None = None,
    precision: str = "auto",
    flips: str = "",
    mask: VolumeLike | None = None,
    skip_below: float | None = None,
    fill: float | None = None,
    chunk: int | tuple[int, int, int] | None = None,
    shard: int | tuple[int, int, int] | None = None,
    levels: bool = False,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = None,
) -> CaseTable:
    """Run a network over many cases, and say what became of each; made to be started by a timer.

    Only cases are computed that are new or whose files changed; others cost a look at their files,
    and the network is not even loaded where none is left. A case that fails stops no other. Killed
    at any moment, the same call goes on. Log, summary and record lie beside the results, in
    ``<out>.volflow/``.

    Parameters
    ----------
    cases
        What `find_cases` takes or returns: a pattern with ``{case}``, a folder, a table, or a
        mapping of names to volumes, or to several by name. A volume called ``label`` is no input.
    model
        As in `predict`; loaded once.
    out
        Pattern of the results, such as ``"out/{case}_seg.nii.gz"``.
    since
        Only cases whose files changed since: a date, a time, or a while such as ``"24h"``.
    retry_failed
        Try cases again that were refused for what they hold. Those that failed otherwise are tried
        again each time; both where their files, the model or the settings change.
    at_once
        How many small cases (up to 2²⁴ voxels) at a time; by default one in this process, and one
        for each worker of a cluster. In this process each has its share of the memory.
    on_failure
        A shell command that is run after cases failed in this run; the environment variable
        ``VOLFLOW_SUMMARY`` holds the path of the summary page.
    dry_run
        Return what would be done with each case, and do nothing.
    overwrite
        Compute those anew whose results are of another model or of other settings; without it they
        are named and left.
    mask
        As in `predict`, for all cases; ``{case}`` in its path stands for each name.
    patch, overlap, blend, frame, normalize, activation, output, dtype, batch_size, device
        As in `predict`, as all that follow.

    Returns
    -------
    CaseTable
        A row for each case; ``table.ok`` is False where one failed or was refused.

    Raises
    ------
    InvalidInput
        Where no case is found, or the model cannot be loaded.
    Locked
        Where another run of the same batch is at work.
    RunFailed
        Where no space is left, or the cluster is gone; what is done is kept.

    Examples
    --------
    >>> import numpy as np, torch
    >>> for name in ("p1", "p2"):
    ...     np.save(f"{name}.npy", np.ones((8, 9, 10), "float32"))
    >>> net = torch.nn.Identity()
    >>> table = predict_cases("{case}.npy", net, "{case}_out.zarr", patch=8, progress=False)
    >>> [(row.case, row.status) for row in table]
    [('p1', 'done'), ('p2', 'done')]
    >>> predict_cases("{case}.npy", net, "{case}_out.zarr", patch=8, progress=False).counts
    {'kept': 2}
    """
    options = from_keywords(BatchOptions, locals())
    batch = AskedBatch.of(cases, out, options)
    folder = batch_dir(batch.out)
    record, log = CaseRecord(folder), BatchLog(folder, progress)
    if options.dry_run:
        night = Night(batch, model, record, log)
        known, every = night.left()
        return CaseTable(tuple(night.planned(one, known.get(one.case)) for one in every))
    with Journal(folder).lock(), logged(log):
        table, failed, error = _run(batch, model, record, log)
    if on_failure and failed:
        _call(on_failure, table.summary, log)
    if error is not None:
        raise error
    return table


def _run(
    batch: AskedBatch, model: Any, record: CaseRecord, log: BatchLog
) -> tuple[CaseTable, bool, VolflowError | None]:
    """Do what is left, under the lock; return the table, and whether something failed just now."""
    began, error = time.monotonic(), None
    night = Night(batch, model, record, log)
    known, every = night.left()
    todo = [one for one in every if not one.verdict.idle]
    night.rows |= {
        one.case: night.planned(one, known.get(one.case)) for one in every if one.verdict.idle
    }
    if todo:
        dropped = f", {batch.dropped} left out" if batch.dropped else ""
        log.line(f"{len(todo)} of {len(every)} cases to do{dropped}; record in {record.folder}")
        record.compact(known)
        note_run(record, len(every), log.began)
        try:
            night.run(todo)
        except VolflowError as stopped:
            error = stopped
            log.line(f"stopped: {first_line(stopped)}")
        finally:
            table = _told(night, every, time.monotonic() - began)
            log.line(table.heading())
    else:
        table = _told(night, every, time.monotonic() - began)
    bad = any(not night.rows[case].ok for case in night.tried if case in night.rows)
    return table, bad or error is not None, error


def _told(night: Night, every: list[Any], seconds: float) -> CaseTable:
    """Write the summary and return the table; cases without a row were not reached."""
    rows = tuple(night.rows.get(one.case) or night.planned(one, None) for one in every)
    folder, batch = night.record.folder, night.batch
    table = CaseTable(rows, round(seconds, 3), str(folder / "summary.html"))
    shown = [
        [row.case, row.status, f"{row.seconds:.1f}" if row.seconds else "", row.at, row.reason]
        for row in table.sorted()
    ]
    facts = {
        "results": batch.out,
        "model": getattr(night.model, "name", "") or str(night.model),
        "started": night.log.began,
        "took": f"{seconds:.1f} s",
        "log": str(night.log.path) if night.tried else "",
    }
    page = summary_page(
        f"volflow predict, {table.heading()}", facts,
        ["case", "status", "seconds", "when", "reason"], shown, len(table.bad),
    )  # fmt: skip
    try:
        write_file(folder / "summary.html", page.encode())
        table.to_json(folder / "summary.json")
    except OSError as error:  # the disk is full: the table is returned all the same
        night.log.line(f"the summary cannot be written: {error.strerror}")
        return replace(table, summary="")
    return table


def _call(command: str, summary: str, log: BatchLog) -> None:
    """Run the user's command; what it is told stands in its environment, in no word of it."""
    environment = {**os.environ, SUMMARY: summary}
    done = subprocess.run(command, shell=True, env=environment, check=False)
    if done.returncode:
        log.line(f"the command of --on-failure ended with exit code {done.returncode}")
