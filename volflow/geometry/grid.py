"""Blocks of storage and patches of a model: two grids over one volume.

A `BlockGrid` tiles a volume with the units of scheduled work; its write rois never overlap.
A `PatchGrid` places a model's window; its patches overlap, cover every voxel, and are independent
of blocks. Everything is stored per axis, so a grid of 10^9 patches is a few short arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi

__all__ = ["MOST_BLOCKS", "BlockGrid", "PatchGrid", "per_axis", "slice_axis", "stride_of"]

MOST_BLOCKS = 2**22  # each has a task and a record; 100 TB in shards of 256³ voxels are 3 million

AXES = "zyx"


def per_axis(value: int | Sequence[int], name: str, ndim: int = 3) -> tuple[int, ...]:
    """Return one positive integer per axis from an integer or a sequence.

    Examples
    --------
    >>> per_axis(64, "patch"), per_axis((1, 96, 96), "patch")
    ((64, 64, 64), (1, 96, 96))
    """
    numbers: Sequence[int] = [value] * ndim if isinstance(value, int | np.integer) else value
    try:
        right = len(numbers) == ndim and all(int(v) == v and v >= 1 for v in numbers)
    except (TypeError, ValueError):  # not a sequence, or not of numbers
        right = False
    if not right:
        raise InvalidInput(
            f"{name} must be a positive integer or {ndim} of them ({AXES[-ndim:]}); got {value!r}"
        )
    return tuple(int(v) for v in numbers)


def slice_axis(patch: Sequence[int]) -> int | None:
    """Return the axis of a patch that networks of slices do not have: the first of one voxel.

    Examples
    --------
    >>> slice_axis((96, 1, 96)), slice_axis((64, 64, 64))
    (1, None)
    """
    sides = list(patch)
    return sides.index(1) if 1 in sides else None


def stride_of(
    patch: Sequence[int],
    overlap: float | Sequence[float],
    scale: Sequence[int] = (1, 1, 1),
) -> tuple[int, ...]:
    """Return the step between patches, in voxels per axis.

    Parameters
    ----------
    patch
        Voxels per axis.
    overlap
        Voxels if an integer, a fraction of the patch if a float below 1; one for all axes or one
        per axis. A fraction f gives max(1, floor(patch · (1 - f))), as MONAI.
    scale
        Input voxels per output voxel; the stride is rounded down to a multiple of it.

    Raises
    ------
    InvalidInput
        If the overlap is negative or not smaller than the patch.

    Examples
    --------
    >>> stride_of((96, 96, 96), 0.25), stride_of((1, 10, 10), (0, 4, 0.9))
    ((72, 72, 72), (1, 6, 1))
    """
    overlaps = list(overlap) if isinstance(overlap, Sequence) else [overlap] * len(patch)
    if len(overlaps) != len(patch):
        raise InvalidInput(f"overlap needs one entry per axis ({len(patch)}); got {overlap!r}")
    strides = []
    for p, o, s in zip(patch, overlaps, scale, strict=True):
        fraction = isinstance(o, float | np.floating)
        whole = isinstance(o, int | np.integer)
        if not ((fraction and 0 <= o < 1) or (whole and 0 <= o < p)):
            raise InvalidInput(
                f"overlap must be a fraction in [0, 1) or a number of voxels below the patch ({p});"
                f" got {o}"
            )
        step = max(1, int(p * (1 - o))) if fraction else p - int(o)
        strides.append(max(s, step // s * s))
    return tuple(strides)


@dataclass(frozen=True)
class BlockGrid:
    """A regular tiling of a volume; the last block of an axis may be smaller.

    Parameters
    ----------
    shape, block
        Voxels per axis.

    Examples
    --------
    >>> grid = BlockGrid((100, 64, 64), (40, 64, 64))
    >>> len(grid), grid[1].start, grid[2].shape
    (3, (40, 0, 0), (20, 64, 64))
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.block) != len(self.shape) or min(self.block) < 1 or min(self.shape) < 1:
            raise InvalidInput(f"block {self.block} does not tile a volume of shape {self.shape}")
        if len(self) > MOST_BLOCKS:
            raise InvalidInput(
                f"blocks {self.block} cut a volume of shape {self.shape} into {len(self)}; at most"
                f" {MOST_BLOCKS} can be run; choose larger shards, or check the volume's shape"
            )

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Blocks per axis."""
        return tuple(-(-n // b) for n, b in zip(self.shape, self.block, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __getitem__(self, number: int) -> Roi:
        """Return the box of a block, which only its task writes."""
        start = [i * b for i, b in zip(self.index(number), self.block, strict=True)]
        stop = [a + b for a, b in zip(start, self.block, strict=True)]
        return Roi(tuple(start), tuple(stop)).clip(self.shape)

    def __iter__(self) -> Iterator[Roi]:
        return (self[number] for number in range(len(self)))

    def voxels(self, numbers: Iterable[int]) -> int:
        """Return the number of voxels of some blocks together.

        Examples
        --------
        >>> BlockGrid((100, 64, 64), (40, 64, 64)).voxels((1, 2))
        245760
        """
        return sum(self[number].size for number in numbers)

    def index(self, number: int) -> tuple[int, ...]:
        """Return the grid index of a block."""
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        return tuple(int(i) for i in np.unravel_index(number, self.counts))

    def number(self, index: Sequence[int]) -> int:
        """Return the number of the block at a grid index."""
        return int(np.ravel_multi_index(tuple(index), self.counts))

    def touching(self, box: Roi) -> Iterator[int]:
        """Yield the numbers of the blocks that a box reaches into, in order.

        Examples
        --------
        >>> list(BlockGrid((8, 8), (4, 4)).touching(Roi((0, 3), (2, 5))))
        [0, 1]
        """
        ranges = [range(a // b, -(-z // b)) for (a, z), b in zip(box, self.block, strict=True)]
        return map(self.number, itertools.product(*ranges))


def _axis_starts(
    n: int, patch: int, stride: int, pad_tail: bool, padding: int
) -> npt.NDArray[np.int64]:
    if pad_tail:
        return np.arange(max(1, -(-(n - patch) // stride) + 1), dtype=np.int64) * stride
    padded = n + 2 * padding
    if padded <= patch:
        return np.array([-padding - (patch - padded) // 2], dtype=np.int64)
    starts = np.arange(-padding, n + padding - patch + 1, stride, dtype=np.int64)
    last = n + padding - patch
    return starts if starts[-1] == last else np.append(starts, last)


@dataclass(frozen=True)
class PatchGrid:
    """One global grid of patch positions over a volume.

    Per axis the starts are 0, s, 2s, … while the patch fits, then one last patch is shifted back
    to end at the border. A volume smaller than the patch has one patch, which begins before it
    (by half of the padding, rounded down). Patch order is lexicographic.

    Parameters
    ----------
    shape, patch, stride
        Voxels per axis.
    pad_tail
        Per axis, True to keep the last start a multiple of the stride and pad behind the volume,
        instead of shifting back, as outputs of reduced resolution require.
    padding
        Voxels per side that the grid covers around the volume, fewer than the patch. Starts are
        still counted in voxels of the volume: the first is ``-padding``.

    Raises
    ------
    InvalidInput
        If a stride is not in 1..patch or a padding not in 0..patch - 1, or an axis is padded
        both by ``pad_tail`` and by ``padding``.

    Examples
    --------
    >>> grid = PatchGrid((10, 10, 4), (4, 4, 8), (3, 4, 8))
    >>> [list(map(int, s)) for s in grid.starts], len(grid)
    ([[0, 3, 6], [0, 4, 6], [-2]], 9)
    >>> grid.touching(0, 4, 5)
    range(1, 2)
    >>> PatchGrid((10, 10, 4), (4, 4, 8), (3, 4, 8), padding=(2, 0, 0)).starts[0].tolist()
    [-2, 1, 4, 7, 8]
    """

    shape: tuple[int, ...]
    patch: tuple[int, ...]
    stride: tuple[int, ...]
    pad_tail: tuple[bool, ...] = (False, False, False)
    padding: tuple[int, ...] = (0, 0, 0)

    def __post_init__(self) -> None:
        if any(not 1 <= s <= p for s, p in zip(self.stride, self.patch, strict=True)):
            raise InvalidInput(f"stride {self.stride} must lie in 1..patch {self.patch}")
        # Else the first patch would lie outside of the volume.
        if any(not 0 <= v < p for v, p in zip(self.padding, self.patch, strict=True)):
            raise InvalidInput(
                f"padding {self.padding} must not be negative and be smaller than the patch"
                f" {self.patch}; use less padding or a larger patch"
            )
        if any(t and v for t, v in zip(self.pad_tail, self.padding, strict=True)):
            raise InvalidInput(
                f"an axis is padded behind the volume (pad_tail {self.pad_tail}) or on both sides"
                f" (padding {self.padding}), not both; leave padding out"
            )

    @cached_property
    def starts(self) -> tuple[npt.NDArray[np.int64], ...]:
        """First voxel of each patch: per axis, int64 of shape ``(patches,)``."""
        axes = zip(self.shape, self.patch, self.stride, self.pad_tail, self.padding, strict=True)
        return tuple(_axis_starts(*axis) for axis in axes)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Patches per axis."""
        return tuple(len(s) for s in self.starts)

    def __len__(self) -> int:
        return math.prod(self.counts)

    def roi(self, index: Sequence[int]) -> Roi:
        """Return the box of one patch; it may reach outside the volume."""
        start = tuple(int(s[i]) for s, i in zip(self.starts, index, strict=True))
        return Roi(start, tuple(a + p for a, p in zip(start, self.patch, strict=True)))

    def __iter__(self) -> Iterator[Roi]:
        return (self.roi(index) for index in np.ndindex(*self.counts))

    @cached_property
    def owned(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Half-open intervals that patches own under ``crop``: per axis, int64 ``(patches, 2)``.

        Neighbours meet in the middle of their actual overlap; an odd voxel goes to the lower
        patch, so each voxel has one owner, independent of the order of computation.
        """
        result = []
        for n, p, starts in zip(self.shape, self.patch, self.starts, strict=True):
            overlap = starts[:-1] + p - starts[1:]
            # Only what lies in the volume is owned: in the padding a patch may own nothing.
            cuts = np.concatenate([[0], np.clip(starts[1:] + (overlap + 1) // 2, 0, n), [n]])
            result.append(np.stack([cuts[:-1], cuts[1:]], axis=1))
        return tuple(result)

    def touching(self, axis: int, low: int, high: int, *, owned: bool = False) -> range:
        """Return the patches along an axis that reach into ``[low, high)``, or own part of it."""
        if owned:
            lows, highs = self.owned[axis].T
        else:
            lows, highs = self.starts[axis], self.starts[axis] + self.patch[axis]
        first = int(np.searchsorted(highs, low, side="right"))
        return range(first, max(first, int(np.searchsorted(lows, high, side="left"))))

    def hull(self, axis: int, patches: range) -> tuple[int, int]:
        """Return the range that consecutive patches along an axis cover, also outside."""
        starts = self.starts[axis]
        return int(starts[patches[0]]), int(starts[patches[-1]]) + self.patch[axis]

    def reduced(self, scale: Sequence[int]) -> PatchGrid:
        """Return the same grid in output voxels, of ``scale`` input voxels each.

        Raises
        ------
        InvalidInput
            If patch or stride is not a multiple of the scale.

        Examples
        --------
        >>> grid = PatchGrid((9, 9, 9), (4, 4, 4), (2, 2, 2), (False, True, True))
        >>> half = grid.reduced((1, 2, 2))
        >>> half.shape, half.patch, [len(s) for s in half.starts]
        ((9, 5, 5), (4, 2, 2), [4, 4, 4])
        """
        for p, s, q, padded in zip(self.patch, self.stride, scale, self.pad_tail, strict=True):
            if p % q or s % q or (q > 1 and not padded):
                raise InvalidInput(
                    f"patch {self.patch} and stride {self.stride} must be multiples of the"
                    f" model's output scale {tuple(scale)}"
                )
        shape, patch, stride = (
            tuple(-(-v // q) for v, q in zip(sizes, scale, strict=True))
            for sizes in (self.shape, self.patch, self.stride)
        )
        # An axis that is reduced has a padded tail, and no padding.
        return PatchGrid(shape, patch, stride, self.pad_tail, self.padding)
