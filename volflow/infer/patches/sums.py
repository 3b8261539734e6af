"""From the scores of batches to finished rows: in this machine's memory, or on the device.

On a device nothing waits for it until the next layer of patches was launched: the rows that a
layer closes are finished there, and copied beside what computes. Where the device has no room for
the sums they are the host's, and so they are from the moment on at which its memory ends: the
voxels are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

from volflow.engine.task import Context
from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import Blend, WeightMap, weights
from volflow.infer.finish import Finish
from volflow.infer.method import Rows
from volflow.infer.patches.device_rolling import CLOSED_BYTES, DeviceBlend
from volflow.infer.patches.rolling import RollingBlend
from volflow.model.copies import Copies, Download
from volflow.model.device import give_back_device, unless_exhausted
from volflow.model.forward import Output

__all__ = ["Blending", "DeviceSums", "HostSums", "Index", "Sums", "sums_of"]

Index = tuple[int, int, int]
# The first row of those that are closed, their scores, and what is covered.
Closed = tuple[int, Any, Any]


@dataclass(frozen=True)
class Blending:
    """What becomes of scores, in a tile.

    Parameters
    ----------
    grid, tile
        Patches and the tile, in output voxels and frame coordinates.
    blend, sigma_scale, dtype, skipping, outputs
        How scores are summed, and whether patches may be missing.
    finish
        What becomes of blended scores.
    """

    grid: PatchGrid
    tile: Roi
    blend: Blend | WeightMap
    sigma_scale: float
    dtype: str
    skipping: bool
    outputs: tuple[Output, ...]
    finish: Finish


class Sums(Protocol):
    """Sums of scores over a tile, layer by layer of patches."""

    def add(self, indices: Sequence[Index], scores: Mapping[str, Tensor]) -> None:
        """Add patches ``(B, C, *patch)`` by output, those that reach into the tile."""

    def close(self, layer: int) -> Iterator[Rows]:
        """Finish the rows that no later layer reaches; yield rows, maybe of the layer before."""

    def end(self) -> Iterator[Rows]:
        """Yield what is left."""

    def make_room(self) -> bool:
        """Leave the device's memory to others; False where there is nothing to leave."""


def sums_of(blending: Blending, copies: Copies, context: Context, *, on_host: bool) -> Sums:
    """Return the sums of a tile.

    Parameters
    ----------
    blending
        How they are made.
    copies, context
        Of the task.
    on_host
        Whether the device's memory has no room for them.
    """
    if copies.device.type == "cpu" or on_host:
        return HostSums(blending, copies, context)
    sums = unless_exhausted(copies.device, lambda: DeviceSums(blending, copies, context))
    if sums is not None:
        return sums
    give_back_device(copies.device)
    return HostSums(blending, copies, context)


class HostSums:
    """Sums in this machine's memory; scores of a GPU come one batch late, while it computes."""

    def __init__(self, blending: Blending, copies: Copies, context: Context) -> None:
        self.blending, self.copies, self.context = blending, copies, context
        self.blends = {
            output.name: RollingBlend(
                blending.grid,
                blending.tile,
                blending.blend,
                channels=output.channels,
                dtype=blending.dtype,
                skipping=blending.skipping,
                sigma_scale=blending.sigma_scale,
            )
            for output in blending.outputs
        }
        self.late = int(copies.device.type == "cuda")
        self.coming: deque[tuple[Sequence[Index], Download]] = deque()

    def add(self, indices: Sequence[Index], scores: Mapping[str, Tensor]) -> None:
        """Add patches, or those that came before."""
        if not indices:
            return
        found = [scores[name] for name in self.blends]
        if self.late:  # the network may write its next outputs there
            found = [one.clone() for one in found]
        self.coming.append((indices, self.copies.download(found)))
        self._add_all_but(self.late)

    def _add_all_but(self, last: int) -> None:
        while len(self.coming) > last:
            indices, download = self.coming.popleft()
            with self.context.stage("model"):
                batches = download.wait()
            with self.context.stage("blend"):
                for blend, batch in zip(self.blends.values(), batches, strict=True):
                    _add(blend, indices, batch)

    def close(self, layer: int) -> Iterator[Rows]:
        """Yield the rows that are final after a layer, a few at a time."""
        self._add_all_but(0)
        parts = zip(*(blend.finish(layer) for blend in self.blends.values()), strict=True)
        while True:
            with self.context.stage("blend"):
                closed = next(parts, None)
                if closed is None:
                    break
                rows = {
                    name: self.blending.finish(scores, covered)
                    for name, (_, scores, covered) in zip(self.blends, closed, strict=True)
                }
            yield closed[0][0], rows
        for blend in self.blends.values():
            blend.advance(layer)

    def end(self) -> Iterator[Rows]:
        """Nothing is left."""
        yield from ()

    def make_room(self) -> bool:
        """There is nothing on the device."""
        return False


class DeviceSums:
    """Sums on a GPU; the rows of a layer come when the next one was launched."""

    def __init__(self, blending: Blending, copies: Copies, context: Context) -> None:
        self.blending, self.copies, self.context = blending, copies, context
        dtype: torch.dtype = getattr(torch, blending.dtype)
        window = weights(blending.blend, blending.grid.patch, blending.sigma_scale)
        (weight,) = copies.upload([window], lambda sent: [one.to(dtype) for one in sent]).taken()
        channels = sum(output.channels for output in blending.outputs)
        row_bytes = blending.tile.shape[1] * blending.tile.shape[2] * channels * dtype.itemsize
        self.blends = {
            output.name: DeviceBlend(
                blending.grid,
                blending.tile,
                blending.blend,
                weight,
                channels=output.channels,
                dtype=blending.dtype,
                skipping=blending.skipping,
                finish_rows=max(1, CLOSED_BYTES // row_bytes),
            )
            for output in blending.outputs
        }
        # Rows that are on their way: where each piece begins, and two tensors for each output.
        self.firsts: list[int] = []
        self.coming: Download | None = None
        self.host: HostSums | None = None

    def add(self, indices: Sequence[Index], scores: Mapping[str, Tensor]) -> None:
        """Launch the sums of patches."""
        if self.host is not None:
            self.host.add(indices, scores)
        elif indices:
            with self.context.stage("blend"):
                for name, blend in self.blends.items():
                    _add(blend, indices, scores[name])

    def close(self, layer: int) -> Iterator[Rows]:
        """Launch the finish of what is final after a layer; yield the rows of the one before."""
        launched = None if self.host is not None else self._launched(layer)
        yield from self.end()
        if launched is not None:
            self.firsts, self.coming = launched
            for blend in self.blends.values():
                blend.advance(layer)
            return
        self.make_room()
        if self.host is not None:
            yield from self.host.close(layer)

    def _launched(self, layer: int) -> tuple[list[int], Download] | None:
        """Finish rows and begin to copy them; None where the device has no memory for it."""
        with self.context.stage("blend"):
            return unless_exhausted(self.copies.device, lambda: self._finish(layer))

    def _finish(self, layer: int) -> tuple[list[int], Download]:
        pieces = [blend.finish(layer) for blend in self.blends.values()]
        firsts: list[int] = []
        tensors: list[Tensor] = []
        while self._finish_piece(pieces, firsts, tensors):
            pass
        return firsts, self.copies.download(tensors)

    def _finish_piece(
        self, pieces: Sequence[Iterator[Closed]], firsts: list[int], tensors: list[Tensor]
    ) -> bool:
        """Finish some rows of all outputs; their scores are gone when the next are made."""
        closed = [one for one in (next(piece, None) for piece in pieces) if one is not None]
        for _, scores, covered in closed:
            tensors += self.blending.finish.launch(scores, covered)
        firsts += [first for first, _, _ in closed[:1]]
        return bool(closed)

    def end(self) -> Iterator[Rows]:
        """Yield the rows that are on their way."""
        if self.coming is None:
            return
        with self.context.stage("model"):  # which keeps the device busy
            arrays = self.coming.wait()
        firsts, self.coming = self.firsts, None
        each = 2 * len(self.blending.outputs)
        for n, first in enumerate(firsts):
            here = arrays[n * each : (n + 1) * each]
            yield (
                first,
                {
                    output.name: self.blending.finish.arrived(rows, extremes)
                    for output, rows, extremes in zip(
                        self.blending.outputs, here[::2], here[1::2], strict=True
                    )
                },
            )

    def make_room(self) -> bool:
        """Move the sums to this machine's memory, from the moment on."""
        if self.host is not None:
            return False
        self.host = HostSums(self.blending, self.copies, self.context)
        for name, on_host in self.host.blends.items():
            blend = self.blends.pop(name)
            on_host.row = blend.row
            for channel in range(len(blend.sums)):
                self._move(blend.sums[channel], on_host.sums[channel])
            if blend.norm is not None:
                self._move(blend.norm, on_host.norm)
        del blend
        give_back_device(self.copies.device)
        return True

    def _move(self, sums: Tensor, to: npt.NDArray[Any]) -> None:
        (to[...],) = self.copies.download([sums]).wait()


def _add(blend: RollingBlend, indices: Sequence[Index], batch: Iterable[Any]) -> None:
    """Add the patches of a batch that reach into the tile."""
    for index, scores in zip(indices, batch, strict=True):
        if index[2] in blend.columns:
            blend.add(index, scores)
