"""One label map against its truth: two passes over both, counts first, then distances."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real

from volflow.engine.plan import Plan
from volflow.engine.run_options import RunOptions
from volflow.errors import InvalidInput
from volflow.option import from_keywords
from volflow.store.slabs import Source
from volflow.volumes.evaluate.class_scores import ClassScores, overlap_scores, surface_scores
from volflow.volumes.evaluate.distance_counts import Bounded
from volflow.volumes.evaluate.evaluate_options import EvaluateOptions
from volflow.volumes.evaluate.label_pair import LabelPair, readable
from volflow.volumes.evaluate.nearest import require_scipy
from volflow.volumes.evaluate.surface_distances import (
    SurfaceDistances,
    merge_surfaces,
    plan_surface_distances,
)
from volflow.volumes.evaluate.voxel_counts import VoxelCounts, merge_counts, plan_voxel_counts
from volflow.volumes.fold import fold_together

__all__ = ["check_evaluation", "measure_pair"]


def check_evaluation(options: EvaluateOptions) -> None:
    """Refuse options that fit nothing; nothing is opened.

    Raises
    ------
    InvalidInput
        Naming the option.
    """
    tolerance, bound = options.tolerance, options.max_distance
    if not _is_length(tolerance):
        raise InvalidInput(
            "tolerance must be a number of 0 or more, in the unit of the spacing,"
            f" given {tolerance!r}"
        )
    if bound is not None and not (_is_length(bound) and bound > 0):
        raise InvalidInput(
            f"max_distance must be a number above 0, in the unit of the spacing, given {bound!r}"
        )
    if bound is not None and options.distances and tolerance > bound:
        raise InvalidInput(
            f"tolerance {tolerance:g} lies beyond max_distance {bound:g}, so that the surface Dice"
            " would not be known; raise max_distance"
        )
    if options.classes is not None and not _are_whole(options.classes):
        raise InvalidInput(
            f"classes must be a sequence of whole numbers such as [1, 2], given {options.classes!r}"
        )
    if options.distances:
        require_scipy()


def _is_length(value: object) -> bool:
    return isinstance(value, Real) and 0 <= float(value) < math.inf


def _are_whole(values: object) -> bool:
    if isinstance(values, str) or not isinstance(values, Iterable):
        return False
    given = list(values)
    return bool(given) and all(isinstance(one, Integral) for one in given)


def measure_pair(
    pair: LabelPair, options: EvaluateOptions, case: str = ""
) -> tuple[ClassScores, ...]:
    """Return the scores of each class, in the order of their numbers.

    Parameters
    ----------
    pair
        What is compared.
    options
        As checked by `check_evaluation`.
    case
        Its name in the scores.

    Raises
    ------
    InvalidInput
        Where a voxel is no class, or there are too many classes.
    MemoryRefused
        Where one block does not fit into ``memory``.
    RunFailed
        Where one of the two cannot be read.
    """
    where = from_keywords(RunOptions, vars(options))
    chosen = None if options.classes is None else tuple(map(int, options.classes))
    bound = math.inf if options.max_distance is None else float(options.max_distance)
    with readable(pair.sources, where) as sources:
        pair = pair.carried(sources)
        counts = _counted(pair, options, where)
        values = sorted(counts.pred.keys() | counts.truth.keys() if chosen is None else set(chosen))
        found: Mapping[int, SurfaceDistances] = {}
        if options.distances:
            found = _measured(pair, counts, bound, where)
    return tuple(
        _scores(case, value, _name(pair.class_names, value), counts, found, options)
        for value in values
    )


def _counted(pair: LabelPair, options: EvaluateOptions, where: RunOptions) -> VoxelCounts:
    classes = None if options.classes is None else tuple(map(int, options.classes))

    def plan_of(sources: Sequence[Source], memory_bytes: int) -> Plan:
        carried = pair.carried(sources)
        if options.distances:  # refused now, not after the first pass
            plan_surface_distances(carried, VoxelCounts(), math.inf, memory_bytes)
        return plan_voxel_counts(carried, classes, memory_bytes)

    return fold_together(plan_of, pair.sources, merge_counts, where)


def _measured(
    pair: LabelPair, counts: VoxelCounts, bound: float, where: RunOptions
) -> dict[int, SurfaceDistances]:
    if not counts.cells[0].keys() & counts.cells[1].keys():
        return {}

    def plan_of(sources: Sequence[Source], memory_bytes: int) -> Plan:
        return plan_surface_distances(pair.carried(sources), counts, bound, memory_bytes)

    return fold_together(plan_of, pair.sources, merge_surfaces, where)


def _scores(
    case: str,
    value: int,
    name: str,
    counts: VoxelCounts,
    found: Mapping[int, SurfaceDistances],
    options: EvaluateOptions,
) -> ClassScores:
    pred, truth, both = (one[value] for one in (counts.pred, counts.truth, counts.both))
    scores: dict[str, Bounded] = overlap_scores(pred, truth, both)
    if options.distances:
        present = pred > 0, truth > 0
        scores |= surface_scores(found.get(value), present, options.tolerance)
    farthest = found[value].farthest if value in found else None
    wrong = counts.worst.get(value)
    place, away = (wrong.place if wrong else None), Bounded(math.nan)
    if farthest is not None:
        place, away = farthest.place, Bounded(farthest.distance)
        if math.isinf(farthest.distance):  # beyond the bound
            away = Bounded(math.nan, float(options.max_distance or math.inf))
    return ClassScores(case, value, name, scores, pred, truth, place, away)


def _name(names: Sequence[str], value: int) -> str:
    return names[value] if 0 <= value < len(names) else ""
