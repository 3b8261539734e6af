"""What Dask computes as a source: any box of it, here or in tasks of a cluster."""

from __future__ import annotations

import hashlib
import math
import pickle
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from dask.threaded import get as get_threaded
from distributed import futures_of

from volflow.engine.clusters.held import InProcess, Keeping, hold
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source
from volflow.volumes.arrays.identity import identify
from volflow.volumes.arrays.pieces import gathered, identities_of, packed, piece_of

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["DaskSource", "at_hand", "is_dask_array", "refuse_masked", "refuse_unknown_sizes"]


@dataclass(frozen=True, eq=False, repr=False)
class DaskSource(Source):
    """An array that Dask computes, box by box.

    Parameters
    ----------
    array, meta
        What is computed, and its grid.
    held
        Its name in this process, for tasks that run here: it is then pickled by that. Otherwise
        it pickles with its graph, files as how to open them.
    """

    array: da.Array
    meta: Meta
    held: InProcess | None = None
    path = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As the array's."""
        return tuple(int(n) for n in self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """In the machine's byte order."""
        dtype: np.dtype[Any] = self.array.dtype
        return dtype.newbyteorder("=")

    @property
    def piece(self) -> tuple[int, ...]:
        """The largest chunk along each axis."""
        return (1,) * (self.ndim - 3) + tuple(max(axis) for axis in self.array.chunks[-3:])

    @cached_property
    def results(self) -> dict[Any, Any]:
        """What is computed of it already and kept on a cluster, by key."""
        return {future.key: future for future in futures_of(self.array)}

    def identity(self) -> str:
        """A hash of what the array reads and computes.

        Where that cannot be determined, the name that Dask gives the array counts.
        """
        found = identify(self.array, identities_of(self.results))
        name = self.array.name if found.unknown else ""
        return hashlib.sha256(f"{found.token} {name}".encode()).hexdigest()

    def read(self, roi: Roi) -> Array:
        """The voxels of a box, computed by threads of this process."""
        # A worker may read while its client is busy with this very task: never on the cluster.
        piece = piece_of(self.array, roi)
        results = gathered({key: self.results[key] for key in piece.needs if key in self.results})
        voxels = piece.compute(results, get_threaded)
        refuse_masked(voxels)
        return np.asarray(voxels, self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.held is not None:
            return _found, (self.held,)
        return _unpacked, (packed(self.array), self.meta)


@dataclass(frozen=True)
class _Elsewhere:
    """A source that this process does not hold: a scheduler, which only passes it on."""

    held: InProcess

    def __reduce__(self) -> tuple[Any, ...]:
        return _found, (self.held,)


def _found(held: InProcess) -> Any:
    try:
        return held.get()
    except KeyError:
        return _Elsewhere(held)


def _unpacked(array: bytes, meta: Meta) -> DaskSource:
    return DaskSource(pickle.loads(array), meta)


@contextmanager
def at_hand(source: Source, *, here: bool) -> Iterator[tuple[Source, Keeping | None]]:
    """A source as tasks carry it, and what brings to each worker once what it is computed from.

    Parameters
    ----------
    source
        Any.
    here
        Whether the tasks run in this process.

    Raises
    ------
    InvalidInput
        Where what Dask computes cannot be sent to another process.
    """
    if not isinstance(source, DaskSource):
        yield source, None
    elif here:
        with hold(source) as held:
            yield replace(source, held=held), None
    else:
        held, content = InProcess(uuid.uuid4().hex), pickle.dumps(source)
        yield replace(source, held=held), Keeping({held.key: content})


def is_dask_array(x: Any) -> TypeGuard[da.Array]:
    """Return True for a Dask array; `dask.array` is not imported for what cannot be one."""
    dask_array: Any = sys.modules.get("dask.array")
    return dask_array is not None and isinstance(x, dask_array.Array)


def refuse_masked(x: Any) -> None:
    """Refuse a NumPy or Dask array with a mask, which would be lost where voxels are stored.

    Raises
    ------
    InvalidInput
        Naming the remedy.
    """
    computed = is_dask_array(x)
    if isinstance(x._meta if computed else x, np.ma.MaskedArray):
        name, filled = "the array", "array.filled(value)"
        if computed:
            name, filled = "the Dask array", "dask.array.ma.filled(array, value)"
        raise InvalidInput(
            f"{name} is masked, and a volume has no mask; say what masked voxels hold: {filled}"
        )


def refuse_unknown_sizes(x: da.Array) -> None:
    """Refuse a Dask array whose chunks do not know their sizes.

    Raises
    ------
    InvalidInput
        Naming the remedy.
    """
    if any(math.isnan(n) for n in x.shape):
        raise InvalidInput(
            f"the array has unknown sizes, shape {x.shape}; call x.compute_chunk_sizes() first"
        )
