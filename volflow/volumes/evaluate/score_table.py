"""The scores of one case or many: by name and class, as a table, as text, CSV and JSON."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from volflow.geometry.units import unit_sign
from volflow.store.atomic import write_file
from volflow.volumes.evaluate.class_scores import (
    DISTANCES,
    OVERLAPS,
    ClassScores,
    score_text,
)
from volflow.volumes.evaluate.distance_counts import Bounded
from volflow.volumes.evaluate.score_summary import ScoreSummary, summary_of

__all__ = ["Scores"]

MOST_ROWS = 60  # that are printed
HEADS = {
    "dice": "Dice", "iou": "IoU", "precision": "precision", "recall": "recall",
    "volume_similarity": "vol. sim.", "hd95": "HD95", "mean_surface_distance": "mean dist.",
    "surface_dice": "surf. Dice",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Scores:
    """How far label maps agree with the truth, by class and case.

    Each score by its name is a mapping of classes to numbers, such as ``scores.dice[1]``: of one
    case the score, of many the mean over the cases that have it. A number that is not known is NaN,
    and the table says "> 50 mm".

    Parameters
    ----------
    rows
        For each case its classes, in order.
    unit
        Of the distances; None for voxels, or an unknown unit.
    tolerance
        Of the surface Dice, in this unit.
    max_distance
        Larger distances were not looked for; infinite without a bound.
    measured
        Whether distances were.
    failed
        Cases without scores, and why.

    Examples
    --------
    >>> from volflow.volumes.evaluate.class_scores import overlap_scores
    >>> row = ClassScores("", 1, "", overlap_scores(3, 5, 2), 3, 5)
    >>> scores = Scores((row,), measured=False)
    >>> scores.dice[1], scores.table[0]["iou"]
    (0.5, 0.3333333333333333)
    >>> print(scores)
    class  Dice     IoU  precision  recall  vol. sim.
    1       0.5  0.3333     0.6667     0.4       -0.5
    """

    rows: tuple[ClassScores, ...]
    unit: str | None = None
    tolerance: float = 1.0
    max_distance: float = math.inf
    measured: bool = True
    failed: Mapping[str, str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the scores."""
        return (*OVERLAPS, *(DISTANCES if self.measured else ()))

    @property
    def cases(self) -> tuple[str, ...]:
        """The names of the cases that have scores."""
        return tuple(dict.fromkeys(row.case for row in self.rows))

    @property
    def classes(self) -> dict[int, str]:
        """The classes and their names."""
        named = {row.label: row.name for row in reversed(self.rows)}
        return {label: named[label] for label in sorted(named)}

    @cached_property
    def summary(self) -> dict[str, dict[int, ScoreSummary]]:
        """Mean, median and interval over the cases, by score and class."""
        by_class: dict[int, list[ClassScores]] = {label: [] for label in self.classes}
        for row in self.rows:
            by_class[row.label].append(row)
        return {
            name: {
                label: summary_of([row.values[name] for row in rows if name in row.values])
                for label, rows in by_class.items()
            }
            for name in self.names
        }

    def _means(self, name: str) -> dict[int, float]:
        if name not in self.names:
            return dict.fromkeys(self.classes, math.nan)
        return {label: one.mean.value for label, one in self.summary[name].items()}

    @property
    def dice(self) -> dict[int, float]:
        """Dice by class, from 0 to 1."""
        return self._means("dice")

    @property
    def iou(self) -> dict[int, float]:
        """Intersection over union by class, from 0 to 1."""
        return self._means("iou")

    @property
    def precision(self) -> dict[int, float]:
        """Share of the predicted voxels that are right, by class."""
        return self._means("precision")

    @property
    def recall(self) -> dict[int, float]:
        """Share of the true voxels that were found, by class."""
        return self._means("recall")

    @property
    def volume_similarity(self) -> dict[int, float]:
        """Difference of the volumes by their mean, by class: above 0 where pred is larger."""
        return self._means("volume_similarity")

    @property
    def hd95(self) -> dict[int, float]:
        """The larger 95th percentile of the surface distances of both directions, by class."""
        return self._means("hd95")

    @property
    def mean_surface_distance(self) -> dict[int, float]:
        """Mean of the surface distances of both directions, by class."""
        return self._means("mean_surface_distance")

    @property
    def surface_dice(self) -> dict[int, float]:
        """Share of both surfaces that lies within the tolerance of the other, by class."""
        return self._means("surface_dice")

    @property
    def table(self) -> list[dict[str, Any]]:
        """A record for each case and class: its scores, and how many voxels hold the class.

        A score that is not known is a text, such as ``"> 50 mm"``.
        """
        return [
            {
                "case": row.case,
                "class": row.label,
                "name": row.name,
                **{name: self._cell(name, row.values[name]) for name in self.names},
                "pred_voxels": row.pred_voxels,
                "truth_voxels": row.truth_voxels,
                "worst_place": row.place,
                "worst_distance": self._cell("worst_distance", row.place_distance),
            }
            for row in self.rows
        ]

    def _cell(self, name: str, score: Bounded) -> float | str:
        return score.value if score.known else score_text(name, score, self.unit)

    def worst(self, count: int = 8, classes: Iterable[int] | None = None) -> list[ClassScores]:
        """Return the rows with the lowest Dice, of equals those with the largest distance.

        Parameters
        ----------
        count
            How many at most; rows of which nothing is wrong are left out.
        classes
            Of these classes; None for all.
        """
        wanted = set(self.classes if classes is None else classes)

        def badness(row: ClassScores) -> tuple[float, float]:
            far = row.place_distance.least
            return row.values["dice"].value, 0.0 if math.isnan(far) else -far

        there = [row for row in self.rows if row.place is not None and row.label in wanted]
        return sorted(there, key=badness)[:count]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines; what is no number is None, ``"inf"`` or a text."""
        summary = [
            {
                "class": label,
                "name": self.classes[label],
                "score": name,
                "cases": one.cases,
                "mean": _plain(self._cell(name, one.mean)),
                "median": _plain(self._cell(name, one.median)),
                "mean_low": _plain(one.low),
                "mean_high": _plain(one.high),
            }
            for name, of_classes in self.summary.items()
            for label, one in of_classes.items()
        ]
        return {
            "ok": not self.failed,
            "cases": len(self.cases),
            "unit": self.unit,
            "tolerance": self.tolerance if self.measured else None,
            "max_distance": _plain(self.max_distance) if self.measured else None,
            "summary": summary,
            "table": [{key: _plain(value) for key, value in row.items()} for row in self.table],
            "failed": [{"case": case, "why": why} for case, why in (self.failed or {}).items()],
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write summary and table as JSON; the file appears complete."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        write_file(Path(path), f"{text}\n".encode("utf-8", "backslashreplace"))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the table as CSV, a row for each case and class; what has no score is empty."""
        text = io.StringIO()
        heads = ("case", "class", "name", *self.names, "pred_voxels", "truth_voxels")
        heads = (*heads, "worst_place", "worst_distance")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(heads)
        for row in self.table:
            row["worst_place"] = " ".join(map(str, row["worst_place"] or ()))
            writer.writerow("" if row[head] != row[head] else row[head] for head in heads)
        write_file(Path(path), text.getvalue().encode("utf-8", "backslashreplace"))

    @property
    def _lines(self) -> list[tuple[str, ...]]:
        """Rows of text below their heads: of one case a class each, of many a score of a class."""
        titles = {label: f"{label} {name}".rstrip() for label, name in self.classes.items()}
        if len(self.cases) < 2:
            lines = [("class", *(HEADS[name] for name in self.names))]
            for label, title in titles.items():
                texts = (self._text(name, self.summary[name][label].mean) for name in self.names)
                lines.append((title, *texts))
            return lines
        lines = [("class", "score", "mean", "95 % of the mean", "median", "cases")]
        for label, title in titles.items():
            for name in self.names:
                one = self.summary[name][label]
                ends = "" if math.isnan(one.low) else f"{one.low:.4g} to {one.high:.4g}"
                cells = self._text(name, one.mean), ends, self._text(name, one.median)
                first = title if name == self.names[0] else ""
                lines.append((first, HEADS[name], *cells, str(one.cases)))
        return lines

    def _text(self, name: str, score: Bounded) -> str:
        return score_text(name, score, self.unit, 4)

    @property
    def _note(self) -> str:
        """What is to be said below."""
        notes = []
        if not self.classes:
            notes.append("neither holds a class but 0")
        elif self.measured:
            unit = unit_sign(self.unit) or "voxels, or the unit of the spacing"
            notes.append(f"distances in {unit}, surface Dice at {self.tolerance:g}")
        if len(self.cases) > 1:
            notes.append(f"{len(self.cases)} cases; 95 % interval of the mean by bootstrap")
        if self.failed:
            notes.append(f"without scores: {', '.join(self.failed)}")
        return "; ".join(notes)

    def __str__(self) -> str:
        lines = self._lines
        shown = lines[: MOST_ROWS + 1]
        wide = [max(len(line[n]) for line in shown) for n in range(len(lines[0]))]
        left = 2 if len(self.cases) > 1 else 1
        text = [
            "  ".join(
                f"{cell:{w}}" if n < left else f"{cell:>{w}}"
                for n, (cell, w) in enumerate(zip(line, wide, strict=True))
            ).rstrip()
            for line in shown
        ]
        more = len(lines) - len(shown)
        rest = [f"… and {more} more lines"] if more else []
        return "\n".join([*text, *rest, self._note]).rstrip()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        heads, *lines = self._lines
        above = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines[:MOST_ROWS]
        )
        return f"<table><tr>{above}</tr>{rows}</table><p>{html.escape(self._note)}</p>"


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if not isinstance(value, float):
        return list(value) if isinstance(value, tuple) else value
    if math.isnan(value):
        return None
    return "inf" if math.isinf(value) else value
