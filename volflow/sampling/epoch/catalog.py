"""Where patches may be cut: the superchunks of all cases, and how likely a patch of each is.

`open_catalog` finds that out: from sizes, or from labels and weights, which are counted once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from volflow.engine.cluster import Cluster, connect
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.counts.per_cell import count_classes, sum_weights
from volflow.sampling.epoch.order import VISITS, Visits, generator, plan_visits
from volflow.sampling.epoch.superchunks import (
    GridGroups,
    Superchunks,
    centres_of,
    whole_chunks,
)
from volflow.sampling.samplers import (
    GridSampler,
    LabelSampler,
    RandomSampler,
    Sampler,
    UniformSampler,
    WeightedSampler,
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

    def decoded_voxels(self, superchunk: int) -> int:
        """Voxels decoded for a superchunk: whole chunks of the case's first array."""
        case = self.case_of(superchunk)
        return whole_chunks(self.reads(superchunk), case.chunk, case.shape).size

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
        For `LabelSampler`: voxels that can be centres, int64 of shape ``(superchunks, classes)``.
    classes
        For `LabelSampler`: the classes; empty where all above 0 are one.
    voxel_probability
        For `LabelSampler`: probability of one such voxel, float64 of shape ``(cases, classes)``.
    """

    tilings: tuple[Superchunks, ...]
    sampler: RandomSampler
    probability: Floats
    class_counts: Ints | None = None
    classes: tuple[int, ...] = ()
    voxel_probability: Floats | None = None

    def starts(self, superchunk: int) -> Roi:
        """Return the box of the starts that a superchunk owns."""
        case, number = self.locate(superchunk)
        return self.tilings[case].starts(number)

    @cached_property
    def mean_decoded(self) -> float:
        """Voxels decoded per visit, on average."""
        decoded = np.concatenate([tiling.sizes()[1] for tiling in self.tilings])
        return float(np.average(decoded, weights=self.probability))

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
        groups = [np.arange(len(self.probability))]
        if len(totals) > 1:
            groups = [np.arange(a, b) for a, b in itertools.pairwise(self.first)]
        parts = []
        for number, (group, total) in enumerate(zip(groups, totals, strict=True)):
            if total:
                rng = generator(seed, epoch, VISITS, number)
                part = plan_visits(self.probability[group], total, per_visit, rng, split=split)
                parts.append(replace(part, superchunk=group[part.superchunk]))
        order = generator(seed, epoch, VISITS, len(groups)).permutation(sum(map(len, parts)))
        return Visits(
            np.concatenate([part.superchunk for part in parts])[order],
            np.concatenate([part.quota for part in parts])[order],
        )


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
        some = range(min(int(self.first[-1]), 1000))
        return float(np.mean([self.decoded_voxels(number) for number in some]))

    @cached_property
    def all_visits(self) -> Visits:
        """The visits of every epoch: all groups, in order."""
        quota = np.concatenate([tiling.sizes() for tiling in self.tilings])
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
        If a patch is larger than a volume, all weights are zero, a class is absent, or a case lacks
        the array that the sampler needs.
    """
    if isinstance(sampler, GridSampler):
        groups = tuple(GridGroups(sampler.grid(case)) for case in cases)
        return GridCatalog(cases, sampler, groups)
    if not isinstance(sampler, RandomSampler):
        raise InvalidInput(f"the sampler must be one like UniformSampler(64); got {sampler!r}")
    gives = None if per_case is None else np.array(per_case) > 0
    tilings = tuple(_superchunks(case, sampler) for case in cases)
    if isinstance(sampler, UniformSampler):
        starts = [tiling.sizes()[0].astype(np.float64) for tiling in tilings]
        probability = _probabilities(starts, cases, gives, "starts")
        return RandomCatalog(cases, sampler, tilings, probability)
    pairs = [*zip(cases, tilings, strict=True)]
    with connect(cluster) as client:
        options["cluster"] = client
        if isinstance(sampler, WeightedSampler):
            name = sampler.weight
            sums = [_count(*pair, name, sum_weights, (), options) for pair in pairs]
            what = f'weights "{name}" at centres that can be reached'
            probability = _probabilities(sums, cases, gives, what)
            return RandomCatalog(cases, sampler, tilings, probability)
        classes = None if sampler.shares is None else tuple(sampler.shares)
        label = sampler.label
        counts = [_count(*pair, label, count_classes, (classes,), options) for pair in pairs]
    weights = _voxel_probability(sampler, cases, counts, gives)
    parts = [(table * weight).sum(axis=1) for table, weight in zip(counts, weights, strict=True)]
    return RandomCatalog(
        cases,
        sampler,
        tilings,
        np.concatenate(parts),
        np.concatenate(counts),
        classes or (),
        weights,
    )


def _superchunks(case: Case, sampler: RandomSampler) -> Superchunks:
    centred = sampler.border == "pad" or not isinstance(sampler, UniformSampler)
    anchor: Literal["start", "centre"] = "centre" if centred else "start"
    patch = cast(tuple[int, ...], sampler.patch)
    tiling = Superchunks(case.shape, patch, case.chunk, sampler.border, anchor)
    try:
        _ = tiling.reach
    except InvalidInput as error:
        raise InvalidInput(f"case {case.name}: {error}") from None
    return tiling


def _count(
    case: Case,
    tiling: Superchunks,
    name: str,
    measure: Callable[..., Any],
    columns: tuple[Any, ...],
    options: Mapping[str, Any],
) -> npt.NDArray[Any]:
    """Count what a case holds at possible centres: ``(superchunks,)``, or times classes."""
    if name not in case.sources:
        raise InvalidInput(
            f'the sampler needs an array "{name}", but case {case.name} has'
            f" {', '.join(case.sources)}; name it as the case does"
        )
    if options.get("progress") is None and math.prod(case.shape) < SILENT_VOXELS:
        options = {**options, "progress": False}
    reach = centres_of(tiling.reach, tiling.patch)
    found = measure(case.sources[name], tiling.cell, reach, **options)
    return tiling.inner(found.boxes(tiling.chunks_per_core, *columns))


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
