"""A network run on a region whole, and how far results in pieces lie from that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import InvalidInput, first_line
from volflow.geometry.roi import Roi
from volflow.infer.exact.window import dropped_axis, seen_axes
from volflow.infer.finish import Finish
from volflow.infer.request import Request
from volflow.model.device import numbered
from volflow.model.resident import lent
from volflow.partition.reach import padded_sizes
from volflow.store.volume import Volume

__all__ = ["WholeRun", "run_whole"]

Array = npt.NDArray[Any]

ROWS = 16  # compared at a time, so that temporaries stay small
# What networks without a rule, whose alignment cannot be derived, are padded to at most.
LIKELY_ALIGNMENT = 32


@dataclass(frozen=True, eq=False)
class WholeRun:
    """What a network run on a region whole makes of it, in the frame of the network.

    Parameters
    ----------
    scores, classes
        By output, ``CZYX`` behind the activation and ``ZYX``.
    padded
        Sides of what the network saw, per axis of its own.
    scale
        Input voxels per output voxel, per frame axis.
    cpu_seconds
        Of the forward.
    activate, classify
        Turn scores as the network makes them into activated ones and into classes.
    """

    scores: dict[str, Array]
    classes: dict[str, Array]
    padded: tuple[int, ...]
    scale: tuple[int, ...]
    cpu_seconds: float
    activate: Finish
    classify: Finish

    def compared(self, result: Mapping[str, Volume]) -> tuple[Array, float, float]:
        """Compare a stored result with this run, a few rows at a time.

        Parameters
        ----------
        result
            Scores ``CZYX`` by output, in the frame and before the activation.

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
        away, other = np.zeros_like(first[0]), np.zeros(first.shape[1:], bool)
        total = 0.0
        for low in range(0, len(away), ROWS):
            rows = slice(low, low + ROWS)
            box = Roi((low, 0, 0), (low + ROWS, *away.shape[1:])).clip(away.shape)
            for name, scores in self.scores.items():
                theirs = result[name].read(box)
                other[rows] |= self.classes[name][rows] != self.classify(theirs.copy())
                distance = np.abs(scores[:, rows] - self.activate(theirs))
                total += float(distance.sum(dtype=np.float64))
                np.maximum(away[rows], distance.max(axis=0), out=away[rows])
        return (
            away,
            total / sum(scores.size for scores in self.scores.values()),
            float(other.mean()),
        )


def run_whole(request: Request, image: Array, *, ruled: bool) -> WholeRun:
    """Run a network on an image as a whole: the plain module, without blocks.

    Parameters
    ----------
    request
        Whose network it is, and on which device it runs.
    image
        ``CZYX`` in the frame; it is zero-padded at its far end to the network's alignment, and the
        result is cropped back.
    ruled
        Whether the network has an exact rule, which tells its alignment.

    Raises
    ------
    InvalidInput
        Where the network cannot be run on such an image.
    """
    options, dropped = request.options, dropped_axis(request)
    forward, shape = request.forward(options.device, "float32"), image.shape[1:]
    seen = [shape[axis] for axis in seen_axes(request)]
    if ruled:
        padded = padded_sizes(request.model.module, len(image), seen)
    else:  # what divides a patch, which it takes, by halves
        patch = [options.sides[axis] for axis in seen_axes(request)]
        likely = [min(LIKELY_ALIGNMENT, p & -p) for p in patch]
        padded = tuple(-(-n // a) * a for n, a in zip(seen, likely, strict=True))
    sizes = list(padded)
    if dropped is not None:
        sizes.insert(dropped, shape[dropped])
    wide = np.pad(image, [(0, 0), *((0, m - n) for n, m in zip(shape, sizes, strict=True))])
    # A network of slices sees them one by one.
    axis, count = (1, 1) if dropped is None else (1 + dropped, shape[dropped])
    began, device = time.process_time(), numbered(torch.device(options.device))
    try:
        with lent(request.plugin):
            found = [
                forward(torch.from_numpy(part)[None].to(device))
                for part in np.split(wide, count, axis)
            ]
            joined = {
                name: np.concatenate([one[name][0].numpy(force=True) for one in found], axis)
                for name in found[0]
            }
    except Exception as error:  # models raise whatever they like
        raise InvalidInput(
            f"the model cannot be run on a region of {tuple(shape)} whole: {first_line(error)}"
        ) from error
    took = time.process_time() - began
    first = next(iter(joined.values()))
    scale = tuple(n // m for n, m in zip(sizes, first.shape[1:], strict=True))
    kept = tuple(slice(-(-n // s)) for n, s in zip(shape, scale, strict=True))
    activate = Finish("scores", options.activation, forward.dtype)
    classify = Finish("classes", options.activation, "uint16")
    cropped = {name: np.ascontiguousarray(scores[:, *kept]) for name, scores in joined.items()}
    classes = {name: classify(scores.copy()) for name, scores in cropped.items()}
    scores = {name: activate(scores) for name, scores in cropped.items()}
    return WholeRun(scores, classes, padded, scale, took, activate, classify)
