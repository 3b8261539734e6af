"""Scores on the grid of a network come back to that of the volume, some rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.geometry.resampling.regridding import Regridding
from volflow.geometry.roi import Roi
from volflow.infer.finish import Finish
from volflow.infer.method import BoxFunction, Rows
from volflow.model.forward import Output
from volflow.store.volume import Volume
from volflow.volumes.framed import FramedImage
from volflow.volumes.resample.model_grid import ModelGrid

__all__ = ["UNCOVERED", "BroughtBack", "StoredScores", "rows_together"]

Array = npt.NDArray[Any]

# The score of voxels that no patch covered, while others are interpolated.
UNCOVERED = float(np.finfo(np.float32).min)
# Scores of all channels that are brought back at once.
ROWS_BYTES = 2**24


def rows_together(shape: tuple[int, ...], channels: int, dtype: str) -> int:
    """Return how many rows of a box are brought back at once.

    Parameters
    ----------
    shape
        Of the box along the frame's axes.
    channels, dtype
        Of the scores.
    """
    row = channels * math.prod(shape[1:]) * np.dtype(dtype).itemsize
    return max(1, min(shape[0], ROWS_BYTES // max(1, row)))


@dataclass(frozen=True)
class BroughtBack:
    """A box function over a volume, by one that computes scores on the grid of the network.

    Parameters
    ----------
    inputs
        The volume as it is stored.
    grid
        On which the network sees it.
    scores
        Computes scores there, or reads them.
    finish
        Classes and dtype of what is stored.
    """

    inputs: FramedImage
    grid: ModelGrid
    scores: BoxFunction
    finish: Finish

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Outputs of the network, each on the grid of the volume."""
        return tuple(replace(output, scale=(1, 1, 1)) for output in self.scores.outputs)

    @property
    def cache_key(self) -> tuple[object, ...]:
        """Values that decide the voxels beside the request."""
        return ("model grid", *self.scores.cache_key)

    @property
    def regridding(self) -> Regridding:
        """How scores become those of the volume, along the frame's axes."""
        return self.grid.back(self.scores.outputs[0].scale, self.scores.finish.dtype)

    def resolve_device(self) -> BroughtBack:
        """Return the same on the device that "auto" means on this machine."""
        return replace(self, scores=self.scores.resolve_device())

    def with_inputs(self, inputs: FramedImage) -> BroughtBack:
        """Return the same with other inputs."""
        return replace(self, inputs=inputs, scores=self.scores.with_inputs(self.grid.seen(inputs)))

    def rows(self, tile: Roi) -> Iterator[Rows]:
        """Yield a box of the output, some rows at a time, as its scores come."""
        regridding = self.regridding
        wanted, taps = regridding.source(tile), regridding.taps[0]
        channels = sum(output.channels for output in self.scores.outputs)
        step = rows_together(tile.shape, channels, self.scores.finish.dtype)
        held = _Held(self.scores.rows(wanted))
        for low in range(tile.start[0], tile.stop[0], step):
            high = min(low + step, tile.stop[0])
            slab = Roi((low, *tile.start[1:]), (high, *tile.stop[1:]))
            found = held.between(*taps.range(low, high))
            yield (
                low,
                {name: self._finished(rows, regridding, slab) for name, rows in found.items()},
            )

    def _finished(self, scores: Array, regridding: Regridding, slab: Roi) -> Array:
        """Return finished rows of the volume, of the scores that they are made of."""
        if not self.inputs.skipping:
            return self._finish(regridding.make(scores, slab))
        known = (scores[0] != UNCOVERED).astype(scores.dtype)
        weight = regridding.make(known, slab)
        made = regridding.make(np.where(known > 0, scores, 0), slab)
        covered = weight > 0
        # Voxels at the edge of what is covered have the mean of the scores that there are.
        np.divide(made, weight, out=made, where=covered)
        return self._finish(made, covered)

    def _finish(self, scores: Array, covered: Any = None) -> Array:
        with torch.inference_mode():  # an activation of the user's may have weights
            return self.finish(scores, covered)


@dataclass
class _Held:
    """Rows as they come, kept while they are needed."""

    rows: Iterator[Rows]
    first: int = 0
    parts: dict[str, Array] = field(default_factory=dict)

    def between(self, low: int, high: int) -> dict[str, Array]:
        """Return rows ``[low, high)``; earlier ones are not asked for again."""
        while not self.parts or self._stop < high:
            first, more = next(self.rows)
            if not self.parts:  # copies: what computes them may use their memory again
                self.first, self.parts = first, {name: one.copy() for name, one in more.items()}
                continue
            gone = max(0, min(low, self._stop) - self.first)
            self.parts = {
                name: np.concatenate([part[:, gone:], more[name]], axis=1)
                for name, part in self.parts.items()
            }
            self.first += gone
        return {
            name: part[:, low - self.first : high - self.first] for name, part in self.parts.items()
        }

    @property
    def _stop(self) -> int:
        depth: int = next(iter(self.parts.values())).shape[1]
        return self.first + depth


@dataclass(frozen=True)
class StoredScores:
    """Scores that were stored on the grid of the network, read as a box function's rows.

    Parameters
    ----------
    inputs
        Of the network, whose frame the rows are in.
    volumes
        The scores ``czyx`` by output.
    outputs, finish
        As they were computed.
    """

    inputs: FramedImage
    volumes: Mapping[str, Volume]
    outputs: tuple[Output, ...]
    finish: Finish

    @property
    def cache_key(self) -> tuple[object, ...]:
        """Nothing beside the volumes decides the voxels."""
        return ()

    def resolve_device(self) -> StoredScores:
        """Return the same: nothing is computed."""
        return self

    def with_inputs(self, inputs: FramedImage) -> StoredScores:
        """Return the same: the scores are those of their own inputs."""
        del inputs
        return self

    def rows(self, tile: Roi) -> Iterator[Rows]:
        """Yield the rows of each layer of chunks, which is read once."""
        frame = self.inputs.frame
        some = next(iter(self.volumes.values()))
        shape, layer = some.shape[-3:], some.chunks[-3:][frame.axes[0]]
        # Layers are counted from the stored array's low end, also where the frame runs against it.
        phase = shape[frame.axes[0]] % layer if frame.flips[0] else 0
        cuts = [n for n in range(phase, tile.stop[0], layer) if tile.start[0] < n]
        low = tile.start[0]
        for high in (*cuts, tile.stop[0]):
            if high == low:
                continue
            box = frame.stored_roi(Roi((low, *tile.start[1:]), (high, *tile.stop[1:])), shape)
            yield (
                low,
                {
                    name: np.ascontiguousarray(frame.show(_by_channel(volume, box)))
                    for name, volume in self.volumes.items()
                },
            )
            low = high


def _by_channel(volume: Volume, box: Roi) -> Array:
    """Read a box of all channels, one at a time: to read takes several times what it returns."""
    scores = np.empty((volume.shape[0], *box.shape), volume.dtype)
    for channel, out in enumerate(scores):
        part = Roi((channel, *box.start), (channel + 1, *box.stop))
        out[...] = volume.read(part)[0]
    return scores
