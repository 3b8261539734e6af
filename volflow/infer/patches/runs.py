"""Runs of blocks for many workers, cut so that the last worker ends as soon as it can.

A run goes along the frame's first axis. Its ends are seams, whose patches the next run computes
again; but where runs are few, or unequal, as at the border, workers wait for the last. So all
lengths that give each worker a few runs are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapreplace

from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid

__all__ = ["Shares", "last_end", "runs_of", "shares_of"]

# Runs per worker above which shorter ones make the workers no more equal.
MOST_RUNS = 4

Run = tuple[int, ...]


@dataclass(frozen=True)
class Shares:
    """Patches until the last worker ends, and in all, where a run has so many blocks at most."""

    last: int
    total: int
    length: int


def last_end(sizes: Sequence[int], workers: int) -> int:
    """Return what the busiest worker does, if each that is free takes the largest run left.

    Examples
    --------
    >>> last_end([2, 3, 3, 4], 2)
    6
    """
    ends = [0] * workers
    for size in sorted(sizes, reverse=True):
        heapreplace(ends, ends[0] + size)
    return max(ends)


def shares_of(
    depth: int, columns: int, workers: int, sizes: Callable[[int], Sequence[int]]
) -> Shares:
    """Return the best shares of columns of blocks that are cut into runs of one length.

    Parameters
    ----------
    depth, columns
        Blocks of a column, and how many columns there are.
    workers
        That share the runs.
    sizes
        Returns how many patches each run computes where runs have so many blocks at most.

    Examples
    --------
    >>> shares_of(6, 1, 4, lambda length: [length + 1] * -(-6 // length))
    Shares(last=3, total=9, length=2)
    """
    best: Shares | None = None
    for length in _lengths(depth, columns, workers):
        found = sizes(length)
        total = sum(found)
        if best is None or total <= best.last * workers:  # else it is later even if nobody waits
            shares = Shares(last_end(found, workers), total, length)
            if best is None or (shares.last, total) < (best.last, best.total):
                best = shares
    assert best is not None
    return best


def _lengths(depth: int, columns: int, workers: int) -> list[int]:
    """Return the lengths of runs that are worth a try, the longest first."""
    most = MOST_RUNS * workers // columns if workers > 1 else 1
    pieces = range(1, min(max(1, most), depth) + 1)
    return sorted({-(-depth // count) for count in pieces}, reverse=True)


def runs_of(
    blocks: BlockGrid,
    frame: Frame,
    done: frozenset[int],
    workers: int,
    patches: Callable[[Run], int],
) -> tuple[Run, ...]:
    """Return the blocks left to do as runs; for many workers the largest first.

    Parameters
    ----------
    blocks, frame
        The tiling of the output in stored axis order, and the frame along whose first axis runs go.
    done
        Blocks that are left out.
    workers
        That share the runs.
    patches
        Returns how many patches a run computes.

    Examples
    --------
    >>> runs_of(BlockGrid((4, 1, 1), (1, 1, 1)), Frame(), frozenset({1}), 1, len)
    ((0,), (2, 3))
    """
    axis, flip = frame.axes[0], frame.flips[0]
    columns: dict[tuple[int, ...], list[int]] = {}
    for number in range(len(blocks)):
        across = tuple(i for a, i in enumerate(blocks.index(number)) if a != axis)
        columns.setdefault(across, []).append(number)
    left = [numbers for numbers in columns.values() if not done.issuperset(numbers)]
    if not left:
        return ()

    def cut(length: int) -> list[Run]:
        ordered = (numbers[::-1] if flip else numbers for numbers in left)
        return [run for numbers in ordered for run in _cut(numbers, done, length)]

    depth = blocks.counts[axis]
    best = shares_of(depth, len(left), workers, lambda length: list(map(patches, cut(length))))
    runs = cut(best.length)
    return tuple(sorted(runs, key=patches, reverse=True) if workers > 1 else runs)


def _cut(numbers: Sequence[int], done: frozenset[int], length: int) -> Iterator[Run]:
    """Yield what is left of a column as runs of at most so many neighbouring blocks."""
    run: list[int] = []
    for number in numbers:
        if run and (number in done or len(run) == length):
            yield tuple(run)
            run = []
        if number not in done:
            run.append(number)
    if run:
        yield tuple(run)
