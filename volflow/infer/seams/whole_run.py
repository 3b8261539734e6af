"""A network run on a region whole, and how far results in pieces lie from that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.infer.exact.seen import dropped_axis
from volflow.infer.finish import Finish
from volflow.infer.request import Request
from volflow.infer.seams.regions import seen
from volflow.model.resident import ModelPlugin, lent
from volflow.partition.reach import halo_of, padded_sizes
from volflow.store.volume import Volume

__all__ = ["WholeRun", "run_whole"]

Array = npt.NDArray[Any]

SLAB_VALUES = 2**22  # compared at a time
# What networks without a rule, whose alignment cannot be derived, are padded to at most.
LIKELY_ALIGNMENT = 32


@dataclass(frozen=True, eq=False)
class WholeRun:
    """Scores of a network run on a region whole.

    Parameters
    ----------
    scores
        ``CZYX`` in stored axes by output, before the activation.
    padded
        Sides of what the network saw, per axis of its own.
    scale
        Input voxels per output voxel, per frame axis.
    cpu_seconds
        Of the forward.
    activated, classes
        Turn scores into activated ones ``CZYX`` and into classes ``ZYX``.
    """

    scores: dict[str, Array]
    padded: tuple[int, ...]
    scale: tuple[int, ...]
    cpu_seconds: float
    activated: Finish
    classes: Finish

    @property
    def nbytes(self) -> int:
        """Bytes of the scores."""
        return sum(scores.nbytes for scores in self.scores.values())

    def score_range(self) -> tuple[float, float]:
        """Return the lowest and the highest activated score."""
        activated = [self.activated(scores.copy()) for scores in self.scores.values()]
        return min(float(s.min()) for s in activated), max(float(s.max()) for s in activated)

    def compared(self, result: Mapping[str, Volume]) -> tuple[Array, float, float]:
        """Compare a stored result with this run, a few rows at a time.

        Parameters
        ----------
        result
            Scores by output, before the activation.

        Returns
        -------
        away
            ``ZYX``, the largest difference of each voxel's activated scores.
        mean
            The mean difference over voxels and channels.
        changed
            The share of voxels whose class is another.
        """
        first = next(iter(self.scores.values()))
        away = np.zeros(first.shape[1:], first.dtype)
        rows = max(1, SLAB_VALUES // max(1, first[:, :1].size))
        total, values, changed = 0.0, 0, 0
        for low in range(0, len(away), rows):
            part = away[low : low + rows]
            other = np.zeros(part.shape, bool)
            for name, scores in self.scores.items():
                mine = scores[:, low : low + rows]
                box = Roi((low, 0, 0), (low + len(part), *part.shape[1:]))
                theirs = result[name].read(box)
                distance = np.abs(self.activated(mine.copy()) - self.activated(theirs.copy()))
                total += float(distance.sum(dtype=np.float64))
                values += distance.size
                np.maximum(part, distance.max(axis=0), out=part)
                other |= self.classes(mine.copy()) != self.classes(theirs)
            changed += int(other.sum())
        return away, total / values, changed / away.size

    def slice(self, axis: int, index: int) -> Array:
        """Return one slice of the first output: classes, or the activated score of one channel."""
        first = np.take(next(iter(self.scores.values())), [index], 1 + axis)
        shown = self.classes(first) if len(first) > 1 else self.activated(first)[0]
        return np.squeeze(shown, axis)


def run_whole(request: Request, image: Array, device: str) -> WholeRun:
    """Run a network on an image as a whole: the plain module, without blocks.

    Parameters
    ----------
    request
        Whose network it is.
    image
        ``CZYX`` in the frame; it is zero-padded at its far end to the network's alignment, and the
        result is cropped back.
    device
        Where the network runs.

    Raises
    ------
    InvalidInput
        Where the network cannot be run on such an image.
    """
    dropped, forward = dropped_axis(request), request.forward(device, "float32")
    shape, axis = image.shape[1:], 1 + (dropped or 0)
    padded = _padded(request, shape)
    sizes = list(padded)
    if dropped is not None:
        sizes.insert(dropped, shape[dropped])
    wide = np.pad(image, [(0, 0), *((0, m - n) for n, m in zip(shape, sizes, strict=True))])
    began = time.process_time()
    parts = [wide] if dropped is None else np.split(wide, shape[dropped], axis=axis)
    try:
        with lent(ModelPlugin(request.model.module, request.model.digest)):
            found = [forward(torch.from_numpy(part)[None].to(device)) for part in parts]
            joined = {
                name: np.concatenate([one[name][0].numpy(force=True) for one in found], axis=axis)
                for name in found[0]
            }
    except Exception as error:  # models raise whatever they like
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(
            f"the model cannot be run on a region of {tuple(shape)} whole: {reason}"
        ) from error
    took = time.process_time() - began
    first = next(iter(joined.values()))
    scale = tuple(n // m for n, m in zip(sizes, first.shape[1:], strict=True))
    kept = tuple(slice(-(-n // s)) for n, s in zip(shape, scale, strict=True))
    store, activation = request.inputs.frame.store, request.options.activation
    return WholeRun(
        {name: np.ascontiguousarray(store(s[:, *kept])) for name, s in joined.items()},
        padded,
        scale,
        took,
        Finish("scores", activation, forward.dtype),
        Finish("classes", activation, "uint16"),
    )


def _padded(request: Request, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sides, per axis of the network, that it is shown of an image."""
    module, channels = request.model.module, request.inputs.channels
    sides = seen(request, shape)
    sizes = padded_sizes(module, channels, sides)
    if sizes == tuple(sides):
        try:
            halo_of(module, channels, sides)
        except InvalidInput:  # no rule, or sides that it does not take
            # What divides a patch, which it takes, by halves.
            likely = (min(LIKELY_ALIGNMENT, p & -p) for p in seen(request, request.options.sides))
            return tuple(-(-n // a) * a for n, a in zip(sides, likely, strict=True))
    return sizes
