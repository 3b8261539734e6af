"""Small tensors of all processes by name: gathered in one message, added in rank order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from volflow.partition.exchange.peers import Peers

__all__ = ["added", "rows_of", "summed_over"]

Shapes = Mapping[int, Sequence[int]]
# Numbers that are summed at a time: sums of processes take some copies of them.
PIECE = 2**20


def rows_of(peers: Peers, shapes: Shapes, mine: Mapping[int, Tensor]) -> list[dict[int, Tensor]]:
    """Return the tensors of each process in rank order, in float64 on the host.

    Parameters
    ----------
    peers
        The processes.
    shapes
        Of the tensors, by number; the same on all processes.
    mine
        Those of this process. What is missing counts as zero.
    """
    return [_unpacked(shapes, row) for row in peers.gathered(_packed(shapes, mine))]


def added(rows: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors, taken one after the other."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total += row
    return total


def summed_over(peers: Peers, shapes: Shapes, mine: dict[int, Tensor]) -> dict[int, Tensor]:
    """Return the sums of large tensors over all processes, in float64 on the host.

    What no process has is left out. Parameters are those of `rows_of`; `mine` is emptied, so that
    nothing is there twice.
    """
    there = torch.tensor([float(n in mine) for n in shapes], dtype=torch.float64)
    packed = _packed(shapes, mine)
    mine.clear()
    counts = peers.summed(there.to(packed.device)).tolist()
    found = torch.empty_like(packed, device="cpu") if packed.device.type != "cpu" else packed
    for into, piece in zip(found.split(PIECE), packed.split(PIECE), strict=True):
        into.copy_(peers.summed(piece))
    sums = _unpacked(shapes, found)
    return {n: total for (n, total), count in zip(sums.items(), counts, strict=True) if count}


def _packed(shapes: Shapes, mine: Mapping[int, Tensor]) -> Tensor:
    device = next((tensor.device for tensor in mine.values()), torch.device("cpu"))
    packed = torch.zeros(sum(map(math.prod, shapes.values())), dtype=torch.float64, device=device)
    for n, part in _unpacked(shapes, packed).items():
        if n in mine:
            part.copy_(mine[n].reshape(part.shape))
    return packed


def _unpacked(shapes: Shapes, packed: Tensor) -> dict[int, Tensor]:
    """Return views of one vector."""
    parts = packed.split([math.prod(shape) for shape in shapes.values()])
    return {n: part.view(*shape) for (n, shape), part in zip(shapes.items(), parts, strict=True)}
