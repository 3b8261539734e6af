"""Cases: named arrays on one grid, whatever they are stored in, read box by box."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.sampling.cases.case_checks import channels_of, check_alike, check_grid, knows_spacing
from volflow.sampling.cases.folders import is_folder_of_cases, list_cases, stem
from volflow.store.formats.sources import Source, VolumeSource
from volflow.store.meta import Meta, Vector
from volflow.store.slabs import Array
from volflow.volumes.arrays.inputs import chunk_of, open_input, refuse_sequential

__all__ = ["Case", "open_cases"]

CLASS_PREFIXES = ("label", "mask", "seg")
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
        Of the case.
    sources
        One per array, ``zyx`` or ``czyx``.
    classes
        Names of the arrays whose voxels are classes.
    dtypes
        Of arrays that are read in another dtype than their own, one that holds it without loss.

    Raises
    ------
    InvalidInput
        Where the arrays do not lie on one grid or can only be read from front to back.

    Examples
    --------
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
        """Of the grid, axes z, y, x: the lead's; what it does not know is the others'."""
        metas = [source.meta for source in self.sources.values()]
        placed = next((m for m in metas if m.orientation), metas[0])
        grid = next(filter(knows_spacing, metas), placed)
        placed = placed if placed.orientation else grid
        return replace(
            grid,
            axes=("z", "y", "x"),
            orientation=placed.orientation,
            affine=placed.affine,
            channels=(),
            kind="image",
            colors=(),
        )

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
        return chunk_of(self.sources[self.lead])

    def channels(self, name: str) -> int:
        """Channels of an array; 1 where it has no axis for them."""
        return channels_of(self.sources[name])

    def dtype(self, name: str) -> np.dtype[Any]:
        """What the voxels of an array are read as."""
        return self.dtypes.get(name, self.sources[name].dtype)

    def voxel_bytes(self, name: str) -> int:
        """Bytes of a voxel of an array, in all its channels."""
        return self.channels(name) * self.dtype(name).itemsize

    def read(self, name: str, roi: Roi, out: Array | None = None) -> Array:
        """The voxels of a box, with zeros outside of the volume.

        Parameters
        ----------
        name
            Of the array.
        roi
            z, y, x; it may reach outside.
        out
            Array to write into, of the shape and dtype that is returned.

        Returns
        -------
        numpy.ndarray
            ``czyx``, in the array's `dtype`.

        Raises
        ------
        InvalidInput
            Where ``out`` does not fit.
        """
        source, dtype = self.sources[name], self.dtype(name)
        shape = (self.channels(name), *roi.shape)
        if out is None:
            out = np.empty(shape, dtype)
        elif out.shape != shape or out.dtype != dtype:
            raise InvalidInput(
                f"out must be {dtype} {shape} to hold this box, given {out.dtype} {out.shape}"
            )
        inside = roi.clip(self.shape)
        if inside.shape != roi.shape:
            out[...] = 0
        if not inside.size:
            return out
        layer_bytes = out[:, 0].nbytes * chunk_of(source)[0]
        depth = chunk_of(source)[0] * max(1, READ_BYTES // max(1, layer_bytes))
        for box in _layers(inside, depth):
            whole = box
            if len(source.shape) == 4:
                whole = Roi((0, *box.start), (shape[0], *box.stop))
            out[:, *box.relative_to(roi.start).slices()] = source.read(whole)
        return out

    def identity(self) -> str:
        """A hash that changes when the voxels do: of names, sizes and times of files.

        Arrays in memory are hashed; of those that Dask computes the name counts.
        """
        digest = hashlib.sha256(self.name.encode())
        for name, source in self.sources.items():
            kind = (name, source.shape, str(self.dtype(name)), name in self.classes)
            digest.update(f"\n{kind} {source.identity()}".encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        arrays = ", ".join(
            f"{name} {self.dtype(name)}" + (f" ×{n}" if (n := self.channels(name)) > 1 else "")
            for name in self.sources
        )
        size = "×".join(f"{n}" for n in self.shape)
        return f"Case({self.name}, {size}, {arrays})"


@dataclass(frozen=True)
class _Draft:
    """A case before its sources are opened."""

    name: str | None
    arrays: Mapping[str, Any]
    classes: frozenset[str] | None = None  # known of a case that is open already


def open_cases(x: Any, *, classes: Iterable[str] | None = None) -> tuple[Case, ...]:
    """Open the cases that patches are taken from; no voxel is read.

    Parameters
    ----------
    x
        One `VolumeLike`, which is then called ``"image"``; a mapping of array names to volumes
        (also an ``xarray.Dataset``), with the case's own name under
        ``"name"`` if it has one; a mapping of case names to such mappings; a sequence of any of
        these; or a folder that holds ``images/``, ``labels/`` and further folders such as
        ``weights/``, in which equal file names make a case with the arrays ``"image"``,
        ``"label"``, ``"weight"``.
    classes
        Names of the arrays whose voxels are classes. By default those whose names begin with
        label, mask or seg, and those whose files say so.

    Returns
    -------
    tuple of Case
        In the order given; of a folder, by name.

    Raises
    ------
    InvalidInput
        Where a file cannot be read by parts, arrays of a case do not lie on one grid, names
        repeat, or cases differ in their arrays or channels. Where they differ in dtype, all are
        read in one that holds them all.

    Examples
    --------
    >>> scan = np.zeros((20, 30, 40), "int16")
    >>> open_cases([{"image": scan, "label": scan > 0}, {"image": scan, "label": scan > 1}])
    (Case(case0, 20×30×40, image int16, label bool), Case(case1, 20×30×40, image int16, label bool))
    """
    drafts = _drafts(x)
    if not drafts:
        raise InvalidInput("there are no cases; give at least one volume")
    names, opened = [], []
    for number, draft in enumerate(drafts):
        sources = {name: open_input(array) for name, array in draft.arrays.items()}
        names.append(draft.name or _file_stem(sources) or f"case{number}")
        opened.append(sources)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidInput(
            f"case names must differ, given {', '.join(repeated)} more than once; name the cases:"
            ' {"a": {"image": …}, "b": {"image": …}}'
        )
    first = opened[0]
    chosen = _classes(opened, drafts, classes)
    for name, sources in zip(names[1:], opened[1:], strict=True):
        check_alike(names[0], first, name, sources)
    dtypes = {key: np.result_type(*(sources[key].dtype for sources in opened)) for key in first}
    return tuple(
        Case(name, {key: sources[key] for key in first}, chosen, dtypes)
        for name, sources in zip(names, opened, strict=True)
    )


def _drafts(x: Any) -> list[_Draft]:
    if isinstance(x, Case):
        return [_Draft(x.name, x.sources, x.classes)]
    if isinstance(x, Mapping):
        return _drafts_of_mapping(x)
    if isinstance(x, str | os.PathLike) and is_folder_of_cases(x):
        return [_Draft(name, arrays) for name, arrays in list_cases(x)]
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [draft for one in x for draft in _drafts(one)]
    return [_Draft(None, {"image": x})]


def _drafts_of_mapping(x: Mapping[str, Any]) -> list[_Draft]:
    nested = [key for key, value in x.items() if isinstance(value, Mapping)]
    if nested and len(nested) == len(x):
        return [replace(draft, name=key) for key in x for draft in _drafts(x[key])]
    if nested:
        raise InvalidInput(
            f"a mapping names either the arrays of one case or cases, given both:"
            f" {', '.join(map(str, x))}"
        )
    name = x.get("name")
    named = isinstance(name, str)
    arrays = {key: value for key, value in x.items() if not (named and key == "name")}
    if not arrays:
        raise InvalidInput('a case holds at least one array, given none; name one: {"image": …}')
    return [_Draft(name if named else None, arrays)]


def _classes(
    opened: Sequence[Mapping[str, Source]],
    drafts: Sequence[_Draft],
    classes: Iterable[str] | None,
) -> frozenset[str]:
    """One set for all cases: a name that holds classes in one of them does in all."""
    if classes is None:
        return frozenset(
            name
            for draft, sources in zip(drafts, opened, strict=True)
            for name, source in sources.items()
            if (
                name in draft.classes
                if draft.classes is not None
                else name.lower().startswith(CLASS_PREFIXES) or source.meta.kind == "classes"
            )
        )
    chosen = frozenset([classes] if isinstance(classes, str) else classes)
    unknown = sorted(chosen - set(opened[0]))
    if unknown:
        raise InvalidInput(
            f"classes names {', '.join(unknown)}, but the arrays are {', '.join(opened[0])}"
        )
    return chosen


def _layers(roi: Roi, depth: int) -> Iterable[Roi]:
    """The box cut along z at multiples of the depth."""
    z, stop = roi.start[0], roi.stop[0]
    while z < stop:
        end = min(stop, (z // depth + 1) * depth)
        yield Roi((z, *roi.start[1:]), (end, *roi.stop[1:]))
        z = end


def _file_stem(sources: Mapping[str, Source]) -> str | None:
    """Name of the lead's file; None in memory."""
    lead = next(iter(sources.values()))
    path = lead.volume.path if isinstance(lead, VolumeSource) else getattr(lead, "path", None)
    return stem(Path(path).name) if path else None
