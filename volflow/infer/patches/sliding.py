"""A network over overlapping patches of a box, and the task that writes what it finds.

Layer by layer of patches along the frame's first axis: while the model computes one layer, the
next rows are read; rows that no later layer reaches are blended, finished and leave. The batch
run writes them, the lazy array keeps them: the same voxels either way.

A task goes through a run of neighbouring blocks. Read, forward, blend and write are each in their
own thread or stream: a block is compressed and written while the next one fills. The seam between
two blocks of a run stays open in the blend, so each patch is computed once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch

from volflow.engine.task import Context, Step
from volflow.errors import InvalidInput
from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import Blend
from volflow.infer.finish import Finish
from volflow.infer.method import OutputJob, Rows
from volflow.infer.patches.rolling import RollingBlend
from volflow.infer.patches.rows import RowReader
from volflow.infer.patches.writer import Writer, tile_of
from volflow.model.forward import Forward, Output, torch_threads
from volflow.volumes.framed import FramedImage

__all__ = ["SlidingWindow", "predict_blocks", "read_hull"]


@dataclass(frozen=True)
class SlidingWindow:
    """Everything that decides the voxels of a prediction; small and picklable.

    Parameters
    ----------
    inputs, grid, scale
        Patches in frame coordinates; input voxels per output voxel.
    forward, batch_size
        The model; batches are consecutive patches of one row of the grid.
    blend, finish, outputs
        What becomes of its scores, by output.
    """

    inputs: FramedImage
    grid: PatchGrid
    scale: tuple[int, ...]
    forward: Forward
    batch_size: int
    blend: Blend
    finish: Finish
    outputs: tuple[Output, ...]

    @property
    def cache_key(self) -> tuple[object, ...]:
        """Values that decide the voxels beside the request's fingerprint."""
        return self.batch_size, self.forward.device, self.forward.precision

    def resolve_device(self) -> SlidingWindow:
        """Return the same on the device that "auto" means on this machine."""
        return replace(self, forward=self.forward.resolve_device())

    def with_inputs(self, inputs: FramedImage) -> SlidingWindow:
        """Return the same with other inputs."""
        return replace(self, inputs=inputs)

    def rows(self, tile: Roi) -> Iterator[Rows]:
        """Yield a box of the output, some rows at a time."""
        with torch.inference_mode():
            yield from _slide(self, tile, Context())


def _slide(window: SlidingWindow, tile: Roi, context: Context) -> Generator[Rows, None, None]:
    """Compute a box of the output, some rows at a time.

    Parameters
    ----------
    window
        Whose model is resident in this process.
    tile
        The box, in frame coordinates and output voxels.
    context
        Of the task; stops it before a row of patches where nobody waits for it any more.

    Yields
    ------
    Rows
        In order, and valid until the next.
    """
    blends = _blends(window, tile)
    grid = window.grid
    layers, rows, columns = (_needed(window, axis, *side) for axis, side in enumerate(tile))
    slots = _slots(columns, window.batch_size, grid.counts[2])
    hulls = [read_hull(window, axis, *side) for axis, side in enumerate(tile)]
    hull = Roi(tuple(low for low, _ in hulls), tuple(high for _, high in hulls))
    reader = RowReader(window.inputs, hull, window.forward.dtype)
    batches = Batches(window, reader)
    try:
        for layer in layers:
            with context.stage("read"):
                reader.load(_top(grid, layer))
                reader.wait()
            if layer != layers[-1]:
                reader.load(_top(grid, layer + 1))
            for row in rows:
                context.check()
                for slot in slots:
                    context.trim()
                    with context.stage("model"):
                        scores = batches.run([(layer, row, column) for column in slot])
                    with context.stage("blend"):
                        _add(blends, scores, columns)
            batches.synchronize(context)
            yield from _finish(window, blends, layer, context)
            for blend in blends.values():
                blend.advance(layer)
            reader.drop(int(grid.starts[0][min(layer + 1, grid.counts[0] - 1)]))
    finally:
        reader.close()


def read_hull(window: SlidingWindow, axis: int, low: int, high: int) -> tuple[int, int]:
    """Return the input range, along a frame axis, of ``[low, high)`` of the output."""
    patches = _needed(window, axis, low, high)
    if axis == 2:
        slots = _slots(patches, window.batch_size, window.grid.counts[2])
        patches = range(slots[0][0], slots[-1][-1] + 1)
    return window.grid.hull(axis, patches)


def _needed(window: SlidingWindow, axis: int, low: int, high: int) -> range:
    """Return the patches along a frame axis that reach into ``[low, high)`` of the output."""
    out = window.grid.reduced(window.scale)
    return out.touching(axis, low, high, owned=window.blend == "crop")


def _blends(window: SlidingWindow, tile: Roi) -> dict[str, RollingBlend]:
    grid = window.grid.reduced(window.scale)
    return {
        output.name: RollingBlend(
            grid,
            tile,
            window.blend,
            channels=output.channels,
            dtype=window.forward.torch_dtype,
            device=torch.device(window.forward.device),
            skipping=window.inputs.skipping,
        )
        for output in window.outputs
    }


def _top(grid: PatchGrid, layer: int) -> int:
    return int(grid.starts[0][layer]) + grid.patch[0]


def _slots(columns: range, batch_size: int, count: int) -> list[range]:
    """Return the batches of a row that hold some of the columns.

    A batch is run whole even where a tile needs only some of it: its bits must not depend on how
    the volume was cut.

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
    window: SlidingWindow, blends: dict[str, RollingBlend], layer: int, context: Context
) -> Iterator[Rows]:
    """Yield the rows that are final after a layer, a few at a time."""
    parts = zip(*(blend.finish(layer) for blend in blends.values()), strict=True)
    while True:
        with context.stage("blend"):
            closed = next(parts, None)
            if closed is None:
                return
            rows = {
                name: window.finish(scores, covered)
                for name, (_, scores, covered) in zip(blends, closed, strict=True)
            }
        yield closed[0][0], rows


class Batches:
    """Cuts patches out of the rows and runs them, in buffers that are reused."""

    def __init__(self, window: SlidingWindow, reader: RowReader) -> None:
        self.window, self.reader = window, reader
        self.device = torch.device(window.forward.device)
        self.batch_size = window.batch_size
        shape = (window.batch_size, window.inputs.channels, *window.grid.patch)
        cuda = self.device.type == "cuda"
        # Two buffers: one is filled while the other is copied to the device.
        self.buffers = [
            torch.empty(shape, dtype=window.forward.torch_dtype, pin_memory=cuda)
            for _ in range(2 if cuda else 1)
        ]
        self.events: list[Any] = [None] * len(self.buffers)
        self.turn = 0

    def synchronize(self, context: Context) -> None:
        """Wait for a GPU, on the model's account: it is the model that keeps it busy."""
        if self.device.type == "cuda":
            with context.stage("model"):
                torch.cuda.synchronize(self.device)

    def run(
        self, indices: Sequence[tuple[int, int, int]]
    ) -> list[tuple[tuple[int, int, int], dict[str, torch.Tensor]]]:
        """Return index and scores ``CZYX`` of the patches that are not skipped, in order."""
        grid = self.window.grid
        indices = [i for i in indices if self.reader.active(grid.roi(i))]
        if not indices:
            return []
        batch = self._fill([grid.roi(i) for i in indices])
        scores, self.batch_size = self.window.forward.run_with_oom_retry(batch, self.batch_size)
        self._check(scores, len(indices))
        return [(i, {name: s[n] for name, s in scores.items()}) for n, i in enumerate(indices)]

    def _fill(self, rois: Sequence[Roi]) -> torch.Tensor:
        self.turn = (self.turn + 1) % len(self.buffers)
        if self.events[self.turn] is not None:
            self.events[self.turn].synchronize()
        buffer = self.buffers[self.turn][: len(rois)]
        for patch, roi in zip(buffer.numpy(), rois, strict=True):
            self.reader.fill(patch, roi)
        if self.device.type != "cuda":
            return buffer
        batch = buffer.to(self.device, non_blocking=True)
        self.events[self.turn] = torch.cuda.Event()
        self.events[self.turn].record()
        return batch

    def _check(self, scores: dict[str, torch.Tensor], count: int) -> None:
        patch = self.window.grid.reduced(self.window.scale).patch
        for output in self.window.outputs:
            found = tuple(scores[output.name].shape) if output.name in scores else None
            wanted = (count, output.channels, *patch)
            if found != wanted:
                raise InvalidInput(
                    f"model output {output.name or 'tensor'} has shape {found} here but"
                    f" {wanted} in the trial forward; it must depend on the patch's shape only"
                )


def predict_blocks(
    job: OutputJob[SlidingWindow], blocks: tuple[int, ...], context: Context
) -> Iterator[Step]:
    """Run blocks that lie behind each other along the frame's first axis."""
    context.trim()
    for run in _neighbours(job, blocks):
        with torch_threads(job.threads), torch.inference_mode():
            yield from _run(job, run, context)


def _neighbours(job: OutputJob[SlidingWindow], blocks: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Cut a sequence of blocks where the next does not begin where the last ended."""
    run: list[int] = []
    end = 0
    for number in blocks:
        box = tile_of(job.grid, job.window.inputs.frame, (number,))
        if run and box.start[0] != end:
            yield tuple(run)
            run = []
        run.append(number)
        end = box.stop[0]
    if run:
        yield tuple(run)


def _run(
    job: OutputJob[SlidingWindow], blocks: tuple[int, ...], context: Context
) -> Iterator[Step]:
    frame = job.window.inputs.frame
    tile = tile_of(job.grid, frame, blocks)
    with (
        closing(Writer(job.grid, frame, job.targets, blocks, context)) as writer,
        closing(_slide(job.window, tile, context)) as sliding,
    ):
        for first, rows in sliding:
            for number in writer.put(first, rows):
                yield Step(number, 0)
            height = next(iter(rows.values())).shape[-3]
            yield Step(None, height * tile.shape[1] * tile.shape[2])
        for number in writer.flush():
            yield Step(number, 0)
