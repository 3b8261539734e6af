"""Sums over blocks of a pass backward: gradients of statistics and of weights, by groups of blocks.

A group is a run of neighbouring blocks that one task sums, however many workers there are. Groups
are summed in their order, so that the gradients of a step have the same bits on any cluster.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from volflow.partition.gradients import Gradients
from volflow.passes.activations import making_room
from volflow.store.atomic import write_file

__all__ = ["MOST_GROUPS", "Totals", "groups_of"]

Array = npt.NDArray[Any]
# Sums that a pass leaves on disk at most before they are merged; each is as large as its weights.
MOST_GROUPS = 32


def groups_of(count: int) -> tuple[range, ...]:
    """Cut the blocks of a pass into groups of neighbours.

    Examples
    --------
    >>> groups_of(3), len(groups_of(1000))
    ((range(0, 1), range(1, 2), range(2, 3)), 32)
    """
    pieces = min(count, MOST_GROUPS)
    return tuple(
        range(low, high) for low, high in pairwise(count * n // pieces for n in range(pieces + 1))
    )


@dataclass(eq=False)
class Totals:
    """Gradients of statistics and of weights, summed in float64.

    Parameters
    ----------
    statistics, weights
        By node, and by number in `Graph.weights`.
    """

    statistics: dict[int, Array] = field(default_factory=dict)
    weights: dict[int, Array] = field(default_factory=dict)

    @staticmethod
    def of(gradients: Gradients) -> Totals:
        """Return those of a block."""
        return Totals(_arrays(gradients.statistics), _arrays(gradients.weights))

    def add(self, found: Totals) -> None:
        """Add others to them."""
        for mine, others in ((self.statistics, found.statistics), (self.weights, found.weights)):
            for key, values in others.items():
                mine[key] = mine[key] + values if key in mine else values

    def write(self, path: Path) -> None:
        """Store them in one file, atomically."""
        data = io.BytesIO()
        named: dict[str, Any] = {f"statistic-{n}": values for n, values in self.statistics.items()}
        named |= {f"weight-{n}": values for n, values in self.weights.items()}
        np.savez(data, **named)
        with making_room(path.parent):
            write_file(path, data.getvalue())

    @staticmethod
    def read(path: Path) -> Totals | None:
        """Read them; None if the file is missing or damaged."""
        found = Totals()
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
                for name in data.files:
                    kind, number = name.split("-")
                    (found.weights if kind == "weight" else found.statistics)[int(number)] = data[
                        name
                    ]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        return found


def _arrays(tensors: Mapping[int, Tensor]) -> dict[int, Array]:
    return {n: tensor.cpu().numpy() for n, tensor in tensors.items()}
