"""Profile the ops of a network on a worker: its device, and what each op costs there.

The cost of an op depends on how well its shape suits the machine: a convolution of five channels
may run at a tenth of the speed of one of sixteen, and take three times the memory. So each kind of
op is run once on a small box, as it will be run on large ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from distributed import Client
from torch import Tensor

from volflow.geometry.roi import Roi
from volflow.model.device import device_memory, give_back_device, mark_peak, read_peak, timed
from volflow.model.forward import torch_threads
from volflow.model.resident import ModelPlugin
from volflow.model.trial import tried_on_worker
from volflow.partition.graph import Graph, Node, Window, live_bytes, needed, read_by
from volflow.passes.cost import Cost
from volflow.passes.network import Network

__all__ = ["OpProfile", "profile_ops"]

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


def measured(graph: Graph, device: torch.device, box_bytes: int) -> dict[int, Cost]:
    """Return what each op costs per voxel of its output; ops that are alike are run once."""
    limits = ON_CPU if device.type == "cpu" else ON_GPU
    limits = replace(limits, most_bytes=min(box_bytes, limits.most_bytes))
    costs: dict[int, Cost] = {}
    seen: dict[object, Cost] = {}
    for number, node in enumerate(graph.nodes):
        if node.compute is None or not _placed(graph, node).has_axes:
            continue
        box = _box(graph, number, limits)
        shapes = tuple(
            _window_shape(graph.nodes[source], read_by(maps, box) if not node.statistic else box)
            for source, maps in zip(node.inputs, node.reads, strict=True)
        )
        kind = (node.name, node.flops, node.depth, node.dtype, box.shape, shapes)
        if kind not in seen:
            seen[kind] = _cost(graph, number, box, device)
        costs[number] = seen[kind]
    return costs


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


def _cost(graph: Graph, number: int, box: Roi, device: torch.device) -> Cost:
    """Run one op on a box a few times: the least time and the most memory."""
    node = graph.nodes[number]
    windows = []
    for source, maps in zip(node.inputs, node.reads, strict=True):
        part = box if node.statistic else read_by(maps, box)
        shape = _window_shape(graph.nodes[source], part)
        # A part of something larger, as it will be: some ops copy what is not in one piece.
        larger = torch.zeros([n + 1 for n in shape], dtype=graph.nodes[source].dtype, device=device)
        windows.append(Window(larger[tuple(slice(0, n) for n in shape)], part))
    rule: Any = node.compute

    def run() -> Tensor:
        result: Tensor = rule.partial(windows[0].values) if node.statistic else rule(windows, box)
        return result

    best, most = _taken(device, run) if device.type == "cpu" else _taken_on_gpu(device, run)
    own = 0 if node.statistic else node.value_bytes * box.size
    return Cost(best / box.size, max(0, most - own) / box.size)


def _taken(device: torch.device, run: Callable[[], Tensor]) -> tuple[float, int]:
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


def _taken_on_gpu(device: torch.device, run: Callable[[], Tensor]) -> tuple[float, int]:
    """Return the same on a GPU, where the first call may load libraries and is not measured."""
    seconds, before = timed(device, run), mark_peak(device)
    run()
    return seconds, read_peak(device) - before
