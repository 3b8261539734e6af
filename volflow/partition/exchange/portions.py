"""Portions of a share: computed one after the other, so that little is needed beside what is kept.

Convolutions are where segments end, so that only cheap ops are computed twice where portions meet.
"""

from __future__ import annotations

import math

import torch

from volflow.geometry.roi import Roi
from volflow.partition.exchange.division import Division
from volflow.partition.gradients import Segmented

__all__ = ["portion_bytes", "portions_of"]

# A share is computed in portions of a part of what is kept, but of no less than what keeps a
# processor busy: an op takes a few times what it reads and makes.
KEPT_PORTIONS = 32
LEAST_ON_CPU, LEAST_ON_GPU = 2**23, 2**28


def portion_bytes(kept_bytes: int, device: torch.device) -> int:
    """Return what a portion reads and makes, about, on a process that keeps so much."""
    least = LEAST_ON_GPU if device.type == "cuda" else LEAST_ON_CPU
    return max(least, kept_bytes // KEPT_PORTIONS)


def portions_of(net: Segmented, number: int, box: Roi, most_bytes: int) -> tuple[Roi, ...]:
    """Return slabs of a box in which a segment is computed, along its longest axis.

    Parameters
    ----------
    net, number
        The network, and the number of the segment.
    box
        A process's box of the image.
    most_bytes
        What a slab may read and make, about; one voxel of the deepest level is the thinnest.
    """
    if not box.size:
        return ()
    nodes = net.graph.nodes
    parts = [*net.windows(number, box).items(), *net.targets(number, box).items()]
    total = sum(nodes[node].value_bytes * part.size for node, part in parts)
    axis = max(range(box.ndim), key=lambda a: box.shape[a])
    whole = net.graph.sizes(0)[axis]
    along = [net.graph.sizes(node)[axis] for node, _ in parts if axis in nodes[node].dims]
    thinnest = max((-(-whole // size) for size in along), default=whole)
    count = min(math.ceil(total / most_bytes), box.shape[axis] // thinnest)
    cuts = [1] * box.ndim
    cuts[axis] = max(1, count)
    steps = [1] * box.ndim
    steps[axis] = thinnest
    return tuple(one.shift(box.start) for one in Division.even(box.shape, cuts, steps).boxes)
