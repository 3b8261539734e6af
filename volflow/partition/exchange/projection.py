"""What a division costs before anything is computed: bytes that are kept, bytes that are sent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from volflow.geometry.roi import Roi
from volflow.partition.exchange.routes import carried_bytes, routes_of, shares_of, windows_of
from volflow.partition.gradients import Segmented
from volflow.partition.reductions import statistic_of

__all__ = ["exchanged_bytes", "kept_bytes"]


def kept_bytes(net: Segmented, boxes: Sequence[Roi]) -> tuple[int, ...]:
    """Return the bytes that each process keeps between forward and backward, by rank.

    They are windows of the image and of what segments store, outputs, and statistics.

    Parameters
    ----------
    net
        The network.
    boxes
        The box of the image that each process owns, by rank.
    """
    graph, windows, last = net.graph, windows_of(net, boxes), len(net.segments) - 1
    shapes = [statistic_of(graph, s).partial_shape for s in net.known(last + 1)]
    return tuple(
        sum(graph.nodes[n].value_bytes * each[rank].size for n, each in windows.items())
        + sum(graph.nodes[n].value_bytes * part.size for n, part in net.targets(last, box).items())
        + 8 * sum(math.prod(shape) for shape in shapes)
        for rank, box in enumerate(boxes)
    )


def exchanged_bytes(net: Segmented, boxes: Sequence[Roi], *, wants_image: bool = False) -> int:
    """Return the bytes of windows and their gradients that all processes send in a step.

    The image is read by each process, and only its gradient is exchanged, if it is wanted. Sums,
    which are small, come on top.

    Parameters
    ----------
    net, boxes
        As for `kept_bytes`.
    wants_image
        Whether the gradient of the image is wanted.
    """
    owned, wanted = shares_of(net, boxes), windows_of(net, boxes)
    each = {n: carried_bytes(net.graph, routes_of(n, owned[n], wanted[n])) for n in owned}
    image = each.pop(0, 0)
    return 2 * sum(each.values()) + wants_image * image
