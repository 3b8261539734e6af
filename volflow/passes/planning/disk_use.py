"""What training leaves on disk at a time: what is kept, and gradients that are not yet used.

Forward, every pass adds what it keeps, and all of it stays, since a pass that reads it is run again
backward. Backward, a pass adds the gradients of the windows that it read, and deletes by groups of
blocks those that it took and the values that it stored and has read again; when it is done, all
values that no pass before it will read again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["DiskUse", "Written", "disk_use"]

NOTHING: frozenset[int] = frozenset()


class Written(Protocol):
    """What a pass reads and writes, in bytes."""

    @property
    def given(self) -> tuple[int, ...]:
        """Nodes that it reads, in both directions."""

    @property
    def keeps(self) -> tuple[tuple[int, int], ...]:
        """Nodes that it keeps, and their bytes."""

    @property
    def rereads(self) -> tuple[int, ...]:
        """Those of them that it reads itself backward."""

    @property
    def gives(self) -> tuple[tuple[int, int], ...]:
        """Nodes of whose windows it gives gradients, and the bytes of these."""

    @property
    def in_work(self) -> float:
        """The largest share of its blocks that are in work at a time: a group on each worker."""

    @property
    def sums_bytes(self) -> int:
        """Bytes of the sums of its weights' gradients, until they are merged."""


@dataclass(frozen=True)
class DiskUse:
    """What the last passes of a plan need of the disk, beside what those before them keep.

    Parameters
    ----------
    peaks
        Bytes at the fullest moments, by the nodes which none of these passes will read any more
        then: of those that are kept before, they are on disk only if a pass before reads them, too.
    reads
        Nodes that these passes read and those before them keep.
    owed
        Bytes of the gradients that they leave to the passes before them, by node.
    """

    peaks: Mapping[frozenset[int], int] = field(default_factory=lambda: {NOTHING: 0})
    reads: frozenset[int] = NOTHING
    owed: Mapping[int, int] = field(default_factory=dict)

    @property
    def peak_bytes(self) -> int:
        """The most bytes at a time, if all that is kept before is there then."""
        return max(self.peaks.values())

    @property
    def certain_bytes(self) -> int:
        """Bytes of which more room on disk is needed, whatever passes there are before."""
        return self.peaks.get(NOTHING, 0)

    def behind(self, step: Written) -> DiskUse:
        """Return the same with one pass more before them."""
        keeps, owed = dict(step.keeps), dict(self.owed)
        freed = sum(owed.pop(node, 0) for node in keeps) + sum(keeps[n] for n in step.rereads)
        given = sum(size for _, size in step.gives)
        # All that it frees is there when its first groups give, and all is given when its last
        # ones free; between these moments both go in step with the blocks.
        both = max(freed + step.in_work * given, step.in_work * freed + given)
        own = step.sums_bytes + sum(owed.values()) + math.ceil(both)
        for node, size in step.gives:
            owed[node] = owed.get(node, 0) + size
        unread = self.reads.difference(step.given, keeps)
        peaks = {unread: own}
        alive = {*step.given, *step.rereads}
        for over, peak in self.peaks.items():
            over -= alive
            gone = over & keeps.keys()
            peak += sum(size for node, size in keeps.items() if node not in gone)
            peaks[over - gone] = max(peak, peaks.get(over - gone, 0))
        return DiskUse(peaks, self.reads.union(step.given).difference(keeps), owed)

    def is_within(self, other: DiskUse) -> bool:
        """Return whether it never needs more than another, whatever passes there are before."""
        return all(size <= other.owed.get(node, 0) for node, size in self.owed.items()) and all(
            any(peak <= more and fewer <= over for fewer, more in other.peaks.items())
            for over, peak in self.peaks.items()
        )


def disk_use(steps: Sequence[Written]) -> DiskUse:
    """Return what passes need of the disk.

    Parameters
    ----------
    steps
        The passes, in the order in which they are run forward.
    """
    use = DiskUse()
    for step in reversed(steps):
        use = use.behind(step)
    return use
