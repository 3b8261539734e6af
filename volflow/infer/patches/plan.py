"""From a request to a plan: a trial forward, a tiling within the budget, settings to adopt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from distributed import Client

from volflow.engine.cluster import cores, is_embedded, memory_per_worker, workers
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.task import Context, Step
from volflow.engine.workers import worker_records
from volflow.errors import InvalidInput, MemoryRefused, ResumeRefused
from volflow.geometry.grid import BlockGrid, per_axis
from volflow.infer.exact.plan import ExactSettings, decide_exact, plan_exact
from volflow.infer.patches.feed import segment_rows
from volflow.infer.patches.job import PredictJob, Target
from volflow.infer.patches.task import predict_blocks
from volflow.infer.patches.tiling import Demand, choose_tiling, limit_depth, patch_count, runs_of
from volflow.infer.request import Request, check_classes, output_meta
from volflow.model.forward import Forward, Output, Probe, probe
from volflow.model.resident import ModelPlugin
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.journal.records import typed
from volflow.store.layout import resolve_layout

__all__ = ["Settings", "adopt", "check_otherwise", "decide", "make_plan", "out_blocks"]

MOST_SIDE = 2**31  # of what a journal may say


@dataclass(frozen=True)
class Settings:
    """What a run decides once and a resumed run adopts."""

    outputs: tuple[Output, ...]
    dtype: str
    precision: str
    device: str
    batch_size: int
    threads: int
    block: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    peak_bytes: int
    exact: ExactSettings | None = None

    def to_dict(self, grid: tuple[int, ...]) -> dict[str, Any]:
        """Plain values, for the journal."""
        outputs = [[o.name, o.channels, list(o.scale)] for o in self.outputs]
        rest = {n: getattr(self, n) for n in self.__dataclass_fields__ if n != "outputs"}
        rest["exact"] = None if self.exact is None else self.exact.to_dict()
        return {"grid": list(grid), "outputs": outputs, **rest}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Settings:
        """The settings of a journal."""
        outputs = [{"name": n, "channels": c, "scale": s} for n, c, s in saved["outputs"]]
        values = {name: saved[name] for name in cls.__dataclass_fields__ if name in saved}
        settings = typed(cls, {**values, "outputs": outputs})
        sides = [
            settings.block,
            settings.chunk,
            settings.shard,
            *(o.scale for o in settings.outputs),
        ]
        if {len(three) for three in sides} != {3} or not settings.outputs:
            raise ValueError("there are not three numbers for three axes")
        counts = (settings.batch_size, settings.threads, *(o.channels for o in settings.outputs))
        if not all(1 <= n <= MOST_SIDE for n in (*counts, *itertools.chain(*sides))):
            raise ValueError("numbers are out of any range")
        np.dtype(settings.dtype)
        return settings


@dataclass(frozen=True)
class ProbeJob:
    """A trial forward, as a job."""

    forward: Forward
    batch_size: int | None
    memory_bytes: int
    threads: int


def probe_block(job: ProbeJob, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    """Run the trial forward on a worker."""
    found = probe(job.forward, job.batch_size, job.memory_bytes, job.threads)
    yield Step(blocks[0], 1, found)


def _probe(
    request: Request, client: Client, memory_bytes: int, threads: int, batch: int | None
) -> Probe:
    options = request.options
    forward = request.forward(options.device, options.precision)
    job = ProbeJob(forward, batch, memory_bytes, threads)
    plugin = ModelPlugin(request.model.module, request.model.digest)
    plan = Plan(
        "trial forward", probe_block, job, ((0,),), 1, "forward", 1, memory_bytes, True, (), plugin
    )
    found: Probe = run(plan, cluster=client, progress=False).results[0]
    scales = {o.scale for o in found.outputs}
    if len(scales) > 1:
        raise InvalidInput(
            f"the model's outputs differ in resolution ({sorted(scales)}); wrap it so that it"
            " returns those of one resolution"
        )
    return found


def _demand(request: Request, probe_: Probe) -> Demand:
    scale = probe_.outputs[0].scale
    inputs = request.inputs
    score_bytes = 8 if probe_.dtype == "float64" else 4
    channels = sum(o.channels for o in probe_.outputs)
    stored = np.dtype(request.options.stored_dtype(probe_.dtype)).itemsize
    classes = request.options.output == "classes"
    return Demand(
        grid=request.grid_for(scale),
        scale=scale,
        frame=inputs.frame,
        crop=request.options.blend == "crop",
        input_bytes=_row_bytes(request, score_bytes),
        raw_bytes=max(v.dtype.itemsize * v.channels_count for v in inputs.volumes),
        segment_rows=segment_rows(inputs),
        output_channels=channels,
        output_bytes=stored * (len(probe_.outputs) if classes else channels),
        score_bytes=score_bytes,
        forward_bytes=probe_.peak_bytes,
        on_device=probe_.device.startswith("cuda"),
        skipping=inputs.skipping,
    )


def _row_bytes(request: Request, score_bytes: int) -> int:
    """Bytes per voxel of the rows held: as stored, or as a function normalised them."""
    if callable(request.options.normalize):
        return score_bytes * request.inputs.channels
    return sum(v.dtype.itemsize * v.channels_count for v in request.inputs.volumes)


def decide(request: Request, client: Client, memory: Any) -> Settings:
    """Settings for a first run, from a trial forward and the budget."""
    if request.options.exact:
        return _exactly(request, client, memory)
    memory_bytes = memory_per_worker(client, memory)
    asked = request.options.batch_size
    found = _probe(
        request, client, memory_bytes, _threads(client), None if asked == "auto" else int(asked)
    )
    while True:
        try:
            return _settings(request, found, memory_bytes)
        except MemoryRefused:
            on_cpu = not found.device.startswith("cuda")
            if asked != "auto" or found.batch_size == 1 or not on_cpu:
                raise
        smaller = found.batch_size // 2
        found = _probe(request, client, memory_bytes, found.threads, smaller)


def _exactly(request: Request, client: Client, memory: Any) -> Settings:
    """Settings of an exact run."""
    threads = _threads(client)
    found = decide_exact(request, client, memory, threads)
    return Settings(
        outputs=found.outputs,
        dtype=found.network.dtype,
        precision=found.network.precision,
        device=found.network.device,
        batch_size=1,
        threads=threads,
        block=found.layout.block,
        chunk=found.layout.chunk,
        shard=found.layout.shard,
        peak_bytes=found.peak_bytes,
        exact=found.exact,
    )


def _settings(request: Request, found: Probe, memory_bytes: int) -> Settings:
    options = request.options
    demand = _demand(request, found)
    out_shape = demand.frame.restore(demand.grid.reduced(demand.scale).shape)
    spacing = output_meta(request, found.outputs[0]).spacing
    dtype = options.stored_dtype(found.dtype)
    check_classes(options, found.outputs)
    chunk, shard = resolve_layout(out_shape, spacing, dtype, options.chunk, options.shard)
    if options.shard is None:
        shard = limit_depth(shard, chunk, out_shape, demand.frame.axes[0])
    least = shard if options.shard is not None else chunk
    tiling = choose_tiling(demand, shard, least, memory_bytes)
    return Settings(
        outputs=found.outputs,
        dtype=found.dtype,
        precision=found.precision,
        device=found.device,
        batch_size=found.batch_size,
        threads=found.threads,
        block=tiling.block,
        chunk=chunk,
        shard=tiling.shard,
        peak_bytes=tiling.peak_bytes,
    )


def _threads(client: Client) -> int:
    """Torch threads per worker, so that the workers of a machine share its cores."""
    if is_embedded(client):
        return min(torch.get_num_threads(), cores())  # torch knows nothing of a cgroup's quota
    hosts = [w.get("host") for w in worker_records(client).values()]
    return max(1, cores() // max((hosts.count(h) for h in hosts), default=1))


def adopt(request: Request, record: Record) -> Settings:
    """Settings of the run that is resumed, which the options may not contradict."""
    try:
        settings = Settings.from_dict(record.settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeRefused(
            f"the journal of {request.out} is not one of predict ({error}); use overwrite=True"
        ) from error
    options = request.options
    if options.exact != (settings.exact is not None):
        raise ResumeRefused(
            f"{request.out} was begun with something else: another blend than {options.blend!r}; go"
            " back to that, or begin again (overwrite=True, --overwrite), or choose another output"
        )
    wanted = {
        "batch_size": options.batch_size,
        "device": options.device,
        "precision": options.precision,
        "chunk": "auto" if options.chunk is None else per_axis(options.chunk, "chunk"),
        "shard": "auto" if options.shard is None else per_axis(options.shard, "shard"),
    }
    for name, value in wanted.items():
        if value not in ("auto", getattr(settings, name)):
            raise ResumeRefused(
                f"{request.out} was begun with {name} {getattr(settings, name)!r}, now {value!r};"
                f" leave {name} out to resume, or use overwrite=True"
            )
    return settings


def out_blocks(request: Request, settings: Settings) -> BlockGrid:
    """The tiling of the outputs, stored axes, output voxels."""
    scale = settings.outputs[0].scale
    return BlockGrid(request.out_shape(scale), settings.block)


def check_otherwise(request: Request, settings: Settings) -> None:
    """Refuse to begin anew, for inputs that were computed anew, what was begun otherwise, too."""
    journal = Journal(journal_dir(request.out))
    before = journal.recorded()
    if before is not None:
        same = {name: before.fingerprint.get(name) for name in ("input", "mask")}
        grid = out_blocks(request, settings).counts
        journal.compare(
            Record("predict", {**request.fingerprint(), **same}, settings.to_dict(grid))
        )


def make_plan(
    request: Request,
    settings: Settings,
    client: Client,
    memory: Any,
    targets: tuple[Target, ...] = (),
    *,
    resuming: bool = False,
) -> Plan:
    """The plan for what is left to do; its targets are made when it runs."""
    journal = Journal(journal_dir(request.out))
    blocks = out_blocks(request, settings)
    memory_bytes = memory_per_worker(client, memory)
    done = frozenset(journal.done()) if targets or resuming else frozenset[int]()
    if settings.exact is not None:
        return plan_exact(request, settings, client, memory_bytes, targets, done)
    runs = runs_of(blocks, request.inputs.frame, done, max(1, len(workers(client))))
    job = PredictJob(
        window=request.window(
            settings.outputs,
            request.forward(settings.device, settings.precision),
            settings.batch_size,
        ),
        blocks=blocks,
        targets=targets,
        threads=settings.threads,
    )
    return Plan(
        "predict",
        predict_blocks,
        job,
        runs,
        units=sum(blocks[n].write_roi.size for run in runs for n in run),
        unit="voxels",
        peak_bytes=settings.peak_bytes,
        memory_bytes=memory_bytes,
        exclusive=True,
        facts=_facts(request, settings, job, runs),
        plugin=ModelPlugin(request.model.module, request.model.digest),
    )


def _facts(
    request: Request, settings: Settings, job: PredictJob, runs: tuple[tuple[int, ...], ...]
) -> tuple[tuple[str, str], ...]:
    inputs, grid = request.inputs, job.window.grid
    calls = sum(_calls(job, run) for run in runs)
    blend = f"{request.options.blend}, patch {grid.patch}, stride {grid.stride}"
    return (
        ("input", ", ".join(str(v.path) for v in inputs.volumes) + f" {inputs.shape}"),
        ("model", request.model.name),
        ("output", f"{request.out} {request.options.output} {job.window.finish.dtype}"),
        ("blend", blend + (f", frame {request.options.frame}" if request.options.frame else "")),
        ("patches", f"{calls:,} forwards for {len(grid):,} patches of the grid"),
        ("device", f"{settings.device} {settings.precision}, batches of {settings.batch_size}"),
        ("blocks", f"{settings.block} voxels, shards {settings.shard}, chunks {settings.chunk}"),
    )


def _calls(job: PredictJob, run: tuple[int, ...]) -> int:
    first, last = job.roi(run[0]), job.roi(run[-1])
    tile = [[(a, b)] for a, b in zip(first.start, last.stop, strict=True)]
    window = job.window
    return patch_count(window.grid.reduced(window.scale), tile, window.blend == "crop")
