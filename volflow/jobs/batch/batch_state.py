"""How far a batch has come; only its record is read, on any machine that sees it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from volflow.engine.observing.run_facts import awaited
from volflow.errors import InvalidInput, Locked, RunFailed
from volflow.geometry.units import clock
from volflow.jobs.batch.case_record import STARTED, CaseRecord, PastCase, batch_dir
from volflow.report.facts.run_state import detached_lines
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.detachment import detachment_facts
from volflow.store.journal.history import find_holder
from volflow.store.journal.journal import Journal
from volflow.store.journal.lock import Holder

__all__ = ["BatchState", "batch_state", "note_run"]

NOTE = "run.json"  # of the last run that did anything: how many cases it was asked for, and since


def note_run(record: CaseRecord, cases: int, began: str) -> None:
    """Keep how many cases a run is asked for, for `batch_state`."""
    with suppress(OSError):  # whoever cannot write here cannot write the record either
        write_json(record.folder / NOTE, {"cases": cases, "began": began})


@dataclass(frozen=True)
class BatchState:
    """The cases of a batch: how many were asked for, what became of each, who is at work.

    Parameters
    ----------
    out
        The pattern of its results.
    asked
        How many cases its last run was asked for.
    cases
        What is known of each that was begun.
    holder
        The run that holds the lock, if there is one.
    began_s
        When its last run began, in seconds since 1970.
    detached
        Which cluster was given its last detached run, and how that ended, if there was one.
    """

    out: str
    asked: int
    cases: tuple[PastCase, ...]
    holder: Holder | None
    began_s: float
    detached: Mapping[str, Any] | None = None

    @property
    def running(self) -> bool:
        """Return True if a run is at work, as far as can be seen from here."""
        if self.holder is not None and self.holder.alive is not False:
            return True
        if self.detached is None or self.detached["ended"]:
            return False
        last_s = max((_time(past.row.at) for past in self.cases if past.row.at), default=0.0)
        begun = self.holder is not None
        return awaited(self.detached, last_s, begun=begun, now_s=time.time()) == "running"

    @property
    def counts(self) -> dict[str, int]:
        """Return how many cases there are of each state; those of earlier runs count too."""
        found = Counter(past.row.status for past in self.cases)
        found["at work" if self.running else "interrupted"] = found.pop(STARTED, 0)
        found["left"] = max(0, self.asked - sum(found.values()))
        return {name: count for name, count in found.items() if count}

    @property
    def exit_code(self) -> int:
        """Return 4 where a run is at work, 1 where cases are left or failed, else 0."""
        if self.running:
            return Locked.exit_code
        return 0 if set(self.counts) == {"done"} else RunFailed.exit_code

    @property
    def left_s(self) -> float | None:
        """Return the seconds until the run ends, at its pace so far; None where that is unknown."""
        ended = [past for past in self.cases if past.row.at and _time(past.row.at) >= self.began_s]
        if not self.running or not ended:
            return None
        took_s = max(_time(past.row.at) for past in ended) - self.began_s
        return took_s / len(ended) * (self.counts.get("left", 0) + self.counts.get("at work", 0))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines."""
        return {
            "path": self.out,
            "cases": self.asked,
            "counts": self.counts,
            "running": self.running,
            "left_s": self.left_s,
            "holder": None if self.holder is None else asdict(self.holder),
            "detached": self.detached,
            "failed": {past.row.case: past.row.reason for past in self.cases if not past.row.ok},
        }

    def text(self) -> str:
        """Return the state for people."""
        named = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        cases = f"{self.asked} cases: {named}" if self.counts else "no case is begun so far"
        lines = [f"{self.out}: {cases}"]
        if self.running and self.holder is not None:
            left = "" if self.left_s is None else f", about {clock(self.left_s)} left"
            lines.append(f"  run   process {self.holder.pid} on {self.holder.host}{left}")
        if self.detached is not None and self.exit_code:
            over = "stopped" if self.detached["ended"] else "silent"
            lines += detached_lines(self.detached, "running" if self.running else over)
        bad = [past.row for past in self.cases if not past.row.ok]
        lines += [f"  {row.status}  {row.case}: {row.reason}" for row in bad]
        if not self.running and self.exit_code:
            lines.append("  next  run the same command again to do what is left")
        return "\n".join(lines)


def batch_state(out: str) -> BatchState:
    """Return how far a batch has come.

    Parameters
    ----------
    out
        The pattern of its results, as it was given.

    Raises
    ------
    InvalidInput
        If no run of such a batch was begun.
    """
    record = CaseRecord(batch_dir(out))
    detached = detachment_facts(record.folder)
    try:
        note = read_json(record.folder / NOTE)
        asked, began_s = int(note["cases"]), _time(str(note["began"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        if detached is None:
            raise InvalidInput(
                f"{out} names the results of no batch that was begun ({record.folder}); give the"
                " pattern that its command has"
            ) from error
        asked, began_s = 0, detached["since_s"]  # its driver has not begun so far
    cases, holder = tuple(record.read().values()), find_holder(Journal(record.folder))
    return BatchState(out, asked, cases, holder, began_s, detached)


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
