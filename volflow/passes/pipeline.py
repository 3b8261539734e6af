"""Blocks in turn: on a GPU each is read ahead of the one that computes, and written behind it.

On the CPU there is nothing to hide: a block is read as its ops need it, computed and written, since
what is read ahead would take memory from blocks, and what computes takes all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch

from volflow.engine.task import Context
from volflow.errors import MemoryRefused, first_line
from volflow.geometry.roi import Roi
from volflow.model.copies import Download
from volflow.model.device import give_back_device, is_out_of_memory, retried
from volflow.model.forward import torch_threads

__all__ = ["Launched", "Pipeline", "together", "within_memory"]

S = TypeVar("S")
R = TypeVar("R")
# What a device computes: called, it waits for the result and returns it.
Launched = Callable[[], R]


@dataclass(frozen=True, eq=False)
class Pipeline:
    """The order in which the blocks of one task are read, computed and handed to be written.

    Parameters
    ----------
    device
        That computes.
    context
        Of the task.
    threads, peak_bytes
        Torch threads, and the projected memory of a block.
    """

    device: torch.device
    context: Context
    threads: int
    peak_bytes: int

    def run(
        self,
        blocks: Sequence[int],
        read: Callable[[int], S],
        launch: Callable[[int, S | None], Launched[R]],
    ) -> Iterator[tuple[int, Launched[R]]]:
        """Yield blocks in their order, to be waited for and written; on a GPU the next computes.

        Parameters
        ----------
        blocks
            At least one.
        read
            Reads what a block is computed from; called for a GPU, in another thread.
        launch
            Computes a block from that, or begins to on a GPU; given None it reads for itself.
        """
        self.context.trim()
        if self.device.type == "cpu":
            for number in blocks:
                yield number, self._launched(number, None, launch)
            return
        with ThreadPoolExecutor(1, "volflow-read") as reader:
            coming = reader.submit(self._ahead, read, blocks[0])
            behind: tuple[int, Launched[R]] | None = None
            for number, following in zip(blocks, (*blocks[1:], None), strict=True):
                with self.context.stage("read"):
                    sent = coming.result()
                if following is not None:
                    coming = reader.submit(self._ahead, read, following)
                launched = self._launched(number, sent, launch)
                sent = None  # its parts leave it as they are used
                if behind is not None:
                    yield behind
                behind = number, launched
            assert behind is not None
            yield behind

    def _launched(
        self, number: int, sent: S | None, launch: Callable[[int, S | None], Launched[R]]
    ) -> Launched[R]:
        self.context.trim(self.peak_bytes)
        self.context.check()
        with self.context.stage("model"), torch_threads(self.threads):
            return launch(number, sent)

    def _ahead(self, read: Callable[[int], S], number: int) -> S | None:
        """Return what a block is computed from; None if there is no memory to have it so early."""
        try:
            return read(number)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        return None


def together(downloads: Sequence[Download]) -> Download:
    """Return copies from a device, made in this order by one task, as one to be waited for."""
    tensors = tuple(tensor for one in downloads for tensor in one.tensors)
    return Download(tensors, downloads[-1].event if downloads else None)


def within_memory(
    device: torch.device,
    box: Roi,
    steps: Callable[[], Sequence[int]],
    run: Callable[[Roi], Launched[R]],
    join: Callable[[int, R, R], R],
) -> Launched[R]:
    """Begin to compute a box; if a GPU lacks the memory, once more, and then each half of it.

    A box may be computed in any parts, equal up to rounding. Plans are made for the memory that
    was free then, so this happens where something else has taken it.

    Parameters
    ----------
    device
        That computes; an error on the CPU is raised as it is.
    box, steps
        The box, and what returns the number that divides the sides of its parts, per axis.
    run
        Begins to compute a box.
    join
        Joins the results of two boxes along an axis.

    Raises
    ------
    MemoryRefused
        If not even the smallest part fits.
    """
    if device.type == "cpu":
        return run(box)
    try:
        return retried(device, lambda: run(box))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = first_line(error)
    give_back_device(device)  # behind the error, which holds what was computed
    units = steps()
    counts = [n // unit for n, unit in zip(box.shape, units, strict=True)]
    axis = max(range(len(counts)), key=counts.__getitem__)
    if counts[axis] < 2:
        raise MemoryRefused(
            f"{'×'.join(map(str, box.shape))} voxels do not fit in the memory of {device}"
            f" ({reason}); end what else runs there and run the same command again, or begin again"
            " with less device_memory (--device-memory)"
        )
    at = box.start[axis] + counts[axis] // 2 * units[axis]
    stop, start = list(box.stop), list(box.start)
    stop[axis] = start[axis] = at
    halves = Roi(box.start, tuple(stop)), Roi(tuple(start), box.stop)
    low, high = (within_memory(device, half, steps, run, join) for half in halves)
    return lambda: join(axis, low(), high())
