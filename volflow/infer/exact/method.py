"""The exact method: passes over the volume, equal to the network run on it whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
from distributed import Client
from torch import Tensor

from volflow.engine.cluster import connect, memory_per_worker
from volflow.engine.plan import Plan, runs_for
from volflow.engine.workers import expected_workers
from volflow.errors import InvalidInput, ResumeRefused
from volflow.geometry.roi import Roi
from volflow.infer.exact.choose import budget_of, choose_passes, device_budget_of
from volflow.infer.exact.window import (
    ExactWindow,
    dropped_axis,
    exact_outputs,
    network_of,
    seen_axes,
    traced,
)
from volflow.infer.method import (
    BoxFunction,
    Hull,
    OutputJob,
    Targets,
    out_blocks,
    output_plan,
    threads_per_worker,
)
from volflow.infer.predict_options import PredictOptions
from volflow.infer.request import Request, check_classes
from volflow.infer.settings import Settings
from volflow.model.resident import lent
from volflow.partition.graph import needed
from volflow.partition.reductions import partials_of, statistic_of
from volflow.partition.segments import targets_of
from volflow.passes.cost import Pass, pass_facts
from volflow.passes.executor import Passes, run_passes
from volflow.passes.network import Blockwise
from volflow.passes.profile import profile_ops
from volflow.store.journal.journal import Journal, journal_dir

__all__ = ["BLENDS", "ExactSettings", "boxes", "check", "decide", "plan", "prepared", "read"]

BLENDS = ("exact",)

Statistics = Mapping[int, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
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

    @property
    def keeps(self) -> bool:
        """Whether the run keeps something for all blocks that are left: activations."""
        return len(self.passes) > 1

    def own(self) -> dict[str, Any]:
        """Return plain values of the passes, for the journal."""
        passes = [asdict(step) for step in self.passes]
        for step in passes:
            if not step["device_peak_bytes"]:  # what only GPUs need is left out, as in the settings
                del step["device_peak_bytes"]
        return {"exact": {"sizes": list(self.sizes), "passes": passes}}


def check(given: PredictOptions, options: PredictOptions) -> PredictOptions:
    """Refuse what leaves patches out; a patch only says whether the network takes slices."""
    if given.overlap is not None:
        raise InvalidInput(
            f"overlap {given.overlap} is that of patches, and blend 'exact' has none; leave it"
            " out, or use blend='gaussian' (--blend gaussian)"
        )
    if options.mask is not None or options.skip_below is not None:
        raise InvalidInput(
            "mask and skip_below leave patches out, and blend 'exact' has none: every voxel may"
            " depend on every other; leave them out, or use blend='gaussian' (--blend gaussian)"
        )
    if given.padding not in (None, 0):
        raise InvalidInput(
            f"padding {given.padding!r} is that of patches, and blend 'exact' has none: a volume is"
            " zero-padded at its far end to the network's alignment; leave it out, or use"
            " blend='gaussian' (--blend gaussian)"
        )
    slices = options.patch is not None and 1 in options.sides
    # Any side above 1 stands for the whole of its axis.
    z, y, x = (min(side, 2) for side in options.sides) if slices else (0, 0, 0)
    patch = (z, y, x) if slices else None
    return replace(options, patch=patch, overlap=None, padding=0, batch_size="auto")


def read(saved: Mapping[str, Any]) -> ExactSettings | None:
    """Return the settings of a journal; None where a run in patches wrote it."""
    exact = saved.get("exact")
    if exact is None:
        return None
    return ExactSettings.from_dict(saved, sizes=exact["sizes"], passes=exact["passes"])


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
    options = request.options
    sizes, graph, outputs = traced(request)
    check_classes(options, outputs)
    # All that can be refused without a worker is refused by now.
    threads = threads_per_worker(client)
    network = network_of(request, sizes, options.device, options.precision)
    asked = options.device_bytes
    found = profile_ops(network, request.plugin, client, threads, memory_bytes, asked)
    passes, layout = choose_passes(request, graph, outputs, found, client, memory_bytes)
    block, chunk, shard = layout
    return ExactSettings(
        outputs=outputs,
        dtype=found.network.dtype,
        precision=found.network.precision,
        device=found.network.device,
        threads=threads,
        block=block,
        chunk=chunk,
        shard=shard,
        peak_bytes=budget_of(
            graph, max(step.peak_bytes for step in passes), request.inputs.beside_bytes
        ),
        device_peak_bytes=device_budget_of(max(step.device_peak_bytes for step in passes)),
        device_memory_bytes=found.device_memory_bytes,
        batch_size=1,
        sizes=sizes,
        passes=passes,
    )


def _passes_of(request: Request, settings: ExactSettings) -> Passes:
    """Return the passes of a run with these settings.

    Raises
    ------
    ResumeRefused
        Where the settings, those of a journal, name nodes that the model does not have.
    """
    network = network_of(request, settings.sizes, settings.device, settings.precision)
    graph = network.graph(request.model.module)
    for step in settings.passes:
        nodes = (*step.given, *step.stores, *step.statistics)
        sides = len(step.block) == graph.ndim and min(step.block) >= 1
        if not sides or not all(n in range(len(graph.nodes)) for n in nodes):
            raise ResumeRefused(
                f"the journal of {request.out} names passes that the model has not; begin again"
                " (overwrite=True, --overwrite)"
            )
    return Passes(
        settings.passes,
        graph,
        Blockwise(network, partial(request.inputs.read, dtype=network.dtype)),
        request.plugin,
        Journal(journal_dir(request.out)).passes,
        settings.threads,
        settings.peak_bytes - max(step.peak_bytes for step in settings.passes),
    )


def plan(
    request: Request,
    settings: ExactSettings,
    client: Client,
    memory_bytes: int,
    targets: Targets,
    done: frozenset[int],
) -> Plan:
    """Return the plan of the last pass, which tells of those before it as well."""
    passes, last = _passes_of(request, settings), len(settings.passes) - 1
    blocks = out_blocks(request, settings)
    left = [number for number in range(len(blocks)) if number not in done]
    window = ExactWindow(
        request.inputs,
        passes.inputs_of(last),
        dropped_axis(request),
        settings.outputs,
        request.finish(settings.dtype),
    )
    job = OutputJob(window, blocks, targets, settings.threads, passes.peak_bytes(last))
    runs = runs_for(left, expected_workers(client))
    own = (("device", f"{settings.device} {settings.precision}"),)
    found = output_plan(request, settings, exact_outputs, job, runs, memory_bytes, "exact", own)
    return replace(found, facts=(*found.facts, *pass_facts(passes.graph, passes.steps)))


@contextmanager
def prepared(
    request: Request,
    settings: ExactSettings,
    client: Client,
    memory_bytes: int,
    done: frozenset[int],
) -> Iterator[None]:
    """Run the passes before the last; what they kept is dropped behind it."""
    passes = _passes_of(request, settings)
    if len(done) < len(out_blocks(request, settings)):
        run_passes(passes, request.fingerprint(), client, memory_bytes, request.options.progress)
    yield
    passes.drop(len(passes.steps) - 1)


def boxes(request: Request, *, computed: bool) -> tuple[BoxFunction, Hull]:
    """Compute each box from its own margin; statistics of a stored volume are measured now.

    Raises
    ------
    NoExactRule
        Where an op of the model has none.
    InvalidInput
        Where statistics of an array are needed that is yet to be computed.
    """
    inputs, options = request.inputs, request.options
    dropped, seen = dropped_axis(request), seen_axes(request)
    sizes, graph, outputs = traced(request)
    statistics: Statistics = {}
    if graph.statistics and dropped is None:
        if computed:
            raise InvalidInput(
                f"the model needs {len(graph.statistics)} statistics of the whole volume, which a"
                " computed array does not have; store it first with vf.write, or use"
                " blend='gaussian'"
            )
        statistics = _measured(request)
    network = network_of(request, sizes, options.device, options.precision)
    image = partial(inputs.read, dtype=network.dtype)
    blockwise = Blockwise(network, image, statistics=statistics)
    window = ExactWindow(inputs, blockwise, dropped, outputs, request.finish(network.dtype))

    def hull(axis: int, low: int, high: int) -> tuple[int, int]:
        if axis == dropped:
            return low, high
        at = seen.index(axis)
        start, stop = [0] * len(seen), [1] * len(seen)
        start[at], stop[at] = low, high
        box = Roi(tuple(start), tuple(stop))
        targets = dict.fromkeys(graph.outputs.values(), box)
        low, high = tuple(needed(graph, targets, (0, *statistics))[0])[at]
        return low, min(high, inputs.shape[axis])

    return window, hull


def _measured(request: Request) -> Statistics:
    """Return statistics of the whole volume by node, measured as `predict` does."""
    with tempfile.TemporaryDirectory() as folder, connect(None) as client, lent(request.plugin):
        placed = replace(request, out=Path(folder) / "out.zarr")
        memory_bytes = memory_per_worker(client, None)
        passes = _passes_of(placed, decide(placed, client, memory_bytes))
        if len(passes.steps) > 1:
            run_passes(passes, request.fingerprint(), client, memory_bytes, False)
            return dict(passes.inputs_of(len(passes.steps) - 1).statistics)
        # The volume fits in memory as one block.
        network = passes.blockwise.network
        graph, found = network.graph(), dict[int, Tensor]()
        measuring = Pass((0,), (), graph.statistics, graph.sizes(0))
        targets = targets_of(graph, measuring, Roi.full(graph.sizes(0)))
        with network.inference():
            for node, values in passes.blockwise.compute(graph, targets):
                found |= partials_of(graph, graph.statistics, node, values, targets[node])
        rules = {n: statistic_of(graph, n) for n in found}
        return {n: rule.merged([found[n].numpy(force=True)]) for n, rule in rules.items()}
