"""The record of a pipeline's runs: a file of JSON lines, one for each thing that happened.

::

    {"event": "run", "time": …, "pipeline": …, "host": …, "pid": …, "versions": {…}}
    {"event": "begin", "time": …, "step": "segment", "why": …, "settings": {…}, "fingerprint": …}
    {"event": "end", "time": …, "step": "segment", "outcome": "done", "seconds": …, "outputs": {…}}

Outcomes are ``done``, ``skipped``, ``failed`` and ``stopped``. Lines are only ever added; one that
a dying process tore is passed over, so that its step runs again.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput, writing_failed
from volflow.store.atomic import parse_json, plain
from volflow.store.journal.journal import Journal, journal_dir

__all__ = ["RunRecord"]


@dataclass(frozen=True)
class RunRecord:
    """The record at a path; the constructor touches no file.

    Examples
    --------
    >>> record = RunRecord(Path("seg.jsonl"))
    >>> record.add("end", step="scan", outcome="done")
    >>> record.last_done("scan")["outcome"], record.last_done("segment")
    ('done', None)
    """

    path: Path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock on the record: a second run of the same pipeline is refused.

        Raises
        ------
        Locked
            Where another run holds it.
        InvalidInput
            Where the folder of the record does not exist, or cannot be written.
        """
        if not self.path.parent.is_dir():
            raise InvalidInput(
                f"the folder {self.path.parent} of the run's record does not exist; make it first"
            )
        with Journal(journal_dir(self.path)).lock():
            yield

    def add(self, event: str, **facts: Any) -> None:
        """Append a line.

        Raises
        ------
        RunFailed
            Where it cannot be written.
        """
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        line = json.dumps(plain({"event": event, "time": now, **facts}), ensure_ascii=False)
        try:
            with self.path.open("ab+") as file:
                # A line that was torn is ended, so that it spoils no other.
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    line = f"\n{line}"
                file.write(f"{line}\n".encode())
        except OSError as error:
            raise writing_failed(error)(
                f"the record {self.path} cannot be written: {(error.strerror or '').lower()};"
                " what is done is kept; fix this and run the same command again"
            ) from error

    def begin_run(self, pipeline: str, versions: Mapping[str, str]) -> None:
        """Note that a run begins, where, and with which versions."""
        facts = {"pipeline": pipeline, "host": socket.gethostname(), "pid": os.getpid()}
        self.add("run", **facts, versions=dict(versions))

    def last_done(self, step: str) -> Mapping[str, Any] | None:
        """Return the line that says how a step was done last; None where it was not.

        A step that was begun since, and did not end well, is not done.
        """
        found = None
        for line in self.lines():
            if line.get("step") != step:
                continue
            if line.get("event") == "begin":
                found = None
            elif line.get("event") == "end" and line.get("outcome") == "done":
                found = line
        return found

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines, in their order; what a dying process tore is left out.

        Raises
        ------
        InvalidInput
            Where the file is there and cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                for line in file:
                    try:
                        value = parse_json(line)
                    except ValueError:
                        continue
                    if isinstance(value, dict):
                        yield value
        except FileNotFoundError:
            return
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InvalidInput(f"the record {self.path} cannot be read: {reason}") from error
