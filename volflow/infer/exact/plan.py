"""The plan of an exact prediction: a worker's profile, a schedule, the blocks of the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from distributed import Client

from volflow.engine.cluster import workers
from volflow.engine.plan import Plan, runs_for
from volflow.errors import MemoryRefused, ResumeRefused
from volflow.geometry.budget import format_bytes
from volflow.infer.exact.output import ExactOutput, OutputJob, exact_outputs
from volflow.infer.exact.result_blocks import BlockLayout, ResultBlocks
from volflow.infer.exact.seen import dropped_axis, network_of, seen_axes, traced
from volflow.infer.method import (
    SLACK_BYTES,
    TRIALS_DIFFER,
    Settings,
    Target,
    facts_of,
    out_blocks,
    threads_per_worker,
)
from volflow.infer.request import Request, check_classes
from volflow.model.forward import Output
from volflow.model.resident import ModelPlugin
from volflow.partition.graph import Graph
from volflow.partition.scale import alignment_of
from volflow.passes.activations import free_bytes
from volflow.passes.cost import Costs, Pass, pass_facts
from volflow.passes.executor import Passes
from volflow.passes.network import Blockwise
from volflow.passes.profile import OpProfile, profile_ops
from volflow.passes.schedule import Planner
from volflow.store.journal.journal import Journal, journal_dir

__all__ = ["ExactSettings", "decide", "last_pass", "passes_of", "slack_bytes"]

# Share of the free disk that may be kept between passes, and of a device's free memory.
SCRATCH_SHARE = 0.8
DEVICE_SHARE = 0.7
# Factor by which allocators exceed the tensors that are alive.
ALLOCATED = 1.15
# Code, above all, that a library of convolutions keeps for each shape that it has met.
KEPT_CODE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ExactSettings(Settings):
    """Settings of an exact run.

    Parameters
    ----------
    sizes
        Of the image as the network sees it, padded to its alignment.
    passes
        The last one writes the result.
    """

    sizes: tuple[int, ...]
    passes: tuple[Pass, ...]

    def own(self) -> dict[str, Any]:
        """Plain values of the passes, for the journal, and the batches, which are of one block."""
        passes = [asdict(step) for step in self.passes]
        return {"batch_size": 1, "exact": {"sizes": list(self.sizes), "passes": passes}}


def decide(request: Request, client: Client, memory_bytes: int) -> ExactSettings:
    """Choose the passes and blocks of an exact run.

    Raises
    ------
    NoExactRule
        Where an op of the model has no rule.
    MemoryRefused
        Where no schedule fits, naming the memory that would.
    InvalidInput
        Where the model does not take such an image.
    """
    options, seen = request.options, seen_axes(request)
    sizes, graph, outputs = traced(request)
    check_classes(options, outputs)
    # All that can be refused without a worker is refused by now.
    threads = threads_per_worker(client)
    network = network_of(request, sizes, options.device, options.precision)
    found = profile_ops(network, request.model.module, client, threads, memory_bytes)
    network = found.network
    result = ResultBlocks(request, outputs, network.dtype, seen, sizes)
    planner = _planner(request, graph, outputs, found, client, memory_bytes)
    passes, layout = (_of_volumes if len(seen) == 3 else _of_slices)(planner, result)
    return ExactSettings(
        outputs=outputs,
        dtype=network.dtype,
        precision=network.precision,
        device=network.device,
        threads=threads,
        block=layout.block,
        chunk=layout.chunk,
        shard=layout.shard,
        peak_bytes=_budget(graph, max(step.peak_bytes for step in passes)),
        sizes=sizes,
        passes=passes,
    )


def slack_bytes(dtype: str) -> int:
    """Return the memory of a worker beside tensors and buffers, for a network of a dtype."""
    # In float64 torch itself convolves, without such a library.
    return SLACK_BYTES if dtype == "float64" else SLACK_BYTES + KEPT_CODE_BYTES


def _budget(graph: Graph, peak_bytes: int) -> int:
    """Return the memory of a worker whose tensors and buffers take so much."""
    dtype = "float64" if graph.nodes[0].dtype == torch.float64 else "float32"
    return math.ceil(ALLOCATED * peak_bytes) + slack_bytes(dtype)


def _planner(
    request: Request,
    graph: Graph,
    outputs: tuple[Output, ...],
    found: OpProfile,
    client: Client,
    memory_bytes: int,
) -> Planner:
    dtype = found.network.dtype
    score_bytes, channels = np.dtype(dtype).itemsize, sum(output.channels for output in outputs)
    stored = np.dtype(request.options.stored_dtype(dtype))
    classes = request.options.output == "classes"
    written = channels * score_bytes + stored.itemsize * (len(outputs) if classes else channels)
    read = max(spec.voxel_bytes for spec in request.inputs.specs)
    budget = (memory_bytes - slack_bytes(dtype)) / ALLOCATED
    if found.network.device.startswith("cuda"):
        budget = DEVICE_SHARE * found.free_bytes
    costs = Costs(
        graph,
        input_bytes=2 * read + score_bytes * request.inputs.channels,
        output_bytes=written,
        ops=found.costs,
        workers=max(1, len(workers(client))),
    )
    scratch = int(SCRATCH_SHARE * free_bytes(request.out.parent))
    return Planner(costs, alignment_of(graph), int(budget), scratch)


def _of_volumes(planner: Planner, result: ResultBlocks) -> tuple[tuple[Pass, ...], BlockLayout]:
    """Return the passes of a network of volumes, and the layout of their result."""
    layouts = result.layouts()
    try:
        passes = planner.choose(tuple(layouts))
    except MemoryRefused as error:
        raise _refused(planner, "blocks", planner.least_bytes(tuple(layouts))) from error
    return passes, layouts[passes[-1].block]


def _of_slices(planner: Planner, result: ResultBlocks) -> tuple[tuple[Pass, ...], BlockLayout]:
    """Return the pass of a network of slices: as many whole ones as fit, or parts of a few.

    Nothing is kept, and statistics are those of whole slices.
    """
    graph, least = planner.graph, 0
    outputs = tuple(sorted(set(graph.outputs.values())))
    for thickness in result.thicknesses():
        costs = replace(
            planner.costs,
            input_bytes=thickness * planner.costs.input_bytes,
            output_bytes=thickness * planner.costs.output_bytes,
        )
        for block, layout in result.layouts(thickness).items():
            if graph.statistics and block != graph.sizes(0):
                continue
            step = Pass((0,), outputs, (), block)
            found = costs.measured(step, frozenset(), planner.memory_bytes)
            if found is not None:
                return (found,), layout
            tried = costs.measured(step, frozenset(), 2**62)
            assert tried is not None
            least = tried.peak_bytes
    raise _refused(planner, "slices", least)


def _refused(planner: Planner, what: str, least_bytes: int) -> MemoryRefused:
    # What ops take is measured anew by each profile.
    enough = math.ceil(TRIALS_DIFFER * _budget(planner.graph, least_bytes) / 2**20)
    return MemoryRefused(
        f"exact inference in the smallest {what} needs {enough} MiB per worker but memory is"
        f" {format_bytes(_budget(planner.graph, planner.memory_bytes))}; use"
        f" memory=\"{enough}MiB\" or more, or blend='gaussian' with a small patch"
    )


def passes_of(request: Request, settings: ExactSettings) -> Passes:
    """Return the passes of a run with these settings.

    Raises
    ------
    ResumeRefused
        Where the settings, those of a journal, name nodes that the model does not have.
    """
    network = network_of(request, settings.sizes, settings.device, settings.precision)
    graph = replace(network, device="cpu").graph(request.model.module)
    _check_nodes(settings.passes, graph, request)
    return Passes(
        settings.passes,
        graph,
        Blockwise(network, partial(request.inputs.read, dtype=network.dtype)),
        ModelPlugin(request.model.module, request.model.digest),
        Journal(journal_dir(request.out)).passes,
        settings.threads,
        settings.peak_bytes - max(step.peak_bytes for step in settings.passes),
    )


def _check_nodes(passes: Sequence[Pass], graph: Graph, request: Request) -> None:
    """Refuse passes of a journal that belong to another network."""
    known = range(len(graph.nodes))
    for step in passes:
        nodes = (*step.given, *step.stores, *step.statistics)
        sides = len(step.block) == len(graph.sizes(0)) and min(step.block) >= 1
        if not sides or not all(n in known for n in nodes):
            raise ResumeRefused(
                f"the journal of {request.out} names passes that the model has not; begin again"
                " (overwrite=True, --overwrite)"
            )


def last_pass(
    passes: Passes,
    request: Request,
    settings: ExactSettings,
    client: Client,
    memory_bytes: int,
    targets: tuple[Target, ...],
    done: frozenset[int],
) -> Plan:
    """Return the plan of the last pass, which tells of those before it as well.

    Parameters
    ----------
    passes, request, settings
        The passes, the prediction, and what was decided for it.
    client, memory_bytes
        The cluster, and the budget of a worker.
    targets
        Where the outputs are written; none for a plan that is only shown.
    done
        Blocks that need not be done.
    """
    last = len(passes.steps) - 1
    options, blocks = request.options, out_blocks(request, settings)
    left = [number for number in range(len(blocks)) if number not in done]
    finish, frame = request.finish(settings.dtype), request.inputs.frame
    job = OutputJob(
        blockwise=passes.inputs_of(last),
        output=ExactOutput(passes.graph.outputs, finish, frame, dropped_axis(request)),
        blocks=blocks,
        targets=targets,
        threads=settings.threads,
        peak_bytes=passes.peak_bytes(last),
    )
    own = (
        ("blend", "exact" + (f", frame {options.frame}" if options.frame else "")),
        ("device", f"{settings.device} {settings.precision}"),
    )
    return Plan(
        "predict",
        exact_outputs,
        job,
        runs_for(left, len(workers(client))),
        units=blocks.voxels(left),
        unit="voxels",
        peak_bytes=settings.peak_bytes,
        memory_bytes=memory_bytes,
        exclusive=True,
        facts=(*facts_of(request, settings, own), *pass_facts(passes.graph, passes.steps)),
        plugin=passes.model,
    )
