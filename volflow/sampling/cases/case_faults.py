"""What is wrong with cases: a table of case, fault and remedy, and one error of it all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from volflow.errors import InvalidInput, first_line

__all__ = ["CaseFault", "CaseFaults"]

MOST_NAMED, MOST_ROWS = 5, 60  # in an error, and printed


@dataclass(frozen=True)
class CaseFault:
    """What is wrong with one case, and what mends it.

    Parameters
    ----------
    case, what, remedy
        In words.
    error
        What was raised, if anything.
    """

    case: str
    what: str
    remedy: str = ""
    error: Exception | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, case: str, error: Exception) -> CaseFault:
        """Return a fault of an error, whose remedy stands behind its last semicolon.

        Examples
        --------
        >>> CaseFault.of("p1", ValueError("it is cut short; copy it again"))
        CaseFault(case='p1', what='it is cut short', remedy='copy it again')
        """
        line = first_line(error)
        what, mark, remedy = line.rpartition("; ")
        return cls(case, what if mark else line, remedy if mark else "", error)


@dataclass(frozen=True)
class CaseFaults(Sequence[CaseFault]):
    """The faults of cases, by the names of these.

    Parameters
    ----------
    rows
        Empty where nothing is wrong.
    cases
        How many cases were looked at.

    Examples
    --------
    >>> print(CaseFaults((CaseFault("p1", "no file in labels/", "add it"),), 3))
    case  what                remedy
    p1    no file in labels/  add it
    1 of 3 cases has faults
    """

    rows: tuple[CaseFault, ...]
    cases: int

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.rows

    @property
    def names(self) -> tuple[str, ...]:
        """The cases with faults, each once."""
        return tuple(dict.fromkeys(row.case for row in self.rows))

    def heading(self) -> str:
        """Return how many cases have faults."""
        bad, noun = len(self.names), "case" if self.cases == 1 else "cases"
        if not bad:
            return f"{self.cases} {noun} without faults"
        return f"{bad} of {self.cases} {noun} {'has' if bad == 1 else 'have'} faults"

    def refuse(self) -> None:
        """Raise one error of all faults; of a single one, the error that it is.

        Raises
        ------
        InvalidInput
            Naming the cases, and how the others are used.
        """
        if self.ok:
            return
        if len(self.rows) == 1 and self.rows[0].error is not None:
            raise self.rows[0].error
        named = [f"{row.case}: {row.what}" for row in self.rows[:MOST_NAMED]]
        left = len(self.rows) - len(named)
        lines = "; ".join([*named, *([f"and {left} more"] if left else [])])
        raise InvalidInput(
            f"{self.heading()}: {lines}; mend them, or take the others with skip_bad=True"
            " (--skip-bad)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines."""
        rows: list[Mapping[str, str]] = [
            {"case": row.case, "what": row.what, "remedy": row.remedy} for row in self.rows
        ]
        return {"ok": self.ok, "cases": self.cases, "faults": rows}

    def __str__(self) -> str:
        if self.ok:
            return self.heading()
        lines = [("case", "what", "remedy")]
        lines += [(row.case, row.what, row.remedy) for row in self.rows[:MOST_ROWS]]
        wide = [max(len(line[n]) for line in lines) for n in range(2)]
        text = [f"{a:{wide[0]}}  {b:{wide[1]}}  {c}".rstrip() for a, b, c in lines]
        more = len(self.rows) - MOST_ROWS
        return "\n".join([*text, *([f"… and {more} more"] if more > 0 else []), self.heading()])

    @overload
    def __getitem__(self, key: int) -> CaseFault: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[CaseFault, ...]: ...
    def __getitem__(self, key: int | slice) -> CaseFault | tuple[CaseFault, ...]:
        return self.rows[key]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[CaseFault]:
        return iter(self.rows)
