"""Choose the passes of an exact prediction, and the blocks of whole shards of its result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from distributed import Client

from volflow.engine.workers import expected_workers
from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.infer.exact.window import dropped_axis, seen_axes
from volflow.infer.method import SLACK_BYTES, TRIALS_DIFFER
from volflow.infer.request import Request, stored_bytes, stored_layout
from volflow.model.device import MOST_ELEMENTS
from volflow.model.forward import Output
from volflow.partition.graph import Graph
from volflow.partition.reach import alignment_of
from volflow.passes.activations import free_bytes
from volflow.passes.cost import UNLIMITED, Costs, Pass
from volflow.passes.cuts import SIDES
from volflow.passes.peaks import VoxelBytes
from volflow.passes.profile import OpProfile
from volflow.passes.schedule import Planner

__all__ = ["Layout", "budget_of", "choose_passes", "device_budget_of", "slack_bytes"]

# Share of the free disk that may be kept between passes.
SCRATCH_SHARE = 0.8
# Factor by which allocators exceed the tensors that are alive.
ALLOCATED = 1.15
# Code, above all, that a library of convolutions keeps for each shape that it has met.
KEPT_CODE_BYTES = 64 * 2**20

Sides = tuple[int, ...]
# Sides of a block, chunk and shard of the result: stored axes, output voxels.
Layout = tuple[Sides, Sides, Sides]


def slack_bytes(dtype: str) -> int:
    """Return the memory of a worker beside tensors and buffers, for a network of a dtype."""
    # In float64 torch itself convolves, without such a library.
    return SLACK_BYTES if dtype == "float64" else SLACK_BYTES + KEPT_CODE_BYTES


def budget_of(graph: Graph, peak_bytes: int, beside_bytes: int = 0) -> int:
    """Return the memory of a worker whose tensors and buffers take so much.

    Parameters
    ----------
    graph, peak_bytes
        The network, and what its tensors and the buffers take.
    beside_bytes
        What reading the image takes beside what it returns.
    """
    dtype = "float64" if graph.nodes[0].dtype == torch.float64 else "float32"
    return math.ceil(ALLOCATED * peak_bytes) + slack_bytes(dtype) + beside_bytes


def device_budget_of(peak_bytes: int) -> int:
    """Return the memory of a GPU in which a block takes so much."""
    return math.ceil(ALLOCATED * peak_bytes)


def choose_passes(
    request: Request,
    graph: Graph,
    outputs: tuple[Output, ...],
    found: OpProfile,
    client: Client,
    memory_bytes: int,
) -> tuple[tuple[Pass, ...], Layout]:
    """Return the passes that take the least time within the budget, and the layout of the result.

    Parameters
    ----------
    request, graph, outputs
        What is predicted, and the network for its padded image.
    found
        What its ops cost on a worker.
    client, memory_bytes
        The cluster, and the budget of a worker.

    Raises
    ------
    MemoryRefused
        Where none fit, naming the memory that would.
    """
    dtype = found.network.dtype
    score_bytes, channels = np.dtype(dtype).itemsize, sum(output.channels for output in outputs)
    read = max(spec.voxel_bytes for spec in request.inputs.specs)
    stored = stored_bytes(request, outputs, dtype)
    costs = Costs(
        graph,
        VoxelBytes(
            read=2 * read + score_bytes * request.inputs.channels,
            finished=channels * score_bytes + stored,
            stored=stored,
        ),
        ops=found.costs,
        workers=expected_workers(client),
        on_gpu=found.network.device.startswith("cuda"),
    )
    planner = Planner(
        costs,
        alignment_of(graph),
        int((memory_bytes - slack_bytes(dtype) - request.inputs.beside_bytes) / ALLOCATED),
        int(SCRATCH_SHARE * free_bytes(request.folder)),
        device_bytes=int(found.device_memory_bytes / ALLOCATED) if costs.on_gpu else UNLIMITED,
    )
    dropped = dropped_axis(request)
    if dropped is not None:
        across = request.inputs.frame.axes[dropped]
        return _of_slices(planner, request, outputs[0], dtype, across)
    layouts = _layouts(request, outputs[0], dtype, graph.sizes(0), {})
    try:
        passes = planner.choose(tuple(layouts))
    except MemoryRefused as error:
        enough = planner.enough(tuple(layouts))
        raise _refused(planner, "blocks", *enough, request.inputs.beside_bytes) from error
    return passes, layouts[passes[-1].block]


def _of_slices(
    planner: Planner, request: Request, output: Output, dtype: str, across: int
) -> tuple[tuple[Pass, ...], Layout]:
    """Return the pass of a network of slices across an axis: whole ones, or parts of a few.

    Nothing is kept, and statistics are those of whole slices.
    """
    graph, least = planner.graph, (0, 0)
    chunk, shard = (sides[across] for sides in stored_layout(request, output, dtype))
    # A chunk is read once for all slices in it.
    fewer = (side for side in (*SIDES, 4, 2, 1) if side < chunk)
    for thickness in (chunk, *fewer) if request.options.shard is None else (shard,):
        voxel = replace(planner.costs.voxel, slices=thickness)
        fitting = replace(planner, costs=replace(planner.costs, voxel=voxel))
        layouts = _layouts(request, output, dtype, graph.sizes(0), {across: thickness})
        for block, layout in layouts.items():
            if graph.statistics and block != graph.sizes(0):
                continue
            step = Pass((0,), graph.ends, (), block)
            found = fitting.fitted(step)
            if found is not None:
                return (found,), layout
            tried = fitting.costs.measured(step, frozenset(), UNLIMITED)
            if tried is not None:
                least = tried.peak_bytes, tried.device_peak_bytes
    raise _refused(planner, "slices", *least, request.inputs.beside_bytes)


def _refused(
    planner: Planner, what: str, memory: int, device_memory: int, beside: int
) -> MemoryRefused:
    """Return the refusal of budgets in which not even the smallest boxes fit, with what would."""
    # What ops take is measured anew by each profile.
    needs, remedies = [], []
    if memory > planner.memory_bytes:
        enough = math.ceil(TRIALS_DIFFER * budget_of(planner.graph, memory, beside) / 2**20)
        given = format_bytes(budget_of(planner.graph, planner.memory_bytes, beside))
        needs.append(f"{enough} MiB per worker but memory is {given}")
        remedies.append(f'memory="{enough}MiB" or more (--memory)')
    if device_memory > planner.device_bytes:
        enough = math.ceil(TRIALS_DIFFER * device_budget_of(device_memory) / 2**20)
        given = format_bytes(device_budget_of(planner.device_bytes))
        needs.append(f"{enough} MiB of the device but device_memory is {given}")
        remedies.append(f'device_memory="{enough}MiB" or more (--device-memory)')
    if not needs:
        return MemoryRefused(
            f"exact inference in the smallest {what} has tensors of more than {MOST_ELEMENTS:,}"
            " values, which a GPU's kernels cannot count; use device='cpu' (--device cpu), or"
            " blend='gaussian' (--blend gaussian)"
        )
    return MemoryRefused(
        f"exact inference in the smallest {what} needs {', and '.join(needs)}; use"
        f" {' and '.join(remedies)}, or blend='gaussian' (--blend gaussian) with a small patch"
    )


def _layouts(
    request: Request,
    output: Output,
    dtype: str,
    sizes: Sides,
    given: Mapping[int, int],
) -> dict[Sides, Layout]:
    """Return layouts of the result by the block that the network sees, largest first.

    Parameters
    ----------
    request, output, dtype
        What is predicted, an output of the network, and the dtype of its scores.
    sizes
        Sides of the padded image along the axes that the network sees.
    given
        Sides of a block that are given, by stored axis.
    """
    frame, seen, shape = request.inputs.frame, seen_axes(request), request.out_shape(output.scale)
    stored, options = stored_layout(request, output, dtype), request.options
    found: dict[Sides, Layout] = {}
    for side in (max(shape), *SIDES):
        sides = [given.get(axis, side) for axis in range(3)]
        fixed, chunked = options.shard is not None, options.chunk is not None
        layout = _layout(shape, sides, stored, fixed, chunked)
        inside = [b * s for b, s in zip(frame.reorder(layout[0]), output.scale, strict=True)]
        whole = frame.reorder([b >= n for b, n in zip(layout[0], shape, strict=True)])
        block = tuple(
            n if whole[a] else min(inside[a], n) for a, n in zip(seen, sizes, strict=True)
        )
        found.setdefault(block, layout)
    return found


def _layout(
    shape: Sequence[int],
    sides: Sequence[int],
    stored: tuple[Sequence[int], Sequence[int]],
    fixed: bool,
    chunked: bool,
) -> Layout:
    """Return a block of about some sides and of whole shards, which shrink with it unless fixed."""
    block, chunks, shards = [], [], []
    for n, side, c, s in zip(shape, sides, *stored, strict=True):
        unit = s if fixed or side >= n else c if chunked else min(c, side)
        count = max(1, -(-n // max(side, unit)))
        share = -(-n // count)
        b = -(-share // unit) * unit
        kept = s if fixed else b if b <= s else math.gcd(b, s)
        block.append(b)
        shards.append(kept)
        chunks.append(kept if kept < c else math.gcd(c, kept))
    return tuple(block), tuple(chunks), tuple(shards)
