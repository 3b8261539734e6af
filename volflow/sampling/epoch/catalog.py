"""Where patches may be cut: the superchunks of all cases, and how likely a patch of each is.

`open_catalog` finds that out: from sizes, or from labels and weights, which are counted once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from volflow.engine.cluster import Cluster, connect
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.counts.per_cell import count_classes, sum_weights
from volflow.sampling.epoch.order import VISITS, Visits, generator, plan_visits
from volflow.sampling.epoch.superchunks import GridGroups, Superchunks, centres_of
from volflow.sampling.samplers import (
    GridSampler,
    LabelSampler,
    RandomSampler,
    Sampler,
    UniformSampler,
    WeightedSampler,
    guide_of,
)

__all__ = ["GridCatalog", "PatchCatalog", "RandomCatalog", "open_catalog"]

# Smaller volumes are counted without a word, unless progress is asked for.
SILENT_VOXELS = 2**28

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Gives = npt.NDArray[np.bool_] | None  # whether each case gives patches; None: no number is asked


@dataclass(frozen=True, eq=False)
class _Numbered:
    """Superchunks that are numbered through all cases; boxes and sizes are in order z, y, x."""

    cases: tuple[Case, ...]
    sampler: RandomSampler | GridSampler
    tilings: tuple[Superchunks, ...] | tuple[GridGroups, ...]

    @property
    def patch(self) -> tuple[int, ...]:
        """Voxels of a patch per axis."""
        return cast(tuple[int, ...], self.sampler.patch)

    @cached_property
    def first(self) -> Ints:
        """Number of the first superchunk of each case, and of all: ``(cases + 1,)``."""
        return np.cumsum([0, *map(len, self.tilings)])

    def locate(self, superchunk: int) -> tuple[int, int]:
        """Return the number of a superchunk's case, and its number in that case."""
        case = int(np.searchsorted(self.first, superchunk, "right")) - 1
        return case, superchunk - int(self.first[case])

    def case_of(self, superchunk: int) -> Case:
        """Return the case of a superchunk."""
        return self.cases[self.locate(superchunk)[0]]

    def reads(self, superchunk: int) -> Roi:
        """Return the box that is read for a superchunk; it may reach outside of the volume."""
        case, number = self.locate(superchunk)
        return self.tilings[case].reads(number)

    @cached_property
    def decoded_voxels(self) -> Ints:
        """Voxels decoded for each superchunk: whole chunks of the case's first array."""
        return np.concatenate([tiling.sizes()[1] for tiling in self.tilings])

    @cached_property
    def held(self) -> tuple[int, ...]:
        """Voxels per axis of the largest superchunk."""
        return max((tiling.held for tiling in self.tilings), key=math.prod)


@dataclass(frozen=True, eq=False)
class RandomCatalog(_Numbered):
    """Superchunks of random patches.

    Parameters
    ----------
    cases, sampler
        The cases, and the law of their patches.
    tilings
        Superchunks of each case.
    probability
        Probability that a patch comes from each superchunk, float64 of shape ``(superchunks,)``.
        With patches per case it adds up to one for each case that gives any.
    class_counts
        For `LabelSampler`: voxels that can be centres, int64 of shape ``(superchunks, classes)``;
        all classes above 0 are one where it has no probabilities.
    voxel_probability
        For `LabelSampler`: probability of one such voxel, float64 of shape ``(cases, classes)``.
    """

    tilings: tuple[Superchunks, ...]
    sampler: RandomSampler
    probability: Floats
    class_counts: Ints | None = None
    voxel_probability: Floats | None = None

    def starts(self, superchunk: int) -> Roi:
        """Return the box of the starts that a superchunk owns."""
        case, number = self.locate(superchunk)
        return self.tilings[case].starts(number)

    def settle(self, superchunk: int, starts: Ints) -> Ints:
        """Return starts that were drawn for a superchunk as those of their patches."""
        return self.tilings[self.locate(superchunk)[0]].settle(starts)

    @cached_property
    def mean_decoded(self) -> float:
        """Voxels decoded per visit, on average."""
        return float(np.average(self.decoded_voxels, weights=self.probability))

    def visits(
        self, totals: Sequence[int], per_visit: float, seed: int, epoch: int, *, split: bool = True
    ) -> Visits:
        """Plan the visits of an epoch.

        Parameters
        ----------
        totals
            Patches of each case, or one number of all.
        per_visit, split
            As in `plan_visits`.
        seed, epoch
            Seed of the stream and number of the epoch.
        """
        ends = self.first if len(totals) > 1 else [0, len(self.probability)]
        parts = []
        for number, (total, (a, b)) in enumerate(zip(totals, pairwise(ends), strict=True)):
            if total:
                rng = generator(seed, epoch, VISITS, number)
                part = plan_visits(self.probability[a:b], total, per_visit, rng, split=split)
                parts.append([a + part.superchunk, part.quota])
        line = np.concatenate(parts, axis=1)
        order = generator(seed, epoch, VISITS, len(totals)).permutation(line.shape[1])
        return Visits(*line[:, order])


@dataclass(frozen=True, eq=False)
class GridCatalog(_Numbered):
    """Groups of neighbouring grid patches, in lexicographic order where a layer fits."""

    tilings: tuple[GridGroups, ...]
    sampler: GridSampler

    def patches(self, superchunk: int) -> Ints:
        """Return the first voxels of a group's patches, int64 of shape ``(patches, 3)``."""
        case, number = self.locate(superchunk)
        return self.tilings[case].patches(number)

    @cached_property
    def mean_decoded(self) -> float:
        """Voxels decoded per group, on average."""
        return float(np.mean(self.decoded_voxels))

    @cached_property
    def all_visits(self) -> Visits:
        """The visits of every epoch: all groups, in order."""
        quota = np.concatenate([tiling.sizes()[0] for tiling in self.tilings])
        return Visits(np.arange(self.first[-1]), quota)


PatchCatalog = RandomCatalog | GridCatalog


def open_catalog(
    cases: tuple[Case, ...],
    sampler: Sampler,
    *,
    per_case: Sequence[int] | None = None,
    cluster: Cluster = None,
    **options: Any,
) -> PatchCatalog:
    """Find where a sampler may cut patches from cases; count labels and weights where unknown.

    Parameters
    ----------
    cases, sampler
        The cases, and the law of their patches.
    per_case
        Patches of each case, where each gives a number of its own.
    cluster, **options
        The cluster that counts labels or weights, and its ``memory`` and ``progress``.

    Raises
    ------
    InvalidInput
        If all weights are zero, a class is absent, or a case lacks the array that the sampler
        needs.
    """
    if isinstance(sampler, GridSampler):
        groups = []
        for case in cases:
            grid = sampler.grid(case)
            groups.append(GridGroups(case.shape, grid.patch, case.chunk, grid.starts))
        return GridCatalog(cases, sampler, tuple(groups))
    if not isinstance(sampler, RandomSampler):
        raise InvalidInput(f"the sampler must be one like UniformSampler(64); got {sampler!r}")
    gives = None if per_case is None else np.array(per_case) > 0
    tilings = tuple(_superchunks(case, sampler) for case in cases)
    if isinstance(sampler, UniformSampler):
        starts = [tiling.sizes()[0].astype(np.float64) for tiling in tilings]
        probability = _probabilities(starts, cases, gives, "starts")
        return RandomCatalog(cases, sampler, tilings, probability)
    with ExitStack() as stack:
        # One for all cases, opened by the first that is not counted yet.
        options["cluster"] = cache(lambda: stack.enter_context(connect(cluster)))
        pairs = zip(cases, tilings, strict=True)
        found = [_count(case, tiling, sampler, options) for case, tiling in pairs]
    if isinstance(sampler, WeightedSampler):
        what = f'weights "{sampler.weight}" at centres that can be reached'
        return RandomCatalog(cases, sampler, tilings, _probabilities(found, cases, gives, what))
    weights = _voxel_probability(sampler, cases, found, gives)
    parts = [(table * weight).sum(axis=1) for table, weight in zip(found, weights, strict=True)]
    probability, counts = np.concatenate(parts), np.concatenate(found)
    return RandomCatalog(cases, sampler, tilings, probability, counts, weights)


def _superchunks(case: Case, sampler: RandomSampler) -> Superchunks:
    centred = sampler.border == "pad" or not isinstance(sampler, UniformSampler)
    anchor: Literal["start", "centre"] = "centre" if centred else "start"
    patch = cast(tuple[int, ...], sampler.patch)
    return Superchunks(case.shape, patch, case.chunk, sampler.border, anchor)


def _count(
    case: Case,
    tiling: Superchunks,
    sampler: LabelSampler | WeightedSampler,
    options: Mapping[str, Any],
) -> npt.NDArray[Any]:
    """Return weights ``(superchunks,)``, or voxels ``(superchunks, classes)``, of centres."""
    name = str(guide_of(sampler))
    if name not in case.sources:
        raise InvalidInput(
            f'the sampler needs an array "{name}", but case {case.name} has'
            f" {', '.join(case.sources)}; name it as the case does"
        )
    if options.get("progress") is None and math.prod(case.shape) < SILENT_VOXELS:
        options = {**options, "progress": False}
    what = (case.sources[name], tiling.cell, centres_of(tiling.reach, tiling.patch))
    if isinstance(sampler, WeightedSampler):
        return tiling.inner(sum_weights(*what, **options).boxes(tiling.chunks_per_core))
    classes = None if sampler.shares is None else [*sampler.shares]
    if classes is None and case.channels(name) > 1:
        raise InvalidInput(
            f'"{name}" of case {case.name} has {case.channels(name)} channels, each a class; say'
            " which are drawn: probabilities={0: 1, 1: 3}"
        )
    return tiling.inner(count_classes(*what, **options).boxes(tiling.chunks_per_core, classes))


def _voxel_probability(
    sampler: LabelSampler, cases: tuple[Case, ...], counts: Sequence[Ints], gives: Gives
) -> Floats:
    """Probability of one voxel of each class as a centre, ``(cases, classes)``."""
    shares = sampler.shares
    totals = np.array([table.sum(axis=0) for table in counts])  # (cases, classes)
    absent = ~(totals if gives is None else totals[gives]).any(axis=0)
    if absent.any():
        missing = ["above 0"] if shares is None else np.array([*shares])[absent].astype(str)
        raise InvalidInput(
            f'array "{sampler.label}" has no voxel of class {", ".join(missing)} that'
            f" can be the centre of a patch {sampler.patch}; leave the class out, or use"
            ' border="pad"'
        )
    wanted = np.array([1.0] if shares is None else list(shares.values()))
    if gives is None:
        return np.broadcast_to(wanted / totals.sum(axis=0), totals.shape).copy()
    there = (totals > 0) & gives[:, None]
    _require_any(np.any(there, axis=1), cases, gives, f'voxels of the classes of "{sampler.label}"')
    share = there * wanted
    whole = np.where(gives, share.sum(axis=1), 1)[:, None]
    return cast(Floats, share / whole / np.maximum(totals, 1))


def _probabilities(
    amounts: Sequence[Floats], cases: tuple[Case, ...], gives: Gives, what: str
) -> Floats:
    """Amounts as probabilities of superchunks: of all cases together, or of each that gives any."""
    sums = np.array([amount.sum() for amount in amounts])
    if gives is not None:
        _require_any(sums > 0, cases, gives, what)
        factors = gives / np.where(gives, sums, 1)
        return np.concatenate([a * factor for a, factor in zip(amounts, factors, strict=True)])
    if not sums.any():
        raise InvalidInput(
            f"{what} are zero everywhere, so no patch can be drawn; give some voxel a weight, or "
            'use border="pad" where only voxels near the border have one'
        )
    return cast(Floats, np.concatenate(amounts) / sums.sum())


def _require_any(
    there: Any, cases: tuple[Case, ...], gives: npt.NDArray[np.bool_], what: str
) -> None:
    empty = [cases[number].name for number in np.flatnonzero(gives & ~there)]
    if empty:
        raise InvalidInput(
            f"case {', '.join(empty)} has no {what}, so no patch can be drawn from it; give it no "
            "patches, or leave it out"
        )
