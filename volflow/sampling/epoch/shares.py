"""Which samples of the global order this process gives: of its rank, and of its worker."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import torch

from volflow.errors import InvalidInput
from volflow.sampling.stream_checks import whole

__all__ = ["Share", "refuse_fork", "this_share"]


@dataclass(frozen=True)
class Share:
    """Every ``stride``-th sample, from ``offset`` on.

    Examples
    --------
    >>> share = Share(1, 2)  # the second of two ranks
    >>> share.count(9), share.part(0, 2)
    (4, Share(offset=1, stride=4))
    """

    offset: int = 0
    stride: int = 1

    def count(self, total: int) -> int:
        """Samples of ``total`` that belong to it."""
        return max(0, -(-(total - self.offset) // self.stride))

    def part(self, worker: int, workers: int) -> Share:
        """What one of several worker processes gives of it."""
        return Share(self.offset + self.stride * worker, self.stride * workers)

    def check_lanes(self, lanes: int) -> None:
        """Refuse where processes cannot share the lanes.

        Raises
        ------
        InvalidInput
            Naming the lanes that would do.
        """
        if lanes % self.stride:
            raise InvalidInput(
                f"{self.stride} ranks and workers cannot share {lanes} lanes evenly; use "
                f"lanes={-(-lanes // self.stride) * self.stride}, or a number of processes that "
                f"divides {lanes}"
            )

    def check_patches(self, patches: int) -> None:
        """Refuse where ranks would get unequal numbers of patches.

        Raises
        ------
        InvalidInput
            Naming the numbers that would do.
        """
        if patches % self.stride:
            less = patches // self.stride * self.stride
            raise InvalidInput(
                f"{patches} patches cannot be shared evenly by {self.stride} ranks, and ranks that "
                f"give unequal numbers wait for each other for ever; use "
                f"{f'{less} or ' if less else ''}{less + self.stride}"
            )


def this_share(rank: int | None, world_size: int | None) -> Share:
    """The share of a rank; by default as ``torch.distributed`` says.

    Raises
    ------
    InvalidInput
        Where only one of them is given, or the rank is none of them.
    """
    if (rank is None) != (world_size is None):
        raise InvalidInput("give rank and world_size together, or neither")
    if rank is None or world_size is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return Share()
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks = whole(world_size, "world_size must be a positive number")
    rule = f"rank must be 0 to {ranks - 1} of {ranks}"
    return Share(whole(rank, rule, 0, ranks), ranks)


def refuse_fork() -> None:
    """Refuse to read in a process that was forked: the threads that Zarr and Dask rely on are gone.

    Raises
    ------
    InvalidInput
        Saying how to start workers.
    """
    kind = type(multiprocessing.current_process()).__name__
    method = multiprocessing.get_start_method(allow_none=True) or "fork"
    if kind == "ForkProcess" or (kind == "Process" and method == "fork"):
        raise InvalidInput(
            "worker processes that are forked stop for ever when they read, as the threads of Zarr "
            'and Dask are not forked; pass multiprocessing_context="spawn" to the DataLoader, or '
            "num_workers=0, which reads in threads"
        )
