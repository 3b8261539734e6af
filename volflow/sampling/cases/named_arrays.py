"""A case: named arrays on one grid, whatever they are stored in, read box by box; and values."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.outside import ZEROS, Padding
from volflow.geometry.roi import Roi
from volflow.sampling.cases.values import Values
from volflow.store.meta import Meta, Vector
from volflow.store.slabs import Array, Source
from volflow.store.volume import described
from volflow.volumes.arrays.grids import difference_of_grids, shared_grid
from volflow.volumes.arrays.inputs import refuse_sequential
from volflow.volumes.normalizing import Normalize, write_normalized

__all__ = ["READ_BYTES", "Case", "check_grid"]

# zarr needs three times what is read at once: whole chunk layers, this many bytes or one.
READ_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class Case:
    """One subject: named arrays on one spatial grid, the first of which leads.

    It holds no voxels of files and pickles, so that workers read for themselves. Made by
    `open_cases`.

    Parameters
    ----------
    name
        Name of the case.
    sources
        The arrays by name, each ``zyx`` or ``czyx``; the first leads.
    classes
        Names of the arrays whose voxels are classes.
    dtypes
        The dtype of arrays that are read in another than their own, which holds it without loss.
    values
        Numbers and texts that each sample of the case carries along; no order follows from them.
    normalize
        How the values of some arrays are scaled: then they are float32.
    padding
        What some arrays hold outside of the volume; others hold zeros.

    Raises
    ------
    InvalidInput
        If the arrays do not lie on one grid, or one can only be read from front to back.

    Examples
    --------
    >>> from volflow.sampling.cases.open_cases import open_cases
    >>> scan = np.arange(24, dtype="int16").reshape(2, 3, 4)
    >>> (case,) = open_cases({"image": scan, "label": scan > 9})
    >>> case.shape, case.channels("image"), sorted(case.classes)
    ((2, 3, 4), 1, ['label'])
    >>> case.read("image", Roi((1, 1, 2), (2, 2, 6)))
    array([[[[18, 19,  0,  0]]]], dtype=int16)
    """

    name: str
    sources: Mapping[str, Source]
    classes: frozenset[str] = frozenset()
    dtypes: Mapping[str, np.dtype[Any]] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    normalize: Mapping[str, Normalize] = field(default_factory=dict)
    padding: Mapping[str, Padding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, source in self.sources.items():
            refuse_sequential(source, labels=name in self.classes)
        check_grid(self.name, self.sources)

    @property
    def lead(self) -> str:
        """Name of the first array."""
        return next(iter(self.sources))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        z, y, x = self.sources[self.lead].shape[-3:]
        return z, y, x

    @property
    def meta(self) -> Meta:
        """Metadata of the grid, axes z, y, x: the lead's; what it does not know is the others'."""
        grid = shared_grid([described(source) for source in self.sources.values()])
        return replace(grid, axes=("z", "y", "x"), channels=(), kind="image", colors=())

    @property
    def spacing(self) -> Vector:
        """Voxel size along z, y, x."""
        return self.meta.spacing

    @property
    def unit(self) -> str | None:
        """Unit of the spacing, None where unknown."""
        return self.meta.unit

    @property
    def chunk(self) -> tuple[int, int, int]:
        """Smallest piece of the lead that is read at once, along z, y, x."""
        z, y, x = self.sources[self.lead].piece[-3:]
        return z, y, x

    def channels(self, name: str) -> int:
        """Channels of an array; 1 where it has no axis for them."""
        return self.sources[name].channels_count

    def dtype(self, name: str) -> np.dtype[Any]:
        """Dtype that the voxels of an array are read in."""
        return np.dtype("float32") if name in self.normalize else self._stored_dtype(name)

    def _stored_dtype(self, name: str) -> np.dtype[Any]:
        return self.dtypes.get(name, self.sources[name].dtype)

    def voxel_bytes(self, name: str) -> int:
        """Bytes of a voxel of an array, in all its channels."""
        return self.channels(name) * self.dtype(name).itemsize

    def read(self, name: str, roi: Roi, out: Array | None = None) -> Array:
        """Read the voxels of a box, normalised, and padded outside of the volume.

        Parameters
        ----------
        name
            Name of the array.
        roi
            The box in order z, y, x; it may reach outside.
        out
            Array to write into, of the shape and dtype that is returned.

        Returns
        -------
        numpy.ndarray
            ``czyx``, in the array's `dtype`.

        Raises
        ------
        InvalidInput
            If ``out`` does not fit.
        """
        source, dtype = self.sources[name], self.dtype(name)
        shape = (self.channels(name), *roi.shape)
        if out is None:
            out = np.empty(shape, dtype)
        elif out.shape != shape or out.dtype != dtype:
            raise InvalidInput(
                f"out must be {dtype} {shape} to hold this box, given {out.dtype} {out.shape}"
            )
        padding, by = self.padding.get(name, ZEROS), self.normalize.get(name)
        inside = padding.source(roi, self.shape)
        if padding.number is not None and inside != roi:
            out[...] = padding.number
        if not inside.size:
            return out
        chunk = source.piece[-3]
        depth = chunk * max(1, READ_BYTES // max(1, out[:, 0].nbytes * chunk))
        low, high = inside.start[0], inside.stop[0]
        for z in range(low // depth * depth, high, depth):
            box = Roi((max(z, low), *inside.start[1:]), (min(z + depth, high), *inside.stop[1:]))
            whole = box if len(source.shape) == 3 else Roi((0, *box.start), (shape[0], *box.stop))
            stored = source.read(whole).reshape(shape[0], *box.shape)
            if padding.number is not None:
                place = box.relative_to(roi.start).slices()
                write_normalized(by, stored, out[(slice(None), *place)])
                continue
            voxels = np.empty(stored.shape, dtype)
            write_normalized(by, stored, voxels)
            padding.put(voxels, box, out, roi, self.shape)
        return out

    def identity(self) -> str:
        """Return a hash that changes when the stored voxels do: of names, sizes and times of files.

        Arrays in memory are hashed; of those that Dask computes the name counts.
        """
        digest = hashlib.sha256(self.name.encode())
        for name, source in self.sources.items():
            kind = (name, source.shape, str(self._stored_dtype(name)), name in self.classes)
            digest.update(f"\n{kind} {source.identity()}".encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        arrays = ", ".join(
            f"{name} {self.dtype(name)}" + (f" ×{n}" if (n := self.channels(name)) > 1 else "")
            for name in self.sources
        )
        size = "×".join(f"{n}" for n in self.shape)
        values = "".join(f", {name}={value!r}" for name, value in self.values.items())
        return f"Case({self.name}, {size}, {arrays}{values})"


def check_grid(case: str, sources: Mapping[str, Source]) -> None:
    """Refuse arrays that differ in shape, spacing or orientation; unknown ones fit any."""
    differing = difference_of_grids({name: (x.shape, x.meta) for name, x in sources.items()})
    if differing is None:
        return
    what, first, value, name, other = differing
    remedy = "resample one onto the other's grid or correct its metadata"
    if what == "shape":
        remedy = (
            'crop or resample one, or make them cases of their own: [{"image": …}, {"image": …}]'
        )
    raise InvalidInput(
        f'arrays of a case share one grid, but in "{case}" {first} has {what} {value} and {name}'
        f" {other}; {remedy}"
    )
