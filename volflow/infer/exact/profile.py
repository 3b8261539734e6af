"""A look at a worker before an exact run: its device, and what each op of the network costs there.

What an op takes depends on how well its shape suits the machine: a convolution of five channels
may run at a tenth of the speed of one of sixteen, and take three times the memory. So each kind of
op is run once on a small box, as it will be run on large ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from distributed import Client

from volflow.engine.plan import Plan, Step
from volflow.engine.run import run
from volflow.geometry.roi import Roi
from volflow.infer.exact.job import Network
from volflow.model.forward import mark_peak, read_peak, torch_threads
from volflow.model.resident import ModelPlugin
from volflow.partition.graph import Graph, Node, Window, live_bytes, needed, read_by
from volflow.passes.cost import Cost

__all__ = ["Look", "look_at"]

# A box is as large as what its op takes and computes allows: large enough not to lie in the cache,
# and small beside what a worker may take.
BOX_BYTES = 96 * 2**20
BOX_SHARE = 1 / 4
MOST_SIDE = 512
BOX_FLOPS = 2e9
# Seconds after which an op is not run again to be timed better.
LONG_S = 0.05


@dataclass(frozen=True)
class Look:
    """What a worker is like.

    Parameters
    ----------
    network
        With the device and precision found.
    costs
        Of each op that has an axis, by node.
    free_bytes
        Of the device's memory; 0 on a CPU.
    """

    network: Network
    costs: Mapping[int, Cost] = field(repr=False)
    free_bytes: int = 0


@dataclass(frozen=True)
class LookJob:
    """A look at a worker, as a job."""

    network: Network
    threads: int
    memory_bytes: int


def look_at(
    network: Network, module: torch.nn.Module, client: Client, threads: int, memory_bytes: int
) -> Look:
    """Look at one worker of a client.

    Parameters
    ----------
    network
        With the device that was asked for.
    module
        The model.
    client
        Whose first free worker is looked at.
    threads, memory_bytes
        Of torch; what the worker may take.
    """
    job = LookJob(network, threads, memory_bytes)
    plugin = ModelPlugin(module, network.digest)
    plan = Plan("look", _look, job, ((0,),), 1, "look", 1, 1, True, (), plugin)
    found: Look = run(plan, cluster=client, progress=False).results[0]
    return found


def _look(job: LookJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    network = job.network.here()
    device = torch.device(network.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    autocast = torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=network.precision == "bfloat16"
    )
    with torch_threads(job.threads), torch.inference_mode(), autocast:
        costs = measured(network.graph(), device, int(BOX_SHARE * job.memory_bytes))
    yield Step(blocks[0], 1, result=Look(network, costs, free))


def measured(graph: Graph, device: torch.device, box_bytes: int = BOX_BYTES) -> dict[int, Cost]:
    """What each op costs per voxel of its output; alike ops are run once."""
    costs: dict[int, Cost] = {}
    seen: dict[object, Cost] = {}
    for number, node in enumerate(graph.nodes):
        if node.compute is None or not any(axis is not None for axis in _dims(graph, number)):
            continue
        box = _box(graph, number, min(box_bytes, BOX_BYTES))
        shapes = tuple(
            _window_shape(graph.nodes[source], read_by(maps, box) if not node.statistic else box)
            for source, maps in zip(node.inputs, node.reads, strict=True)
        )
        kind = (node.name, node.flops, node.depth, node.dtype, box.shape, shapes)
        if kind not in seen:
            seen[kind] = _cost(graph, number, box, device)
        costs[number] = seen[kind]
    return costs


def _dims(graph: Graph, number: int) -> tuple[int | None, ...]:
    """The dims of what an op goes over: of its input, for a statistic."""
    node = graph.nodes[number]
    return graph.nodes[node.inputs[0]].dims if node.statistic else node.dims


def _box(graph: Graph, number: int, most_bytes: int) -> Roi:
    """A box in the middle of a node, or of what a statistic is measured of."""
    node = graph.nodes[number]
    seen = graph.nodes[node.inputs[0]] if node.statistic else node
    sizes = seen.sizes(graph.ndim)
    for side in range(MOST_SIDE, 4, -4):
        box = _middle(sizes, side)
        operations = box.size * node.flops * node.depth
        if operations <= BOX_FLOPS and _bytes(graph, number, box) <= most_bytes:
            return box
    return _middle(sizes, 4)


def _bytes(graph: Graph, number: int, box: Roi) -> int:
    """What an op takes on a box."""
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
    """Run one op on a box: the quickest of a few runs, and the most memory of one."""
    node = graph.nodes[number]
    windows = []
    for source, maps in zip(node.inputs, node.reads, strict=True):
        part = box if node.statistic else read_by(maps, box)
        shape = _window_shape(graph.nodes[source], part)
        # A part of something larger, as it will be: some ops copy what is not in one piece.
        larger = torch.zeros([n + 1 for n in shape], dtype=graph.nodes[source].dtype, device=device)
        windows.append(Window(larger[tuple(slice(0, n) for n in shape)], part))
    rule: Any = node.compute
    best, most, again = math.inf, 0, 0
    while again < 3 and not (again and best > LONG_S):
        before = mark_peak(device)
        began = time.perf_counter()
        result = rule.partial(windows[0].values) if node.statistic else rule(windows, box)
        most = max(most, read_peak(device) - before)  # which waits for a device
        best = min(best, time.perf_counter() - began)
        again += 1
        del result
    own = 0 if node.statistic else node.value_bytes * box.size
    return Cost(best / box.size, max(0, most - own) / box.size)
