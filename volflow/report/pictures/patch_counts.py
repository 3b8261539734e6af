"""The patches of a picture: their arrays, what they hold, where they fall; memory stays bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.grid import slice_axis
from volflow.report.colors import class_counts, class_numbers
from volflow.report.facts.grid_facts import times
from volflow.report.pictures.subject import Names, check_channel, class_names
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.cases.open_cases import open_cases
from volflow.sampling.stream_options import SAMPLE_FIELDS
from volflow.store.meta import Meta

__all__ = ["DrawnPatch", "PatchCounts", "each_patch", "facts_text", "leading_classes"]

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

    def classes(self, label: str) -> Array:
        """Return the classes of a label, ``zyx``; of channels the first that holds the most."""
        channels = self.arrays[label]
        found: Array = channels[0] if len(channels) == 1 else channels.argmax(axis=0)
        return found


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
        location = _array(sample["location"])
        given = {key: _array(value) for key, value in sample.items() if key not in SAMPLE_FIELDS}
        arrays = {key: value for key, value in given.items() if value.ndim > 2}
        if location.ndim == 1:
            yield DrawnPatch(arrays, sample["case"], tuple(location[:3].tolist()))
            continue
        for n, (case, place) in enumerate(zip(sample["case"], location, strict=True)):
            axis = slice_axis(place[3:] - place[:3])
            one = {
                key: value[n]
                if axis is None or value.ndim == 5
                else np.expand_dims(value[n], 1 + axis)
                for key, value in arrays.items()
            }
            yield DrawnPatch(one, case, tuple(place[:3].tolist()))


@dataclass
class PatchCounts:
    """The arrays of patches that are shown, and counts that grow with each patch.

    All else about a patch is forgotten.

    Parameters
    ----------
    cases
        The cases that patches may come from, by name.
    label
        The array whose classes are counted and shown in colours, or None.
    image
        The array shown in grey, or None.
    grid
        Spacing, unit and orientation that all cases share; where they differ, voxels as stored.
    names, colors
        Of the label's classes, by number.

    Examples
    --------
    >>> labels = np.zeros((8, 8, 8), "uint8")
    >>> labels[4:] = 1
    >>> counts = PatchCounts({c.name: c for c in open_cases({"label": labels})}, "label")
    >>> counts.add(DrawnPatch({"label": labels[None, 2:6]}, "case0", (2, 0, 0)))
    >>> counts.facts()["classes"][1]
    {'class': 1, 'voxels': 0.5, 'centres': 1.0, 'patches': 1}
    """

    cases: Mapping[str, Case]
    label: str | None = None
    image: str | None = None
    grid: Meta = field(default_factory=Meta)
    names: Mapping[int, str] = field(default_factory=dict)
    colors: Sequence[str] = ()
    patches: Counter[str] = field(default_factory=Counter)
    # Patches by where their centre lies on each plane, which is named by the axis across it.
    across: Array = field(default_factory=lambda: np.zeros((3, BINS, BINS), np.int64))
    voxels: Counter[int] = field(default_factory=Counter)
    centres: Counter[int] = field(default_factory=Counter)
    holding: Counter[int] = field(default_factory=Counter)
    last: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        samples: Any,
        cases: Any,
        *,
        image: str | None = None,
        label: str | None = None,
        channel: int = 0,
        classes: Names = None,
    ) -> PatchCounts:
        """Choose the arrays of samples to show; no patch is taken yet.

        Parameters
        ----------
        samples, cases
            A stream, or anything with the cases that its samples come from.
        image, label
            Names of arrays; by default the first that holds no classes, and the first that does.
        channel
            Channel of the image.
        classes
            Names of the classes; by default those of the label's metadata.

        Raises
        ------
        InvalidInput
            If the cases are not known, or have no such array or channel.
        """
        stream = getattr(samples, "stream", samples)  # of a loader
        known = getattr(stream, "cases", None) if cases is None else open_cases(cases)
        if known is None:
            raise InvalidInput(
                "samples do not say which volumes they come from; give the stream itself, or"
                " cases=stream.cases"
            )
        first = known[0]
        for name in (image, label):
            if name is not None and name not in first.sources:
                raise InvalidInput(f"cases hold {', '.join(first.sources)}, given {name!r}")
        if image is None:
            image = next((name for name in first.sources if name not in first.classes), None)
        if label is None:
            label = next((name for name in first.sources if name in first.classes), None)
        check_channel(channel, 1 if image is None else first.channels(image))
        grid = _shared(known)
        if getattr(samples, "stream", None) is not None and stream.augment:
            # A patch that was turned has no left and right of its own.
            grid = replace(grid, orientation=None, affine=None)
        meta = Meta() if label is None else first.sources[label].meta
        names = class_names(classes, meta.channels if meta.kind == "classes" else ())
        return cls({case.name: case for case in known}, label, image, grid, names, meta.colors)

    def add(self, patch: DrawnPatch) -> None:
        """Count a patch; of its voxels those inside the volume."""
        self.last = patch.shape
        shape = self.cases[patch.case].shape
        centre = np.add(patch.start, patch.middle)
        place = np.clip(centre * BINS // shape, 0, BINS - 1)
        self.patches[patch.case] += 1
        for axis in range(3):
            self.across[(axis, *np.delete(place, axis))] += 1
        if self.label is None:
            return
        labels = patch.classes(self.label)
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

    def title(self) -> tuple[str, ...]:
        """Return the number of patches and their origin, as the parts of a title."""
        cases, came = list(self.cases), len(self.patches)
        part = f"{came} of " if came < len(cases) else ""
        origin = cases[0] if len(cases) == 1 else f"{part}{len(cases)} cases"
        number = "1 patch" if self.total == 1 else f"{self.total} patches"
        return (f"{number} of {times(self.shape)} voxels", " from ", origin)

    def subtitle(self, samples: Any, *more: str) -> str:
        """Return the sampler that drew the patches, and how many came from each case."""
        law = _law(getattr(getattr(samples, "stream", samples), "sampler", None))
        origins = from_cases({name: self.patches[name] for name in self.cases})
        return "   ·   ".join([*law, *more, *([origins] if len(self.cases) > 1 else [])])


def _shared(cases: Sequence[Case]) -> Meta:
    grids = {
        (tuple(round(s, 9) for s in case.spacing), case.unit, case.meta.orientation)
        for case in cases
    }
    if len(grids) > 1:
        orientations = {orientation for _, _, orientation in grids}
        return Meta(orientation=orientations.pop() if len(orientations) == 1 else None)
    return cases[0].meta


def _law(sampler: Any) -> list[str]:
    """Return a sampler with its settings; an array with the usual name is left out.

    Examples
    --------
    >>> from volflow.sampling.samplers import LabelSampler, WeightedSampler
    >>> _law(WeightedSampler(64, weight="weight")), _law(WeightedSampler(64, weight="grey"))
    (['WeightedSampler'], ['WeightedSampler, weight grey'])
    >>> _law(LabelSampler(64, probabilities={0: 1, 1: 3}))
    ['LabelSampler, probabilities 0: 1, 1: 3']
    """
    if sampler is None:
        return []
    words = [type(sampler).__name__]
    for setting in fields(sampler):
        value = getattr(sampler, setting.name)
        if isinstance(value, Mapping):
            value = ", ".join(f"{key}: {share:g}" for key, share in value.items())
        if setting.name != "patch" and value not in (setting.default, setting.name, (0, 0, 0)):
            words.append(f"{setting.name} {value}")
    return [", ".join(words)]


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
