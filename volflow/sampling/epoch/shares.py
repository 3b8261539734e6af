"""The samples of the global order that a process gives: those of its rank, or of its worker."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import torch

from volflow.errors import InvalidInput
from volflow.sampling.stream_options import check_whole

__all__ = ["ProcessShare", "refuse_fork", "this_share"]


@dataclass(frozen=True)
class ProcessShare:
    """Every ``stride``-th sample, from ``offset`` on.

    Examples
    --------
    >>> share = ProcessShare(1, 2)  # the second of two ranks
    >>> share.count(9), share.part(0, 2)
    (4, ProcessShare(offset=1, stride=4))
    """

    offset: int = 0
    stride: int = 1

    def count(self, total: int) -> int:
        """Number of samples of ``total`` that belong to it."""
        return max(0, -(-(total - self.offset) // self.stride))

    def part(self, worker: int, workers: int) -> ProcessShare:
        """Return the part of it that one of several worker processes gives."""
        return ProcessShare(self.offset + self.stride * worker, self.stride * workers)

    def check_lanes(self, lanes: int) -> None:
        """Refuse lanes that processes cannot share, naming the numbers that would do."""
        if lanes % self.stride:
            raise InvalidInput(
                f"{self.stride} ranks and workers cannot share {lanes} lanes evenly; use "
                f"lanes={-(-lanes // self.stride) * self.stride}, or a number of processes that "
                f"divides {lanes}"
            )

    def check_patches(self, patches: int) -> None:
        """Refuse patches that ranks cannot share evenly, naming the numbers that would do."""
        if patches % self.stride:
            less = patches // self.stride * self.stride
            raise InvalidInput(
                f"{patches} patches cannot be shared evenly by {self.stride} ranks, and ranks that "
                f"give unequal numbers deadlock; use "
                f"{f'{less} or ' if less else ''}{less + self.stride}"
            )


def this_share(rank: int | None, world_size: int | None) -> ProcessShare:
    """Return the share of a rank; by default as ``torch.distributed`` says.

    Raises
    ------
    InvalidInput
        If only one of them is given, or the rank is not one of them.
    """
    if (rank is None) != (world_size is None):
        raise InvalidInput("give rank and world_size together, or neither")
    if rank is None or world_size is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return ProcessShare()
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    ranks = check_whole(world_size, "world_size must be a positive number")
    rule = f"rank must be 0 to {ranks - 1} of {ranks}"
    return ProcessShare(check_whole(rank, rule, 0, ranks), ranks)


def refuse_fork() -> None:
    """Refuse to read in a forked process: the threads that Zarr and Dask rely on are gone."""
    kind = type(multiprocessing.current_process()).__name__
    method = multiprocessing.get_start_method(allow_none=True) or "fork"
    if kind == "ForkProcess" or (kind == "Process" and method == "fork"):
        raise InvalidInput(
            "forked worker processes deadlock when they read Zarr, as its threads are not forked;"
            ' pass multiprocessing_context="spawn" to the DataLoader, or num_workers=0, which reads'
            " in threads"
        )
