"""Volumes for tests that need them on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec


def store(path: os.PathLike[str], array: np.ndarray[Any, Any], **meta: Any) -> str:
    """Store an array ``zyx`` or ``czyx`` in small chunks and shards; returns its path."""
    axes = ("c", "z", "y", "x")[-array.ndim :]
    volume = create(
        path, VolumeSpec.of(array.shape, array.dtype, Meta(axes, **meta), chunk=16, shard=32)
    )
    volume.write(Roi.full(volume.shape), array)
    return str(path)


def files(folder: os.PathLike[str]) -> dict[str, bytes]:
    """What an output consists of.

    Zarr's unfinished files are no part of it: a kill may leave some, and so may a worker that
    outlives its driver.
    """
    found = (p for p in Path(folder).rglob("*") if p.is_file() and p.suffix != ".partial")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}
