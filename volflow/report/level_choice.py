"""The choice of a pyramid's level: by number, by what a picture can show, by voxel size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import zarr
from zarr.storage import StorePath

from volflow.store.meta import Vector
from volflow.store.slabs import Source
from volflow.store.volume import Volume, open_volume

__all__ = ["at_level", "fitting_level", "level_like", "low_edge"]


def at_level(volume: Volume, level: int) -> Volume:
    """Open another level of the same pyramid; no voxel is read yet.

    Raises
    ------
    InvalidInput
        If there is no such level, or its array is missing or damaged.
    """
    if level == volume.level:
        return volume
    if len(volume.levels) < 2:
        return open_volume(volume.path or volume.array, level, timepoint=volume.timepoint)
    # By the store and not by the path: it is open already, and a volume in memory has no path.
    array = volume.array
    group = array.path.removesuffix(volume.levels[volume.level].path).rstrip("/")
    node = zarr.open_group(StorePath(array.store, group), mode="r", use_consolidated=False)
    return replace(open_volume(node, level, timepoint=volume.timepoint), path=volume.path)


def fitting_level(volume: Source, longest: int, axes: Sequence[int] = (0, 1, 2)) -> Source:
    """Return the finest level at most ``longest`` voxels long, or the coarsest if none is.

    Parameters
    ----------
    volume
        The finest level to be considered; what is no `Volume` has no other.
    longest
        A number of voxels, such as the pixels of a picture.
    axes
        Which of z, y, x count.
    """
    while isinstance(volume, Volume) and volume.level + 1 < len(volume.levels):
        if max(volume.spatial_shape[axis] for axis in axes) <= longest:
            break
        volume = at_level(volume, volume.level + 1)
    return volume


def level_like(volume: Source, spacing: Vector) -> Source:
    """Return the level whose voxel size is closest to ``spacing`` on a logarithmic scale."""
    if not isinstance(volume, Volume):
        return volume
    wanted = np.log(spacing)
    unlike = [
        float(np.abs(np.log(level.scale) - wanted).sum()) for level in volume.levels[volume.level :]
    ]
    return at_level(volume, volume.level + int(np.argmin(unlike)))


def low_edge(volume: Source) -> Vector:
    """Return where the first voxel begins along z, y, x, in the unit of the volume.

    Examples
    --------
    >>> low_edge(open_volume(zarr.ones(shape=(3, 4, 5), dtype="uint8")))
    (-0.5, -0.5, -0.5)
    """
    meta = volume.meta
    z, y, x = (t - s / 2 for t, s in zip(meta.translation, meta.spacing, strict=True))
    return (z, y, x)
