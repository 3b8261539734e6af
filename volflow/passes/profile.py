"""Profile the ops of a network on a worker: its device, and what each op costs there.

The cost of an op depends on how well its shape suits the machine: a convolution of five channels
may run at a tenth of the speed of one of sixteen, and take three times the memory. So each kind of
op is run once on a small box, as it will be run on large ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from distributed import Client
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.model.device import device_memory, give_back_device, mark_peak, read_peak, timed
from volflow.model.forward import torch_threads
from volflow.model.resident import ModelPlugin
from volflow.model.trial import tried_on_worker
from volflow.partition.footprint import live_bytes
from volflow.partition.graph import Graph, Node, Window, needed, read_by
from volflow.partition.reductions import statistic_of
from volflow.passes.cost import Cost
from volflow.passes.network import Network

Found = TypeVar("Found")

__all__ = [
    "BOX_SHARE",
    "BoxLimits",
    "OpProfile",
    "by_kind",
    "laid_out",
    "limits_of",
    "measured",
    "parts_of",
    "profile_ops",
    "taken_by",
]

# A box is as large as the memory and the time of its op allow: large enough not to lie in the
# cache and, on a GPU, to fill it; and small beside the budget.
BOX_SHARE = 1 / 4
MOST_SIDE = 512
# Seconds after which an op is not run again to be timed better.
LONG_S = 0.05


@dataclass(frozen=True)
class BoxLimits:
    """What boxes may take, in bytes and floating-point operations."""

    most_bytes: int = 96 * 2**20
    most_flops: float = 2e9


ON_CPU, ON_GPU = BoxLimits(), BoxLimits(2**32, 2e11)


@dataclass(frozen=True)
class OpProfile:
    """Device of a worker, and the costs of a network's ops on it.

    Parameters
    ----------
    network
        The network with the device and precision of the worker.
    costs
        By node, for each op on a tensor with at least one axis of the image.
    device_memory_bytes
        Budget of the device's memory; 0 on a CPU.
    """

    network: Network
    costs: Mapping[int, Cost] = field(repr=False)
    device_memory_bytes: int = 0


def profile_ops(
    network: Network,
    model: ModelPlugin,
    client: Client,
    threads: int,
    memory_bytes: int,
    device_bytes: int | None = None,
) -> OpProfile:
    """Profile the ops of a network on the first free worker of a client.

    Parameters
    ----------
    network
        With the device that was asked for.
    model
        Holds the network on the worker.
    client
        Whose worker is taken.
    threads, memory_bytes
        Torch threads, and the budget of the worker.
    device_bytes
        What was asked for of a GPU's memory; by default what is free.
    """
    trial = partial(_profile, network, threads, memory_bytes, device_bytes)
    return tried_on_worker("profile", trial, model, client)


def _profile(
    network: Network, threads: int, memory_bytes: int, device_bytes: int | None
) -> OpProfile:
    network = network.resolved()
    graph, device = network.graph(), network.place  # the weights lie there by now
    # Boxes are within the budget of the device, which is told when its libraries are loaded.
    budget = device_memory(device, device_bytes) or memory_bytes
    with torch_threads(threads), network.inference():
        costs = measured(graph, device, int(BOX_SHARE * budget))
    give_back_device(device)
    return OpProfile(network, costs, device_memory(device, device_bytes))


def measured(
    graph: Graph, device: torch.device, box_bytes: int, more: float = 1.0
) -> dict[int, Cost]:
    """Return what each op costs per voxel of its output; ops that are alike are run once.

    Parameters
    ----------
    graph, device
        The network, and what computes.
    box_bytes
        What a box may take.
    more
        Times as many operations on a box as are usual.
    """
    return by_kind(graph, device, limits_of(device, box_bytes, more), _cost)


def limits_of(device: torch.device, box_bytes: int, more: float = 1.0) -> BoxLimits:
    """Return the limits of boxes on a device, as for `measured`."""
    usual = ON_CPU if device.type == "cpu" else ON_GPU
    return BoxLimits(min(box_bytes, usual.most_bytes), more * usual.most_flops)


def by_kind(
    graph: Graph,
    device: torch.device,
    limits: BoxLimits,
    cost: Callable[[Graph, int, Roi, torch.device], Found],
) -> dict[int, Found]:
    """Return what is found of each op on a box; ops that are alike are run once.

    Parameters
    ----------
    graph, device
        As for `measured`.
    limits
        Of boxes.
    cost
        Runs an op on a box of its node, or of a statistic's input.
    """
    costs: dict[int, Found] = {}
    seen: dict[object, Found] = {}
    for number, node in enumerate(graph.nodes):
        if node.compute is None or not _placed(graph, node).has_axes:
            continue
        box = _box(graph, number, limits)
        parts = parts_of(graph, number, box)
        shapes = tuple(
            _window_shape(graph.nodes[source], part)
            for source, part in zip(node.inputs, parts, strict=True)
        )
        cut = tuple(graph.readers[source] > 1 for source in node.inputs)
        kind = (node.name, node.flops, node.depth, node.dtype, box.shape, shapes, cut)
        if kind not in seen:
            seen[kind] = cost(graph, number, box, device)
        costs[number] = seen[kind]
    return costs


def parts_of(graph: Graph, number: int, box: Roi) -> list[Roi]:
    """Return the boxes of its inputs from which a box of an op, or its statistic, is computed."""
    node = graph.nodes[number]
    return [box if node.statistic else read_by(maps, box) for maps in node.reads]


def _placed(graph: Graph, node: Node) -> Node:
    """Return the node whose boxes an op is run on: its own, or a statistic's input."""
    return graph.nodes[node.inputs[0]] if node.statistic else node


def _box(graph: Graph, number: int, limits: BoxLimits) -> Roi:
    """Return a box in the middle of a node, or of the input of a statistic."""
    node = graph.nodes[number]
    sizes = _placed(graph, node).sizes(graph.ndim)
    for side in range(MOST_SIDE, 4, -4):
        box = _middle(sizes, side)
        operations = box.size * node.flops * node.depth
        fits = _bytes(graph, number, box) <= limits.most_bytes
        if operations <= limits.most_flops and fits:
            return box
    return _middle(sizes, 4)


def _bytes(graph: Graph, number: int, box: Roi) -> int:
    """Return the peak bytes of an op on a box."""
    given = graph.nodes[number].inputs
    if graph.nodes[number].statistic:
        return 2 * graph.nodes[given[0]].value_bytes * box.size
    return live_bytes(graph, needed(graph, {number: box}, given), given)


def _middle(sizes: tuple[int, ...], side: int) -> Roi:
    start = tuple((n - min(n, side)) // 2 for n in sizes)
    return Roi(start, tuple(a + min(n, side) for a, n in zip(start, sizes, strict=True)))


def _window_shape(node: Node, box: Roi) -> tuple[int, ...]:
    return tuple(
        n if axis is None else box.shape[axis]
        for n, axis in zip(node.shape, node.dims, strict=True)
    )


def laid_out(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return zeros as tensors lie: on the CPU with the values of a voxel beside each other."""
    if device.type != "cpu" or len(shape) < 3:
        return torch.zeros(list(shape), dtype=dtype, device=device)
    batch, channels, *sides = shape
    return torch.zeros([batch, *sides, channels], dtype=dtype).movedim(-1, 1)


def _cost(graph: Graph, number: int, box: Roi, device: torch.device) -> Cost:
    """Run one op on a box a few times: the least time and the most memory."""
    node = graph.nodes[number]
    windows = []
    for source, part in zip(node.inputs, parts_of(graph, number, box), strict=True):
        shape = _window_shape(graph.nodes[source], part)
        windows.append(Window(_values(graph, source, shape, device), part))
    rule: Any = node.compute

    def run() -> Tensor:
        if node.statistic:
            return statistic_of(graph, number).partial(windows[0].values, box)
        result: Tensor = rule(windows, box)
        return result

    best, most = taken_by(device, run)
    own = 0 if node.statistic else node.value_bytes * box.size
    return Cost(best / box.size, max(0, most - own) / box.size)


def _values(graph: Graph, number: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Return a window of a node as it will lie in memory."""
    node = graph.nodes[number]
    # A part of something larger where several read it: some ops copy what is not in one piece.
    more = graph.readers[number] > 1
    sides = [n + (more and axis is not None) for n, axis in zip(shape, node.dims, strict=True)]
    return laid_out(sides, node.dtype, device)[tuple(slice(0, n) for n in shape)]


def taken_by(device: torch.device, run: Callable[[], object]) -> tuple[float, int]:
    """Return the least time and the most memory of a few calls; on a GPU of one call more."""
    return _taken(device, run) if device.type == "cpu" else _taken_on_gpu(device, run)


def _taken(device: torch.device, run: Callable[[], object]) -> tuple[float, int]:
    """Return the least time and the most memory of a few calls."""
    best, most, again = math.inf, 0, 0
    while again < 3 and not (again and best > LONG_S):
        before = mark_peak(device)
        began = time.perf_counter()
        result = run()
        most = max(most, read_peak(device) - before)
        best = min(best, time.perf_counter() - began)
        again += 1
        del result
    return best, most


def _taken_on_gpu(device: torch.device, run: Callable[[], object]) -> tuple[float, int]:
    """Return the same on a GPU, where the first call may load libraries and is not measured."""
    seconds, before = timed(device, run), mark_peak(device)
    run()
    return seconds, read_peak(device) - before
