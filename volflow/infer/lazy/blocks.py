"""Blocks of a prediction as tasks of a Dask graph: what `map_model` stands on.

A block of a stored volume reads its patches itself; one of a computed array gets the voxels that
its patches reach from the neighbouring chunks.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import getitem
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.infer.lazy.sliced import Sliced
from volflow.infer.method import BoxFunction, Hull
from volflow.infer.request import Request, output_meta
from volflow.model.resident import ModelPlugin, lent
from volflow.store.layout import default_layout
from volflow.volumes.arrays.graphs import carried
from volflow.volumes.overlap.depth import is_whole, merged_chunks
from volflow.volumes.overlap.map_overlap import Block

__all__ = ["over_computed", "over_stored"]

Cuts = tuple[tuple[int, ...], ...]

# A slice gets blocks of its own where these read so many times less than those that it cuts.
WORTH_BLOCKS = 1.5


@dataclass(frozen=True)
class Part:
    """A part of an array ``czyx`` in memory that begins at a voxel; it is read like the whole."""

    voxels: npt.NDArray[Any]
    start: tuple[int, ...]

    def read(self, roi: Roi) -> npt.NDArray[Any]:
        """Return the voxels ``czyx`` of a box of the whole array."""
        return self.voxels[(slice(None), *roi.relative_to(self.start).slices())]


@dataclass(frozen=True)
class Blocks:
    """A box of a prediction in blocks: tasks of a graph.

    Parameters
    ----------
    window, hull
        What computes boxes, and of which input. Without volumes where blocks bring their own.
    plugin, decided
        The model, and a hash of all that decides the voxels.
    shape
        Voxels of the whole prediction along the stored axes.
    cuts
        Where blocks begin along the stored axes, and where the last ends, in output voxels.
    starts, padded
        Where the voxels that blocks are given begin, along the stored axes, and who gives them.
    """

    window: BoxFunction
    hull: Hull
    plugin: ModelPlugin
    decided: str
    shape: tuple[int, ...]
    cuts: Cuts
    starts: Cuts = ()
    padded: da.Array | None = None

    def arrays(self) -> dict[str, da.Array]:
        """Return the Dask arrays of all blocks, ``czyx`` or ``zyx``, by the names of outputs."""
        padded = () if self.padded is None else (self.padded,)
        token = tokenize(self.decided, self.cuts)
        sides = tuple(tuple(np.diff(axis).tolist()) for axis in self.cuts)
        # A block's outputs come of one forward: a task makes all, further ones take theirs.
        together = da.map_blocks(
            _compute_block,
            *padded,
            carried(self.plugin, f"model-{self.plugin.digest[:32]}"),
            window=self.window,
            shape=self.shape,
            cuts=self.cuts,
            starts=self.starts,
            decided=token,
            name=f"map_model-blocks-{token}",
            chunks=sides,
            drop_axis=0 if padded else None,
            new_axis=None if padded else list(range(3)),
            dtype=object,
            meta=np.empty((0, 0, 0), object),
        )
        classes = self.window.finish.output == "classes"
        dtype = np.dtype(self.window.finish.dtype)
        found: dict[str, da.Array] = {}
        for output in self.window.outputs:
            front = () if classes else ((output.channels,),)
            one = da.map_blocks(
                getitem,
                together,
                output.name,
                name="-".join(filter(None, ("map_model", output.name, token))),
                chunks=(*front, *sides),
                new_axis=0 if front else None,
                dtype=dtype,
                meta=np.empty((0,) * (len(front) + 3), dtype),
            )
            found[output.name] = Sliced(one, partial(self._part, output.name))
        return found

    def _part(self, output: str, box: Roi) -> da.Array | None:
        """Return the array of a box; None where the blocks that it reaches into read little more.

        Slices of one array share its blocks, those with blocks of their own do not: they must be
        worth it.
        """
        box = box.shift([axis[0] for axis in self.cuts])
        reached = [
            slice(bisect_right(axis, low) - 1, bisect_left(axis, high))
            for axis, (low, high) in zip(self.cuts, box, strict=True)
        ]
        whole = tuple(
            axis[at.start : at.stop + 1] for axis, at in zip(self.cuts, reached, strict=True)
        )
        if self.padded is None:  # blocks may begin where the box does
            sides = (max(np.diff(axis).tolist()) for axis in self.cuts)
            cuts = _cuts(box, sides)
            part = replace(self, cuts=cuts)
        else:
            cuts = tuple(
                (low, *axis[1:-1], high) for axis, (low, high) in zip(whole, box, strict=True)
            )
            starts = tuple(axis[at] for axis, at in zip(self.starts, reached, strict=True))
            padded = _chunks_of(self.padded, reached)
            part = replace(self, cuts=cuts, starts=starts, padded=padded)
        worth = WORTH_BLOCKS * part._reads() <= replace(self, cuts=whole)._reads()
        return part.arrays()[output] if worth else None

    def _reads(self) -> int:
        """Return the input voxels that all blocks read, some of them more than once."""
        frame, total = self.window.inputs.frame, 1
        for axis, (stored, flip) in enumerate(zip(frame.axes, frame.flips, strict=True)):
            n = self.shape[stored]
            sides = (
                (low, high) for low, high in itertools.pairwise(self.cuts[stored]) if low < high
            )
            hulls = (self.hull(axis, *((n - b, n - a) if flip else (a, b))) for a, b in sides)
            total *= sum(high - low for low, high in hulls)
        return total


def _chunks_of(array: da.Array, numbers: Sequence[slice]) -> da.Array:
    """Return the chunks with these numbers along the last three axes."""
    ends = [np.cumsum([0, *sizes]).tolist() for sizes in array.chunks[-3:]]
    box = tuple(slice(end[at.start], end[at.stop]) for end, at in zip(ends, numbers, strict=True))
    chunks: da.Array = array[(..., *box)]
    return chunks


def _cuts(box: Roi, sides: Iterable[int]) -> Cuts:
    return tuple(
        (*range(low, high, side), high) for (low, high), side in zip(box, sides, strict=True)
    )


def _compute_block(
    *arrays: npt.NDArray[Any],
    window: BoxFunction,
    shape: tuple[int, ...],
    cuts: Cuts,
    starts: Cuts,
    decided: str,
    block_id: tuple[int, ...],
) -> dict[str, npt.NDArray[Any]]:
    """Return a block's voxels along the stored axes by output, ``czyx`` scores or ``zyx`` classes.

    ``decided`` is an argument because Dask may name tasks by all of them.
    """
    del decided
    *padded, model = arrays
    window, index, frame = window.resolve_device(), block_id[-3:], window.inputs.frame
    if padded:
        start = tuple(axis[i] for axis, i in zip(starts, index, strict=True))
        window = window.with_inputs(replace(window.inputs, volumes=(Part(padded[0], start),)))
    low, high = (tuple(a[i + n] for a, i in zip(cuts, index, strict=True)) for n in (0, 1))
    tile = frame.roi(Roi(low, high), shape)
    classes, sides = window.finish.output == "classes", Roi(low, high).shape
    results = {
        output.name: np.empty(sides if classes else (output.channels, *sides), window.finish.dtype)
        for output in window.outputs
    }
    shown = {name: frame.show(result) for name, result in results.items()}
    with lent(model.item()):
        for first, rows in window.rows(tile):
            at = first - tile.start[0]
            for name, voxels in rows.items():
                shown[name][..., at : at + voxels.shape[-3], :, :] = voxels
    return results


def over_stored(
    request: Request, window: BoxFunction, hull: Hull, block: Block
) -> dict[str, da.Array]:
    """Return the arrays whose blocks read their voxels from the store."""
    out = request.out_shape(window.outputs[0].scale)
    if block is None:
        spacing = output_meta(request, window.outputs[0]).spacing
        block = default_layout(out, spacing, "float32")[1]
    sides = tuple(block) if isinstance(block, Iterable) else (block,) * 3
    if len(sides) != 3 or not all(is_whole(side) and side > 0 for side in sides):
        raise InvalidInput(f"block must be a positive integer or one for z, y, x, given {block!r}")
    decided = tokenize(request.fingerprint(), window.inputs.frame, window.cache_key)
    cuts = _cuts(Roi.full(out), sides)
    return Blocks(window, hull, request.plugin, decided, out, cuts).arrays()


def over_computed(
    array: da.Array, request: Request, window: BoxFunction, hull: Hull
) -> dict[str, da.Array]:
    """Return the arrays whose blocks get their voxels from chunks of a computed array ``czyx``."""
    scale = window.inputs.frame.restore(window.outputs[0].scale)
    chunks, merged = (), array.chunks[-3:]
    while merged != chunks:
        chunks = merged
        starts = [np.cumsum([0, *sizes]).tolist() for sizes in chunks]
        cuts = tuple(
            tuple(-(-at // s) for at in axis) for axis, s in zip(starts, scale, strict=True)
        )
        depth = _depth(window.inputs.frame, hull, cuts, starts)
        # A chunk lends voxels to its neighbours only: it must be as deep as they reach.
        merged = tuple(
            merged_chunks(sizes, max(d, s))
            for sizes, d, s in zip(chunks, depth, scale, strict=True)
        )
    joined = array.rechunk((array.chunks[0], *chunks))
    padded = da.overlap.overlap(
        joined, depth=dict(enumerate((0, *depth))), boundary="none", allow_rechunk=False
    )
    begins = tuple(
        tuple(max(0, at - d) for at in axis[:-1]) for axis, d in zip(starts, depth, strict=True)
    )
    # Nobody has seen its voxels, and its frame follows from the volume that it is like.
    decides = request.fingerprint() | {"input": [padded.name]}
    decided = tokenize(decides, window.inputs.frame, window.cache_key)
    shape = tuple(axis[-1] for axis in cuts)
    return Blocks(window, hull, request.plugin, decided, shape, cuts, begins, padded).arrays()


def _depth(frame: Frame, hull: Hull, cuts: Cuts, starts: list[list[int]]) -> tuple[int, ...]:
    """Return how far blocks read beyond their own chunks, along the stored axes."""
    depth = [0, 0, 0]
    for axis, (stored, flip) in enumerate(zip(frame.axes, frame.flips, strict=True)):
        n_out, n_in = cuts[stored][-1], starts[stored][-1]
        bounds = zip(
            itertools.pairwise(cuts[stored]), itertools.pairwise(starts[stored]), strict=True
        )
        for (low, high), (first, last) in bounds:
            if low == high:  # a chunk thinner than an output voxel
                continue
            if flip:
                a, b = hull(axis, n_out - high, n_out - low)
                a, b = n_in - b, n_in - a
            else:
                a, b = hull(axis, low, high)
            depth[stored] = max(depth[stored], first - a, b - last)
    return tuple(depth)
