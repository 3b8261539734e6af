"""Volumes for tests that need them on disk."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Meta


def store(path: os.PathLike[str], array: np.ndarray[Any, Any], **meta: Any) -> str:
    """Store an array ``zyx`` or ``czyx`` in small chunks and shards; returns its path."""
    axes = ("c", "z", "y", "x")[-array.ndim :]
    volume = create(path, array.shape, array.dtype, Meta(axes, **meta), chunk=16, shard=32)
    volume.write(Roi.full(volume.shape), array)
    return str(path)
