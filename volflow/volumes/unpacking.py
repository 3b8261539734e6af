"""Files whose packed planes are too wide for memory: unpacked first, then read anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from distributed import Client

from volflow.engine.plan import Plan
from volflow.engine.progress import Progress
from volflow.engine.run import run
from volflow.engine.task import Context, Step
from volflow.errors import StoreFull, writing_failed
from volflow.geometry.budget import format_bytes
from volflow.geometry.roi import Roi
from volflow.store.aside import file_aside, sweep
from volflow.store.formats.raw import RawSource
from volflow.store.journal.journal import Journal
from volflow.store.slabs import Source
from volflow.store.volume import described

__all__ = ["Unpacking", "forget_unpacked"]

NAME = "unpacked.raw"  # in the journal's folder, until the copy is complete
SLAB_BYTES = 2**23


@dataclass(frozen=True)
class Unpacking:
    """A source that is read from front to back only, and the file to which it is unpacked.

    Parameters
    ----------
    packed
        The source.
    path
        The file, beside the output.
    """

    packed: Source
    path: Path

    @classmethod
    def beside(cls, journal: Journal, packed: Source) -> Unpacking:
        """Return what unpacks a source into the folder of a journal on a disk."""
        return cls(packed, journal.folder / NAME)

    @property
    def source(self) -> RawSource:
        """The unpacked file, once it is there."""
        packed = self.packed
        return RawSource(
            path=str(self.path),
            shape=packed.shape,
            meta=described(packed),
            stored_dtype=packed.dtype,
            interleaved=packed.together > 1,
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the unpacked file."""
        return int(np.prod(self.packed.shape, dtype=object)) * self.packed.dtype.itemsize

    @property
    def _plane_bytes(self) -> int:
        """Bytes of a plane, of all channels that are unpacked together."""
        size_y, size_x = self.packed.shape[-2:]
        return self.packed.together * size_y * size_x * self.packed.dtype.itemsize

    def perform(self, client: Client, memory_bytes: int, progress: Progress) -> None:
        """Unpack the file, unless that is done.

        Raises
        ------
        StoreFull
            If the disk has no room for it; found before the first byte.
        Damaged
            If the source is damaged.
        """
        if self.path.is_file() and self.path.stat().st_size == self.size_bytes:
            return
        free = shutil.disk_usage(self.path.parent).free
        if free < self.size_bytes:
            raise StoreFull(
                f"{self.packed.path} is unpacked to {self.path} first, which"
                f" takes {format_bytes(self.size_bytes)}, and {format_bytes(free)} are free there;"
                " make room, or give so much memory that a layer of shards fits (--memory)"
            )
        plan = Plan(
            "unpack",
            _unpack,
            self,
            ((0,),),
            units=self.size_bytes,
            unit="B",
            peak_bytes=3 * max(self._plane_bytes, SLAB_BYTES),
            memory_bytes=memory_bytes,
            exclusive=True,
        )
        plan.require_memory("raise memory= (--memory)")
        run(plan, cluster=client, progress=progress)


def forget_unpacked(journal: Journal) -> None:
    """Delete what a copy unpacked, and what a killed process left of it."""
    if journal.is_local:
        path = journal.folder / NAME
        sweep(path)
        path.unlink(missing_ok=True)


def _unpack(job: Unpacking, blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    depth = max(1, SLAB_BYTES // job._plane_bytes)
    sweep(job.path)
    try:
        with file_aside(job.path) as (part, file):
            for _, voxels in job.packed.once(depth):
                context.check()
                stored = np.moveaxis(voxels, 0, -1) if job.packed.together > 1 else voxels
                file.write(np.ascontiguousarray(stored).data)
            file.flush()
            part.replace(job.path)
    except OSError as error:
        raise writing_failed(error)(
            f"{job.path} cannot be written: {error.strerror or error}; run the same command again"
            " when there is room"
        ) from error
    yield Step(0, Roi.full(job.packed.shape).size * job.packed.dtype.itemsize)
