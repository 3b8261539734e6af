"""Blocks of a prediction as tasks of a Dask graph: what `map_model` stands on.

A block of a stored volume reads its patches itself; one of a computed array gets the voxels that
its patches reach from the neighbouring chunks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.infer.method import BoxFunction, Hull
from volflow.infer.request import Request, output_meta
from volflow.model.resident import lent
from volflow.store.layout import default_layout
from volflow.volumes.arrays.graphs import carried
from volflow.volumes.overlap.depth import is_whole, merged_chunks
from volflow.volumes.overlap.map_overlap import Block

__all__ = ["over_computed", "over_stored"]

Cuts = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Part:
    """A part of an array ``czyx`` in memory that begins at a voxel; it is read like the whole."""

    voxels: npt.NDArray[Any]
    start: tuple[int, ...]

    def read(self, roi: Roi) -> npt.NDArray[Any]:
        """Return the voxels ``czyx`` of a box of the whole array."""
        return self.voxels[(slice(None), *roi.relative_to(self.start).slices())]


def _lazy(
    window: BoxFunction, request: Request, cuts: Cuts, starts: Cuts = (), *arrays: da.Array
) -> da.Array:
    """Return the Dask array of all blocks, ``czyx`` or ``zyx``.

    Parameters
    ----------
    window, request
        What decides the voxels. Without volumes where each block brings its own.
    cuts
        Where blocks begin along the stored axes, and the length, in output voxels.
    starts, *arrays
        Where the voxels that a block is given begin, along the stored axes, and who gives them.
    """
    front = () if window.finish.output == "classes" else ((window.outputs[0].channels,),)
    dtype = np.dtype(window.finish.dtype)
    decides = request.fingerprint()
    if arrays:  # whose voxels nobody has seen
        decides["input"] = [array.name for array in arrays]
    # The frame of a computed array follows from the volume that it is like.
    token = tokenize(decides, window.inputs.frame, window.cache_key, cuts)
    result: da.Array = da.map_blocks(
        _compute_block,
        *arrays,
        carried(request.plugin, f"model-{request.model.digest[:32]}"),
        window=window,
        cuts=cuts,
        starts=starts,
        decided=token,
        name=f"map_model-{token}",
        chunks=(*front, *(tuple(np.diff(axis).tolist()) for axis in cuts)),
        drop_axis=0 if arrays and not front else None,
        new_axis=None if arrays else list(range(len(front) + 3)),
        dtype=dtype,
        meta=np.empty((0,) * (len(front) + 3), dtype),
    )
    return result


def _compute_block(
    *arrays: npt.NDArray[Any],
    window: BoxFunction,
    cuts: Cuts,
    starts: Cuts,
    decided: str,
    block_id: tuple[int, ...],
) -> npt.NDArray[Any]:
    """Return a block's voxels along the stored axes, ``czyx`` scores or ``zyx`` classes.

    ``decided`` is an argument because Dask may name tasks by all of them.
    """
    del decided
    *padded, model = arrays
    window, index, frame = window.resolve_device(), block_id[-3:], window.inputs.frame
    if padded:
        start = tuple(axis[i] for axis, i in zip(starts, index, strict=True))
        window = window.with_inputs(replace(window.inputs, volumes=(Part(padded[0], start),)))
    low, high = (tuple(a[i + n] for a, i in zip(cuts, index, strict=True)) for n in (0, 1))
    tile = frame.roi(Roi(low, high), tuple(axis[-1] for axis in cuts))
    front = () if window.finish.output == "classes" else (window.outputs[0].channels,)
    result = np.empty((*front, *Roi(low, high).shape), window.finish.dtype)
    shown = frame.show(result)
    with lent(model.item()):
        for first, rows in window.rows(tile):
            voxels = next(iter(rows.values()))
            at = first - tile.start[0]
            shown[..., at : at + voxels.shape[-3], :, :] = voxels
    return result


def over_stored(request: Request, window: BoxFunction, block: Block) -> da.Array:
    """Return the array whose blocks read their voxels from the store."""
    out = request.out_shape(window.outputs[0].scale)
    if block is None:
        spacing = output_meta(request, window.outputs[0]).spacing
        block = default_layout(out, spacing, "float32")[1]
    sides = tuple(block) if isinstance(block, Iterable) else (block,) * 3
    if len(sides) != 3 or not all(is_whole(side) and side > 0 for side in sides):
        raise InvalidInput(f"block must be a positive integer or one for z, y, x, given {block!r}")
    cuts = tuple((*range(0, n, side), n) for n, side in zip(out, sides, strict=True))
    return _lazy(window, request, cuts)


def over_computed(array: da.Array, request: Request, window: BoxFunction, hull: Hull) -> da.Array:
    """Return the array whose blocks get their voxels from chunks of a computed array ``czyx``."""
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
    return _lazy(window, request, cuts, begins, padded)


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
