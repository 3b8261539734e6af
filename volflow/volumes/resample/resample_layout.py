"""A resampling laid out: its blocks, and how much of the volume is read at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from volflow.engine.task import Context, Step
from volflow.geometry.grid import BlockGrid
from volflow.store.formats.taken.piecewise import Piecewise
from volflow.store.layout import shrinking
from volflow.store.meta import VolumeSpec
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.copy_layout import COPIES, Copy, adopted, held_bytes
from volflow.volumes.copying import CopyJob
from volflow.volumes.resample.resample_pieces import held_in_making, read_box
from volflow.volumes.resample.resample_request import ResampleRequest
from volflow.volumes.resample.resampled_source import ResampledSource
from volflow.volumes.resample.target_grid import grid_text

__all__ = ["lay_out_on", "made_of"]

LAYER = 16  # planes that are read at once of what has no chunks
KEPT_BYTES = 16 * 2**20  # beside a copy's own slack: pieces come in sizes that allocators keep


def lay_out_on(asked: ResampleRequest, memory_bytes: int) -> Copy:
    """Return the copy of a resampled volume; shards shrink where memory is short.

    A run that is resumed keeps the layout it began with, unless another is asked for.
    """
    options, spec = asked.options, asked.spec
    layout = adopted(str(asked.out), options.chunk, options.shard, overwrite=options.overwrite)
    if layout != (options.chunk, options.shard):
        spec = VolumeSpec.of(spec.shape, spec.dtype, spec.meta, *layout)
    weights = (*(0 for _ in spec.shape[:-3]), 1, 1, 1)
    shards = [spec.shard or spec.chunk]
    if layout[1] is None:
        shards = list(shrinking(shards[0], spec.chunk, weights))
    layers = list(_halving(layer_of(asked)))
    # Less is read at once only where not even the smallest shard fits: all would be read again.
    choices = [(shard, layers[0]) for shard in shards] + [(shards[-1], n) for n in layers[1:]]
    for shard, layer in choices:
        copy = _sized(asked, replace(spec, shard=shard), layer, memory_bytes)
        if copy.peak_bytes <= memory_bytes:
            break
    return copy


def _halving(planes: int) -> Iterator[int]:
    while planes > 1:
        yield planes
        planes = -(-planes // 2)
    yield 1


def layer_of(asked: ResampleRequest) -> int:
    """Return how many planes of a volume are worth reading at once."""
    return asked.cell[0] if max(asked.cell) > 1 else LAYER


def _sized(asked: ResampleRequest, spec: VolumeSpec, layer: int, memory_bytes: int) -> Copy:
    """Return the copy in shards of a size."""
    blocks = BlockGrid(spec.shape, spec.shard or spec.chunk)
    sides = [min(b, n) for b, n in zip(blocks.block, spec.shape, strict=True)]
    making = held_in_making(asked.how, sides[-3:], asked.cell, layer)
    before = grid_text(asked.source.shape, asked.source.meta)
    after = grid_text(spec.shape, spec.meta)
    how = asked.how
    return Copy(
        made_of(asked, layer),
        str(asked.out),
        spec,
        blocks,
        making + KEPT_BYTES + held_bytes(blocks, spec.dtype, COPIES),
        memory_bytes,
        what=f"{_named(asked)}: {before}, {asked.source.dtype}",
        operation="resample",
        task=resample_blocks,
        more=(
            ("grid", after),
            ("values", f"{'classes' if how.classes else 'image'}, order {how.order}"),
        ),
    )


def _named(asked: ResampleRequest) -> str:
    given = asked.opened.path or type(asked.given).__name__
    return str(given)


def made_of(asked: ResampleRequest, layer: int, source: Source | None = None) -> ResampledSource:
    """Return the result as a source, whose own is read in boxes of whole chunks.

    Parameters
    ----------
    asked, layer
        What is resampled, and how many planes of it are read at once.
    source
        What is read in place of the volume: a copy of it.
    """
    source, cell = asked.source if source is None else source, asked.cell
    box = read_box(source.shape[-3:], cell, max(layer, cell[0]), source.dtype.itemsize)
    if isinstance(asked.opened, Volume) or not asked.is_direct:
        source = Piecewise(source, ((1,) * (source.ndim - 3) + tuple(box)))
    return ResampledSource(source, asked.how, asked.spec.meta, asked.spec.dtype, layer)


def resample_blocks(job: CopyJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Make blocks, each of which is read, made and written by itself."""
    source = job.open()
    assert isinstance(source, ResampledSource)
    context.trim()
    for number in blocks:
        block = job.blocks[number]
        voxels = np.empty(block.shape, source.dtype)
        for made in source.fill(voxels, block, context):
            yield Step(None, made)
        job.store(number, voxels, context)
        yield Step(number, 0)
