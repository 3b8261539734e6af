"""How far two results of classes agree: counts of whole volumes, or of planes of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.report.colors import class_counts, class_numbers
from volflow.report.pictures.subject import Subject

__all__ = ["agreement", "volume_agreement"]

Array = npt.NDArray[Any]
Pair = tuple[Array, Array]
Counts = tuple[Counter[int], Counter[int], Counter[int]]

PIECE_VOXELS = 2**21  # of each volume, counted at a time by each thread
SMALL = 256  # class numbers below it are counted by pairs, in one go
SLAB = 8  # planes held of a file that is read from front to back


def agreement(pairs: Iterable[Pair], names: Mapping[int, str]) -> dict[str, Any]:
    """Count voxels in pairs of planes of classes, as plain values.

    Parameters
    ----------
    pairs
        Of planes of class numbers of one shape.
    names
        Of classes by number.

    Returns
    -------
    dict
        ``equal`` of ``total`` voxels; for each class but the background its voxels in ``a`` and
        in ``b`` and their Dice 2 |A ∩ B| / (|A| + |B|) (1945, https://doi.org/10.2307/1932409).

    Examples
    --------
    >>> found = agreement([(np.array([[0, 1, 1, 2]]), np.array([[0, 1, 2, 2]]))], {1: "one"})
    >>> found["equal"], found["total"], found["classes"][0]
    (3, 4, {'class': 1, 'name': 'one', 'dice': 0.6666666666666666, 'a': 2, 'b': 1})
    """
    return _summed(map(_counts, pairs), names)


def volume_agreement(
    one: Subject, other: Subject, names: Mapping[int, str]
) -> dict[str, Any] | None:
    """Count voxels of two whole volumes of classes, each read once, a few chunks at a time.

    Returns
    -------
    dict or None
        As `agreement`; None where they lie on different grids, or where one is a file of scores
        that can only be read from front to back.
    """
    sources = (one.finest, other.finest)
    scores = (each.finest.sequential and each.finest.ndim == 4 for each in (one, other)
              if each.channel is None)  # fmt: skip
    if one.shape != other.shape or any(scores):
        return None
    if any(source.sequential for source in sources):
        slabs = zip(_slabs(one), _slabs(other), strict=True)
        return _summed(map(_counts, slabs), names)
    sides = [max(a, b) for a, b in zip(*(s.piece[-3:] for s in sources), strict=True)]
    sides = [min(side, n) for side, n in zip(sides, one.shape, strict=True)]
    for axis in (2, 1, 0):
        while np.prod(sides) < PIECE_VOXELS and sides[axis] < one.shape[axis]:
            sides[axis] *= 2
    grid = BlockGrid(one.shape, tuple(sides))

    def count(number: int) -> Counts:
        return _counts((_classes(one, grid[number]), _classes(other, grid[number])))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return _summed(pool.map(count, range(len(grid))), names)


def _summed(counts: Iterable[Counts], names: Mapping[int, str]) -> dict[str, Any]:
    in_a, in_b, in_both = Counter[int](), Counter[int](), Counter[int]()
    for found in counts:
        for counter, more in zip((in_a, in_b, in_both), found, strict=True):
            counter.update(more)
    dice = {n: 2 * in_both[n] / (in_a[n] + in_b[n]) for n in sorted(in_a.keys() | in_b.keys()) if n}
    classes = [
        {"class": n, "name": names.get(n), "dice": dice[n], "a": in_a[n], "b": in_b[n]}
        for n in dice
    ]
    return {"equal": in_both.total(), "total": in_a.total(), "classes": classes}


def _counts(pair: Pair) -> Counts:
    """Return how many voxels each class has in one, in the other, and in both at once."""
    a, b = pair
    if all(x.dtype.kind in "bu" and x.dtype.itemsize == 1 for x in pair):
        joint = np.bincount((a.astype(np.uint16) * SMALL + b).ravel(), minlength=SMALL**2)
        table = joint.reshape(SMALL, SMALL)
        found = (table.sum(axis=1), table.sum(axis=0), table.diagonal())
        in_a, in_b, both = (Counter({int(n): int(c[n]) for n in c.nonzero()[0]}) for c in found)
        return in_a, in_b, both
    a, b = class_numbers(a), class_numbers(b)
    return class_counts(a), class_counts(b), class_counts(a[a == b])


def _classes(subject: Subject, roi: Roi) -> Array:
    """Return the classes in a box: the voxels, or the numbers of the highest channels."""
    source, channel = subject.finest, subject.channel
    if source.ndim == 3:
        return source.read(roi)
    first, stop = (0, source.shape[0]) if channel is None else (channel, channel + 1)
    voxels = source.read(Roi((first, *roi.start), (stop, *roi.stop)))
    found: Array = voxels.argmax(axis=0) if channel is None else voxels[0]
    return found


def _slabs(subject: Subject) -> Iterator[Array]:
    """Yield slabs of the channel that is shown, from front to back."""
    source = subject.finest
    if source.ndim == 4 and subject.channel is None:
        depth, *sides = subject.shape
        for z in range(0, depth, SLAB):
            yield _classes(subject, Roi((z, 0, 0), (min(z + SLAB, depth), *sides)))
        return
    for roi, voxels in source.slabs(SLAB):
        if source.ndim == 3 or roi.start[0] == subject.channel:
            yield voxels.reshape(voxels.shape[-3:])
