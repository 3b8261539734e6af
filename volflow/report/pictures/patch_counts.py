"""Counts of what patches hold and where they fall, in memory that does not grow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.report.colors import class_counts, class_numbers
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.stream_options import SAMPLE_FIELDS

__all__ = ["DrawnPatch", "PatchCounts", "each_patch", "facts_text", "from_cases", "leading_classes"]

Array = npt.NDArray[Any]

BINS = 64  # along each axis
MOST_CASES = 5  # that are named
MOST_CLASSES = 16  # that have a line of their own


@dataclass(frozen=True)
class DrawnPatch:
    """One patch: its arrays, ``czyx``, in the memory of this process; its case and first voxel."""

    arrays: Mapping[str, Array]
    case: str
    start: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along z, y, x."""
        return next(iter(self.arrays.values())).shape[-3:]

    @property
    def middle(self) -> tuple[int, ...]:
        """Centre of the patch, counted from its first voxel."""
        return tuple(p // 2 for p in self.shape)


def each_patch(samples: Iterable[Mapping[str, Any]]) -> Iterator[DrawnPatch]:
    """Yield the patches of samples or of batches, one at a time.

    Examples
    --------
    >>> batch = {"image": np.zeros((2, 1, 4, 4, 4)), "case": ["a", "b"],
    ...          "location": np.array([[0, 0, 0, 4, 4, 4], [1, 2, 3, 5, 6, 7]])}
    >>> [(patch.case, patch.start) for patch in each_patch([batch])]
    [('a', (0, 0, 0)), ('b', (1, 2, 3))]
    """
    for sample in samples:
        arrays = {key: _array(value) for key, value in sample.items() if key not in SAMPLE_FIELDS}
        location = _array(sample["location"])
        if location.ndim == 1:
            yield DrawnPatch(arrays, sample["case"], tuple(location[:3].tolist()))
            continue
        for n, (case, place) in enumerate(zip(sample["case"], location, strict=True)):
            one = {key: value[n] for key, value in arrays.items()}
            yield DrawnPatch(one, case, tuple(place[:3].tolist()))


@dataclass
class PatchCounts:
    """Counts that grow with each patch; all else about it is forgotten.

    Parameters
    ----------
    cases
        The cases that patches may come from, by name.
    label
        The array whose classes are counted, or None.

    Examples
    --------
    >>> from volflow.sampling.cases.open_cases import open_cases
    >>> labels = np.zeros((8, 8, 8), "uint8")
    >>> labels[4:] = 1
    >>> counts = PatchCounts({c.name: c for c in open_cases({"label": labels})}, "label")
    >>> counts.add(DrawnPatch({"label": labels[None, 2:6]}, "case0", (2, 0, 0)))
    >>> counts.facts()["classes"][1]
    {'class': 1, 'voxels': 0.5, 'centres': 1.0, 'patches': 1}
    """

    cases: Mapping[str, Case]
    label: str | None = None
    patches: Counter[str] = field(default_factory=Counter)
    # Patches by where their centre lies on each plane, which is named by the axis across it.
    across: Array = field(default_factory=lambda: np.zeros((3, BINS, BINS), np.int64))
    voxels: Counter[int] = field(default_factory=Counter)
    centres: Counter[int] = field(default_factory=Counter)
    holding: Counter[int] = field(default_factory=Counter)
    last: tuple[int, ...] = ()

    def add(self, patch: DrawnPatch) -> None:
        """Count a patch; of its voxels those inside the volume."""
        self.last = patch.shape
        shape = self.cases[patch.case].shape
        centre = [s + m for s, m in zip(patch.start, patch.middle, strict=True)]
        place = [min(max(c * BINS // n, 0), BINS - 1) for c, n in zip(centre, shape, strict=True)]
        self.patches[patch.case] += 1
        for axis in range(3):
            rows, columns = (other for other in range(3) if other != axis)
            self.across[axis, place[rows], place[columns]] += 1
        if self.label is None:
            return
        labels = patch.arrays[self.label][0]
        inside = labels[
            tuple(slice(max(0, -s), max(0, n - s)) for s, n in zip(patch.start, shape, strict=True))
        ]
        found = class_counts(class_numbers(inside))
        self.voxels.update(found)
        self.holding.update(found.keys())
        self.centres[int(class_numbers(labels[patch.middle]))] += 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels of a patch along z, y, x.

        Raises
        ------
        InvalidInput
            If no patch was counted.
        """
        if not self.last:
            raise InvalidInput("there are no patches to show; the stream is at its end or empty")
        return self.last

    @property
    def total(self) -> int:
        """Number of patches counted."""
        return self.patches.total()

    def histogram(self, axis: int) -> Array:
        """Return patches by their centre along an axis, in bins that are not mostly empty."""
        along = self.across[0].sum(axis=axis % 2) if axis else self.across[1].sum(axis=1)
        return _coarser(along, self._bins(self.total / 12))

    def projection(self, axis: int) -> Array:
        """Return patches by their centre on the plane across an axis, a 2-D array."""
        return _coarser(self.across[axis], self._bins((self.total / 3) ** 0.5))

    def _bins(self, filled: float) -> int:
        """Return the bins along an axis: a power of two that voxels and patches can fill."""
        shortest = min((min(self.cases[name].shape) for name in self.patches), default=BINS)
        bins = 8
        while 2 * bins <= min(BINS, filled, shortest / 4):
            bins *= 2
        return bins

    def facts(self) -> dict[str, Any]:
        """Return the counts as plain values; shares are parts of one."""
        voxels = max(1, self.voxels.total())
        return {
            "patches": self.total,
            "cases": {name: self.patches[name] for name in self.cases},
            "label": self.label,
            "classes": [
                {
                    "class": value,
                    "voxels": self.voxels[value] / voxels,
                    "centres": self.centres[value] / self.total,
                    "patches": self.holding[value],
                }
                for value in sorted(self.voxels | self.centres)
            ],
            "patch": list(self.shape),
        }


def facts_text(facts: Mapping[str, Any]) -> str:
    """Return the counts as lines of text.

    Examples
    --------
    >>> one = {"class": 3, "voxels": 0.125, "centres": 1.0, "patches": 2}
    >>> print(facts_text({"patches": 2, "cases": {"a": 2, "b": 0}, "label": "label",
    ...                   "classes": [one]}))
    2 patches: a 2, b 0
    label      of voxels    at centres    in patches
    3             12.5 %         100 %             2
    """
    lines = [f"{facts['patches']} patches: {from_cases(facts['cases'])}"]
    if facts["classes"]:
        lines.append(_row(facts["label"], "of voxels", "at centres", "in patches"))
    shown = leading_classes(facts["classes"])
    for one in shown:
        shares = (f"{100 * one[key]:.3g} %" for key in ("voxels", "centres"))
        lines.append(_row(str(one["class"]), *shares, one["patches"]))
    left = len(facts["classes"]) - len(shown)
    return "\n".join([*lines, *([f"and {left} classes more"] if left else [])])


def from_cases(cases: Mapping[str, int]) -> str:
    """Return how many patches each case gave; of many cases, the least and the most.

    Examples
    --------
    >>> from_cases({"a": 5, "b": 0})
    'a 5, b 0'
    >>> from_cases({name: int(name) for name in "012345"})
    '1 to 5 from each of 5 cases, none from 1'
    """
    if len(cases) <= MOST_CASES:
        return ", ".join(f"{name} {count}" for name, count in cases.items())
    counts = [count for count in cases.values() if count]
    least, most = min(counts), max(counts)
    number = str(most) if least == most else f"{least} to {most}"
    left = len(cases) - len(counts)
    return f"{number} from each of {len(counts)} cases" + (f", none from {left}" if left else "")


def leading_classes(classes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the classes of most centres, then of most voxels, in order of their numbers.

    Examples
    --------
    >>> classes = [{"class": n, "centres": n % 2, "voxels": n / 190} for n in range(20)]
    >>> [one["class"] for one in leading_classes(classes)]
    [1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19]
    """
    most = sorted(classes, key=lambda one: (-one["centres"], -one["voxels"]))[:MOST_CLASSES]
    return sorted(most, key=lambda one: one["class"])


def _row(name: str, *columns: object) -> str:
    return f"{name:<8}" + "".join(f"{column!s:>12}  " for column in columns).rstrip()


def _array(x: Any) -> Array:
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x)


def _coarser(counts: Array, bins: int) -> Array:
    """Return counts in fewer bins along each axis."""
    for axis in range(counts.ndim):
        counts = np.add.reduceat(counts, range(0, BINS, BINS // bins), axis=axis)
    return counts
