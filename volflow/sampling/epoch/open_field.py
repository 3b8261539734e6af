"""Open the field of a sampler: how much of it lies in each superchunk of each case."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np

from volflow.engine.cluster import Cluster, connect
from volflow.errors import InvalidInput
from volflow.sampling.cases.cases import Case
from volflow.sampling.counts.counts import count_classes, sum_weights
from volflow.sampling.epoch.field import Field, Floats, GridField, RandomField
from volflow.sampling.samplers import (
    GridSampler,
    LabelSampler,
    RandomSampler,
    Sampler,
    UniformSampler,
    WeightedSampler,
)
from volflow.sampling.superchunks import Superchunks, centres_of

__all__ = ["open_field"]

# Smaller volumes are counted without a word, unless progress is asked for.
SILENT_VOXELS = 2**28


def open_field(
    cases: tuple[Case, ...],
    sampler: Sampler,
    *,
    per_case: Sequence[int] | None = None,
    cluster: Cluster = None,
    **options: Any,
) -> Field:
    """Where a sampler may cut patches from cases; labels and weights are counted where unknown.

    Parameters
    ----------
    cases, sampler
        What to cut, and how.
    per_case
        Patches of each case, where each gives a number of its own.
    cluster, **options
        Where labels or weights are counted, with which ``memory`` and ``progress``.

    Raises
    ------
    InvalidInput
        Where a patch is larger than a volume, weights are all zero, a class is absent, or a case
        lacks the array that the sampler needs.
    """
    if isinstance(sampler, GridSampler):
        return GridField(cases, sampler)
    if not isinstance(sampler, RandomSampler):
        raise InvalidInput(f"the sampler must be one like UniformSampler(64); got {sampler!r}")
    tiles = tuple(_superchunks(case, sampler) for case in cases)
    if isinstance(sampler, UniformSampler):
        masses = [tile.sizes()[0].astype(np.float64) for tile in tiles]
        return RandomField(cases, sampler, tiles, _shared(masses, per_case, cases, "starts"))
    with connect(cluster) as client:
        options["cluster"] = client
        if isinstance(sampler, WeightedSampler):
            return _weighted(cases, sampler, tiles, per_case, options)
        return _labelled(cases, sampler, tiles, per_case, options)


def _superchunks(case: Case, sampler: RandomSampler) -> Superchunks:
    centred = sampler.border == "pad" or not isinstance(sampler, UniformSampler)
    anchor: Literal["start", "centre"] = "centre" if centred else "start"
    patch = cast(tuple[int, ...], sampler.patch)
    tiles = Superchunks(case.shape, patch, case.chunk, sampler.border, anchor)
    try:
        _ = tiles.reach
    except InvalidInput as error:
        raise InvalidInput(f"case {case.name}: {error}") from None
    return tiles


def _counted(case: Case, name: str, tiles: Superchunks, count: Any, options: dict[str, Any]) -> Any:
    """What `count` finds in an array of a case, among the centres that can be reached."""
    if name not in case.sources:
        raise InvalidInput(
            f'the sampler needs an array "{name}", but case {case.name} has'
            f" {', '.join(case.sources)}; name it as the case does"
        )
    progress = options.get("progress")
    if progress is None and math.prod(case.shape) < SILENT_VOXELS:
        progress = False
    reach = centres_of(tiles.reach, tiles.patch)
    return count(case.sources[name], tiles.cell, reach, **{**options, "progress": progress})


def _weighted(
    cases: tuple[Case, ...],
    sampler: WeightedSampler,
    tiles: tuple[Superchunks, ...],
    per_case: Sequence[int] | None,
    options: dict[str, Any],
) -> RandomField:
    masses = []
    for case, tile in zip(cases, tiles, strict=True):
        found = _counted(case, sampler.weight, tile, sum_weights, options)
        masses.append(tile.inner(found.boxes(tile.chunks_per_core)))
    what = f'weights "{sampler.weight}" at centres that can be reached'
    return RandomField(cases, sampler, tiles, _shared(masses, per_case, cases, what))


def _labelled(
    cases: tuple[Case, ...],
    sampler: LabelSampler,
    tiles: tuple[Superchunks, ...],
    per_case: Sequence[int] | None,
    options: dict[str, Any],
) -> RandomField:
    shares = sampler.shares
    values = None if shares is None else tuple(shares)
    tables = []
    for case, tile in zip(cases, tiles, strict=True):
        found = _counted(case, sampler.label, tile, count_classes, options)
        table = found.boxes(tile.chunks_per_core, values)
        tables.append(np.stack([tile.inner(column) for column in table.T], axis=1))
    totals = np.array([table.sum(axis=0) for table in tables])  # cases x classes
    gives = np.ones(len(cases), bool) if per_case is None else np.array(per_case) > 0
    absent = ~totals[gives].any(axis=0)
    if absent.any():
        missing = (
            "above 0"
            if values is None
            else ", ".join(str(values[n]) for n in np.flatnonzero(absent))
        )
        raise InvalidInput(
            f'array "{sampler.label}" has no voxel of class {missing} that can be the centre of a '
            f'patch {sampler.patch}; leave the class out, or use border="pad"'
        )
    wanted = np.array([1.0] if shares is None else list(shares.values()))
    if per_case is not None:
        there = (totals > 0) & gives[:, None]
        what = f'voxels of the classes of "{sampler.label}"'
        _require_mass(there.any(axis=1) | ~gives, cases, what)
        share = there * wanted
        whole = np.where(gives, share.sum(axis=1), 1)[:, None]
        weights = share / whole / np.maximum(totals, 1)
    else:
        weights = np.broadcast_to(wanted / totals.sum(axis=0), totals.shape).copy()
    masses = [(table * weight).sum(axis=1) for table, weight in zip(tables, weights, strict=True)]
    return RandomField(
        cases,
        sampler,
        tiles,
        np.concatenate(masses),
        np.concatenate(tables),
        values or (),
        weights,
    )


def _shared(
    masses: list[Floats], per_case: Sequence[int] | None, cases: tuple[Case, ...], what: str
) -> Floats:
    """Masses as probabilities: of all cases together, or of each."""
    sums = np.array([mass.sum() for mass in masses])
    if per_case is not None:
        gives = np.array(per_case) > 0
        _require_mass((sums > 0) | ~gives, cases, what)
        factors = gives / np.where(gives, sums, 1)
        return np.concatenate([mass * factor for mass, factor in zip(masses, factors, strict=True)])
    if not sums.any():
        raise InvalidInput(
            f"{what} are zero everywhere, so no patch can be drawn; give some voxel a weight, or "
            'use border="pad" where only voxels near the border have one'
        )
    return cast(Floats, np.concatenate(masses) / sums.sum())


def _require_mass(there: Any, cases: tuple[Case, ...], what: str) -> None:
    empty = [case.name for case, mass in zip(cases, there, strict=True) if not mass]
    if empty:
        raise InvalidInput(
            f"case {', '.join(empty)} has no {what}, so no patch can be drawn from it; give it no "
            "patches, or leave it out"
        )
