"""Whatever a user hands over to train on, as boxes of one batch: images and their targets."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.passes.activations import making_room
from volflow.passes.network import for_numpy
from volflow.store.slabs import Source
from volflow.volumes.arrays.inputs import open_input
from volflow.volumes.convert import convert

__all__ = ["Batch", "HeldImage", "opened"]

Array = npt.NDArray[Any]


class Images(Protocol):
    """One volume of a batch; small and picklable."""

    @property
    def channels(self) -> int:
        """Number of channels; 0 where it has no such dim."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Voxels per axis."""

    def read(self, box: Roi) -> Array:
        """Return a box inside the volume, ``(C, *box)`` or, without channels, ``box``."""

    def identity(self) -> str:
        """Return a hash that changes when the voxels do."""


@dataclass(frozen=True, eq=False)
class HeldImage:
    """An array in memory, or in a file of this machine's that other processes map.

    Parameters
    ----------
    values
        ``(C, *axes)``, or ``axes``.
    ndim
        Number of axes.
    """

    values: Array | Path
    ndim: int

    @property
    def array(self) -> Array:
        """The values, mapped where they lie in a file."""
        if isinstance(self.values, Path):
            mapped: Array = np.load(self.values, mmap_mode="r", allow_pickle=False)
            return mapped
        return self.values

    @property
    def channels(self) -> int:
        """Number of channels; 0 where it has no such dim."""
        array = self.array
        return array.shape[0] if array.ndim > self.ndim else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple(self.array.shape[-self.ndim :])

    def read(self, box: Roi) -> Array:
        """Return a box."""
        index: Any = (..., *box.slices())
        voxels: Array = self.array[index]
        return voxels

    def identity(self) -> str:
        """Return a hash of the values."""
        array = self.array
        digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
        for part in array:
            digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()

    def stored(self, path: Path) -> HeldImage:
        """Return the same in a file, which may be there already."""
        if not path.exists():
            part = path.with_suffix(".part.npy")
            with making_room(path.parent):
                np.save(part, self.array, allow_pickle=False)
                part.replace(path)
        return replace(self, values=path)


@dataclass(frozen=True, eq=False)
class StoredImage:
    """A volume that is read from where it is stored.

    Parameters
    ----------
    source
        The volume.
    flat
        Whether it is a plane, of one slice, for a network of planes.
    """

    source: Source
    flat: bool

    @property
    def channels(self) -> int:
        """Number of channels; 0 where it has no such dim."""
        return self.source.shape[0] if self.source.ndim == 4 else 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Voxels per axis."""
        sides = self.source.shape[-3:]
        return sides[1:] if self.flat else sides

    def read(self, box: Roi) -> Array:
        """Return a box."""
        if not self.flat:
            return self.source.read(box)
        voxels = self.source.read(Roi((0, *box.start), (1, *box.stop)))
        return voxels.squeeze(-3)

    def identity(self) -> str:
        """Return the identity of the stored volume."""
        return self.source.identity()


@dataclass(frozen=True, eq=False)
class Batch:
    """Volumes of one shape, as a network sees them together.

    Parameters
    ----------
    images
        At least one.
    dtype
        In which the network computes; None to read voxels as they are stored.
    """

    images: tuple[Images, ...]
    dtype: str | None = None

    @property
    def channels(self) -> int:
        """Channels of each; 0 where they have no such dim."""
        return self.images[0].channels

    @property
    def sizes(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return self.images[0].sizes

    def identity(self) -> list[str]:
        """Return what changes when the voxels do."""
        return [image.identity() for image in self.images]

    def stored(self, folder: Path, what: str) -> Batch:
        """Return the same with its arrays in files that every process of a machine maps."""
        images = tuple(
            image.stored(folder / f"{what}-{n}.npy") if isinstance(image, HeldImage) else image
            for n, image in enumerate(self.images)
        )
        return replace(self, images=images)

    def __call__(self, box: Roi) -> Array:
        """Read a box ``(N, C, *box)``, without channels ``(N, *box)``; zeros beyond the volume."""
        inside = box.clip(self.sizes)
        channels = (self.channels,) * bool(self.channels)
        result: Array | None = None
        for number, image in enumerate(self.images):
            voxels = image.read(inside) if inside.size else None
            if result is None:
                dtype = self.dtype or (np.int64 if voxels is None else voxels.dtype)
                result = np.zeros((len(self.images), *channels, *box.shape), dtype)
            if voxels is not None:
                part: Any = (number, ..., *inside.relative_to(box.start).slices())
                result[part] = voxels
        assert result is not None
        return result


def opened(given: Any, ndim: int, what: str, folder: Path) -> Batch:
    """Open a volume, or a list of them, for a network of some axes; no voxel is read.

    Parameters
    ----------
    given
        A path, `Volume`, array or tensor, channels first; a batch ``(N, C, *axes)`` or a list.
    ndim
        Axes of the network's image: 1, 2 or 3.
    what
        Its name in errors.
    folder
        Where a file that can only be read from front to back is converted to, once.

    Raises
    ------
    InvalidInput
        If it is none of these, or volumes of a batch differ in shape.
    """
    listed = list(given) if isinstance(given, list | tuple) else [given]
    images: list[Images] = []
    for one in listed:
        if isinstance(one, torch.Tensor | np.ndarray):
            images += _of_array(one, ndim, what)
        else:
            images.append(_of_volume(one, ndim, what, folder))
    if not images:
        raise InvalidInput(f"{what} is an empty list; give at least one volume")
    first = images[0]
    for image in images:
        if (image.channels, image.sizes) != (first.channels, first.sizes):
            raise InvalidInput(
                f"the volumes of a batch have one shape, and {what} has {_shape(first)} and"
                f" {_shape(image)}; pad or crop them, or take a step for each"
            )
    return Batch(tuple(images))


def _shape(image: Images) -> tuple[int, ...]:
    return (image.channels, *image.sizes) if image.channels else image.sizes


def _of_array(given: torch.Tensor | Array, ndim: int, what: str) -> list[Images]:
    array = _as_array(given)
    if array.dtype.kind not in "biuf":
        raise InvalidInput(f"{what} holds {array.dtype}; give an array of real numbers")
    if not array.size:
        raise InvalidInput(f"{what} has no voxels: its shape is {tuple(array.shape)}")
    if array.ndim == ndim + 2:
        return [HeldImage(one, ndim) for one in array]
    if array.ndim in (ndim, ndim + 1):
        return [HeldImage(array, ndim)]
    raise InvalidInput(
        f"{what} for a network of {ndim} axes has {ndim} dims, or {ndim + 1} with channels first,"
        f" or {ndim + 2} with the batch before them; got shape {tuple(array.shape)}"
    )


def _as_array(given: torch.Tensor | Array) -> Array:
    """Return a tensor's values where they lie."""
    if not isinstance(given, torch.Tensor):
        return given
    array: Array = for_numpy(given.detach()).cpu().numpy()
    return array


def _of_volume(given: Any, ndim: int, what: str, folder: Path) -> Images:
    source = open_input(given)
    if source.sequential:
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(source.identity().encode()).hexdigest()[:16]
        source = open_input(convert(source, folder / f"{name}.zarr", progress=False))
    flat = ndim == 2
    if ndim == 1 or (flat and source.shape[-3] != 1):
        raise InvalidInput(
            f"{what} {_named(given)} has sides {source.shape[-3:]}, and the network takes images"
            f" of {ndim} axes; give an array of {ndim} axes"
        )
    return StoredImage(source, flat)


def _named(given: Any) -> str:
    return os.fspath(given) if isinstance(given, str | os.PathLike) else type(given).__name__
