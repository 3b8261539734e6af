"""Export as OME-Zarr 0.4, for software that does not know 0.5 yet."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr

from volflow.errors import InvalidInput, MemoryRefused, RunFailed, SourceChanged
from volflow.geometry.budget import format_bytes, parse_bytes
from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.aside import folder_aside, replace_folder, sweep
from volflow.store.create import check_target
from volflow.store.formats.exported import state_of
from volflow.store.meta import Level
from volflow.store.ngff import write_group
from volflow.store.opening import is_url
from volflow.store.slabs import Array, Source
from volflow.store.volume import Volume, open_volume

__all__ = ["check_older", "write_older"]

COPIES = 4  # of a box in memory: zarr reads one in three, and packs its chunks
SLACK_BYTES = 32 * 2**20
# What most software writes, and all can read.
BLOSC: Any = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}


def check_older(out: str | os.PathLike[str], ngff: str) -> Path:
    """Return the absolute path of an OME-Zarr 0.4 to be written, or refuse; nothing is changed.

    Raises
    ------
    InvalidInput
        Where the version is another, or the path is there already or is a URL.
    """
    if ngff != "0.4":
        raise InvalidInput(
            f'ngff must be "0.4", given {ngff!r}; OME-Zarr 0.5 is what convert writes (vf.convert,'
            " volflow convert)"
        )
    if is_url(os.fspath(out)):
        raise InvalidInput(f"{out} is a URL, and OME-Zarr 0.4 is written to a disk; copy it there")
    return Path(check_target(out))


def write_older(volume: Source, path: Path, memory: str | int) -> Path:
    """Write a volume with all its levels as OME-Zarr 0.4, chunk by chunk.

    Parameters
    ----------
    volume
        What is written; of a pyramid the coarser levels, too.
    path
        From `check_older`.
    memory
        What the chunks in memory may take.

    Raises
    ------
    MemoryRefused
        Where not even one chunk fits.
    SourceChanged
        Where the volume is changed meanwhile.
    RunFailed
        Where it cannot be written; nothing is left then.
    """
    budget, state = parse_bytes(memory), state_of(volume)
    levels = _levels(volume)
    boxes = [_boxes(level, budget) for level in levels]
    sweep(path)
    try:
        with folder_aside(path) as aside:
            group = zarr.create_group(str(aside), zarr_format=2)
            for number, (level, grid) in enumerate(zip(levels, boxes, strict=True)):
                array = _array(group, str(number), level)
                for roi, voxels in _read(level, grid):
                    array[roi.slices()] = voxels
            places = [
                Level(str(number), level.meta.spacing, level.meta.translation)
                for number, level in enumerate(levels)
            ]
            write_group(group, volume.meta, places)
            if state_of(volume) != state:
                raise SourceChanged(
                    f"{volume.path} was changed while {path.name} was written from it; run the"
                    " same command again when it is whole"
                )
            check_target(path)
            replace_folder(aside, path)
    except OSError as error:
        raise RunFailed(
            f"{path} cannot be written: {error.strerror or error}; nothing is left of it, free"
            " space or choose another place"
        ) from error
    return path


def _levels(volume: Source) -> list[Source]:
    """Return the volume and its coarser levels."""
    if not isinstance(volume, Volume) or volume.path is None:
        return [volume]
    coarser = range(volume.level + 1, len(volume.levels))
    return [volume, *(open_volume(volume.path, n, timepoint=volume.timepoint) for n in coarser)]


def _array(group: zarr.Group, name: str, volume: Source) -> zarr.Array[Any]:
    """Make the array of a level in the form that older software knows best."""
    return group.create_array(
        name,
        shape=volume.shape,
        dtype=volume.dtype.newbyteorder("<"),
        chunks=volume.spec.chunk,
        compressors=BLOSC,
        fill_value=volume.dtype.type(0).item(),
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )


def _boxes(volume: Source, budget: int) -> BlockGrid:
    """Return boxes of whole chunks that fit into memory, as long as can be along x, then y, z."""
    sides = [min(c, n) for c, n in zip(volume.spec.chunk, volume.shape, strict=True)]
    if volume.sequential:  # read in slabs of whole planes
        sides[-2:] = volume.shape[-2:]
    room = max(0, budget - SLACK_BYTES) // (COPIES * volume.dtype.itemsize)
    if math.prod(sides) > room:
        needed = math.prod(sides) * COPIES * volume.dtype.itemsize + SLACK_BYTES
        raise MemoryRefused(
            f"chunks of {sides} voxels need memory of {format_bytes(needed)}, given"
            f" {format_bytes(budget)}; raise memory= (--memory)"
        )
    for axis in reversed(range(len(sides))):
        most = -(-volume.shape[axis] // sides[axis])
        sides[axis] *= 1 if volume.sequential else min(room // math.prod(sides), most)
    return BlockGrid(volume.shape, tuple(sides))


def _read(volume: Source, boxes: BlockGrid) -> Iterator[tuple[Roi, Array]]:
    """Yield the boxes of a volume and their voxels."""
    if volume.sequential:
        return volume.slabs(boxes.block[-3])
    return ((roi, volume.read(roi)) for roi in boxes)
