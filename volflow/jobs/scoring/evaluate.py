"""Score label maps against their truth: one, or each of many cases."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volflow.engine.cluster import connect
from volflow.engine.progress import announce
from volflow.engine.wanted import check_wanted
from volflow.errors import InvalidInput, RunFailed, StoreFull, TimeUp, first_line
from volflow.jobs.scoring.case_pairs import CasePairs, are_cases, images_of, pair_cases
from volflow.jobs.scoring.kept_scores import KeptScores
from volflow.option import from_keywords, journey
from volflow.sampling.cases.case_faults import CaseFaults
from volflow.sampling.cases.names import listed
from volflow.store.slabs import Source
from volflow.volumes.evaluate.class_scores import ClassScores
from volflow.volumes.evaluate.distance_counts import Bounded
from volflow.volumes.evaluate.evaluate_options import EvaluateOptions
from volflow.volumes.evaluate.label_pair import LabelPair, open_pair
from volflow.volumes.evaluate.measure_pair import check_evaluation, measure_pair
from volflow.volumes.evaluate.score_table import Scores
from volflow.volumes.fold import in_memory

if TYPE_CHECKING:
    from volflow.engine.cluster import Cluster
    from volflow.engine.progress import Progress
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["evaluate", "failures", "score_cases"]

MOST_PLACES, MOST_PICTURES = 6, 24


@journey
def evaluate(  # noqa: PLR0913 - a public journey takes flat options
    pred: VolumeLike | Mapping[str, VolumeLike],
    truth: VolumeLike | Mapping[str, VolumeLike],
    *,
    classes: Sequence[int] | None = None,
    distances: bool = True,
    tolerance: float = 1.0,
    max_distance: float | None = None,
    csv: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    pictures: str | os.PathLike[str] | None = None,
    over: VolumeLike | None = None,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    progress: Progress = None,
) -> Scores:
    """Score a label map against its truth, or many: overlaps and surface distances of each class.

    Both are read in blocks, twice, so that neither need fit into memory; the scores are those of
    the whole volumes and do not depend on blocks, memory or workers.

    Overlaps are counts of voxels: Dice, intersection over union, precision, recall and volume
    similarity 2·(pred − truth) / (pred + truth). A surface holds the voxels of a class that have a
    face in common with what is not of it, or with the border of the volume. A distance is that from
    the centre of a voxel of one surface to the nearest of the other, in the unit of the spacing, or
    in voxels where that is unknown. ``hd95`` is the larger of the 95th percentiles of both
    directions, ``mean_surface_distance`` the mean over both, ``surface_dice`` the share of both
    surfaces that lies within the tolerance: as MONAI's HausdorffDistanceMetric (percentile 95),
    SurfaceDistanceMetric (symmetric) and SurfaceDiceMetric.

    A class that both lack has no scores: NaN, left out of all means. Of one that only one of the
    two holds the overlaps and the surface Dice are 0 and the distances infinite; the precision is
    NaN where pred lacks it, the recall where the truth does.

    Parameters
    ----------
    pred, truth
        Label maps on one grid, up to half a voxel along each axis, each any `VolumeLike` ``zyx``
        of whole numbers; pred may have another orientation. Of many cases: patterns such as
        ``"seg/{case}.nii.gz"``, folders, tables or mappings of volumes by case, which are paired by
        the names of the cases.
    classes
        Which are scored; by default all but 0 that occur in one of the two, negative numbers not.
        Of many cases those that occur in any.
    distances
        Whether surface distances are measured, too, which needs scipy (extra ``evaluate``).
    tolerance
        Of the surface Dice, in the unit of the spacing.
    max_distance
        Larger distances are not looked for, which saves time where much is far apart; memory does
        not depend on it. A score that depends on one is NaN, and the table says ``"> 50 mm"``.
    csv
        A ``.csv`` file for ``scores.table``, replaced if it is there. Of many cases the scores are
        kept beside it: the same call goes on with those that are new or changed.
    skip_bad
        Score the other cases where some have no pair, lie on different grids or cannot be read,
        instead of raising an error; ``scores.failed`` names them.
    pictures
        A folder, made if need be, for pictures of the cases with the lowest Dice, in planes through
        the place where each is worst; needs matplotlib (extra ``report``).
    over
        The scan underneath, of many cases a pattern or a mapping.
    cluster, workers, resources, wait, memory, progress
        As in `predict`. Arrays in memory are read in this thread.

    Returns
    -------
    Scores
        ``scores.dice[1]``, ``scores.hd95[1]``, …: of one case the score of a class, of many the
        mean; ``scores.table`` holds all, ``scores.summary`` mean, median and the 95 % bootstrap
        interval of the mean. ``print(scores)``, ``scores.to_csv(path)``, ``scores.to_json(path)``.

    Raises
    ------
    InvalidInput
        Where the two lie on different grids or hold other than classes, and, of many cases, for
        all faults together.
    MemoryRefused
        Where one block does not fit into ``memory``, saying what would.
    RunFailed
        Where a volume cannot be read; of many cases after all others are done.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.zeros((8, 8, 8), "uint8")
    >>> truth[2:6, 2:6, 2:6] = 1
    >>> scores = evaluate(np.roll(truth, 1, axis=2), truth)
    >>> scores.dice[1], scores.hd95[1], scores.surface_dice[1]
    (0.75, 1.0, 1.0)
    """
    options = from_keywords(EvaluateOptions, locals())
    scores = score_cases(pred, truth, options)
    if scores.failed and not skip_bad:
        raise RunFailed(failures(scores.failed, len(scores.cases)))
    return scores


def score_cases(pred: Any, truth: Any, options: EvaluateOptions) -> Scores:
    """Return the scores as `evaluate` does, also where cases failed; writes what is asked for."""
    check_evaluation(options)
    _check_files(options, pred, truth)
    many = are_cases(pred) or are_cases(truth)
    if many:
        found = pair_cases(pred, truth)
        if not options.skip_bad:
            found.faults.refuse()
    else:
        found = CasePairs({"": open_pair(pred, truth)}, CaseFaults((), 1))
    if not found.pairs:
        raise InvalidInput(failures({row.case: row.what for row in found.faults}, 0))
    scans = _scans(options.over, found.pairs)
    scores = _measured(found, options, many)
    if options.csv is not None:
        scores.to_csv(Path(options.csv).expanduser())
    if options.pictures is not None:
        _draw(scores, found.pairs, scans, options)
    return scores


def _check_files(options: EvaluateOptions, *inputs: Any) -> None:
    """Refuse files that cannot be written, before anything is read."""
    if options.csv is not None:
        _check_csv(options.csv, inputs)
    if options.pictures is not None:
        if Path(options.pictures).expanduser().is_file():
            raise InvalidInput(
                f"pictures names a folder, and {os.fspath(options.pictures)} is a file; choose"
                " another folder"
            )
        from volflow.report.pictures.stack import drawing

        drawing()
    elif options.over is not None:
        raise InvalidInput(
            "over is the scan under pictures; name their folder, too: pictures= (--pictures)"
        )


def _check_csv(csv: str | os.PathLike[str], inputs: tuple[Any, ...]) -> None:
    """Refuse a name that no table can have, or that is taken by more than an older table."""
    name, path = os.fspath(csv), Path(csv).expanduser().absolute()
    if path.suffix.lower() != ".csv":
        raise InvalidInput(
            f"csv must name a file that ends in .csv, given {name}; write {name}.csv"
        )
    if path.is_dir():
        raise InvalidInput(f"{name} is a folder, and csv names a file; choose another name")
    if not path.parent.is_dir():
        raise InvalidInput(f"the folder of {name} does not exist; make it first")
    for given in inputs:
        if isinstance(given, str | os.PathLike) and Path(given).expanduser().absolute() == path:
            raise InvalidInput(f"{name} would replace its own input; choose another csv (--csv)")


def _draw(
    scores: Scores,
    pairs: Mapping[str, LabelPair],
    scans: Mapping[str, Source],
    options: EvaluateOptions,
) -> None:
    """Write a picture of the worst places: of many cases one for each class, else one of all."""
    from volflow.report.pictures.preview import save
    from volflow.report.pictures.worst_places import WorstPlace, worst_places

    folder = Path(os.fspath(options.pictures or ".")).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"class-{label}": [label] for label in list(scores.classes)[:MOST_PICTURES]}
    for name, labels in (named if len(scores.cases) > 1 else {"classes": scores.classes}).items():
        rows = scores.worst(MOST_PLACES, labels)
        places = [WorstPlace(row, pairs[row.case], scans.get(row.case)) for row in rows]
        if places:
            title = f"worst places of {name.replace('-', ' ')}"
            save(worst_places(places, options, title), folder / f"worst-{name}.png")


def _scans(over: Any, pairs: Mapping[str, LabelPair]) -> dict[str, Source]:
    """Return the scan of each case that has one, on the grid of its label maps."""
    if over is None:
        return {}
    from volflow.report.pictures.worst_places import open_scan

    volumes = dict.fromkeys(pairs, over)
    if are_cases(over):
        volumes = dict(over) if isinstance(over, Mapping) else images_of(over)
    there = {case: volumes.get(case) for case in pairs}
    return {
        case: open_scan(volume, pairs[case], case)
        for case, volume in there.items()
        if volume is not None
    }


def failures(failed: Mapping[str, str], done: int) -> str:
    """Return which cases have no scores, and why the first has none, in a line."""
    first, why = next(iter(failed.items()))
    return (
        f"{len(failed)} of {len(failed) + done} cases have no scores: {listed(failed)}"
        f" ({first}: {why}); mend them, or score the others with skip_bad=True (--skip-bad)"
    )


def _measured(found: CasePairs, options: EvaluateOptions, many: bool) -> Scores:
    """Return the scores of all pairs, one after the other."""
    rows: list[ClassScores] = []
    unit = _unit(found.pairs) if options.distances else None
    failed = {fault.case: fault.what for fault in found.faults}
    held = all(any(map(in_memory, pair.sources)) for pair in found.pairs.values())
    kept = KeptScores.beside(options.csv if many else None, options)
    quiet = False if callable(options.progress) else options.progress
    single = replace(options, progress=False) if many and quiet is None else options
    client = None
    with ExitStack() as stack:
        if many and not held:  # one connection for all
            client = stack.enter_context(connect(options.cluster, **options.connection))
            single = replace(single, cluster=client)
        for number, (case, pair) in enumerate(found.pairs.items(), 1):
            state = "kept"
            try:
                scored = kept.get(case, pair)
                if scored is None:
                    scored, state = measure_pair(pair, single, case), "done"
                    kept.add(case, pair, scored)
                rows += scored
            except Exception as error:  # whatever it is, other cases are scored
                if not many or isinstance(error, TimeUp | StoreFull):
                    raise
                check_wanted()
                if client is not None and client.status != "running":
                    raise
                failed[case] = first_line(error)
                state = f"failed: {failed[case]}"
            if many:
                announce(f"evaluate: {case} {state} ({number} of {len(found.pairs)})", quiet)
    if failed and len(failed) == found.faults.cases:
        raise RunFailed(failures(failed, 0))
    return Scores(
        _completed(rows, [case for case in found.pairs if case not in failed]),
        unit,
        options.tolerance,
        math.inf if options.max_distance is None else options.max_distance,
        options.distances,
        failed,
    )


def _unit(pairs: Mapping[str, LabelPair]) -> str | None:
    """Return the unit of all distances; refuses cases whose units differ."""
    units = {case: pair.meta.unit for case, pair in pairs.items() if pair.meta.unit}
    if len(set(units.values())) > 1:
        (one, unit), (other, second) = (
            next((case, unit) for case, unit in units.items() if unit == found)
            for found in list(dict.fromkeys(units.values()))[:2]
        )
        raise InvalidInput(
            f"distances of all cases need one unit, but the spacing of {one} is in {unit} and that"
            f" of {other} in {second}; correct their metadata, or take distances=False (--counts)"
        )
    return next(iter(units.values()), None)


def _completed(rows: Sequence[ClassScores], cases: Sequence[str]) -> tuple[ClassScores, ...]:
    """Return the rows of all cases, each with all classes: what both lack has no scores."""
    known = {row.label: row for row in reversed(rows)}
    found = {(row.case, row.label): row for row in rows}

    def lacking(case: str, label: int) -> ClassScores:
        like = known[label]
        nothing = {name: Bounded(math.nan) for name in like.values}
        return ClassScores(case, label, like.name, nothing, 0, 0)

    return tuple(
        found.get((case, label)) or lacking(case, label)
        for case in cases
        for label in sorted(known)
    )
