"""The task that computes blocks of a prediction anew, and how far they are from what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.engine.task import Context, Step
from volflow.geometry.roi import Roi
from volflow.infer.finish import Finish
from volflow.infer.method import BoxFunction, OutputJob, array_of, box_of
from volflow.model.device import machine_of
from volflow.model.forward import torch_threads
from volflow.store.journal.provenance import Machine
from volflow.store.volume import Volume, shard_rois

__all__ = ["AuditJob", "Compared", "compare_blocks"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class AuditJob:
    """What the task needs to know; small and picklable.

    Parameters
    ----------
    output
        The job by which the blocks were written.
    device
        That computes.
    machines
        The kinds of machines that computed the run; on the same kind the bits are the same.
    """

    output: OutputJob[Any]
    device: str
    machines: frozenset[Machine]


@dataclass(frozen=True)
class Compared:
    """How one output of a block differs from what the model computes.

    Parameters
    ----------
    array, voxels
        Path of the output's array, and the number of its values in the block.
    exact
        Whether it was computed on the kind of machine that computed the run.
    differing, box
        Number of values whose bits differ, and the box around them, in voxels of the array.
    worst
        The largest difference of scores; of classes by how much the score of the stored one is
        lower than the highest, where they need not be the same bit for bit.
    low, high
        The lowest and the highest value that was computed, of scores.
    """

    array: str
    voxels: int
    exact: bool
    differing: int = 0
    box: Roi | None = None
    worst: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def is_wrong(self, allowed: float) -> bool:
        """Return True if what is stored is not what the model computes.

        Parameters
        ----------
        allowed
            How much scores may differ on another kind of machine.
        """
        return self.differing > 0 and (self.exact or not self.worst <= allowed)


def compare_blocks(job: AuditJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Compute blocks anew and compare them with what is stored; nothing is written."""
    for number in blocks:
        context.trim(job.output.peak_bytes)
        context.check()
        with torch_threads(job.output.threads):
            found = _compared(job, number, context)
        yield Step(number, job.output.grid[number].size, found)


def _compared(job: AuditJob, number: int, context: Context) -> tuple[Compared, ...]:
    window, targets = job.output.window, job.output.targets
    exact = job.machines == {machine_of(job.device)}
    with context.stage("model"):
        made = _computed(window, job.output, number)
    found = []
    with context.stage("compare"):
        for name, volume in targets.items():
            one = _difference(made.pop(name), volume, box_of(volume, job.output.grid[number]))
            found.append(replace(one, array=array_of(name), exact=exact))
    if window.finish.output == "classes" and not exact and any(one.differing for one in found):
        with context.stage("model"):
            margins = _class_margins(window, job.output, number)
        found = [
            replace(one, worst=worst, low=low, high=high)
            for one, (worst, low, high) in zip(found, margins, strict=True)
        ]
    return tuple(found)


def _computed(window: BoxFunction, job: OutputJob[Any], number: int) -> dict[str, Array]:
    """Return the voxels of a block by output, along the stored axes."""
    frame, block = window.inputs.frame, job.grid[number]
    tile = frame.roi(block, job.grid.shape)
    made = {
        name: np.empty(box_of(volume, block).shape, volume.dtype)
        for name, volume in job.targets.items()
    }
    shown = {name: frame.show(voxels) for name, voxels in made.items()}
    for first, rows in window.rows(tile):
        at = first - tile.start[0]
        for name, values in rows.items():
            shown[name][..., at : at + values.shape[-3], :, :] = values
    return made


def _difference(made: Array, volume: Volume, box: Roi) -> Compared:
    """Compare a block with what is stored, one stored object at a time."""
    differing, worst, parts = 0, 0.0, []
    for shard in shard_rois(volume, box):
        stored = np.ascontiguousarray(volume.read(shard))
        own = np.ascontiguousarray(made[shard.relative_to(box.start).slices()])
        bits = f"u{own.itemsize}"
        differs = own.view(bits) != stored.view(bits)
        count = int(np.count_nonzero(differs))
        if not count:
            continue
        differing += count
        parts.append(_around(differs, shard.start))
        with np.errstate(invalid="ignore", over="ignore"):
            far = np.abs(own[differs].astype("f8") - stored[differs].astype("f8"))
        worst = max(worst, float(np.where(np.isnan(far), np.inf, far).max()))
    around = None
    if parts:
        starts, stops = (zip(*sides, strict=True) for sides in zip(*parts, strict=True))
        around = Roi(tuple(map(min, starts)), tuple(map(max, stops)))
    low, high = (float(f.reduce(made, axis=None)) for f in (np.fmin, np.fmax))  # but for NaN
    return Compared("", made.size, True, differing, around, worst, low, high)


def _around(differs: npt.NDArray[np.bool_], start: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the first and the last-but-one index per axis of what differs, in the array."""
    lows, highs = [], []
    for axis, origin in enumerate(start):
        others = tuple(n for n in range(differs.ndim) if n != axis)
        at = np.flatnonzero(differs.any(axis=others))
        lows.append(origin + int(at[0]))
        highs.append(origin + int(at[-1]) + 1)
    return tuple(lows), tuple(highs)


def _class_margins(
    window: Any, job: OutputJob[Any], number: int
) -> list[tuple[float, float, float]]:
    """Return by output how far stored classes are from the highest score, and the scores' limits.

    Scores of another machine differ in their last bits, by which two that are nearly the same
    change their order: what counts is how much less than the highest that of the stored class is.
    """
    frame, block, finish = window.inputs.frame, job.grid[number], window.finish
    tile, one = frame.roi(block, job.grid.shape), any(o.channels == 1 for o in window.outputs)
    # Both activations keep the order of channels, but hide how far apart large scores are.
    activation = finish.activation if one or callable(finish.activation) else None
    scoring = replace(window, finish=Finish("scores", activation, "float32", float("nan")))
    stored: Mapping[str, Array] = {
        name: frame.show(volume.read(block)) for name, volume in job.targets.items()
    }
    margins = dict.fromkeys(stored, (0.0, np.inf, -np.inf))
    for first, rows in scoring.rows(tile):
        at = first - tile.start[0]
        for name, scores in rows.items():
            classes = stored[name][at : at + scores.shape[-3]]
            worst, low, high = margins[name]
            far = _far(scores, classes, int(finish.fill))
            known = scores[np.isfinite(scores)]
            if known.size:
                low, high = min(low, float(known.min())), max(high, float(known.max()))
            margins[name] = max(worst, far), low, high
    return [margins[name] for name in job.targets]


def _far(scores_CZYX: Array, classes_ZYX: Array, fill: int) -> float:
    """Return by how much the score of a stored class is lower than the highest, at most.

    Examples
    --------
    >>> scores = np.array([[0.5, 0.1], [0.25, 0.8]]).reshape(2, 1, 1, 2)
    >>> _far(scores, np.array([[[0, 1]]]), 0), _far(scores, np.array([[[1, 1]]]), 0)
    (0.0, 0.25)
    >>> _far(scores, np.array([[[0, 7]]]), 0)
    inf
    """
    covered = ~np.isnan(scores_CZYX[0])
    if (classes_ZYX[~covered] != fill).any():
        return float("inf")
    scores, classes = scores_CZYX[:, covered], classes_ZYX[covered]
    if not classes.size:
        return 0.0
    if int(classes.max()) >= max(2, len(scores)):
        return float("inf")
    if len(scores) == 1:  # a score above 0.5 is class 1
        wrong = (scores[0] > 0.5) != (classes == 1)
        return float(np.where(wrong, np.abs(scores[0] - 0.5), 0).max())
    own = np.take_along_axis(scores, classes[None].astype(np.intp), axis=0)[0]
    return float((scores.max(axis=0) - own).max())
