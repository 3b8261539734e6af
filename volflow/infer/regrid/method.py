"""Any method, over volumes of another spacing: scores on the network's grid, then brought back.

The method predicts scores of the volume as the network sees it, into a volume beside the output's
journal. A second plan brings them back, block by block, and makes of them what is stored; the
scores go when it is done. So neither holds more than its blocks, whatever the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from distributed import Client

from volflow.engine.plan import Plan, runs_for
from volflow.engine.workers import expected_workers
from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.geometry.roi import Roi
from volflow.geometry.units import unit_sign
from volflow.infer.finish import Finish
from volflow.infer.method import (
    SLACK_BYTES,
    BoxFunction,
    Hull,
    Method,
    OutputJob,
    Targets,
    out_blocks,
    output_plan,
)
from volflow.infer.predict_options import PredictOptions
from volflow.infer.regrid.bring_back import bring_back
from volflow.infer.regrid.brought_back import UNCOVERED, BroughtBack, StoredScores, rows_together
from volflow.infer.request import Request, check_classes, stored_bytes, stored_layout
from volflow.infer.settings import Settings
from volflow.infer.under_journal import write_under
from volflow.store.create import open_begun
from volflow.store.journal.journal import journal_of
from volflow.store.journal.outputs import discard_wholly
from volflow.store.journal.provenance import note_machine, noted_machines
from volflow.store.layout import shrinking
from volflow.volumes.resample.model_grid import ModelGrid

__all__ = ["OnModelGrid", "RegridSettings", "resampled"]

# Of stored scores: a block reads little beyond what it needs.
SCORES_CHUNK = 32
# Zarr takes the chunks of a shard from, and into, arrays of their own.
COPIES = 3


@dataclass(frozen=True, kw_only=True)
class RegridSettings(Settings):
    """Settings of a run whose scores come back from the network's grid.

    Parameters
    ----------
    scores
        Those of the run that computes the scores.
    """

    scores: Settings

    def own(self) -> dict[str, Any]:
        """Return plain values of the run of the scores, for the journal."""
        return {**self.scores.own(), "scores": self.scores.to_dict(())}

    @property
    def keeps(self) -> bool:
        """Whether the run keeps something for all blocks that are left: the scores."""
        return True

    def on_cpu(self) -> RegridSettings:
        """Return the settings for a machine without a GPU."""
        return replace(super().on_cpu(), scores=self.scores.on_cpu())


@dataclass(frozen=True)
class OnModelGrid:
    """A method of inference, by another one on the grid of the network.

    Parameters
    ----------
    method
        The other one.
    """

    method: Method[Any]

    @property
    def BLENDS(self) -> tuple[str, ...]:
        """The blends that the method computes."""
        return self.method.BLENDS

    def check(self, given: PredictOptions, options: PredictOptions) -> PredictOptions:
        """Check options as the method does."""
        return self.method.check(given, options)

    def read(self, saved: Mapping[str, Any]) -> RegridSettings | None:
        """Return the settings of a journal; None where another method wrote it."""
        if "scores" not in saved:
            return None
        scores = self.method.read(saved["scores"])
        return None if scores is None else RegridSettings.from_dict(saved, scores=scores)

    def decide(self, request: Request, client: Client, memory_bytes: int) -> RegridSettings:
        """Return settings for a first run: those of the scores, and blocks to bring them back."""
        seen = scores_request(request)
        scores = self.method.decide(seen, client, memory_bytes)
        outputs = tuple(replace(output, scale=(1, 1, 1)) for output in scores.outputs)
        check_classes(request.options, outputs)
        chunk, shard = stored_layout(request, outputs[0], scores.dtype)
        values = {field.name: getattr(scores, field.name) for field in fields(Settings)}
        # Scores are brought back on the host.
        values |= {"device_peak_bytes": 0, "device_memory_bytes": 0, "host_sums": False}
        values |= {"outputs": outputs, "chunk": chunk, "shard": shard, "block": shard}
        usual = RegridSettings(**values, scores=scores)
        return _fitted(request, usual, memory_bytes)

    def plan(
        self,
        request: Request,
        settings: RegridSettings,
        client: Client,
        memory_bytes: int,
        targets: Targets,
        done: frozenset[int],
    ) -> Plan:
        """Return the plan that brings scores back; shown, it tells of the run before it as well."""
        seen, grid = scores_request(request), _grid(request)
        blocks = out_blocks(request, settings)
        left = [number for number in range(len(blocks)) if number not in done]
        # They are there while there is something to make of them.
        volumes = {name: open_begun(_place(seen, name)) for name in targets if left}
        stored = StoredScores(
            seen.inputs, volumes, settings.scores.outputs, seen.finish(settings.dtype)
        )
        window = BroughtBack(request.inputs, grid, stored, _finish(request, settings.dtype))
        job = OutputJob(window, blocks, targets, settings.threads, settings.peak_bytes)
        runs = runs_for(left, expected_workers(client))
        own: tuple[tuple[str, str], ...] = ()
        blend, peak = "", settings.peak_bytes
        if not targets:
            before = self.method.plan(seen, settings.scores, client, memory_bytes, {}, frozenset())
            blend = dict(before.facts)["blend"].partition(", frame ")[0]
            own = _facts(request, settings, before)
            peak = max(peak, before.peak_bytes)
        found = output_plan(request, settings, bring_back, job, runs, memory_bytes, blend, own)
        return replace(found, exclusive=False, plugin=None, peak_bytes=peak)

    @contextmanager
    def prepared(
        self,
        request: Request,
        settings: RegridSettings,
        client: Client,
        memory_bytes: int,
        done: frozenset[int],
    ) -> Iterator[None]:
        """Predict the scores, which go behind what is made of them."""
        seen = scores_request(request)
        journal = journal_of(seen.out)
        if len(done) < len(out_blocks(request, settings)):
            journal_of(request.out).passes.mkdir(parents=True, exist_ok=True)
            write_under(
                self.method, seen, settings.scores, client, memory_bytes, request.fingerprint()
            )
            for machine in noted_machines(journal):
                note_machine(journal_of(request.out), machine)
        yield
        discard_wholly(seen.out)
        with suppress(OSError):  # there is something else in it, or it is not there
            journal.directory.parent.rmdir()

    def boxes(self, request: Request, *, computed: bool) -> tuple[BoxFunction, Hull]:
        """Compute each box from the scores around it."""
        seen, grid = scores_request(request), _grid(request)
        scores, hull = self.method.boxes(seen, computed=computed)
        finish = _finish(request, scores.finish.dtype)
        window = BroughtBack(request.inputs, grid, scores, finish)
        taps = window.regridding.taps

        def read(axis: int, low: int, high: int) -> tuple[int, int]:
            return grid.read_range(axis, *hull(axis, *taps[axis].range(low, high)))

        return window, read


# What the plan that is shown says of its own accord.
_SAID = ("input", "model", "output", "blend", "layout")


def _facts(request: Request, settings: RegridSettings, before: Plan) -> tuple[tuple[str, str], ...]:
    """Return what is said of a run: what its scores take, and what is resampled."""
    seen = scores_request(request)
    values = sum(
        output.channels * math.prod(seen.out_shape(output.scale))
        for output in settings.scores.outputs
    )
    size = format_bytes(values * np.dtype(settings.dtype).itemsize)
    voxels = math.prod(seen.inputs.shape)
    return (
        *((name, text) for name, text in before.facts if name not in _SAID),
        ("resampled", resampled(request)),
        ("scores", f"up to {size} beside the output until it is done, of {voxels:,} voxels"),
    )


def _grid(request: Request) -> ModelGrid:
    assert request.grid is not None
    return request.grid


def scores_request(request: Request) -> Request:
    """Return the request of the scores on the network's grid, which are kept beside the journal."""
    asked = request.options
    options = replace(
        asked,
        output="scores",
        dtype=None,
        fill=UNCOVERED if request.inputs.skipping else 0,
        # Who asks for small shards wants to lose little when a run is killed.
        chunk=SCORES_CHUNK if asked.shard is None else asked.chunk,
    )
    return replace(
        request,
        inputs=_grid(request).seen(request.inputs),
        options=options,
        out=journal_of(request.out).passes / "scores.zarr",
        file=None,
        grid=None,
    )


def _finish(request: Request, computed: str) -> Finish:
    """Return the finish of scores that came back, which are activated already.

    Between voxels probabilities are what they are said to be; scores before a softmax are not, and
    the class that is surest moves the border towards the others.
    """
    return replace(request.finish(computed), activation=None)


def _place(seen: Request, name: str) -> Any:
    return seen.out / name if name else seen.out


def _fitted(request: Request, usual: RegridSettings, memory_bytes: int) -> RegridSettings:
    """Return settings whose blocks come back within the budget: smaller shards where they must.

    Raises
    ------
    MemoryRefused
        Where no chunk fits, or not the shards that were asked for.
    """
    fixed = request.options.shard is not None
    shards = (usual.shard,) if fixed else shrinking(usual.shard, usual.chunk, usual.chunk)
    for shard in shards:
        settings = replace(usual, shard=shard, block=shard)
        peak = _peak_bytes(request, settings)
        if peak <= memory_bytes:
            return replace(settings, peak_bytes=peak)
    smaller = "shards (shard=, --shard)" if fixed else "chunks (chunk=, --chunk)"
    raise MemoryRefused(
        f"to bring scores of {sum(o.channels for o in usual.outputs)} channels back to"
        f" blocks of {shard} voxels takes {format_bytes(peak)}, and memory is"
        f' {format_bytes(memory_bytes)}; use memory="{math.ceil(peak / 2**20)}MiB" or more'
        f" (--memory), or smaller {smaller}"
    )


def _peak_bytes(request: Request, settings: RegridSettings) -> int:
    """Return what bringing one block back takes: scores read and held, rows made, the block."""
    grid, scores, inputs = _grid(request), settings.scores, request.inputs
    channels = sum(output.channels for output in scores.outputs)
    back = grid.back(scores.outputs[0].scale, scores.dtype)
    box = Roi((0, 0, 0), inputs.frame.reorder(settings.block)).clip(inputs.shape)
    step = rows_together(box.shape, channels, scores.dtype)
    slab = Roi((0, 0, 0), (step, *box.shape[1:]))
    size = np.dtype(scores.dtype).itemsize
    needed, *across = back.source(slab).shape
    row = channels * math.prod(across) * size
    layer = min(scores.chunk[inputs.frame.axes[0]], back.grid.axes[0].source)
    # Held rows and a layer that joins them; a channel of one as Zarr reads it.
    held = row * (2 * (needed + layer)) + row // channels * layer * COPIES
    made = back.bytes(slab, channels) + 2 * channels * slab.size * size
    if inputs.skipping:  # scores without those of voxels that no patch covered, and which these are
        made += row * needed + 2 * back.bytes(slab)
    stored = stored_bytes(request, settings.outputs, scores.dtype)
    one = np.dtype(request.options.stored_dtype(scores.dtype)).itemsize
    written = box.size * (stored + COPIES * one)  # all channels, and the shard of one
    return held + made + written + SLACK_BYTES


def resampled(request: Request) -> str:
    """Return what is resampled, as people read it."""
    grid, inputs = _grid(request), request.inputs
    stored = grid.stored
    before = "×".join(f"{s:.4g}" for s in inputs.meta.spacing)
    after = "×".join(f"{s:.4g}" for s in grid.spacing)
    unit = f" {unit_sign(inputs.meta.unit)}".rstrip()
    thick = "" if grid.thick is None else ", nearest through thick slices"
    return (
        f"{inputs.specs[0].spatial_shape} of {before}{unit} to {stored.shape} of {after}{unit},"
        f" cubic; scores back, linear{thick}"
    )
