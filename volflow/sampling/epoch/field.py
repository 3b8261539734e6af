"""Where patches may be cut: the superchunks of all cases, and how much comes from each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.sampling.cases.cases import Case
from volflow.sampling.epoch.keyed import generator
from volflow.sampling.epoch.visits import Visits, plan_visits
from volflow.sampling.samplers import GridSampler, RandomSampler
from volflow.sampling.superchunks import HELD_VOXELS, Superchunks, whole_chunks

__all__ = ["DRAWS", "Field", "Floats", "GridField", "Ints", "RandomField", "decoded_voxels"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# What a generator is for; numbers are part of the order.
VISITS, DRAWS = 1, 2


@dataclass(frozen=True, eq=False)
class RandomField:
    """Superchunks of random patches.

    Parameters
    ----------
    cases, sampler
        As given.
    tiles
        Superchunks of each case; they are numbered through all cases.
    mass
        Of each superchunk: the probability that a patch comes from it. With patches per case it
        adds up to one for each case that gives any.
    counts
        Of `LabelSampler`: voxels that can be centres per superchunk and class.
    values
        Of `LabelSampler`: the classes; empty where all above 0 are one.
    weights
        Of `LabelSampler`: per case and class, the probability of one such voxel.
    """

    cases: tuple[Case, ...]
    sampler: RandomSampler
    tiles: tuple[Superchunks, ...]
    mass: Floats
    counts: Ints | None = None
    values: tuple[int, ...] = ()
    weights: Floats | None = None

    @property
    def patch(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return cast(tuple[int, ...], self.sampler.patch)

    @cached_property
    def first(self) -> Ints:
        """Number of the first superchunk of each case, and of all."""
        return np.cumsum([0, *map(len, self.tiles)])

    def locate(self, superchunk: int) -> tuple[int, int]:
        """The case of a superchunk, and its number there."""
        return _locate(self.first, superchunk)

    def reads(self, superchunk: int) -> Roi:
        """What is read for a superchunk; it may reach outside of the volume."""
        case, number = self.locate(superchunk)
        return self.tiles[case].reads(number)

    def starts(self, superchunk: int) -> Roi:
        """The starts that a superchunk owns."""
        case, number = self.locate(superchunk)
        return self.tiles[case].starts(number)

    @cached_property
    def held(self) -> tuple[int, ...]:
        """Voxels per axis of the largest superchunk."""
        return max((tiles.held for tiles in self.tiles), key=math.prod)

    @cached_property
    def mean_decoded(self) -> float:
        """Voxels decoded per visit, on average."""
        decoded = np.concatenate([tiles.sizes()[1] for tiles in self.tiles])
        return float(np.average(decoded, weights=self.mass))

    def visits(
        self, totals: Sequence[int], per_visit: float, seed: int, epoch: int, *, split: bool = True
    ) -> Visits:
        """The line of an epoch: so many patches of each case, or of all where it is one number."""
        groups = [np.arange(len(self.mass))]
        if len(totals) > 1:
            groups = [np.arange(a, b) for a, b in itertools.pairwise(self.first)]
        parts = []
        for number, (group, total) in enumerate(zip(groups, totals, strict=True)):
            if total:
                rng = generator(seed, epoch, VISITS, number)
                part = plan_visits(self.mass[group], total, per_visit, rng, split=split)
                parts.append(replace(part, superchunk=group[part.superchunk]))
        order = generator(seed, epoch, VISITS, len(groups)).permutation(sum(map(len, parts)))
        return Visits(
            np.concatenate([part.superchunk for part in parts])[order],
            np.concatenate([part.quota for part in parts])[order],
        )


@dataclass(frozen=True, eq=False)
class GridField:
    """Groups of neighbouring grid patches, in lexicographic order where a layer fits."""

    cases: tuple[Case, ...]
    sampler: GridSampler

    @property
    def patch(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return cast(tuple[int, ...], self.sampler.patch)

    @cached_property
    def grids(self) -> tuple[PatchGrid, ...]:
        """Of each case."""
        return tuple(self.sampler.grid(case) for case in self.cases)

    @cached_property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Patches per axis that are read together, of each case."""
        return tuple(map(_group, self.grids))

    @cached_property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Groups per axis of each case."""
        return tuple(
            tuple(-(-n // g) for n, g in zip(grid.counts, group, strict=True))
            for grid, group in zip(self.grids, self.groups, strict=True)
        )

    @cached_property
    def first(self) -> Ints:
        """Number of the first group of each case, and of all."""
        return np.cumsum([0, *map(math.prod, self.blocks)])

    def locate(self, superchunk: int) -> tuple[int, int]:
        """The case of a group, and its number there."""
        return _locate(self.first, superchunk)

    def patches(self, superchunk: int) -> Ints:
        """Starts of a group's patches, ``(patches, 3)`` in lexicographic order."""
        case, number = self.locate(superchunk)
        grid, index = self.grids[case], np.unravel_index(number, self.blocks[case])
        axes = [
            starts[int(i) * g : (int(i) + 1) * g]
            for starts, i, g in zip(grid.starts, index, self.groups[case], strict=True)
        ]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)

    def reads(self, superchunk: int) -> Roi:
        """What is read for a group; it may reach outside of the volume."""
        starts = self.patches(superchunk)
        return Roi(tuple(starts[0]), tuple(starts[-1] + self.patch))

    @cached_property
    def held(self) -> tuple[int, ...]:
        """Voxels per axis of the largest group."""
        sizes = map(_held, self.grids, self.groups)
        return max(sizes, key=math.prod)

    @cached_property
    def mean_decoded(self) -> float:
        """Voxels decoded per group, on average."""
        return float(np.mean([decoded_voxels(self, n) for n in range(min(len(self.line), 1000))]))

    @cached_property
    def line(self) -> Visits:
        """All groups in order: the line of every epoch."""
        numbers = np.arange(self.first[-1])
        quota = []
        for grid, group in zip(self.grids, self.groups, strict=True):
            sizes = [
                np.minimum(g, n - np.arange(0, n, g))
                for n, g in zip(grid.counts, group, strict=True)
            ]
            quota.append(np.multiply.outer(np.multiply.outer(sizes[0], sizes[1]), sizes[2]).ravel())
        return Visits(numbers, np.concatenate(quota).astype(np.int64))


def decoded_voxels(field: Field, superchunk: int) -> int:
    """Voxels decoded for a superchunk: whole chunks of the lead."""
    number, _ = field.locate(superchunk)
    case = field.cases[number]
    return whole_chunks(field.reads(superchunk), case.chunk, case.shape).size


def _locate(first: Ints, superchunk: int) -> tuple[int, int]:
    """Case and number there, of what is numbered through all cases."""
    case = int(np.searchsorted(first, superchunk, "right")) - 1
    return case, superchunk - int(first[case])


def _group(grid: PatchGrid) -> tuple[int, ...]:
    """Patches per axis to read together: whole rows first, then whole layers, while they fit."""
    group = [1, 1, 1]
    for axis in (2, 1, 0):
        for count in range(2, grid.counts[axis] + 1):
            held = _held(grid, [*group[:axis], count, *group[axis + 1 :]])
            if math.prod(held) > HELD_VOXELS:
                return tuple(group)
            group[axis] = count
    return tuple(group)


def _held(grid: PatchGrid, group: Sequence[int]) -> tuple[int, ...]:
    """Voxels per axis that the first patches of a grid cover, so many per axis."""
    return tuple(
        int(starts[count - 1] - starts[0]) + p
        for starts, count, p in zip(grid.starts, group, grid.patch, strict=True)
    )


Field = RandomField | GridField
