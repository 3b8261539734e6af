"""Draw the patches of a visit, once its superchunk is in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from volflow.errors import RunFailed
from volflow.sampling.epoch.field import DRAWS, Field, GridField, Ints, RandomField
from volflow.sampling.epoch.keyed import generator
from volflow.sampling.samplers import LabelSampler, WeightedSampler

__all__ = ["Draws", "draw", "looks_at"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Draws:
    """Starts ``(patches, 3)`` and keys ``(patches,)`` of a visit."""

    starts: Ints
    keys: Ints


def looks_at(field: Field) -> tuple[str, ...]:
    """Names of the arrays whose voxels decide where patches lie."""
    if isinstance(field.sampler, LabelSampler):
        return (field.sampler.label,)
    return (field.sampler.weight,) if isinstance(field.sampler, WeightedSampler) else ()


def draw(
    field: Field,
    superchunk: int,
    quota: int,
    arrays: Mapping[str, Array],
    place: tuple[int, int, int],
) -> Draws:
    """The patches of a visit: a pure function of where it stands in the order.

    Parameters
    ----------
    field, superchunk, quota
        Where patches may lie, which superchunk is visited, and for how many of them.
    arrays
        ``czyx`` voxels of `Field.reads`; only what the sampler looks at is needed.
    place
        Seed, epoch and number of the visit.

    Raises
    ------
    RunFailed
        Where labels or weights are not those that were counted.
    """
    seed, epoch, visit = place
    rng = generator(seed, epoch, DRAWS, visit)
    keys = rng.integers(0, 2**63 - 1, quota)
    if isinstance(field, GridField):
        return Draws(field.patches(superchunk), keys)
    owned = field.starts(superchunk)
    sampler = field.sampler
    if isinstance(sampler, LabelSampler):
        core = _core(field, superchunk, arrays, sampler.label)
        return Draws(_by_class(field, superchunk, quota, core, rng) + owned.start, keys)
    if isinstance(sampler, WeightedSampler):
        core = _core(field, superchunk, arrays, sampler.weight)
        return Draws(_by_weight(core, quota, rng) + owned.start, keys)
    return Draws(rng.integers(owned.start, owned.stop, (quota, 3)), keys)


def _core(field: RandomField, superchunk: int, arrays: Mapping[str, Array], name: str) -> Array:
    """The voxels at the centres of patches that a superchunk owns."""
    sizes = zip(field.patch, field.starts(superchunk).shape, strict=True)
    centres = tuple(slice(p // 2, p // 2 + n) for p, n in sizes)
    return cast(Array, arrays[name][0][centres])


def _by_class(
    field: RandomField, superchunk: int, quota: int, core: Array, rng: np.random.Generator
) -> Ints:
    """Voxels of classes: first how many of each, as evenly as can be, then which."""
    assert field.counts is not None
    assert field.weights is not None
    counts = field.counts[superchunk]
    case, _ = field.locate(superchunk)
    line = np.cumsum(counts * field.weights[case])
    marks = (np.arange(quota) + rng.random()) / quota * line[-1]
    which = np.minimum(np.searchsorted(line, marks, side="right"), np.flatnonzero(counts)[-1])
    which = rng.permutation(which)
    ranks = rng.random(quota)
    found = np.empty((quota, 3), np.int64)
    for column in np.unique(which):
        mine = which == column
        value = field.values[column] if field.values else None
        rank = np.minimum((ranks[mine] * counts[column]).astype(np.int64), counts[column] - 1)
        found[mine] = _ranked(core, value, rank, int(counts[column]))
    return found


def _ranked(core: Array, value: int | None, rank: Ints, expected: int) -> Ints:
    """Where the voxels of a class lie that have these ranks in C order."""

    def is_class(plane: Array) -> npt.NDArray[np.bool_]:
        return cast(npt.NDArray[np.bool_], plane > 0 if value is None else plane == value)

    ends = np.cumsum([np.count_nonzero(is_class(plane)) for plane in core])
    if ends[-1] != expected:
        raise RunFailed(
            f"{ends[-1]} voxels of class {'> 0' if value is None else value} were found where "
            f"{expected} had been counted: the labels changed; make the stream anew"
        )
    # A rank is found plane by plane: a list of all voxels would take eight bytes for each.
    return _in_planes(core, ends, rank, lambda plane, ranks: np.flatnonzero(is_class(plane))[ranks])


def _by_weight(core: Array, quota: int, rng: np.random.Generator) -> Ints:
    """Voxels in proportion to their weight."""
    ends = np.cumsum([plane.sum(dtype=np.float64) for plane in core])
    if not ends[-1] > 0:
        raise RunFailed("weights are zero where some had been counted; make the stream anew")

    def voxels(plane: Array, marks: npt.NDArray[np.float64]) -> Ints:
        line = np.cumsum(plane, dtype=np.float64)
        last = np.flatnonzero(plane)[-1]
        return cast(Ints, np.minimum(np.searchsorted(line, marks, side="right"), last))

    return _in_planes(core, ends, rng.random(quota) * ends[-1], voxels)


def _in_planes(
    core: Array, ends: Array, marks: Array, voxels: Callable[[Array, Array], Ints]
) -> Ints:
    """Marks on the line of all voxels, as voxels: first the plane, then the place in it."""
    planes = np.searchsorted(ends, marks, side="right")
    # A mark at the very end belongs to the last plane that holds anything.
    planes = np.minimum(planes, np.searchsorted(ends, ends[-1], side="left"))
    found = np.empty((len(marks), 3), np.int64)
    for z in np.unique(planes):
        mine = planes == z
        before = ends[z - 1] if z else ends[-1] * 0
        flat = voxels(core[z], marks[mine] - before)
        found[mine, 0] = z
        found[mine, 1], found[mine, 2] = np.divmod(flat, core.shape[2])
    return found
