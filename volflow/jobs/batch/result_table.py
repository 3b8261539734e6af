"""The table of a batch: a row for each case, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, overload

from volflow.store.atomic import write_file
from volflow.store.journal.records import typed

__all__ = ["CaseRow", "CaseTable"]

# In the order in which they are counted: what went wrong comes first in lists.
STATUSES = ("failed", "refused", "done", "kept", "new", "changed", "unfinished", "again")
BAD = STATUSES[:2]
MOST_ROWS = 60  # that are printed


@dataclass(frozen=True)
class CaseRow:
    """What became of a case, or in a dry run, what would be done with it.

    Parameters
    ----------
    case
        Its name.
    status
        ``"done"``; ``"kept"``: done before, from the same files, model and settings;
        ``"failed"``; ``"refused"``: there is a result of another model or other settings. In a dry
        run ``"new"``, ``"changed"``, ``"unfinished"`` or ``"again"`` where it would be computed.
    reason
        Why it failed, was refused, or is computed again.
    seconds, model_s
        How long it took, and the network alone.
    out
        The path of its result.
    volumes
        What went in, by name.
    at
        When it was done.
    """

    case: str
    status: str
    reason: str = ""
    seconds: float = 0.0
    model_s: float = 0.0
    out: str = ""
    volumes: Mapping[str, str] = field(default_factory=dict)
    at: str = ""

    @property
    def ok(self) -> bool:
        """Return False if the case failed or was refused."""
        return self.status not in BAD


@dataclass(frozen=True)
class CaseTable(Sequence[CaseRow]):
    """The rows of a batch, in the order of its cases.

    Parameters
    ----------
    rows
        One for each case.
    seconds
        How long the batch took.
    summary
        The path of its page; empty where none was written.

    Examples
    --------
    >>> rows = CaseRow("p1", "done", seconds=0.8), CaseRow("p2", "failed", "cut short")
    >>> table = CaseTable(rows)
    >>> print(table)
    case  status  seconds  reason
    p2    failed           cut short
    p1    done        0.8
    2 cases: 1 failed, 1 done
    >>> table.ok, [row.case for row in table.bad]
    (False, ['p2'])
    """

    rows: tuple[CaseRow, ...]
    seconds: float = 0.0
    summary: str = ""

    @property
    def ok(self) -> bool:
        """Return True if no case failed or was refused."""
        return all(row.ok for row in self.rows)

    @property
    def bad(self) -> tuple[CaseRow, ...]:
        """Return the rows of the cases that failed or were refused."""
        return tuple(row for row in self.rows if not row.ok)

    @property
    def counts(self) -> dict[str, int]:
        """Return how many cases there are of each status."""
        found = Counter(row.status for row in self.rows)
        return {status: found[status] for status in STATUSES if found[status]}

    def heading(self) -> str:
        """Return how many cases there are of each status, in words."""
        noun = "case" if len(self.rows) == 1 else "cases"
        named = ", ".join(f"{count} {status}" for status, count in self.counts.items())
        return f"{len(self.rows)} {noun}: {named}" if named else "no cases"

    def sorted(self) -> tuple[CaseRow, ...]:
        """Return the rows, bad ones first."""
        return tuple(sorted(self.rows, key=lambda row: row.ok))

    def outcome(self) -> str:
        """Return the names and reasons of what failed or was refused, and the counts."""
        lines = [f"{row.case}  {row.status}: {row.reason}" for row in self.bad]
        told = f"; {self.summary}" if self.summary else ""
        return "\n".join([*lines, f"{self.heading()}{told}"])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines."""
        return {
            "ok": self.ok,
            "counts": self.counts,
            "seconds": self.seconds,
            "summary": self.summary,
            "cases": [asdict(row) for row in self.rows],
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> CaseTable:
        """Return a table from its plain values.

        Raises
        ------
        ValueError
            If they are not what `to_dict` returns.
        """
        rows = typed(tuple[CaseRow, ...], saved.get("cases"))
        seconds, summary = typed(tuple[float, str], [saved.get("seconds"), saved.get("summary")])
        return cls(rows, seconds, summary)

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the table as JSON; the file appears complete."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        write_file(Path(path), f"{text}\n".encode("utf-8", "backslashreplace"))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV, with the volumes of a case in one column as JSON."""
        text = io.StringIO()
        names = [one.name for one in fields(CaseRow)]
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({**asdict(row), "volumes": json.dumps(dict(row.volumes))})
        write_file(Path(path), text.getvalue().encode("utf-8", "backslashreplace"))

    def __str__(self) -> str:
        shown = self.sorted()[:MOST_ROWS]
        lines = [("case", "status", "seconds", "reason")]
        lines += [(row.case, row.status, _seconds(row.seconds), row.reason) for row in shown]
        wide = [max(len(line[n]) for line in lines) for n in range(3)]
        text = [
            f"{case:{wide[0]}}  {status:{wide[1]}}  {seconds:>{wide[2]}}  {reason}".rstrip()
            for case, status, seconds, reason in lines
        ]
        more = len(self.rows) - len(shown)
        return "\n".join([*text, *([f"… and {more} more"] if more else []), self.heading()])

    @overload
    def __getitem__(self, key: int) -> CaseRow: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[CaseRow, ...]: ...
    def __getitem__(self, key: int | slice) -> CaseRow | tuple[CaseRow, ...]:
        return self.rows[key]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[CaseRow]:
        return iter(self.rows)


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds else ""
