"""Processes as a mesh: groups that each share one volume, side by side over several volumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from volflow.errors import InvalidInput
from volflow.partition.exchange.peers import Peers

__all__ = ["Mesh", "mesh_of"]


@dataclass(frozen=True, eq=False)
class Mesh:
    """The place of this process: its volume, and its share of it.

    Parameters
    ----------
    space
        The processes that share one volume, among which this one's rank is its share.
    world
        All processes; those of one volume stand behind each other.
    """

    space: Peers
    world: Peers

    @property
    def volumes(self) -> int:
        """Number of volumes that are computed at once."""
        return len(self.world) // len(self.space)

    @property
    def volume(self) -> int:
        """Number of the volume that this process shares."""
        return self.world.rank // len(self.space)

    def close(self) -> None:
        """Leave the groups of the mesh."""
        self.space.close()
        self.world.close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the groups if this process fails, so that the others do not wait in vain."""
        try:
            yield
        except BaseException:
            self.close()
            raise


def mesh_of(shares: int, timeout_s: float = 600.0) -> Mesh:
    """Divide all processes into groups of `shares`, each of which shares one volume.

    Every process must call it. Each group has a connection of its own, with its own timeout.

    Raises
    ------
    InvalidInput
        If the number of processes is not a multiple of `shares`, or no process group is running.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InvalidInput(
            "a partition over processes needs a running process group; start the script with"
            " torchrun and call torch.distributed.init_process_group() first"
        )
    count = dist.get_world_size()
    if count % shares:
        raise InvalidInput(
            f"the number of processes must be a multiple of the {shares} boxes of the partition,"
            f" got {count}; start as many with torchrun, or give another partition"
        )
    world = Peers.among([range(count)], timeout_s)
    if count == shares:
        return Mesh(world, world)
    groups = [range(first, first + shares) for first in range(0, count, shares)]
    return Mesh(Peers.among(groups, timeout_s), world)
