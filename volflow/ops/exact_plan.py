"""From a request for an exact prediction to its passes: a look at the worker, a schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from distributed import Client

from volflow.engine.cluster import memory_per_worker
from volflow.engine.plan import Plan, Step
from volflow.engine.run import run
from volflow.errors import InvalidInput, MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.model.forward import Forward, Output, torch_threads
from volflow.ops.exact_job import Network
from volflow.ops.kept import free_bytes
from volflow.ops.request import Request, check_classes, output_meta
from volflow.ops.tiling import SLACK_BYTES
from volflow.partition.graph import Graph
from volflow.partition.halo import padded_sizes, scale_of
from volflow.partition.passes import Costs, Pass, Rates
from volflow.partition.scale import alignment_of
from volflow.partition.schedule import SIDES, Planner
from volflow.store.layout import resolve_layout

__all__ = [
    "ExactSettings",
    "decide_exact",
    "dropped_axis",
    "exact_outputs_of",
    "network_of",
    "pass_facts",
]

# Of what is free, what may be kept between passes, and what a device's memory is used up to.
SCRATCH_SHARE = 0.8
DEVICE_SHARE = 0.7
# What allocators take beyond the tensors that are alive.
ALLOCATED = 1.15


@dataclass(frozen=True)
class Look:
    """What a worker is like: its device, and how fast it convolves."""

    device: str
    precision: str
    flops_per_s: float
    free_bytes: int


@dataclass(frozen=True)
class LookJob:
    """A look at a worker, as a job."""

    forward: Forward
    threads: int


def look(job: LookJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """Time a small convolution on a worker."""
    forward = job.forward.here()
    device = torch.device(forward.device)
    cuda = device.type == "cuda"
    side, channels = (128, 32) if cuda else (40, 16)
    image = torch.zeros((1, channels, side, side, side), dtype=forward.torch_dtype, device=device)
    weight = image.new_zeros((channels, channels, 3, 3, 3))
    best = math.inf
    with torch_threads(job.threads), torch.inference_mode():
        for _ in range(4):
            began = time.perf_counter()
            F.conv3d(image, weight, padding=1)
            if cuda:
                torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - began)
    flops = 2 * 27 * channels**2 * side**3
    free = torch.cuda.mem_get_info(device)[0] if cuda else 0
    yield Step(blocks[0], 1, result=Look(str(device), forward.precision, flops / best, free))


@dataclass(frozen=True)
class ExactSettings:
    """What an exact run decides once and a resumed run adopts.

    Parameters
    ----------
    sizes
        Of the image as the network sees it, padded to its alignment.
    passes
        The last one writes the result.
    """

    sizes: tuple[int, ...]
    passes: tuple[Pass, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the journal."""
        return {"sizes": list(self.sizes), "passes": [asdict(step) for step in self.passes]}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> ExactSettings:
        """The settings of a journal."""
        passes = []
        for step in saved["passes"]:
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in step.items()
            }
            passes.append(Pass(**values))
        return cls(tuple(saved["sizes"]), tuple(passes))


def dropped_axis(request: Request) -> int | None:
    """The axis of the frame that a network of slices does not see: where the patch is 1."""
    if request.options.patch is None:
        return None
    sides = request.options.sides
    return sides.index(1) if 1 in sides else None


def network_of(request: Request, sizes: tuple[int, ...], device: str, precision: str) -> Network:
    """The model as a graph for the padded image."""
    forward = request.forward(device, precision)
    return Network(
        request.model.digest,
        request.inputs.channels,
        sizes,
        dropped_axis(request),
        device,
        precision,
        forward.dtype,
        forward.flips,
    )


@dataclass(frozen=True)
class Layout:
    """A block of the result and how it is stored: stored axes, output voxels."""

    block: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]


@dataclass(frozen=True)
class Decision:
    """What a first run decides."""

    outputs: tuple[Output, ...]
    look: Look
    layout: Layout
    exact: ExactSettings
    dtype: str
    peak_bytes: int


def decide_exact(request: Request, client: Client, memory: Any, threads: int) -> Decision:
    """Choose the passes and blocks of an exact run.

    Raises
    ------
    NoExactRule
        Where an op of the model has none.
    MemoryRefused
        Where no schedule fits.
    InvalidInput
        Where the model does not take such an image.
    """
    inputs, module = request.inputs, request.model.module
    dropped = dropped_axis(request)
    seen = [a for a in range(3) if a != dropped]
    shape = [inputs.shape[a] for a in seen]
    sizes = padded_sizes(module, inputs.channels, shape)
    # Refused before a worker is asked.
    graph = network_of(request, sizes, "cpu", "float32").graph(module)
    outputs = exact_outputs_of(graph, dropped)
    check_classes(request.options, outputs)
    found = _look(request, client, threads)
    memory_bytes = memory_per_worker(client, memory)
    forward = request.forward(found.device, found.precision)
    layouts = _layouts(request, outputs, forward.dtype, seen, sizes)
    planner = _planner(request, graph, outputs, found, memory_bytes, layouts, dropped)
    if dropped is None:
        passes = planner.choose(tuple(layouts))
    else:
        passes = (_one_pass(planner, graph, tuple(layouts)),)
    peak = int(ALLOCATED * max(step.peak_bytes for step in passes)) + SLACK_BYTES
    layout = layouts[passes[-1].block]
    exact = ExactSettings(sizes, passes)
    return Decision(outputs, found, layout, exact, forward.dtype, peak)


def exact_outputs_of(graph: Graph, dropped: int | None) -> tuple[Output, ...]:
    """What a network returns, as patches' outputs are described."""
    scale = _in_space(scale_of(graph), dropped)
    return tuple(
        Output(name, graph.nodes[number].shape[1], scale) for name, number in graph.outputs.items()
    )


def _in_space(values: Sequence[int], dropped: int | None) -> tuple[int, int, int]:
    """Values per axis that the network sees, with 1 where it sees none."""
    full = list(values)
    if dropped is not None:
        full.insert(dropped, 1)
    return full[0], full[1], full[2]


def _look(request: Request, client: Client, threads: int) -> Look:
    forward = request.forward(request.options.device, request.options.precision)
    if forward.precision == "auto":  # bfloat16 is no exact result; who wants it says so
        forward = replace(forward, precision="float32")
    job = LookJob(forward, threads)
    plan = Plan("look", look, job, ((0,),), 1, "look", 1, 1, True)
    found: Look = run(plan, cluster=client, progress=False).results[0]
    return found


def _planner(
    request: Request,
    graph: Graph,
    outputs: tuple[Output, ...],
    found: Look,
    memory_bytes: int,
    layouts: Mapping[tuple[int, ...], Layout],
    dropped: int | None,
) -> Planner:
    score_bytes = 8 if graph.nodes[0].dtype == torch.float64 else 4
    channels = sum(output.channels for output in outputs)
    stored = np.dtype(request.options.stored_dtype("float64" if score_bytes == 8 else "float32"))
    classes = request.options.output == "classes"
    written = channels * score_bytes + stored.itemsize * (len(outputs) if classes else channels)
    if dropped is not None:  # the slices of a block are written together
        axis = request.inputs.frame.axes[dropped]
        written *= max(layout.block[axis] for layout in layouts.values())
    read = max(v.dtype.itemsize * v.channels_count for v in request.inputs.volumes)
    cuda = found.device.startswith("cuda")
    budget = DEVICE_SHARE * found.free_bytes if cuda else (memory_bytes - SLACK_BYTES) / ALLOCATED
    costs = Costs(
        graph,
        Rates(found.flops_per_s, 4e9 if not cuda else 1e12),
        input_bytes=2 * read + score_bytes * request.inputs.channels,
        output_bytes=written,
    )
    return Planner(
        costs,
        alignment_of(graph),
        int(budget),
        scratch_bytes=int(SCRATCH_SHARE * free_bytes(request.out.parent)),
    )


def _one_pass(planner: Planner, graph: Graph, blocks: Sequence[tuple[int, ...]]) -> Pass:
    """The pass of a network of slices: nothing is kept, statistics are those of whole slices."""
    outputs = tuple(sorted(set(graph.outputs.values())))
    whole = graph.sizes(0)
    for block in blocks:
        if graph.statistics and block != whole:
            continue
        step = planner.costs.measured(
            Pass((0,), outputs, (), block), frozenset(), planner.memory_bytes
        )
        if step is not None:
            return step
    step = planner.costs.measured(Pass((0,), outputs, (), blocks[-1]), frozenset(), 2**62)
    assert step is not None
    raise MemoryRefused(
        f"exact inference of slices of {'×'.join(map(str, whole))} voxels takes"
        f" {format_bytes(step.peak_bytes)}, and memory leaves"
        f" {format_bytes(max(0, planner.memory_bytes))}; give more memory, or use blend='gaussian'"
    )


def _layouts(
    request: Request,
    outputs: tuple[Output, ...],
    computed: str,
    seen: Sequence[int],
    sizes: tuple[int, ...],
) -> dict[tuple[int, ...], Layout]:
    """Blocks of the last pass, as the network sees them, and how the result is stored in each."""
    frame, scale = request.inputs.frame, outputs[0].scale
    shape = frame.restore(
        tuple(-(-n // s) for n, s in zip(request.inputs.shape, scale, strict=True))
    )
    options = request.options
    chunk, shard = resolve_layout(
        shape,
        output_meta(request, outputs[0]).spacing,
        options.stored_dtype(computed),
        options.chunk,
        options.shard,
    )
    found: dict[tuple[int, ...], Layout] = {}
    for side in (max(shape), *SIDES):
        layout = _layout(shape, side, chunk, shard, options.shard is not None)
        inside = [b * s for b, s in zip(frame.reorder(layout.block), scale, strict=True)]
        block = tuple(min(inside[a], n) for a, n in zip(seen, sizes, strict=True))
        found.setdefault(block, layout)
    if not found:
        raise InvalidInput(f"no block of whole shards {shard} fits a result of shape {shape}")
    return found


def _layout(
    shape: Sequence[int], side: int, chunk: Sequence[int], shard: Sequence[int], fixed: bool
) -> Layout:
    """A block of about a side, of whole shards; these shrink with it unless they were asked for."""
    block, chunks, shards = [], [], []
    for n, c, s in zip(shape, chunk, shard, strict=True):
        unit = s if fixed or side >= n else min(c, side)
        count = max(1, -(-n // max(side, unit)))
        share = -(-n // count)
        b = -(-share // unit) * unit
        kept = s if fixed else math.gcd(b, s)
        block.append(b)
        shards.append(kept)
        chunks.append(math.gcd(c, kept))
    return Layout(tuple(block), tuple(chunks), tuple(shards))


def pass_facts(graph: Graph, exact: ExactSettings, workers: int) -> tuple[tuple[str, str], ...]:
    """The passes, for people."""
    passes = exact.passes
    seconds = sum(step.seconds for step in passes) / max(1, workers)
    whole = sum(
        node.flops * node.depth * math.prod(graph.sizes(n)) for n, node in enumerate(graph.nodes)
    )
    computed = sum(step.flops for step in passes)
    facts = [
        (
            "passes",
            f"{len(passes)}, computing {computed / whole if whole else 1:.2f}× the network,"
            f" about {_duration(seconds)}",
        )
    ]
    for number, step in enumerate(passes, start=1):
        facts.append((f"pass {number}", _describe(graph, step, number == len(passes))))
    return tuple(facts)


def _describe(graph: Graph, step: Pass, last: bool) -> str:
    text = f"blocks of {'×'.join(map(str, step.block))}"
    read = [n for n in step.given if n]
    if read:
        text += f", reads {format_bytes(_bytes(graph, read))}"
    if step.statistics:
        text += f", measures {len(step.statistics)} statistics"
    if step.stores and not last:
        text += f", keeps {format_bytes(_bytes(graph, step.stores))}"
    return text + f", {format_bytes(step.peak_bytes)}, about {_duration(step.seconds)}"


def _bytes(graph: Graph, numbers: Sequence[int]) -> int:
    return sum(graph.nodes[n].value_bytes * math.prod(graph.sizes(n)) for n in numbers)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
