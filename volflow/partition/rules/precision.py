"""Dtypes under autocast, which casts when values are computed, and not tensors without values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from volflow.geometry.roi import Roi
from volflow.partition.graph import Node, Window, read_by

__all__ = ["autocast_of", "tried_dtype"]


def autocast_of(device: torch.device) -> torch.dtype | None:
    """Return the dtype to which torch casts on a device at present; None if it casts nothing."""
    enabled = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if enabled else None


def tried_dtype(nodes: Sequence[Node], node: Node, ndim: int, device: torch.device) -> torch.dtype:
    """Return the dtype of an op's values, found by computing one voxel of zeros.

    Parameters
    ----------
    nodes
        Those before it.
    node
        The op.
    ndim
        Axes of the image.
    device
        Where it computes.
    """
    middle = [n // 2 for n in node.sizes(ndim)]
    box = Roi(tuple(middle), tuple(n + 1 for n in middle))
    windows = []
    for source, maps in zip((nodes[n] for n in node.inputs), node.reads, strict=True):
        part = read_by(maps, box)
        sides = part.shape
        shape = [
            n if axis is None else sides[axis]
            for n, axis in zip(source.shape, source.dims, strict=True)
        ]
        windows.append(Window(torch.zeros(shape, dtype=source.dtype, device=device), part))
    assert node.compute is not None
    with torch.no_grad():
        return node.compute(windows, box).dtype
