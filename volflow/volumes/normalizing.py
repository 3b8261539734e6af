"""Normalisations of volumes: constants that are measured once, and what they make of voxels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.normalize import Normalization, normalization
from volflow.store.slabs import refuse_complex
from volflow.volumes.distribution import Statistics
from volflow.volumes.statistics import statistics

__all__ = ["Normalize", "applied", "constants_of", "write_normalized"]

Array = npt.NDArray[Any]
Normalize = Normalization | Callable[[Array], Array] | None


def constants_of(
    choice: str | Callable[[Any], Any], volume: Any, *, cluster: Any = None, **options: Any
) -> Normalization | Callable[[Any], Any]:
    """Return a normalisation as constants of a volume; a function as it is.

    Parameters
    ----------
    choice
        As `predict` takes it.
    volume
        An opened one; read whole, once, where the choice needs its statistics and nobody knows
        them yet.
    cluster, **options
        Of `statistics`; the cluster may also be a function, which opens it where it is needed.
    """
    if callable(choice):
        return choice

    def measure(foreground: bool) -> Statistics:
        client = cluster() if callable(cluster) else cluster
        return statistics(volume, foreground=foreground, cluster=client, **options)

    return normalization(choice, volume.channels_count, measure)


def applied(function: Callable[[Array], Array], raw: Array) -> Array:
    """Normalise voxels ``czyx`` with a user's function; refuses one that changes their shape."""
    values = np.asarray(function(raw))
    refuse_complex(values, "what normalize returns")
    values = values.astype(raw.dtype, copy=False)
    if values.shape != raw.shape:
        raise InvalidInput(
            f"normalize must keep the shape of its block: got {values.shape} for {raw.shape}"
        )
    return values


def write_normalized(by: Normalize, stored: Array, out: Array) -> None:
    """Write stored voxels ``czyx`` into an array of the same shape, normalised."""
    if isinstance(by, Normalization):
        by.apply(stored, out)
    else:
        out[...] = stored if by is None else applied(by, stored.astype(out.dtype))
