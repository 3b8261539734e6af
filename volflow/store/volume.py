"""A volume on disk: open it, read any box of it, write whole shards of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import google_crc32c
import numpy as np
import zarr
from zarr.storage import MemoryStore

from volflow.errors import InvalidInput, StoreFull, writing_failed
from volflow.geometry.roi import Roi
from volflow.store.layout import ShardEntry, split
from volflow.store.meta import Level, Meta, SourceInfo, VolumeSpec
from volflow.store.ngff import image_in, read_group
from volflow.store.opening import (
    check_array,
    identity_lines,
    is_listed,
    level_array,
    local_folder,
    local_path,
    open_node,
    plain_meta,
    read_stored,
    spatial_meta,
)
from volflow.store.slabs import Array, Source
from volflow.store.unfinished.fence import Fence
from volflow.store.unfinished.shards import write_shard

if TYPE_CHECKING:
    import dask.array as da
    import xarray

__all__ = ["Volume", "described", "open_volume", "shard_rois"]


@dataclass(frozen=True, eq=False)
class Volume(Source):
    """A 3-D array on disk, ``zyx`` or ``czyx``, with spacing, orientation and origin.

    It holds no voxels, pickles to a few hundred bytes and is unpickled without reading anything.
    Made by `open_volume` (``vf.open``) and `create`.

    Parameters
    ----------
    array
        The Zarr array of this level.
    meta
        Axes, spacing, unit, orientation, affine, channels of this level.
    path
        Absolute path of the group or array; None in memory.
    level, levels
        Which level of the pyramid this is, and all of them.
    timepoint
        The timepoint, if the array has a time axis.
    """

    array: zarr.Array[Any]
    meta: Meta
    path: str | None = None
    level: int = 0
    levels: tuple[Level, ...] = ()
    timepoint: int | None = None
    stored_axes: str = "zyx"

    @property
    def axes(self) -> tuple[str, ...]:
        """``("z", "y", "x")`` or ``("c", "z", "y", "x")``."""
        return self.meta.axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self._per_axis(self.array.shape)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Voxels along z, y, x."""
        return self.shape[-3:]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the array that `read` returns: the stored one in the machine's byte order."""
        return np.dtype(self.array.dtype).newbyteorder("=")

    @property
    def chunks(self) -> tuple[int, ...]:
        """The smallest compressed piece, per axis."""
        return self._per_axis(self.array.chunks)

    @property
    def decoded(self) -> tuple[int, ...]:
        """The chunk."""
        return self.chunks

    @property
    def piece(self) -> tuple[int, ...]:
        """The chunk."""
        return self.chunks

    @property
    def shards(self) -> tuple[int, ...] | None:
        """The stored object that holds chunks, per axis; None if unsharded."""
        return None if self.array.shards is None else self._per_axis(self.array.shards)

    @property
    def spec(self) -> VolumeSpec:
        """Shape, dtype, layout and metadata, from which plans are made."""
        return VolumeSpec(self.shape, self.dtype, self.chunks, self.shards, self.meta)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along z, y, x."""
        return self.meta.spacing

    @property
    def unit(self) -> str | None:
        """Unit of the spacing, None if unknown."""
        return self.meta.unit

    @property
    def orientation(self) -> str | None:
        """Direction in which the index grows along z, y, x, e.g. ``"SAR"``; None if unknown."""
        return self.meta.orientation

    @property
    def affine(self) -> tuple[tuple[float, ...], ...] | None:
        """4 x 4, voxel (x, y, z) to world, as in NIfTI; None if unknown."""
        return self.meta.affine

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box, ``zyx`` or ``czyx``, in the volume's dtype.

        Parameters
        ----------
        roi
            A box inside the volume: one entry per axis, or z, y, x for all channels.

        Raises
        ------
        InvalidInput
            If the box reaches outside the volume.
        Unreadable
            If the stored bytes are damaged.
        RunFailed
            If the store cannot be reached.
        """
        roi = self._box(roi)
        start = dict(zip(self.axes, roi, strict=True))
        index = tuple(
            (self.timepoint or 0) if axis == "t" else slice(*start[axis])
            for axis in self.stored_axes
        )
        data = cast(Array, read_stored(self.array, index, roi, self.path))
        return data.reshape(roi.shape).astype(self.dtype, copy=False)

    def write(
        self, roi: Roi, data: Array, array: str = "0", fence: Fence | None = None
    ) -> tuple[ShardEntry, ...]:
        """Write whole shards, one after the other.

        Parameters
        ----------
        roi
            A box that owns every shard (or chunk, where unsharded) it touches.
        data
            Voxels of the box's shape, of a dtype that the volume's holds without loss.
        array
            The volume's array in the output, as the journal names it.
        fence
            Of the session that writes; None where no other may write.

        Returns
        -------
        tuple of ShardEntry
            One entry per shard, for the journal.

        Raises
        ------
        InvalidInput
            If the box owns a shard only in part, or the data do not fit.
        StoreFull
            If no space is left.
        Superseded
            If the session has ended.
        """
        if tuple(self.stored_axes) != self.axes:
            raise InvalidInput(
                f"{self.path} is a view of an array {', '.join(self.stored_axes)} and cannot be "
                "written; copy it with vf.convert"
            )
        roi = self._box(roi)
        if data.shape != roi.shape or not np.can_cast(data.dtype, self.dtype, "safe"):
            raise InvalidInput(
                f"data must be {self.dtype} {roi.shape}, given {data.dtype} "
                f"{data.shape}; cast or crop it first"
            )
        entries, folder = [], local_folder(self.array)
        for piece in shard_rois(self, roi):
            part = data[piece.relative_to(roi.start).slices()]
            voxels = np.ascontiguousarray(part, dtype=self.dtype)
            try:
                write_shard(self.array, piece, voxels, folder, fence)
            except OSError as error:
                if writing_failed(error) is not StoreFull:
                    raise
                raise StoreFull(
                    f"{self.path} cannot be written: {error.strerror}; what is done is kept, make"
                    " room and run the same command again"
                ) from error
            entries.append(ShardEntry(array, piece.start, piece.stop, google_crc32c.value(voxels)))
        return tuple(entries)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        """Return the whole volume in memory, for ``np.asarray(vol)``."""
        return self.read(Roi.full(self.shape)).astype(dtype or self.dtype, copy=False)

    def dask(self, chunks: Sequence[int | Sequence[int]] | None = None) -> da.Array:
        """Return the volume as a lazy Dask array, one task per shard (or chunk, if unsharded).

        Parameters
        ----------
        chunks
            Other chunks of the Dask array; whole shards are read fastest.
        """
        import dask.array as da
        from dask.base import tokenize

        pieces = tuple(chunks or self.shards or self.chunks)
        # The name depends on the stored bytes and the chunks, so that Dask never reuses results
        # of other bytes or other chunks.
        name = f"volume-{tokenize(self.identity(), pieces)}"
        meta = np.empty((0,) * self.ndim, self.dtype)
        array: da.Array = da.from_array(self, chunks=pieces, name=name, meta=meta)
        return array

    def xarray(self) -> xarray.DataArray:
        """Return the volume as an ``xarray.DataArray`` over `dask`, coordinates in its unit."""
        from volflow.store.xarrays import to_xarray

        return to_xarray(self)

    @property
    def unidentified(self) -> str:
        """Why it cannot be told whether the voxels are what they were; ``""`` where it can."""
        listed = is_listed(self.array)
        return "" if listed else f"the objects of {self.path or 'the array'} cannot be listed"

    def identity(self) -> str:
        """Return a hash of names, sizes and times of the files, which changes with the voxels.

        On an object store it covers keys, sizes and ETags; where nothing can be listed, as behind
        plain HTTP, it holds for this process only.
        """
        digest = hashlib.sha256()
        array = self.array
        described = (
            self.meta,
            self.timepoint,
            array.shape,
            str(array.dtype),
            array.chunks,
            array.shards,
            str(array.fill_value),
        )
        digest.update(repr(described).encode())
        for line in identity_lines(array):
            digest.update(line.encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        def by(sizes: Sequence[float]) -> str:
            return "×".join(f"{size:.6g}" for size in sizes)

        name = Path(self.path).name if self.path else "memory"
        text = f"Volume({name}, {''.join(self.axes)} {by(self.shape)} {self.dtype}"
        text += f", spacing {by(self.spacing)} {self.unit or ''}".rstrip()
        text += f", {self.orientation}" if self.orientation else ""
        text += f", chunks {by(self.chunks)}"
        text += f", shards {by(self.shards)}" if self.shards else ""
        text += f", level {self.level} of {len(self.levels)}" if len(self.levels) > 1 else ""
        return text + ")"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: a small picture and a table."""
        from volflow.report.facts.card import volume_html

        return volume_html(self)

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.array.store, MemoryStore):
            raise InvalidInput(
                "a volume in memory cannot be sent to another process, as writes there would be "
                "lost; store it at a path"
            )
        return self.__dict__.copy()

    def _box(self, roi: Roi) -> Roi:
        """Return the box with one entry per axis, checked against the shape."""
        full = roi
        if roi.ndim == 3 and self.ndim == 4:
            full = Roi((0, *roi.start), (self.shape[0], *roi.stop))
        if full.ndim != self.ndim or any(
            a < 0 or b > n for (a, b), n in zip(full, self.shape, strict=True)
        ):
            raise InvalidInput(
                f"roi {roi.start}:{roi.stop} reaches outside the volume of shape {self.shape}; "
                "clip it first"
            )
        return full

    def _per_axis(self, values: Sequence[int]) -> tuple[int, ...]:
        known = dict(zip(self.stored_axes, values, strict=True))
        return tuple(known.get(axis, 1) for axis in self.axes)


def described(source: Source) -> Meta:
    """Return the metadata of a volume made from a source, including its source format."""
    if isinstance(source, Volume) and source.meta.source is None:
        return replace(source.meta, source=SourceInfo("zarr", str(source.dtype)))
    return source.meta


def shard_rois(volume: Volume, roi: Roi) -> list[Roi]:
    """Return the boxes of the shards (or chunks, if unsharded) that a box owns, in C order.

    Raises
    ------
    InvalidInput
        If it owns one only in part: two writers could then overwrite each other's voxels.
    """
    roi = volume._box(roi)
    return split(roi, volume.shape, volume.shards or volume.chunks, volume.axes)


def open_volume(
    x: str | os.PathLike[str] | Volume | zarr.Array[Any] | zarr.Group,
    level: int = 0,
    *,
    timepoint: int | None = None,
) -> Volume:
    """Open a volume; no voxel is read.

    Parameters
    ----------
    x
        Path or URL of an OME-Zarr 0.4 or 0.5 image or label image, or of a plain Zarr v2 or v3
        array; a ``zarr.Array`` or ``zarr.Group``; a `Volume`. A 2-D image is read as one slice.
    level
        Level of the pyramid; 0 is the finest.
    timepoint
        The timepoint to open; required if there are several.

    Raises
    ------
    InvalidInput
        If there is no such volume, its run has not ended, or it cannot be read; in one line.

    Examples
    --------
    >>> import zarr
    >>> vol = open_volume(zarr.ones(shape=(30, 40, 50), chunks=(10, 10, 10), dtype="uint8"))
    >>> vol
    Volume(memory, zyx 30×40×50 uint8, spacing 1×1×1, chunks 10×10×10)
    >>> vol[10, ::20, :4]
    array([[1, 1, 1, 1],
           [1, 1, 1, 1]], dtype=uint8)
    """
    if isinstance(x, Volume):
        if level in (0, x.level) and timepoint in (None, x.timepoint):
            return x
        raise InvalidInput("a volume has one level and timepoint; open another from its path")
    path = None
    if isinstance(x, str | os.PathLike):
        path, x = open_node(os.fspath(x))
    if isinstance(x, zarr.Group):
        x, path = image_in(x, path)
        meta, levels = read_group(x)
    elif isinstance(x, zarr.Array):
        meta, levels = plain_meta(x), (Level("", (1.0, 1.0, 1.0)),)
    else:
        raise InvalidInput(
            f"a volume is opened from a path, a URL or a zarr.Array, given {type(x).__name__}; "
            "store other arrays with vf.convert or vf.write"
        )
    if not 0 <= level < len(levels):
        raise InvalidInput(f"level must be 0 to {len(levels) - 1}, given {level}")
    array = x if isinstance(x, zarr.Array) else level_array(x, levels[level].path)
    at = check_array(array, meta.axes, timepoint)
    here, axes = spatial_meta(meta, levels, level), "".join(meta.axes)
    return Volume(array, here, path or local_path(x), level, levels, at, axes)
