"""Choose the passes in which a network is trained, forward and backward, by one search.

Keeping and computing again, the sides of blocks and the room on disk are weighed together: passes
are put before one another from the last to the first, and of the ways to come to a cut only those
are left that another beats in time, in room on disk, and in the gradients that it owes to what is
kept before. Nodes that are kept over many passes, as the skips of a U-Net are, may be forgotten
instead and computed again from what lies before them; ways with and without them are compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from volflow.errors import MemoryRefused, StoreFull
from volflow.geometry.budget import format_bytes
from volflow.partition.graph import Graph
from volflow.passes.cost import UNLIMITED, Pass
from volflow.passes.cuts import SIDES, WHOLE, Cuts
from volflow.passes.planning.disk_use import DiskUse
from volflow.passes.planning.training_cost import TrainingCosts, TrainingPass
from volflow.passes.ways import best_ways

__all__ = ["TrainingPlan", "TrainingPlanner"]

# Sets of nodes that are tried to be forgotten.
MOST_FORGOTTEN = 8


@dataclass(frozen=True)
class TrainingPlan:
    """The passes of a training step.

    Parameters
    ----------
    passes
        In the order in which they are run forward.
    disk_bytes
        The most on disk at a time.
    """

    passes: tuple[TrainingPass, ...]
    disk_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Projected memory of one block."""
        return max(step.peak_bytes for step in self.passes)

    @property
    def device_peak_bytes(self) -> int:
        """Projected memory of one block on a GPU; 0 where the CPU computes."""
        return max(step.device_peak_bytes for step in self.passes)

    @property
    def forward_s(self) -> float:
        """Seconds of the passes forward."""
        return sum(step.forward_s for step in self.passes)

    @property
    def backward_s(self) -> float:
        """Seconds of the passes backward."""
        return sum(step.backward_s for step in self.passes)

    @property
    def read_bytes(self) -> int:
        """Bytes read from disk."""
        return sum(step.read_bytes for step in self.passes)

    @property
    def written_bytes(self) -> int:
        """Bytes written to disk."""
        return sum(step.written_bytes for step in self.passes)

    @property
    def flops(self) -> float:
        """Floating-point operations of convolutions."""
        return sum(step.flops for step in self.passes)


class _Ending(NamedTuple):
    """The last passes of a plan, what they take, and what they leave to those before them."""

    seconds: float
    use: DiskUse
    steps: tuple[TrainingPass, ...]


@dataclass(frozen=True, eq=False)
class TrainingPlanner:
    """Chooses passes to train one graph.

    Parameters
    ----------
    costs
        Projects memory, time and bytes of passes over the graph.
    alignment
        Divides the sides of blocks, per axis.
    memory_bytes
        Budget of the tensors and buffers of one block.
    scratch_bytes
        Budget of what is on disk at a time.
    sides
        Sides of blocks that are tried, largest first.
    device_bytes
        Budget of one block in the memory of a GPU, if one computes.
    """

    costs: TrainingCosts
    alignment: tuple[int, ...]
    memory_bytes: int
    scratch_bytes: int = UNLIMITED
    sides: tuple[int, ...] = (WHOLE, *SIDES)
    device_bytes: int = UNLIMITED

    @property
    def graph(self) -> Graph:
        """The graph of the network."""
        return self.costs.graph

    def choose(self) -> TrainingPlan:
        """Return the plan with the least estimated time.

        Raises
        ------
        MemoryRefused
            If not even the smallest blocks fit, naming the memory that they take.
        StoreFull
            If the disk has no room for what has to be kept, naming the room that is needed.
        """
        found = self._fastest(self.scratch_bytes)
        if found is None:
            raise self._refused()
        return found

    def _fastest(self, scratch_bytes: int) -> TrainingPlan | None:
        plans = [
            TrainingPlan(way.steps, way.use.peak_bytes)
            for cuts in self._cuts
            for way in self._ways(cuts, scratch_bytes)[:1]
        ]
        return min(plans, key=lambda plan: plan.forward_s + plan.backward_s, default=None)

    def _ways(self, cuts: Cuts, scratch_bytes: int) -> list[_Ending]:
        """Return the ways to train with the cuts, the fastest first; the last ones need the least.

        Of those left out each one is beaten in time and in room by one of them.
        """
        places = cuts.places[::-1]

        def leap(way: _Ending, here: int, there: int) -> _Ending | None:
            steps = cuts.between(places[there], places[here])
            if steps is None:
                return None
            seconds, use, found = way.seconds, way.use, list[TrainingPass]()
            for step in reversed(steps):
                assert isinstance(step, TrainingPass)
                seconds, use = seconds + step.seconds, use.behind(step)
                found.insert(0, step)
            return _Ending(seconds, use, (*found, *way.steps))

        def best(ways: list[_Ending]) -> list[_Ending]:
            return _unbeaten(way for way in ways if way.use.certain_bytes <= scratch_bytes)

        return best_ways(len(places), _Ending(0.0, DiskUse(), ()), leap, best)

    @cached_property
    def _cuts(self) -> tuple[Cuts, ...]:
        """Cuts without and with nodes that are forgotten, the largest first."""
        every = Cuts(self.costs, self._fitted, self.alignment, self.sides, UNLIMITED)
        carried = _carried(every)
        sizes = {n: self.costs.kept_bytes([n]) for n in carried}
        largest = sorted(carried, key=lambda n: (-sizes[n], n))[:MOST_FORGOTTEN]
        return tuple(
            replace(every, forgotten=frozenset(largest[:count]), _found={})
            for count in range(len(largest) + 1)
        )

    def _fitted(self, step: Pass, known: frozenset[int]) -> TrainingPass | None:
        return self.costs.measured(step, known, self.memory_bytes, self.device_bytes)

    def _refused(self) -> MemoryRefused | StoreFull:
        least = [way.use.peak_bytes for cuts in self._cuts for way in self._ways(cuts, UNLIMITED)]
        if least:
            return StoreFull(
                f"training keeps at least {format_bytes(min(least))} on disk at a time, and"
                f" scratch leaves {format_bytes(max(0, self.scratch_bytes))}; make room, or give"
                " a scratch folder on a larger disk, or more memory"
            )
        small = replace(self, memory_bytes=UNLIMITED, device_bytes=UNLIMITED, sides=self.sides[-1:])
        plan = small._fastest(UNLIMITED)
        assert plan is not None
        wants = [
            f"takes {format_bytes(most)}, and {name} leaves {format_bytes(max(0, given))}"
            for name, most, given in (
                ("memory", plan.peak_bytes, self.memory_bytes),
                ("device_memory", plan.device_peak_bytes, self.device_bytes),
            )
            if most > given
        ]
        sides = "×".join(map(str, small._cuts[0].blocks[-1]))
        return MemoryRefused(
            f"training in blocks of {sides} voxels {', and '.join(wants)}; give more, or train on"
            " patches (vf.PatchStream)"
        )


def _carried(cuts: Cuts) -> frozenset[int]:
    """Return the nodes that are kept at a cut and at another behind it."""
    kept = [cuts.kept(place) for place in cuts.places[1:-1]]
    return frozenset(n for one, other in pairwise(kept) for n in one & other if n)


def _unbeaten(ways: Iterable[_Ending]) -> list[_Ending]:
    """Return those ways that none beats in everything, the fastest first."""
    found: list[_Ending] = []
    for way in sorted(ways, key=lambda way: (way.seconds, way.use.peak_bytes)):
        if not any(other.use.is_within(way.use) for other in found):
            found.append(way)
    return found
