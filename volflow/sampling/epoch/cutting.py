"""The patches of a visit: drawn once its superchunk is in memory, and cut out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from volflow.errors import RunFailed
from volflow.geometry.roi import Roi
from volflow.sampling.epoch.catalog import GridCatalog, PatchCatalog, RandomCatalog
from volflow.sampling.epoch.order import POSITIONS, Visits, generator, interleave, remaining
from volflow.sampling.epoch.reading import SuperchunkWindow
from volflow.sampling.epoch.shares import ProcessShare
from volflow.sampling.epoch.superchunks import centres_of
from volflow.sampling.samplers import LabelSampler, guide_of

__all__ = ["cut_patches", "draw_positions"]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def cut_patches(
    window: SuperchunkWindow,
    visits: Visits,
    lanes: int,
    share: ProcessShare,
    begin: int,
    epoch: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    """Cut the samples of a share of the epoch, from place ``begin`` on.

    Parameters
    ----------
    window
        The window through which superchunks are read.
    visits, lanes
        The order of the epoch.
    share, begin
        The samples of it that are wanted: those of a process, from a place on.
    epoch
        The seed, and the epoch's number.

    Yields
    ------
    dict
        The arrays ``czyx``, which are views that are valid until the next sample is taken;
        ``"location"`` (int64 z0, y0, x0, z1, y1, x1), ``"case"``, ``"index"``, ``"key"``, and the
        values of the case.
    """
    first, total = begin + share.offset, int(visits.quota.sum())
    # Not from the offset on: another number of worker processes may have come as far as this.
    mine = range(first % share.stride, lanes, share.stride)
    segments = remaining(interleave(visits.quota, lanes), lanes, mine, first)
    window.expect(visits.superchunk[segments[:, 1]], len(mine))
    strands = {
        lane: _cut_lane(window, visits, segments[segments[:, 0] == lane, 1:], epoch)
        for lane in mine
    }
    for index in range(first, total, share.stride):
        sample = next(strands[index % lanes])
        sample["index"] = index
        yield sample


def _cut_lane(
    window: SuperchunkWindow,
    visits: Visits,
    segments: Ints,
    epoch: tuple[int, int],
) -> Iterator[dict[str, Any]]:
    """Cut the samples of a lane, but for their index.

    Each row of ``segments`` holds a visit, and the ends of a range of its patches.
    """
    catalog = window.catalog
    patch = np.array(catalog.patch)
    for visit, low, high in segments.tolist():
        superchunk, quota = int(visits.superchunk[visit]), int(visits.quota[visit])
        arrays = window.take(superchunk)
        starts, keys = draw_positions(catalog, superchunk, quota, arrays, (*epoch, visit))
        case, corner = catalog.case_of(superchunk), catalog.reads(superchunk).start
        for start, key in zip(starts[low:high], keys[low:high].tolist(), strict=True):
            box = Roi(tuple(start.tolist()), tuple((start + patch).tolist()))
            cut = (slice(None), *box.relative_to(corner).slices())
            yield {
                **{name: array[cut] for name, array in arrays.items()},
                "location": np.array(box.start + box.stop),
                "case": case.name,
                "key": key,
                **case.values,
            }
        window.drop(superchunk)


def draw_positions(
    catalog: PatchCatalog,
    superchunk: int,
    quota: int,
    arrays: Mapping[str, Array],
    place: tuple[int, int, int],
) -> tuple[Ints, Ints]:
    """Draw the patches of a visit: a pure function of where it stands in the order.

    Parameters
    ----------
    catalog, superchunk, quota
        The catalog of possible patches, the superchunk visited, and how many patches it gives.
    arrays
        Voxels ``czyx`` of the box that the superchunk reads; only the array that `guide_of` names
        is needed.
    place
        Seed, epoch and number of the visit.

    Returns
    -------
    starts
        First voxels in order z, y, x: int64 of shape ``(quota, 3)``.
    keys
        A number of each patch's own: int64 of shape ``(quota,)``.

    Raises
    ------
    RunFailed
        If labels or weights are not those that were counted.
    """
    seed, epoch, visit = place
    rng = generator(seed, epoch, POSITIONS, visit)
    keys = rng.integers(0, 2**63 - 1, quota)
    if isinstance(catalog, GridCatalog):
        return catalog.patches(superchunk), keys
    owned = catalog.starts(superchunk)
    guide = guide_of(catalog.sampler)
    if guide is None:
        return rng.integers(owned.start, owned.stop, (quota, 3)), keys
    # The voxels at the centres of the patches that the superchunk owns.
    centres = centres_of(owned, catalog.patch).relative_to(catalog.reads(superchunk).start)
    core = arrays[guide][:, *centres.slices()]
    if isinstance(catalog.sampler, LabelSampler):
        found = _by_class(catalog, superchunk, quota, core, rng)
    else:
        found = _by_weight(core[0], quota, rng)
    return catalog.settle(superchunk, found + owned.start), keys


def _by_class(
    catalog: RandomCatalog, superchunk: int, quota: int, core: Array, rng: np.random.Generator
) -> Ints:
    """Voxels ``(quota, 3)`` of the core ``czyx``: how many of each class, evenly, then which."""
    assert isinstance(catalog.sampler, LabelSampler)
    assert catalog.class_counts is not None
    assert catalog.voxel_probability is not None
    shares = catalog.sampler.shares
    counts = catalog.class_counts[superchunk]
    case, _ = catalog.locate(superchunk)
    line = np.cumsum(counts * catalog.voxel_probability[case])
    marks = (np.arange(quota) + rng.random()) / quota * line[-1]
    which = np.minimum(np.searchsorted(line, marks, side="right"), np.flatnonzero(counts)[-1])
    which = rng.permutation(which)
    ranks = rng.random(quota)
    found = np.empty((quota, 3), np.int64)
    for column in np.unique(which):
        mine = which == column
        value = None if shares is None else [*shares][column]
        rank = np.minimum((ranks[mine] * counts[column]).astype(np.int64), counts[column] - 1)
        voxels = core[0]
        if value is not None and len(core) > 1:  # a channel of 0 and 1 for each class
            voxels, value = core[value], None
        found[mine] = _ranked(voxels, value, rank, int(counts[column]))
    return found


def _ranked(core: Array, value: int | None, rank: Ints, expected: int) -> Ints:
    """Places ``(ranks, 3)`` of the voxels of a class that have these ranks in C order."""

    def is_class(plane: Array) -> npt.NDArray[np.bool_]:
        return cast(npt.NDArray[np.bool_], plane > 0 if value is None else plane == value)

    ends = np.cumsum([np.count_nonzero(is_class(plane)) for plane in core])
    if ends[-1] != expected:
        raise RunFailed(
            f"{ends[-1]} voxels of class {'> 0' if value is None else value} were found where "
            f"{expected} had been counted: the labels changed; make the stream again"
        )
    # A rank is found plane by plane: a list of all voxels would take eight bytes for each.
    return _in_planes(core, ends, rank, lambda plane, ranks: np.flatnonzero(is_class(plane))[ranks])


def _by_weight(core: Array, quota: int, rng: np.random.Generator) -> Ints:
    """Voxels ``(quota, 3)`` of the core, in proportion to their weight."""
    ends = np.cumsum([plane.sum(dtype=np.float64) for plane in core])
    if not ends[-1] > 0:
        raise RunFailed("weights are zero where some had been counted; make the stream again")

    def voxels(plane: Array, marks: npt.NDArray[np.float64]) -> Ints:
        line = np.cumsum(plane, dtype=np.float64)
        last = np.flatnonzero(plane)[-1]
        return cast(Ints, np.minimum(np.searchsorted(line, marks, side="right"), last))

    return _in_planes(core, ends, rng.random(quota) * ends[-1], voxels)


def _in_planes(
    core: Array, ends: Array, marks: Array, voxels: Callable[[Array, Array], Ints]
) -> Ints:
    """Marks ``(n,)`` on the line of all voxels as voxels ``(n, 3)``: the plane, then its voxel."""
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
