"""Choose the passes over the blocks in which a network predicts, and what each one keeps.

The cheapest path is found among cuts behind the costly ops, by their computation, the bytes that
are kept, and the block that memory allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.partition.graph import Graph
from volflow.passes.cost import UNLIMITED, Costs, Pass
from volflow.passes.cuts import SIDES, WHOLE, Cuts
from volflow.passes.ways import best_ways

__all__ = ["Planner"]


class _Way(NamedTuple):
    """Passes up to a cut, and the value by which they are compared."""

    value: float
    steps: tuple[Pass, ...]


@dataclass(frozen=True, eq=False)
class Planner:
    """Chooses passes for one graph.

    Parameters
    ----------
    costs
        Projects memory and time of passes over the graph.
    alignment
        Divides the sides of blocks, per axis.
    memory_bytes
        Budget of the tensors and buffers of one block.
    scratch_bytes
        Budget of what is kept at a time.
    sides
        Sides of blocks that are tried, largest first.
    device_bytes
        Budget of one block in the memory of a GPU, if one computes.
    """

    costs: Costs
    alignment: tuple[int, ...]
    memory_bytes: int
    scratch_bytes: int = 2**62
    sides: tuple[int, ...] = (WHOLE, *SIDES)
    device_bytes: int = UNLIMITED

    @property
    def graph(self) -> Graph:
        """The graph of the network."""
        return self.costs.graph

    def choose(self, blocks: Sequence[tuple[int, ...]] | None = None) -> tuple[Pass, ...]:
        """Return the passes with the least estimated time.

        Parameters
        ----------
        blocks
            Blocks that the last pass may use, largest first, as the layout of the output allows;
            any by default.

        Raises
        ------
        MemoryRefused
            If not even the smallest blocks fit, naming the memory that they take.
        """
        step = Pass((0,), self.graph.ends, (), self.graph.sizes(0))  # one block, statistics and all
        alone = self.fitted(step)
        if alone is not None and blocks is not None and alone.block not in blocks:
            alone = None
        if alone is not None and self.costs.workers == 1:
            return (alone,)
        found = self._path(blocks, lambda before, steps: before + sum(s.seconds for s in steps))
        if alone is not None and (found is None or alone.seconds <= found.value):
            return (alone,)
        if found is None:
            raise self._too_little(blocks)
        return found.steps

    def fitted(self, step: Pass, known: frozenset[int] = frozenset()) -> Pass | None:
        """Return a pass with its projected memory and time; None if it exceeds a budget."""
        return self.costs.measured(step, known, self.memory_bytes, self.device_bytes)

    def enough(self, blocks: Sequence[tuple[int, ...]] | None = None) -> tuple[int, int]:
        """Return budgets in which the smallest blocks fit: of a worker's memory, and of a GPU's.

        The second stays as it is if the first can make room alone, and the first if the second can;
        both where a tensor has more values than a GPU's kernels can count, however small the block.

        Parameters
        ----------
        blocks
            As for `choose`.
        """
        given = self.memory_bytes, self.device_bytes
        memory = self._least(blocks, "peak_bytes", UNLIMITED, self.device_bytes)
        if memory is not None:
            return memory, given[1]
        device = self._least(blocks, "device_peak_bytes", given[0], UNLIMITED)
        if device is not None:
            return given[0], device
        device = self._least(blocks, "device_peak_bytes", UNLIMITED, UNLIMITED)
        if device is None:  # one pass that keeps nothing always is a way, but for what GPUs count
            return given
        memory = self._least(blocks, "peak_bytes", UNLIMITED, device)
        assert memory is not None
        return memory, device

    def _least(
        self,
        blocks: Sequence[tuple[int, ...]] | None,
        peak: str,
        memory_bytes: int,
        device_bytes: int,
    ) -> int | None:
        """Return the least of a peak for the smallest blocks in two budgets; None if none fit."""
        small = replace(
            self, memory_bytes=memory_bytes, device_bytes=device_bytes, sides=self.sides[-1:]
        )
        found = small._path(
            None if blocks is None else blocks[-1:],
            lambda before, steps: max([before, *(getattr(s, peak) for s in steps)]),
        )
        return None if found is None else int(found.value)

    def _path(
        self,
        blocks: Sequence[tuple[int, ...]] | None,
        value: Callable[[float, list[Pass]], float],
    ) -> _Way | None:
        """Return the passes of least value; None if none fit."""
        cuts = self._cuts(blocks)

        def leap(way: _Way, here: int, there: int) -> _Way | None:
            steps = cuts.between(cuts.places[here], cuts.places[there])
            if steps is None:
                return None
            return _Way(value(way.value, steps), (*way.steps, *steps))

        found = best_ways(len(cuts.places), _Way(0.0, ()), leap, _least_value)
        return found[0] if found else None

    def _cuts(self, blocks: Sequence[tuple[int, ...]] | None) -> Cuts:
        return Cuts(
            self.costs, self.fitted, self.alignment, self.sides, self.scratch_bytes, ends=blocks
        )

    def _too_little(self, blocks: Sequence[tuple[int, ...]] | None) -> MemoryRefused:
        smallest = (blocks or self._cuts(None).blocks)[-1]
        sides, least = "×".join(map(str, smallest)), self.enough(blocks)
        wants = [
            f"takes {format_bytes(most)}, and {name} leaves {format_bytes(max(0, given))}"
            for name, most, given in zip(
                ("memory", "device_memory"), least, (self.memory_bytes, self.device_bytes),
                strict=True,
            )
            if most > given
        ]  # fmt: skip
        return MemoryRefused(
            f"exact inference in blocks of {sides} voxels {', and '.join(wants)}; give more, or use"
            " blend='gaussian' with a smaller patch"
        )


def _least_value(ways: list[_Way]) -> list[_Way]:
    """Return the way of least value, the first of equal ones."""
    return [min(ways, key=lambda way: way.value)] if ways else []
