"""The record of a batch: a line of JSON for each case that was begun, and one when it ended.

::

    out/{case}_seg.nii.gz.volflow/      beside the results, braces and all
        lock              held while a run of the batch is at work; names its process
        cases.jsonl       this record; the last line of a case counts
        log-….txt         of each run that did anything, with times
        summary.html, summary.json      of the last run
        run.json          how many cases the last run that did anything was asked for

A process may die at any moment: a line that was torn is not counted. What a case was made from
stands in its first line, so that one that was interrupted is known from one whose files changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from volflow.errors import RunFailed, writing_failed
from volflow.jobs.batch.result_table import CaseRow
from volflow.store.atomic import parse_json, write_file
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.records import typed

__all__ = ["STARTED", "CaseRecord", "PastCase", "batch_dir"]

STARTED = "started"
RECORD = "cases.jsonl"


@dataclass(frozen=True)
class PastCase:
    """What is known of a case from an earlier run.

    Parameters
    ----------
    row
        What became of it; its status is `STARTED` until it ended.
    inputs
        Identities of its volumes by name, ``""`` where there is none.
    model, settings
        What identified the model and the options that decide the result.
    final
        Whether trying again would give the same failure.
    wrote
        Size and time of the file that was written; None where there is no single file.
    """

    row: CaseRow
    inputs: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    final: bool = False
    wrote: tuple[int, int] | None = None


def batch_dir(out: str) -> Path:
    """Return the folder of a batch's record, of a pattern of results.

    Examples
    --------
    >>> str(batch_dir("/out/{case}_seg.nii.gz")), str(batch_dir("/out/{case}/seg.zarr"))
    ('/out/{case}_seg.nii.gz.volflow', '/out/{case}_seg.zarr.volflow')
    """
    before, _, after = out.partition("{case}")
    folder, _, start = before.rpartition("/")
    name = f"{start}{{case}}{after}".replace("/", "_")
    return journal_dir(f"{folder}/{name}" if folder or out.startswith("/") else name)


@dataclass(frozen=True)
class CaseRecord:
    """The record in a folder; the constructor touches no file."""

    folder: Path

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / RECORD

    def read(self) -> dict[str, PastCase]:
        """Return the last that is known of each case; damaged lines are not counted.

        Raises
        ------
        RunFailed
            If the file is there and cannot be read.
        """
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RunFailed(f"{self.path} cannot be read: {error.strerror}") from error
        found: dict[str, PastCase] = {}
        for line in filter(None, lines):
            try:
                past = typed(PastCase, parse_json(line))
            except ValueError:
                continue
            found[past.row.case] = past
        return found

    def add(self, past: PastCase) -> None:
        """Append what became of a case.

        Raises
        ------
        RunFailed
            If it cannot be written; StoreFull where no space is left.
        """
        # The break comes first: the line before may have been torn by a kill.
        data = f"\n{json.dumps(asdict(past))}".encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def compact(self, cases: Mapping[str, PastCase]) -> None:
        """Write the record anew, one line for each case; to be called under the lock."""
        lines = [json.dumps(asdict(past)) for past in cases.values()]
        try:
            write_file(self.path, "\n".join(lines).encode())
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> RunFailed:
        return writing_failed(error)(
            f"the record {self.path} cannot be written: {error.strerror}; what is done is kept, run"
            " the same command again when that is mended"
        )
