"""How a volume is divided over processes: each owns a box of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = ["Division"]


@dataclass(frozen=True)
class Division:
    """A volume cut along its axes into one box per process.

    A box may be empty, and a node of a network that is much smaller than the volume has shares
    that are.

    Parameters
    ----------
    bounds
        Per axis, the first voxels of the boxes, followed by the size of the volume.

    Raises
    ------
    InvalidInput
        If bounds do not begin at 0 or decrease.
    """

    bounds: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        for axis, bounds in enumerate(self.bounds):
            falls = any(a > b for a, b in itertools.pairwise(bounds))
            if len(bounds) < 2 or bounds[0] != 0 or falls:
                raise InvalidInput(
                    f"bounds must begin at 0, end at the size of the volume and never decrease,"
                    f" got {bounds} along axis {axis}; give one more than there are boxes"
                )

    @classmethod
    def even(
        cls, sizes: Sequence[int], partition: Sequence[int], alignment: Sequence[int]
    ) -> Division:
        """Cut a volume into boxes of nearly one size, on multiples of the alignment.

        Where an axis has fewer multiples than boxes, it is cut between any two voxels.

        Parameters
        ----------
        sizes
            Sides of the volume.
        partition
            Number of boxes along each axis.
        alignment
            What bounds should be multiples of, along each axis.

        Raises
        ------
        InvalidInput
            If there is not one positive number per axis, or more boxes than voxels.

        Examples
        --------
        >>> Division.even((32, 40), (2, 3), (8, 8)).bounds
        ((0, 16, 32), (0, 8, 24, 40))
        """
        if len(partition) != len(sizes) or any(parts < 1 for parts in partition):
            raise InvalidInput(
                f"partition must hold one positive number per axis of the volume, which has"
                f" {len(sizes)}, got {tuple(partition)}"
            )
        if any(parts > size for parts, size in zip(partition, sizes, strict=True)):
            raise InvalidInput(
                f"partition {tuple(partition)} cuts an axis into more boxes than it has voxels:"
                f" the volume has {tuple(sizes)}; use fewer processes or other axes"
            )
        each = zip(sizes, partition, alignment, strict=True)
        return cls(tuple(_even(*one) for one in each))

    @property
    def partition(self) -> tuple[int, ...]:
        """Number of boxes along each axis."""
        return tuple(len(bounds) - 1 for bounds in self.bounds)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides of the volume."""
        return tuple(bounds[-1] for bounds in self.bounds)

    @property
    def boxes(self) -> tuple[Roi, ...]:
        """The boxes of all processes in their order: the last axis varies fastest."""
        found = itertools.product(*(itertools.pairwise(bounds) for bounds in self.bounds))
        return tuple(Roi(tuple(a for a, _ in box), tuple(b for _, b in box)) for box in found)


def _even(size: int, parts: int, step: int) -> tuple[int, ...]:
    step = step if size // step >= parts else 1
    return (*(n * (size // step) // parts * step for n in range(parts)), size)
