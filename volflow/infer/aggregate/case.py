"""One case of a `GridAggregator`: patches come in any order, rows are summed in that of the grid.

The output grows in a hidden directory beside its place, and is put there when it is whole.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from volflow.engine.task import Context
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid, PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import SIGMA_SCALE
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

__all__ = ["CaseBlend", "Result"]

Result = Volume | dict[str, Volume]

VERSION = 1
# Of the options; the last only where it is not the usual.
RECORDED = ("blend", "activation", "output", "dtype", "sigma_scale")
# Of the budget, for the rows that wait for their shards; the rest is for open rows.
SHARDS_SHARE = 0.5


class CaseBlend:
    """The open rows of one case, its early patches, and its growing volume.

    Parameters
    ----------
    name, grid, meta
        Of the case; the grid's shape is the volume's, in voxels of the outputs.
    out
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
        meta: Meta,
        out: Path,
        options: PredictOptions,
        kind: Kind,
        pending: PendingPatches,
    ) -> None:
        self.name, self.grid, self.out, self.options = name, grid, out, options
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
            sigma_scale=options.sigma_scale or SIGMA_SCALE,
        )
        keep = kind.integer and options.blend == "crop" and options.activation is None
        dtype = options.stored_dtype(str(kind.dtype if keep else kind.computed).split(".")[-1])
        self.finish_rows = Finish(options.output or "scores", options.activation, dtype)
        classes = options.output == "classes"
        meta = replace(
            meta,
            axes=("z", "y", "x") if classes else ("c", "z", "y", "x"),
            kind="classes" if classes else "image",
            channels=(),
            colors=(),
            made="",
        )
        values = len(kind.outputs) if classes else kind.channels
        chunk, shard = _layout(
            (values, *grid.shape), meta, np.dtype(dtype), options, scratch.budget_bytes
        )
        sweep(out)
        with ExitStack() as folder:  # hidden beside the output, which grows in it
            self.aside = folder.enter_context(folder_aside(out)) / out.name
            if kind.outputs[0].name:
                zarr.create_group(str(self.aside))
            targets = {
                output.name: create(
                    self.aside / output.name,
                    VolumeSpec.of(
                        grid.shape if classes else (output.channels, *grid.shape),
                        dtype,
                        meta,
                        chunk,
                        shard,
                    ),
                )
                for output in kind.outputs
            }
            self.folder = folder.pop_all()
        self.blocks = BlockGrid(grid.shape, (shard[0], *grid.shape[1:]))  # layers of shards
        self.context = Context()  # the journal begins when the volume is whole
        self.writer = Writer(
            self.blocks, Frame(), targets, range(len(self.blocks)), self.context, scratch.zeros
        )

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
        geometry = {"patch": grid.patch, "stride": grid.stride, "padding": grid.padding}
        named = {one.name: one.channels for one in self.kind.outputs if one.name}
        channels = named or self.kind.channels
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
    meta: Meta,
    dtype: np.dtype[Any],
    options: PredictOptions,
    budget_bytes: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return chunk and shard along z, y, x; two layers of shards fit the budget."""
    given = resolve_layout(shape, meta.spacing, dtype, options.chunk, options.shard)
    chunk, shard = (sizes[-3:] for sizes in given)
    if options.shard is not None:
        return chunk, shard
    plane_bytes = math.prod(shape[:-3]) * shape[-2] * shape[-1] * dtype.itemsize
    smaller = list(shrinking(limit_depth(shard, chunk, shape[-3:], 0), chunk, (1, 0, 0)))
    fitting = (s for s in smaller if 2 * s[0] * plane_bytes <= SHARDS_SHARE * budget_bytes)
    return chunk, next(fitting, smaller[-1])
