"""A network over overlapping patches of a box, and the task that writes what it finds.

Layer by layer of patches along the frame's first axis: while the model computes one layer, the
next rows are read; rows that no later layer reaches are blended, finished and leave. The batch
run writes them, the lazy array keeps them: the same voxels either way.

A task goes through a run of neighbouring blocks. Read, forward, blend and write are each in their
own thread or stream: a block is compressed and written while the next one fills. The seam between
two blocks of a run stays open in the blend, so each patch is computed once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import torch

from volflow.engine.task import Context, Step
from volflow.errors import InvalidInput
from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import Blend, WeightMap
from volflow.infer.finish import Finish
from volflow.infer.method import OutputJob, Rows
from volflow.infer.patches.course import exchanged, exchanged_grid, exchanged_image
from volflow.infer.patches.device_rows import DeviceRows
from volflow.infer.patches.gradless import without_gradients
from volflow.infer.patches.rows import RowReader
from volflow.infer.patches.sums import Blending, Index, Sums, sums_of
from volflow.infer.patches.writer import Writer, tile_of
from volflow.model.copies import Copies
from volflow.model.device import is_out_of_memory, machine_of, on_device
from volflow.model.forward import Forward, Output, torch_threads
from volflow.store.journal.provenance import note_machine
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
    blend, sigma_scale, finish, outputs
        What becomes of its scores, by output.
    host_sums
        Whether scores of a GPU are summed in the host's memory.
    turned
        Whether frame, grid and scale have the network's first two axes exchanged, so that runs go
        along its second (`volflow.infer.patches.course`).
    """

    inputs: FramedImage
    grid: PatchGrid
    scale: tuple[int, ...]
    forward: Forward
    batch_size: int
    blend: Blend | WeightMap
    sigma_scale: float
    finish: Finish
    outputs: tuple[Output, ...]
    host_sums: bool = False
    turned: bool = False

    def along_second(self) -> SlidingWindow:
        """Return the same voxels, computed along the second axis of the frame."""
        blend = self.blend
        return replace(
            self,
            inputs=exchanged_image(self.inputs),
            grid=exchanged_grid(self.grid),
            scale=exchanged(self.scale),
            blend=blend.exchanged() if isinstance(blend, WeightMap) else blend,
            turned=True,
        )

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
        yield from without_gradients(_slide(self, tile, Context()))


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
    grid = window.grid
    layers, rows, columns = (_needed(window, axis, *side) for axis, side in enumerate(tile))
    slots = _slots(columns, window.batch_size, grid.counts[2])
    hulls = [read_hull(window, axis, *side) for axis, side in enumerate(tile)]
    hull = Roi(tuple(low for low, _ in hulls), tuple(high for _, high in hulls))
    copies = Copies(torch.device(window.forward.device))
    with on_device(copies.device), closing(_reader(window, hull, copies)) as reader:
        sums = sums_of(_blending(window, tile), copies, context, on_host=window.host_sums)
        batches = Batches(window, reader, sums, context)
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
                    sums.add(*batches.run([(layer, row, column) for column in slot]))
            yield from sums.close(layer)
            left = range(layer + 1, layers[-1] + 1)
            if left:
                reader.drop(_read_range(window, 0, left)[0])
        yield from sums.end()


def read_hull(window: SlidingWindow, axis: int, low: int, high: int) -> tuple[int, int]:
    """Return the input range, along a frame axis, of ``[low, high)`` of the output."""
    patches = _needed(window, axis, low, high)
    if axis == 2:
        slots = _slots(patches, window.batch_size, window.grid.counts[2])
        patches = range(slots[0][0], slots[-1][-1] + 1)
    return _read_range(window, axis, patches)


def _read_range(window: SlidingWindow, axis: int, patches: range) -> tuple[int, int]:
    """Return the input range, along a frame axis, that consecutive patches show."""
    grid = window.grid
    return window.inputs.padding.range(*grid.hull(axis, patches), grid.shape[axis])


def _needed(window: SlidingWindow, axis: int, low: int, high: int) -> range:
    """Return the patches along a frame axis that reach into ``[low, high)`` of the output."""
    out = window.grid.reduced(window.scale)
    return out.touching(axis, low, high, owned=window.blend == "crop")


def _reader(window: SlidingWindow, hull: Roi, copies: Copies) -> RowReader:
    """Return what reads the rows of a tile, to where the network computes."""
    dtype, second = window.forward.dtype, window.turned
    if copies.device.type == "cuda":
        return DeviceRows(window.inputs, hull, dtype, copies, turned=second)
    return RowReader(window.inputs, hull, dtype, turned=second)


def _blending(window: SlidingWindow, tile: Roi) -> Blending:
    return Blending(
        window.grid.reduced(window.scale),
        tile,
        window.blend,
        window.sigma_scale,
        window.forward.dtype,
        window.inputs.skipping,
        window.outputs,
        window.finish,
    )


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


class Batches:
    """Cuts patches out of the rows and runs them."""

    def __init__(
        self, window: SlidingWindow, reader: RowReader, sums: Sums, context: Context
    ) -> None:
        self.window, self.reader, self.sums, self.context = window, reader, sums, context
        self.batch_size = window.batch_size

    def run(self, indices: Sequence[Index]) -> tuple[Sequence[Index], Mapping[str, torch.Tensor]]:
        """Return the patches that are not skipped, and their scores ``(B, C, *patch)`` by name."""
        grid = self.window.grid
        with self.context.stage("model"):
            indices = [i for i in indices if self.reader.active(grid.roi(i))]
            if not indices:
                return [], {}
            rois = [grid.roi(i) for i in indices]
            while True:
                try:
                    scores = self._scores(rois)
                    break
                except Exception as error:
                    exhausted = any(map(is_out_of_memory, (error, error.__cause__ or error)))
                    if not exhausted or not self.sums.make_room():
                        raise
            self._check(scores, len(indices))
        return indices, scores

    def _scores(self, rois: Sequence[Roi]) -> Mapping[str, torch.Tensor]:
        batch, forward = self.reader.batch(rois), self.window.forward
        scores, self.batch_size = forward.run_with_oom_retry(batch, self.batch_size)
        if self.window.turned:
            return {name: one.swapaxes(2, 3) for name, one in scores.items()}
        return scores

    def _check(self, scores: Mapping[str, torch.Tensor], count: int) -> None:
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
    with torch_threads(job.threads):
        note_machine(context.journal, machine_of(job.window.forward.device))
    for run in _neighbours(job, blocks):
        with torch_threads(job.threads):
            yield from without_gradients(_run(job, run, context))


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
) -> Generator[Step, None, None]:
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
