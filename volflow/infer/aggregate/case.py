"""One case of a `GridAggregator`: patches come in any order, rows are summed in that of the grid.

The output grows in a hidden directory beside its place, and is put there when it is whole.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from volflow.engine.task import Context
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid, PatchGrid
from volflow.geometry.roi import Roi
from volflow.infer.aggregate.batch import Kind
from volflow.infer.aggregate.scratch import PendingPatches
from volflow.infer.finish import Finish
from volflow.infer.merge import settings_of
from volflow.infer.patches.rolling import RollingBlend
from volflow.infer.patches.tiling import limit_depth
from volflow.infer.patches.writer import Writer
from volflow.infer.predict_options import PredictOptions
from volflow.store.aside import folder_aside, sweep
from volflow.store.create import check_target, create
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.journal.outputs import discard
from volflow.store.layout import resolve_layout, shrinking
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.volume import Volume, open_volume

__all__ = ["CaseBlend", "CasePlace", "Result"]

Result = Volume | dict[str, Volume]

VERSION = 1
# Of the options; the last only where it is not the usual.
RECORDED = ("blend", "activation", "output", "dtype", "sigma_scale")
# Of the budget, for the rows that wait for their shards; the rest is for open rows.
SHARDS_SHARE = 0.5


@dataclass(frozen=True)
class CasePlace:
    """Where the volume of a case goes, and how it lies there.

    Parameters
    ----------
    out
        Its path.
    frame
        From the axes of the patches to the stored ones.
    meta
        Of the volume, along the stored axes.
    """

    out: Path
    frame: Frame
    meta: Meta


class CaseBlend:
    """The open rows of one case, its early patches, and its growing volume.

    Parameters
    ----------
    name, grid
        Of the case; the grid's shape is the volume's, in voxels of the outputs, along the axes of
        the patches.
    place
        Where the volume goes in the end.
    options, kind
        How outputs become volumes, and what they are, for all cases alike.
    pending
        Takes patches that come before their turn; shared with other cases.
    """

    def __init__(
        self,
        name: str,
        grid: PatchGrid,
        place: CasePlace,
        options: PredictOptions,
        kind: Kind,
        pending: PendingPatches,
    ) -> None:
        self.name, self.grid, self.place, self.options = name, grid, place, options
        self.kind, self.pending, scratch = kind, pending, pending.scratch
        self.next = 0  # the first patch that has not been added: what comes later is kept
        self.layer = 0  # the first layer of patches that is not closed
        self.covered = 0
        self.blend = RollingBlend(
            grid,
            Roi.full(grid.shape),
            options.blending,
            channels=kind.channels,
            dtype=str(kind.computed).split(".")[-1],
            skipping=True,
            zeros=scratch.zeros,
            sigma_scale=options.sigma,
        )
        keep = kind.integer and options.blend == "crop" and options.activation is None
        dtype = options.stored_dtype(str(kind.dtype if keep else kind.computed).split(".")[-1])
        self.finish_rows = Finish(options.output or "scores", options.activation, dtype)
        classes = options.output == "classes"
        meta = replace(
            place.meta,
            axes=("z", "y", "x") if classes else ("c", "z", "y", "x"),
            kind="classes" if classes else "image",
            channels=(),
            colors=(),
            made="",
        )
        values = len(kind.outputs) if classes else kind.channels
        frame, shape = place.frame, place.frame.restore(grid.shape)
        chunk, shard = _layout(
            (values, *shape), place, np.dtype(dtype), options, scratch.budget_bytes
        )
        sweep(self.out)
        with ExitStack() as folder:  # hidden beside the output, which grows in it
            self.aside = folder.enter_context(folder_aside(self.out)) / self.out.name
            if kind.outputs[0].name:
                zarr.create_group(str(self.aside))
            targets = {
                output.name: create(
                    self.aside / output.name,
                    VolumeSpec.of(
                        shape if classes else (output.channels, *shape),
                        dtype,
                        meta,
                        chunk,
                        shard,
                    ),
                )
                for output in kind.outputs
            }
            self.folder = folder.pop_all()
        # Layers of shards, in the order of the rows.
        block = frame.restore((frame.reorder(shard)[0], *grid.shape[1:]))
        self.blocks = BlockGrid(shape, block)
        numbers = range(len(self.blocks))[:: -1 if frame.flips[0] else 1]
        self.context = Context()  # the journal begins when the volume is whole
        self.writer = Writer(self.blocks, frame, targets, numbers, self.context, scratch.zeros)

    @property
    def out(self) -> Path:
        """The path of the volume in the end."""
        return self.place.out

    @property
    def complete(self) -> bool:
        """Return True once all patches were added."""
        return self.next == len(self.grid)

    @property
    def coverage(self) -> float:
        """Share of the volume's voxels that patches covered, in the rows closed so far."""
        return self.covered / Roi.full(self.grid.shape).size

    def has(self, number: int) -> bool:
        """Return True if a patch was added before."""
        return number < self.next or (self.name, number) in self.pending

    def add(self, number: int, scores_CZYX: torch.Tensor) -> None:
        """Add a patch ``CZYX``, or keep it until those before it have come."""
        if number != self.next:
            self.pending.put((self.name, number), scores_CZYX.numpy())
            return
        self._sum(number, scores_CZYX)
        while (self.name, self.next) in self.pending:
            self._take(self.next)

    def _take(self, number: int) -> None:
        self._sum(number, torch.from_numpy(self.pending.take((self.name, number))))

    def _sum(self, number: int, scores_CZYX: torch.Tensor) -> None:
        layers, rows, columns = self.grid.counts
        index = tuple(int(i) for i in np.unravel_index(number, (layers, rows, columns)))
        self._close_before(index[0])  # these have gaps, where the rest is given up
        self.blend.add(index, scores_CZYX.numpy())
        self.next = number + 1
        self._close_before(self.next // (rows * columns))

    def _close_before(self, layer: int) -> None:
        """Write the rows that no patch of this layer or a later one reaches."""
        while self.layer < layer:
            if self.layer in self.blend.layers:
                self._close(self.layer)
            self.layer += 1

    def _close(self, layer: int) -> None:
        seen: Any  # never None: the blend counts what comes
        for first, scores, seen in self.blend.finish(layer):
            self.covered += int(np.count_nonzero(seen))
            gaps = None if seen.all() else seen
            rows = {
                output.name: self.finish_rows(scores[part], gaps)
                for output, part in self.kind.parts()
            }
            deque(self.writer.put(first, rows), maxlen=0)
        self.blend.advance(layer)

    def finish(self) -> Result:
        """Close what is open, whatever is missing, and put the volumes in their place."""
        for number in self.pending.numbers(self.name):
            self._take(number)
        self._close_before(self.grid.counts[0])
        deque(self.writer.flush(), maxlen=0)
        self.writer.close()
        self._put_in_place()
        found = {output.name: open_volume(self.out / output.name) for output in self.kind.outputs}
        return found.get("", found)

    def _put_in_place(self) -> None:
        """Make the hidden directory the output, with a journal that vouches for its shards."""
        journal, grid = Journal(journal_dir(self.out)), self.grid
        given = settings_of(self.options)
        options = {name: given[name] for name in RECORDED if name in given}
        geometry: dict[str, Any] = {
            "patch": grid.patch,
            "stride": grid.stride,
            "padding": grid.padding,
        }
        named = {one.name: one.channels for one in self.kind.outputs if one.name}
        channels = named or self.kind.channels
        if self.place.frame != Frame():
            geometry["frame"] = [self.place.frame.axes, self.place.frame.flips]
        fingerprint = {**options, "channels": channels, **geometry, "version": VERSION}
        settings = {"grid": self.blocks.counts, "coverage": self.coverage}
        record = Record("aggregate", fingerprint, settings)
        with journal.lock():
            check_target(self.out, overwrite=self.options.overwrite)  # it may have been made since
            discard(self.out, journal)
            session = journal.begin(record)
            try:
                for number, (entries, took) in self.context.written.items():
                    journal.mark(number, entries, took, session=session)
                self.aside.rename(self.out)
            except BaseException:
                journal.clear()
                raise
            journal.end()
        self.folder.close()

    def discard(self) -> None:
        """Delete what was written."""
        with suppress(Exception):
            self.writer.close()
        self.folder.close()


def _layout(
    shape: tuple[int, ...],
    place: CasePlace,
    dtype: np.dtype[Any],
    options: PredictOptions,
    budget_bytes: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunk and shard along the stored axes; two layers of shards fit the budget.

    A layer lies across the first axis of the patches.
    """
    given = resolve_layout(shape, place.meta.spacing, dtype, options.chunk, options.shard)
    chunk, shard = (sizes[-3:] for sizes in given)
    if options.shard is not None:
        return chunk, shard
    along, frame = place.frame.axes[0], place.frame
    plane_bytes = math.prod(shape) // shape[-3:][along] * dtype.itemsize
    sizes, least, whole = (frame.reorder(one) for one in (shard, chunk, shape[-3:]))
    smaller = list(shrinking(limit_depth(sizes, least, whole, 0), least, (1, 0, 0)))
    fitting = (s for s in smaller if 2 * s[0] * plane_bytes <= SHARDS_SHARE * budget_bytes)
    return chunk, frame.restore(next(fitting, smaller[-1]))
