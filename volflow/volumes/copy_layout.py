"""The layout of a copy: its blocks, how many are read at once, and what is unpacked before."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from volflow.engine.task import Task
from volflow.errors import Damaged
from volflow.geometry.budget import format_bytes
from volflow.geometry.grid import BlockGrid
from volflow.geometry.strips import decoded_per_voxel, widened
from volflow.store.journal.journal import journal_of
from volflow.store.journal.records import typed
from volflow.store.layout import shrinking
from volflow.store.meta import VolumeSpec
from volflow.store.slabs import Source
from volflow.store.volume import described
from volflow.volumes.origin import Origin
from volflow.volumes.unpacking import Unpacking

__all__ = [
    "COPIES",
    "Copy",
    "adopted",
    "held_bytes",
    "in_strips",
    "lay_out",
    "unpacked_first",
    "unpacked_if_dear",
]

SLACK_BYTES = 32 * 2**20
WORTH_SAYING, DEAR = 1.05, 4  # times that a voxel is decoded
COPIES = 2.5  # of a block that a task holds: its voxels, and shards in flight


@dataclass(frozen=True)
class Copy:
    """A conversion ready to run: its destination, layout and blocks.

    Parameters
    ----------
    source
        What is read.
    path, spec, blocks
        The volume, and its boxes that are written at once.
    peak_bytes, memory_bytes
        Of a task, and of a worker.
    reach
        How many blocks per axis a task reads at once; () for one.
    decoded
        How many voxels are decoded for each that is read.
    unpacking
        What is unpacked first, if the source is packed as a whole and read anywhere afterwards.
    what, origin
        The source in words, and its state.
    operation, task
        What it is called, and what copies blocks; by default a conversion.
    more
        Lines of the description of the plan.
    """

    source: Source
    path: str
    spec: VolumeSpec
    blocks: BlockGrid
    peak_bytes: int
    memory_bytes: int
    reach: tuple[int, ...] = ()
    decoded: float = 1.0
    unpacking: Unpacking | None = None
    what: str = ""
    origin: Origin | None = None
    operation: str = "convert"
    task: Task | None = None
    more: tuple[tuple[str, str], ...] = ()

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Lines of the description that say how often a source is read, if more than once."""
        lines = list(self.more)
        if self.unpacking is not None:
            size = format_bytes(self.unpacking.size_bytes)
            lines.append(("unpacked", f"first, to {self.unpacking.path}, {size}"))
        if self.decoded > WORTH_SAYING:
            more = f"each voxel is decoded {self.decoded:.3g} times"
            lines.append(("read", f"{more}, as memory does not hold more of a plane"))
        return tuple(lines)

    def remedy(self) -> str:
        """Return what would make the copy fit."""
        least = math.ceil(self.peak_bytes / 2**20)
        return f'use memory="{least}MiB" or more (--memory), or a smaller shard'


def held_bytes(block: BlockGrid, dtype: np.dtype[Any], copies: float) -> int:
    """Return the projected peak of a task that holds so many copies of a block."""
    voxels = math.prod(min(b, n) for b, n in zip(block.block, block.shape, strict=True))
    return int(voxels * dtype.itemsize * copies) + SLACK_BYTES


def lay_out(source: Source, path: str, chunk: Any, shard: Any, memory_bytes: int) -> Copy:
    """Choose the layout and blocks of a copy; shards shrink along z where memory is short."""
    spec = VolumeSpec.of(source.shape, source.dtype, described(source), chunk, shard)
    front, least = (source.together,) * (source.ndim - 3), spec.chunk

    def sized(outer: Sequence[int]) -> tuple[BlockGrid, int]:
        space = spec.shape[-3:] if source.sequential else outer[-3:]
        block = BlockGrid(spec.shape, (*front, outer[-3], *space[-2:]))
        # The slab, its successor where one is read ahead, shards in flight.
        return block, held_bytes(block, spec.dtype, 3.5 if source.sequential else COPIES)

    outer = spec.shard or least
    smaller = shrinking(outer, least, (*(0,) * len(front), 1, 0, 0)) if shard is None else (outer,)
    for outer in smaller:
        blocks, peak = sized(outer)
        if peak <= memory_bytes:
            break
    return Copy(source, path, replace(spec, shard=outer), blocks, peak, memory_bytes)


def in_strips(copy: Copy) -> Copy:
    """Return a copy that reads several blocks at once where the source decodes larger pieces.

    Blocks stay what they are, so that a run that is resumed with other memory has the same.
    """
    source = copy.source
    if source.sequential:
        return copy
    own = tuple(min(p, n) for p, n in zip(source.decoded, source.shape, strict=True))
    voxel = max(source.dtype.itemsize, copy.spec.dtype.itemsize)
    piece_bytes = math.prod(own) * voxel

    def peak(reach: Sequence[int]) -> int:
        sides = [b * r for b, r in zip(copy.blocks.block, reach, strict=True)]
        strip = math.prod(min(s, n) for s, n in zip(sides, source.shape, strict=True)) * voxel
        # The strip, which is decoded and perhaps cast; a block of it that is being written.
        return 2 * strip + held_bytes(copy.blocks, copy.spec.dtype, COPIES - 1) + piece_bytes

    reach = widened(copy.blocks, own, lambda reach: peak(reach) <= copy.memory_bytes)
    sides = [b * r for b, r in zip(copy.blocks.block, reach, strict=True)]
    decoded = decoded_per_voxel(source.shape, sides, own)
    most = peak(reach) if math.prod(reach) > 1 else copy.peak_bytes + piece_bytes
    return replace(copy, reach=reach, decoded=decoded, peak_bytes=most)


def unpacked_if_dear(copy: Copy, layout: tuple[Any, Any]) -> Copy:
    """Return a copy that unpacks its source first where it would be decoded over and over.

    Blocks are the same either way. Where the disk has no room for it, the source is decoded again.

    Parameters
    ----------
    copy
        Laid out, in strips.
    layout
        Chunk and shard that were asked for.
    """
    journal = journal_of(copy.path)
    if copy.decoded <= DEAR or not journal.is_local or not journal.folder.parent.is_dir():
        return copy
    unpacking = Unpacking.beside(journal, copy.source)
    free = shutil.disk_usage(journal.folder.parent).free
    if unpacking.size_bytes > free:
        return copy
    return replace(
        in_strips(lay_out(unpacking.source, copy.path, *layout, copy.memory_bytes)),
        unpacking=unpacking,
    )


def unpacked_first(copy: Copy, layout: tuple[Any, Any], *, anew: bool) -> Copy:
    """Return a copy that unpacks its source, if it must: memory does not hold a layer of shards.

    Parameters
    ----------
    copy
        Laid out for a source that is packed as a whole.
    layout
        Chunk and shard that were asked for.
    anew
        Whether a run that was begun is given up; else it is resumed as it was begun.
    """
    journal = journal_of(copy.path)
    if not copy.source.sequential or not journal.is_local:
        return copy
    unpacking = Unpacking.beside(journal, copy.source)
    other = lay_out(unpacking.source, copy.path, *layout, copy.memory_bytes)
    before = None if anew else journal.recorded()
    grids = [list(one.blocks.counts) for one in (copy, other)]
    begun = before.settings.get("grid") if before is not None else None
    if begun == grids[0] or (begun != grids[1] and copy.peak_bytes <= copy.memory_bytes):
        return copy
    return replace(other, unpacking=unpacking)


def adopted(
    out: str | os.PathLike[str], chunk: Any, shard: Any, *, overwrite: bool
) -> tuple[Any, Any]:
    """Return chunk and shard of the run to resume, unless asked for: memory may differ now."""
    before = None if overwrite else journal_of(out).recorded()
    if before is None or chunk is not None or shard is not None:
        return chunk, shard
    try:
        saved = typed(_Layout, before.settings)
    except ValueError as error:
        raise Damaged(
            f"the journal of {out} records no layout ({error}); begin again (overwrite=True,"
            " --overwrite)"
        ) from error
    return saved.chunk[-3:], saved.shard[-3:]


@dataclass(frozen=True)
class _Layout:
    """The layout of a copy in its journal."""

    chunk: tuple[int, ...]
    shard: tuple[int, ...]
