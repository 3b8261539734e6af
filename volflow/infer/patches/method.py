"""The method of overlapping patches: a trial forward, a tiling within the budget, a plan."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any, get_args

import numpy as np
import torch
from distributed import Client

from volflow.engine.plan import Plan
from volflow.engine.workers import expected_workers
from volflow.errors import InvalidInput, MemoryRefused
from volflow.geometry.grid import PatchGrid, stride_of
from volflow.geometry.windows import SIGMA_SCALE, Blend, WeightMap, refuse_coarser
from volflow.infer.method import (
    BoxFunction,
    Hull,
    OutputJob,
    Targets,
    out_blocks,
    output_plan,
    threads_per_worker,
)
from volflow.infer.patches.course import (
    exchanged,
    exchanged_grid,
    exchanged_image,
    goes_along_second,
)
from volflow.infer.patches.demand import Demand
from volflow.infer.patches.rows import rows_at_once
from volflow.infer.patches.runs import runs_of
from volflow.infer.patches.sliding import SlidingWindow, predict_blocks, read_hull
from volflow.infer.patches.tiling import limit_depth, patch_count, place_sums
from volflow.infer.patches.writer import tile_of
from volflow.infer.predict_options import PredictOptions
from volflow.infer.request import Request, check_classes, stored_bytes, stored_layout
from volflow.infer.settings import Settings
from volflow.model.forward import Forward, Output, has_half_weights
from volflow.model.resident import lent, trials_of
from volflow.model.trial import (
    MOST_TRIALS,
    Probe,
    output_shapes,
    probe,
    tried_on_worker,
    usual_batch,
)

__all__ = ["BLENDS", "boxes", "check", "decide", "plan", "prepared", "read"]

BLENDS: tuple[str, ...] = get_args(Blend)


def check(given: PredictOptions, options: PredictOptions) -> PredictOptions:
    """Refuse options without a patch, or with an overlap as large as the patch."""
    if options.patch is None:
        raise InvalidInput("patch is needed: this model does not say its own; e.g. patch=96")
    stride_of(options.sides, options.overlap or 0)
    blend: Any = options.blend
    if isinstance(blend, WeightMap):
        fitted: Any = blend.fitted(options.sides)
        return replace(options, blend=fitted)
    return options


def read(saved: Mapping[str, Any]) -> Settings | None:
    """Return the settings of a journal; None where an exact run wrote it."""
    return None if saved.get("exact") is not None else Settings.from_dict(saved)


def decide(request: Request, client: Client, memory_bytes: int) -> Settings:
    """Return settings for a first run, from a trial forward and the budget."""
    asked, threads = request.options.batch_size, threads_per_worker(client)
    count = expected_workers(client)
    found = _probed(request, client, memory_bytes, threads, None if asked == "auto" else int(asked))
    while True:
        try:
            return _settings(request, found, memory_bytes, count)
        except MemoryRefused:
            if asked != "auto" or found.batch_size == 1:
                raise
        found = _probed(request, client, memory_bytes, threads, found.batch_size // 2)


def _probed(
    request: Request, client: Client, memory_bytes: int, threads: int, batch: int | None
) -> Probe:
    options = request.options
    forward = request.forward(options.device, options.precision)
    row, asked = _grid(request, (1, 1, 1)).counts[2], options.device_bytes
    given = forward, batch, memory_bytes, threads, row, asked
    # A worker remembers two trials of a model on its CPU: a third task would tell nothing new.
    known: list[Probe] = trials_of(request.model.digest).setdefault((client.id, *given), [])
    if len(known) == MOST_TRIALS:
        return known[-1]
    found = tried_on_worker("trial forward", partial(probe, *given), request.plugin, client)
    _check_scales(request, found.outputs)
    if not found.device.startswith("cuda"):  # where other processes take memory, too
        known.append(found)
    return found


def _check_scales(request: Request, outputs: tuple[Output, ...]) -> None:
    scales = {output.scale for output in outputs}
    if len(scales) > 1:
        raise InvalidInput(
            f"the model's outputs differ in resolution ({sorted(scales)}); wrap it so that it"
            " returns those of one resolution"
        )
    refuse_coarser(request.options.blending, outputs[0].scale)


def _settings(request: Request, found: Probe, memory_bytes: int, count: int) -> Settings:
    options, demand = request.options, _demand(request, found)
    check_classes(options, found.outputs)
    chunk, shard = stored_layout(request, found.outputs[0], found.dtype)
    if options.shard is None:
        shape = request.out_shape(found.outputs[0].scale)
        shard = limit_depth(shard, chunk, shape, demand.frame.axes[0])
    least = shard if options.shard is not None else chunk
    device_bytes = found.device_memory_bytes if demand.on_device else None
    tiling = place_sums(demand, shard, least, memory_bytes, device_bytes, count)
    return Settings(
        outputs=found.outputs,
        dtype=found.dtype,
        precision=found.precision,
        device=found.device,
        threads=found.threads,
        block=tiling.block,
        chunk=chunk,
        shard=tiling.shard,
        peak_bytes=tiling.peak_bytes,
        batch_size=found.batch_size,
        layout=found.layout,
        device_peak_bytes=tiling.device_peak_bytes,
        device_memory_bytes=found.device_memory_bytes,
        host_sums=tiling.host_sums,
    )


def _demand(request: Request, found: Probe) -> Demand:
    scale, inputs = found.outputs[0].scale, request.inputs
    grid = _grid(request, scale)
    if goes_along_second(grid):
        grid, scale, inputs = exchanged_grid(grid), exchanged(scale), exchanged_image(inputs)
    on_device = found.device.startswith("cuda")
    score_bytes = np.dtype(found.dtype).itemsize
    if callable(request.options.normalize):  # rows are held as it made them
        input_bytes = score_bytes * inputs.channels
    else:
        input_bytes = sum(spec.voxel_bytes for spec in inputs.specs)
    return Demand(
        grid=grid,
        scale=scale,
        frame=inputs.frame,
        crop=request.options.blend == "crop",
        skipping=inputs.skipping,
        input_bytes=input_bytes,
        raw_bytes=max(spec.voxel_bytes for spec in inputs.specs),
        segment_rows=rows_at_once(inputs),
        output_channels=sum(o.channels for o in found.outputs),
        output_bytes=stored_bytes(request, found.outputs, found.dtype),
        score_bytes=score_bytes,
        forward_bytes=found.device_peak_bytes if on_device else found.peak_bytes,
        on_device=on_device,
        input_channels=inputs.channels,
        batch_size=found.batch_size,
        beside_bytes=inputs.beside_bytes,
    )


def _grid(request: Request, scale: tuple[int, ...]) -> PatchGrid:
    """Return the global grid of patches, for a model that reduces its input by ``scale``."""
    sides = request.options.sides
    stride = stride_of(sides, request.options.overlap or 0, scale)
    return PatchGrid(request.inputs.shape, sides, stride, tuple(s > 1 for s in scale))


def _window(
    request: Request, outputs: tuple[Output, ...], forward: Forward, batch_size: int
) -> SlidingWindow:
    """Return the box function, once it is known what the model returns."""
    scale = outputs[0].scale
    return SlidingWindow(
        request.inputs,
        _grid(request, scale),
        scale,
        forward,
        batch_size,
        request.options.blending,
        request.options.sigma,
        request.finish(forward.dtype),
        outputs,
    )


def plan(
    request: Request,
    settings: Settings,
    client: Client,
    memory_bytes: int,
    targets: Targets,
    done: frozenset[int],
) -> Plan:
    """Return the plan for the blocks that are not done, in runs that carry their open seam."""
    blocks = out_blocks(request, settings)
    forward = request.forward(settings.device, settings.precision, settings.layout)
    window = _window(request, settings.outputs, forward, settings.batch_size)
    window, grid = replace(window, host_sums=settings.host_sums), window.grid
    if goes_along_second(grid):
        window = window.along_second()
    frame = window.inputs.frame
    out = window.grid.reduced(window.scale)

    @cache
    def patches(run: tuple[int, ...]) -> int:
        tile = tile_of(blocks, frame, run)
        return patch_count(out, [[side] for side in tile], crop=window.blend == "crop")

    runs = runs_of(blocks, frame, done, expected_workers(client), patches)
    calls = sum(map(patches, runs))
    job = OutputJob(window, blocks, targets, settings.threads, settings.peak_bytes)
    blend = f"{window.blend}, patch {grid.patch}, stride {grid.stride}"
    if window.sigma_scale != SIGMA_SCALE:
        blend = f"{window.blend} of sigma_scale {window.sigma_scale}, " + blend.partition(", ")[2]
    batches = f"batches of {settings.batch_size}"
    if settings.layout != "contiguous":
        batches += f", {settings.layout}"
    if settings.host_sums:
        batches += ", sums on the host"
    own = (
        ("patches", f"{calls:,} forwards for {len(grid):,} patches of the grid"),
        ("device", f"{settings.device} {settings.precision}, {batches}"),
    )
    return output_plan(request, settings, predict_blocks, job, runs, memory_bytes, blend, own)


def prepared(*_: Any) -> AbstractContextManager[None]:
    """Patches need nothing before them."""
    return nullcontext()


def boxes(request: Request, *, computed: bool) -> tuple[BoxFunction, Hull]:
    """Return a sliding window, for a stored input as well as for a computed one."""
    options, model = request.options, request.model
    forward = request.forward(options.device, options.precision)
    # Without values a network is not asked whether it takes float32 beside weights of another.
    outputs = None if has_half_weights(model.module) else output_shapes(forward, model.module)
    if outputs is None:
        with lent(request.plugin):
            outputs = probe(forward, 1, 2**62, torch.get_num_threads()).outputs
    _check_scales(request, outputs)
    asked = options.batch_size
    batch = usual_batch(forward.patch) if asked == "auto" else int(asked)
    window = _window(request, outputs, forward, batch)
    return window, partial(read_hull, window)
