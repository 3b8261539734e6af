"""The task behind ``predict``: one run of neighbouring blocks through the model.

Read → forward → blend → write, each in its own thread or stream: while the model computes one
layer of patches, the next rows are read and the last block is compressed and written. The seam
between two blocks of a run stays open in the blend, so each patch is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy.typing as npt
import torch

from volflow.engine.memory import Ceiling
from volflow.engine.plan import Step
from volflow.errors import InvalidInput
from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.model.forward import torch_threads
from volflow.ops.aggregate import RollingBlend
from volflow.ops.feed import Feed
from volflow.ops.predict_job import Clock, PredictJob
from volflow.ops.tiling import FINISH_ROWS
from volflow.ops.write_behind import Writer

__all__ = ["predict_blocks"]


def predict_blocks(job: PredictJob, blocks: tuple[int, ...]) -> Iterator[Step]:
    """Run blocks that lie behind each other along the frame's first axis.

    Blocks that the journal already holds are left out, so a task may be run again after a failure.
    """
    done = job.journal.done(blocks)
    for number in blocks:
        if number in done:
            yield Step(number, 0)
    ceiling = Ceiling(job.memory_bytes)
    for run in _neighbours(job, [b for b in blocks if b not in done]):
        with torch_threads(job.threads), torch.inference_mode():
            yield from _run(job, run, ceiling)


def _neighbours(job: PredictJob, blocks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Cut a sequence of blocks where the next does not begin where the last ended."""
    run: list[int] = []
    for number in blocks:
        if run and job.roi(run[-1]).stop[0] != job.roi(number).start[0]:
            yield tuple(run)
            run = []
        run.append(number)
    if run:
        yield tuple(run)


def _blends(job: PredictJob, tile: Roi) -> dict[str, RollingBlend]:
    grid = job.grid.reduced(job.scale)
    return {
        target.name: RollingBlend(
            grid,
            tile,
            job.blend,
            channels=target.channels,
            dtype=job.forward.torch_dtype,
            device=torch.device(job.forward.device),
            skipping=job.inputs.skipping,
        )
        for target in job.targets
    }


def _run(job: PredictJob, blocks: tuple[int, ...], ceiling: Ceiling) -> Iterator[Step]:
    clock = Clock()
    tile = job.tile(blocks)
    blends = _blends(job, tile)
    lead = next(iter(blends.values()))
    grid = job.grid
    needed = (lead.layers, lead.rows, lead.columns)
    # A batch is run whole even where the tile needs only some of it: its bits must not depend
    # on how the volume was cut into tiles.
    slots = _slots(lead.columns, job.batch_size, grid.counts[2])
    read_columns = range(slots[0][0], slots[-1][-1] + 1)
    hulls = [grid.hull(a, r) for a, r in enumerate((needed[0], needed[1], read_columns))]
    hull = Roi(tuple(h[0] for h in hulls), tuple(h[1] for h in hulls))
    with ExitStack() as stack:
        feed = Feed(job.inputs, hull, job.forward.dtype)
        stack.callback(feed.close)
        writer = Writer(job, blocks, clock)
        stack.callback(writer.close)
        batches = Batches(job, feed)
        for layer in needed[0]:
            with clock.stage("read"):
                feed.load(_top(grid, layer))
                feed.wait()
            if layer != needed[0][-1]:
                feed.load(_top(grid, layer + 1))
            for row in needed[1]:
                job.journal.check(job.session)
                for slot in slots:
                    with clock.stage("model"):
                        scores = batches.run([(layer, row, column) for column in slot])
                    with clock.stage("blend"):
                        _add(blends, scores, needed[2])
            batches.synchronize(clock)
            for first, rows in _finish(job, blends, layer, clock):
                for number in writer.put(first, rows):
                    yield Step(number, 0)
                height = next(iter(rows.values())).shape[-3]
                yield Step(None, height * tile.shape[1] * tile.shape[2], clock.take_step())
            for blend in blends.values():
                blend.advance(layer)
            feed.drop(int(grid.starts[0][min(layer + 1, grid.counts[0] - 1)]))
            ceiling.keep()
        for number in writer.flush():
            yield Step(number, 0, clock.take_step())


def _top(grid: PatchGrid, layer: int) -> int:
    return int(grid.starts[0][layer]) + grid.patch[0]


def _slots(columns: range, batch_size: int, count: int) -> list[range]:
    """The batches of a row that hold some of the columns.

    Examples
    --------
    >>> _slots(range(3, 6), 2, 7)
    [range(2, 4), range(4, 6)]
    """
    first = columns[0] // batch_size
    last = columns[-1] // batch_size
    return [range(n * batch_size, min(count, (n + 1) * batch_size)) for n in range(first, last + 1)]


def _add(
    blends: dict[str, RollingBlend],
    scores: Sequence[tuple[tuple[int, int, int], dict[str, torch.Tensor]]],
    columns: range,
) -> None:
    for index, outputs in scores:
        if index[2] in columns:
            for name, blend in blends.items():
                blend.add(index, outputs[name])


def _finish(
    job: PredictJob, blends: dict[str, RollingBlend], layer: int, clock: Clock
) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]]]]:
    """Rows that are final after a layer, a few at a time."""
    with clock.stage("blend"):
        closed = {name: blend.finish(layer) for name, blend in blends.items()}
    first, scores, _ = next(iter(closed.values()))
    for low in range(0, scores.shape[1], FINISH_ROWS):
        part = slice(low, low + FINISH_ROWS)
        with clock.stage("blend"):
            rows = {
                name: job.finish(values[:, part], None if covered is None else covered[part])
                for name, (_, values, covered) in closed.items()
            }
        yield first + low, rows


class Batches:
    """Cuts patches out of the feed and runs them, in buffers that are reused."""

    def __init__(self, job: PredictJob, feed: Feed) -> None:
        self.job, self.feed = job, feed
        self.device = torch.device(job.forward.device)
        self.batch_size = job.batch_size
        shape = (job.batch_size, job.inputs.channels, *job.grid.patch)
        cuda = self.device.type == "cuda"
        # Two buffers: one is filled while the other is copied to the device.
        self.buffers = [
            torch.empty(shape, dtype=job.forward.torch_dtype, pin_memory=cuda)
            for _ in range(2 if cuda else 1)
        ]
        self.events: list[Any] = [None] * len(self.buffers)
        self.turn = 0

    def synchronize(self, clock: Clock) -> None:
        """Wait for a GPU, on the model's account: it is the model that keeps it busy."""
        if self.device.type == "cuda":
            with clock.stage("model"):
                torch.cuda.synchronize(self.device)

    def run(
        self, indices: Sequence[tuple[int, int, int]]
    ) -> list[tuple[tuple[int, int, int], dict[str, torch.Tensor]]]:
        """Scores of those patches of a batch that are not skipped, in order."""
        grid = self.job.grid
        indices = [i for i in indices if self.feed.active(grid.roi(i))]
        if not indices:
            return []
        batch = self._fill([grid.roi(i) for i in indices])
        scores, self.batch_size = self.job.forward.halving(batch, self.batch_size)
        self._check(scores, len(indices))
        return [(i, {name: s[n] for name, s in scores.items()}) for n, i in enumerate(indices)]

    def _fill(self, rois: Sequence[Roi]) -> torch.Tensor:
        self.turn = (self.turn + 1) % len(self.buffers)
        if self.events[self.turn] is not None:
            self.events[self.turn].synchronize()
        buffer = self.buffers[self.turn][: len(rois)]
        for patch, roi in zip(buffer.numpy(), rois, strict=True):
            self.feed.fill(patch, roi)
        if self.device.type != "cuda":
            return buffer
        batch = buffer.to(self.device, non_blocking=True)
        self.events[self.turn] = torch.cuda.Event()
        self.events[self.turn].record()
        return batch

    def _check(self, scores: dict[str, torch.Tensor], count: int) -> None:
        for target in self.job.targets:
            found = tuple(scores[target.name].shape) if target.name in scores else None
            patch = self.job.grid.reduced(self.job.scale).patch
            wanted = (count, target.channels, *patch)
            if found != wanted:
                raise InvalidInput(
                    f"model output {target.name or 'tensor'} has shape {found} here but"
                    f" {wanted} in the trial forward; it must depend on the patch's shape only"
                )
