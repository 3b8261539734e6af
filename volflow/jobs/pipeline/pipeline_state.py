"""How far a pipeline has come; only its record is read, on any machine that sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput, Locked, RunFailed
from volflow.geometry.units import clock
from volflow.jobs.pipeline.run_record import RunRecord
from volflow.store.journal.history import find_holder
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.journal.lock import Holder

__all__ = ["PipelineState", "pipeline_state"]


@dataclass(frozen=True)
class PipelineState:
    """The steps of a pipeline's last run: which ended and how, which is at work, and who runs it.

    Parameters
    ----------
    path
        The record.
    steps
        The last line of each step that was come to, in their order.
    holder
        The run that holds the lock, if there is one.
    """

    path: str
    steps: tuple[Mapping[str, Any], ...]
    holder: Holder | None

    @property
    def running(self) -> bool:
        """Return True if a run is at work, as far as can be seen from here."""
        return self.holder is not None and self.holder.alive is not False

    @property
    def counts(self) -> dict[str, int]:
        """Return how many steps there are of each state."""
        return dict(Counter(self._state_of(step) for step in self.steps))

    def _state_of(self, step: Mapping[str, Any]) -> str:
        if step["event"] == "end":
            return str(step.get("outcome"))
        return "at work" if self.running else "interrupted"

    @property
    def exit_code(self) -> int:
        """Return 4 where a run is at work, 1 where a step failed or did not end, else 0."""
        if self.running:
            return Locked.exit_code
        return 0 if set(self.counts) <= {"done", "skipped"} else RunFailed.exit_code

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines."""
        return {
            "path": self.path,
            "counts": self.counts,
            "running": self.running,
            "holder": None if self.holder is None else asdict(self.holder),
            "steps": [
                {
                    "step": step["step"],
                    "state": self._state_of(step),
                    "seconds": step.get("seconds"),
                    "error": step.get("error"),
                }
                for step in self.steps
            ],
        }

    def text(self) -> str:
        """Return the state for people."""
        named = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        lines = [f"{self.path}: pipeline: {named or 'no step was begun'}"]
        if self.running and self.holder is not None:
            lines.append(f"  run   process {self.holder.pid} on {self.holder.host}")
        for step in self.steps:
            state = self._state_of(step)
            if state == "failed":
                lines.append(f"  failed  {step['step']}: {step.get('error', '')}")
            elif step["event"] == "begin":
                lines.append(f"  {state}  {step['step']}, begun {_since(step)} ago")
        if self.exit_code == RunFailed.exit_code:
            lines.append("  next  run the same command again to do what is left")
        return "\n".join(lines)


def pipeline_state(path: str) -> PipelineState:
    """Return how far a pipeline has come.

    Parameters
    ----------
    path
        The record of its runs, a file of JSON lines.

    Raises
    ------
    InvalidInput
        If it is no such record, or cannot be read.
    """
    record = RunRecord(Path(path))
    steps: dict[str, Mapping[str, Any]] = {}
    begun = False
    for line in record.lines():
        if line.get("event") == "run":
            begun, steps = True, {}
        elif line.get("event") in ("begin", "end") and isinstance(line.get("step"), str):
            steps[line["step"]] = line
    if not begun:
        raise InvalidInput(
            f"{path} is no record of a pipeline that was begun; give the file that volflow run"
            " names, which lies beside the last output"
        )
    return PipelineState(path, tuple(steps.values()), find_holder(Journal(journal_dir(path))))


def _since(step: Mapping[str, Any]) -> str:
    """Return how long ago a line was written."""
    try:
        when = datetime.fromisoformat(str(step.get("time")))
    except ValueError:
        return "?"
    return clock((datetime.now(UTC) - when.astimezone(UTC)).total_seconds())
