"""A batch under its lock: what is left of it is done, told in a summary, and answered for."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from volflow.errors import Superseded, VolflowError, first_line
from volflow.jobs.batch.asked_cases import AskedBatch
from volflow.jobs.batch.batch_log import BatchLog, logged
from volflow.jobs.batch.batch_state import note_run
from volflow.jobs.batch.case_record import CaseRecord, batch_dir
from volflow.jobs.batch.night import Left, Night
from volflow.jobs.batch.result_table import CaseTable
from volflow.jobs.batch.triage import Asked
from volflow.report.summary_page import summary_page
from volflow.store.atomic import write_file
from volflow.store.journal.journal import Journal

__all__ = ["SUMMARY", "perform_batch", "planned_batch"]

SUMMARY = "VOLFLOW_SUMMARY"  # the environment variable that the command of a failure is given


def perform_batch(
    batch: AskedBatch, model: Any, asked: Asked | None = None, tried: Collection[str] = ()
) -> CaseTable:
    """Do what is left of a batch, and return its table.

    Parameters
    ----------
    batch, model
        What is asked for, and the model as it was given, or loaded.
    asked
        What that asks of every case, where another process has found it out.
    tried
        Cases that an earlier attempt of the same run may have tried: it may have died before it
        could answer for those that failed.

    Raises
    ------
    Locked
        Where another run of the same batch is at work.
    VolflowError
        As `Night.run`, after what became of each case is told.
    """
    folder, options = batch_dir(batch.out), batch.options
    record, log = CaseRecord(folder), BatchLog(folder, options.progress)
    with Journal(folder).lock(), logged(log):
        table, failed, error = _run(Night(batch, model, record, log, asked), tried)
    if options.on_failure and failed:
        _call(options.on_failure, table.summary, log)
    if error is not None:
        raise error
    return table


def planned_batch(batch: AskedBatch, model: Any) -> CaseTable:
    """Return what would be done with each case of a batch; nothing is written."""
    folder = batch_dir(batch.out)
    night = Night(batch, model, CaseRecord(folder), BatchLog(folder))
    known, every = night.left()
    return CaseTable(tuple(night.planned(one, known.get(one.case)) for one in every))


def _run(night: Night, before: Collection[str]) -> tuple[CaseTable, bool, VolflowError | None]:
    """Do what is left, under the lock; return the table, and whether something failed just now."""
    began, error = time.monotonic(), None
    record, log = night.record, night.log
    known, every = night.left()
    todo = [one for one in every if not one.verdict.idle]
    night.rows |= {
        one.case: night.planned(one, known.get(one.case)) for one in every if one.verdict.idle
    }
    if todo:
        dropped = f", {night.batch.dropped} left out" if night.batch.dropped else ""
        log.line(f"{len(todo)} of {len(every)} cases to do{dropped}; record in {record.folder}")
        record.compact(known)
        note_run(record, len(every), log.began)
        try:
            night.run(todo)
        except Superseded:  # nobody waits for it, as where a signal ends it
            raise
        except VolflowError as stopped:
            error = stopped
            log.line(f"stopped: {first_line(stopped)}")
        finally:
            table = _told(night, every, time.monotonic() - began)
            log.line(table.heading())
    else:
        table = _told(night, every, time.monotonic() - began)
    tried = night.tried.union(before) & night.rows.keys()
    bad = any(not night.rows[case].ok for case in tried)
    return table, bad or error is not None, error


def _told(night: Night, every: list[Left], seconds: float) -> CaseTable:
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
