"""Statistics of a whole volume, and the file beside it that keeps them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.histogram import Foreground, Histogram, Moments
from volflow.store.atomic import read_json, write_json
from volflow.store.sidecars import keep, part_of, sidecar_paths
from volflow.store.volume import Volume

__all__ = ["Statistics", "check_foreground", "load_statistics", "save_statistics", "sidecars"]

FORMAT = 1
SHOWN = (1, 5, 50, 95, 99)  # percentiles that people are shown
MOST_BYTES = 2**30  # of a file: some 40 MB a channel of floats
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Statistics:
    """Histograms and moments of a volume's voxels; every figure has one entry per channel.

    Parameters
    ----------
    histograms
        One per channel: `volflow.geometry.histogram.Histogram`.
    foreground
        Which voxels count. False: all; True: those that are not zero; a number: those above it.
        Whatever it says, NaN and infinite voxels are left out.

    Examples
    --------
    >>> from volflow.geometry.histogram import measure
    >>> stats = Statistics((measure(np.array([1, 2, 3, 10], dtype="uint8")),))
    >>> stats
    Statistics(4 voxels, min 1, p1 1.03, p5 1.15, p50 2.5, p95 8.95, p99 9.79, max 10, mean 4, ...)
    >>> stats.percentile(50), stats.percentile([0, 50])
    ((2.5,), ((1.0, 2.5),))
    """

    histograms: tuple[Histogram, ...]
    foreground: Foreground = False

    @property
    def count(self) -> tuple[int, ...]:
        """Finite voxels of the foreground."""
        return self._each(lambda h: h.count)

    @property
    def nonfinite(self) -> tuple[int, ...]:
        """NaN and infinite voxels."""
        return self._each(lambda h: h.nonfinite)

    @property
    def min(self) -> tuple[float, ...]:
        """The smallest value. It, `max`, `mean` and `std` raise where no voxel counts."""
        return self._each(lambda h: h.min)

    @property
    def max(self) -> tuple[float, ...]:
        """The largest value."""
        return self._each(lambda h: h.max)

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean; exact for integers of up to 16 bits."""
        return self._each(lambda h: h.mean)

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation, of the population; exact for integers of up to 16 bits."""
        return self._each(lambda h: h.std)

    @overload
    def percentile(self, q: float) -> tuple[float, ...]: ...
    @overload
    def percentile(self, q: Sequence[float]) -> tuple[tuple[float, ...], ...]: ...
    def percentile(self, q: Any) -> tuple[Any, ...]:
        """The value below which ``q`` per cent of the voxels lie, as `numpy.percentile`.

        Of several ``q`` each channel's entry holds one value for each. Exact for integers of up to
        16 bits, known to 0.025 % of its value for other types.

        Raises
        ------
        InvalidInput
            Where ``q`` is not in 0..100, or no voxel counts.
        """
        if np.ndim(q) == 0:
            return self._each(lambda h: h.percentile(q))
        return self._each(lambda h: tuple(h.percentile(one) for one in q))

    def _each(self, figure: Callable[[Histogram], T]) -> tuple[T, ...]:
        return tuple(figure(histogram) for histogram in self.histograms)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for machines, without the bins; None where no voxel counts."""
        names = ("min", "max", "mean", "std")
        channels: list[dict[str, Any]] = [
            {"count": h.count, "nonfinite": h.nonfinite, "dtype": h.dtype}
            | {name: getattr(h, name) if h.count else None for name in names}
            | {f"p{q}": h.percentile(q) if h.count else None for q in sorted({2, 98, *SHOWN})}
            for h in self.histograms
        ]
        return {"foreground": self.foreground, "channels": channels}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def __repr__(self) -> str:
        return f"Statistics({'; '.join(self._lines())})"

    def _lines(self) -> Iterator[str]:
        which = f" above {self.foreground:g}"
        if isinstance(self.foreground, bool):
            which = " that are not 0" if self.foreground else ""
        for number, h in enumerate(self.histograms):
            text = f"channel {number}: " if len(self.histograms) > 1 else ""
            text += f"{h.count:,} voxels{which}"
            if h.count:
                between = "".join(f" p{q} {h.percentile(q):g}," for q in SHOWN)
                text += f", min {h.min:g},{between} max {h.max:g}, mean {h.mean:g}, std {h.std:g}"
            yield text + (f", {h.nonfinite:,} not finite" if h.nonfinite else "")


def check_foreground(foreground: object) -> Foreground:
    """Return the foreground as False, True or a finite number.

    Raises
    ------
    InvalidInput
        For anything else.
    """
    if isinstance(foreground, bool):
        return foreground
    if not isinstance(foreground, int | float | np.number) or not math.isfinite(foreground):
        raise InvalidInput(
            f"foreground must be False, True (voxels that are not zero) or a number (voxels above"
            f" it); got {foreground!r}"
        )
    return float(foreground)


def load_statistics(volume: Volume, identity: str, foreground: Foreground) -> Statistics | None:
    """Return the statistics kept for the volume of that identity; None where there are none."""
    for path in sidecars(volume, foreground):
        try:
            saved = read_json(path, MOST_BYTES)
            if (saved["format"], saved["identity"]) == (FORMAT, identity):
                return Statistics(_histograms(saved["channels"], volume), foreground)
        except Exception:  # absent, or damaged in whatever way: computed anew
            continue
    return None


def save_statistics(volume: Volume, identity: str, statistics: Statistics) -> Path | None:
    """Keep statistics beside the volume, or else in the user's cache; None where neither can be."""
    value = {
        "format": FORMAT,
        "identity": identity,
        "channels": [
            {
                "dtype": h.dtype,
                "bins": h.bins,
                "counts": h.counts,
                "nonfinite": h.nonfinite,
                "moments": None if h.moments is None else asdict(h.moments),
            }
            for h in statistics.histograms
        ],
    }
    places = sidecars(volume, statistics.foreground)
    return keep(places, lambda path: write_json(path, value))


def _histograms(channels: list[dict[str, Any]], volume: Volume) -> tuple[Histogram, ...]:
    """One per channel of the volume; a ValueError where they cannot be its."""
    found = tuple(map(_histogram, channels))
    if len(found) != volume.channels_count or {h.dtype for h in found} != {volume.dtype.name}:
        raise ValueError("statistics of another volume")
    return found


def _histogram(saved: dict[str, Any]) -> Histogram:
    moments = saved["moments"]
    known = None
    if moments is not None:
        numbers = {name: float(moments[name]) for name in ("mean", "m2", "low", "high")}
        known = Moments(int(moments["count"]), **numbers)
    bins = np.array(saved["bins"], dtype=np.uint32)
    counts = np.array(saved["counts"], dtype=np.int64)
    nonfinite = int(saved["nonfinite"])
    total = int(counts.sum())
    ordered = bool((np.diff(bins.astype(np.int64)) > 0).all())
    if bins.ndim != 1 or bins.shape != counts.shape or not ordered or counts.min(initial=1) < 1:
        raise ValueError("bins that no histogram has")
    if nonfinite < 0 or (known is not None and known.count != total):
        raise ValueError("counts that do not agree")
    return Histogram(str(saved["dtype"]), bins, counts, nonfinite, known)


def sidecars(volume: Volume, foreground: Foreground) -> Iterator[Path]:
    """Yield the paths where statistics may lie: beside the volume, in the user's cache."""
    if isinstance(foreground, bool):
        name = "statistics-nonzero" if foreground else "statistics-all"
    else:
        name = f"statistics-above-{foreground!r}"
    return sidecar_paths(volume.path, f"{name}{part_of(volume)}.json")
