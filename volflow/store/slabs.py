"""Sources: the interface to images that a volume is made from."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.indexing import to_box
from volflow.store.meta import Meta, VolumeSpec

__all__ = [
    "Array",
    "Source",
    "file_identity",
    "refuse_complex",
    "slab_rois",
]

Array = np.ndarray[Any, np.dtype[Any]]


class Source(ABC):
    """A 3-D image of any format, ``zyx`` or ``czyx``.

    A source of a file holds no voxels and can be pickled, so that workers read for themselves. A
    format defines `shape`, `dtype`, `meta`, `path`, `identity` and `read`; the rest is derived.
    """

    if TYPE_CHECKING:  # fields in most formats, which a property would hide

        @property
        def shape(self) -> tuple[int, ...]:
            """Voxels per axis, as ``meta.axes``."""

        @property
        def dtype(self) -> np.dtype[Any]:
            """Dtype of the voxels that `read` returns, in the machine's byte order."""

        @property
        def meta(self) -> Meta:
            """Spacing, unit, orientation, and the header that `export` writes back."""

        @property
        def path(self) -> str | None:
            """Path of the file; None in memory and for Dask arrays."""

    @abstractmethod
    def identity(self) -> str:
        """Return a hash that changes when the voxels do."""

    @abstractmethod
    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box with one entry per axis; refused if `sequential`."""

    @property
    def unidentified(self) -> str:
        """Why `identity` holds for this process only; ``""`` where it always does."""
        return ""

    @property
    def sequential(self) -> bool:
        """Whether the voxels can be read only by `slabs`, from front to back."""
        return False

    @property
    def ndim(self) -> int:
        """3, or 4 with channels."""
        return len(self.shape)

    @property
    def channels_count(self) -> int:
        """Number of channels; 1 if there is no channel axis."""
        return self.shape[0] if self.ndim == 4 else 1

    @property
    def decoded(self) -> tuple[int, ...]:
        """Voxels per axis of what is decoded as a whole, however little of it is read."""
        return (1,) * self.ndim

    @property
    def piece(self) -> tuple[int, ...]:
        """Voxels per axis of a box that is read without much waste."""
        if max(self.decoded) > 1:
            return tuple(min(d, n) for d, n in zip(self.decoded, self.shape, strict=True))
        return (*(1 for _ in self.shape[:-3]), *(min(64, n) for n in self.shape[-3:]))

    def by_channel(self) -> Source:
        """Return a source with a channel for each class, if it holds their masks; else itself."""
        return self

    @property
    def shards(self) -> tuple[int, ...] | None:
        """The stored object that holds chunks, per axis; None if unsharded."""
        return None

    @property
    def spec(self) -> VolumeSpec:
        """The spec of the volume that it is, or becomes when it is converted.

        Examples
        --------
        >>> from volflow.store.formats.sources import open_source
        >>> open_source(np.zeros((40, 50, 60), "uint8")).spec.chunk
        (64, 64, 64)
        """
        return VolumeSpec.of(self.shape, self.dtype, self.meta)

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels of ``depth`` z-planes of one channel at a time, in C order."""
        return ((roi, self.read(roi)) for roi in slab_rois(self.shape, depth))

    @property
    def together(self) -> int:
        """Number of channels that `once` yields together: all that are packed side by side."""
        return 1

    def once(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels as `slabs`, but of `together` channels: each is unpacked once."""
        return self.slabs(depth)

    def __getitem__(self, key: Any) -> Array:
        """Read with integers, slices and ``...``, as from a NumPy array."""
        roi, inner = to_box(key, self.shape)
        return cast(Array, self.read(roi)[inner])

    def __repr__(self) -> str:
        kind = type(self).__name__.removesuffix("Source")
        return f"{kind}(shape={self.shape}, dtype={self.dtype})"

    def __dask_tokenize__(self) -> Any:
        return self.identity()


def slab_rois(shape: Sequence[int], depth: int) -> Iterator[Roi]:
    """Yield boxes of ``depth`` whole z-planes of one channel, in C order.

    Examples
    --------
    >>> [roi.start for roi in slab_rois((2, 5, 4, 4), 3)]
    [(0, 0, 0, 0), (0, 3, 0, 0), (1, 0, 0, 0), (1, 3, 0, 0)]
    """
    *channels, size_z, size_y, size_x = shape
    for index in np.ndindex(*channels):
        for z in range(0, size_z, max(1, depth)):
            start = (*index, z, 0, 0)
            stop = (*(i + 1 for i in index), min(z + max(1, depth), size_z), size_y, size_x)
            yield Roi(start, stop)


def refuse_complex(values: Any, what: str) -> None:
    """Refuse complex numbers, whose imaginary part a cast would drop.

    Parameters
    ----------
    values
        An array or a tensor.
    what
        Its name in the error.

    Raises
    ------
    InvalidInput
        If they are complex.

    Examples
    --------
    >>> refuse_complex(np.ones(1, "complex64"), "the model's output")
    Traceback (most recent call last):
    ...
    volflow.errors.InvalidInput: the model's output is complex, and a volume holds real numbers;
    return its .abs(), or both its parts as channels (torch.view_as_real)
    """
    is_complex = getattr(values, "is_complex", None)  # of a tensor
    if np.iscomplexobj(values) if is_complex is None else is_complex():
        raise InvalidInput(
            f"{what} is complex, and a volume holds real numbers; return its .abs(), or both its"
            " parts as channels (torch.view_as_real)"
        )


def file_identity(path: str) -> str:
    """Return a hash of a file's size, time and first bytes, which changes with the file."""
    stat = Path(path).stat()
    digest = hashlib.sha256(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    with Path(path).open("rb") as file:
        digest.update(file.read(2**16))
    return digest.hexdigest()
