"""What a block takes: of this machine's memory, and of a GPU's where one computes.

There tensors lie in the GPU's memory, and this machine's holds what is read and written: as it is
read, pinned for copies, and as it is written. Both are planned for, each within its own budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from volflow.geometry.roi import Roi
from volflow.model.device import MOST_ELEMENTS
from volflow.partition.footprint import live_bytes
from volflow.partition.graph import Graph
from volflow.partition.reductions import GPU_BYTES, MOMENT_BYTES
from volflow.partition.rules.onednn import is_there

__all__ = ["FINISHED_VALUES", "BlockMemory", "VoxelBytes"]

# Scores that a GPU finishes at once, and bytes beside each: scores in float64, and activated.
FINISHED_VALUES = 2**23
FINISHING_BYTES = 24
# Buffers that are pinned for a copy: one is read or written while the next is filled.
PINNED = 2


@dataclass(frozen=True)
class VoxelBytes:
    """Bytes per voxel beside tensors.

    Parameters
    ----------
    read
        Of the input as it is read.
    finished
        Of the outputs as they are finished and written on the CPU.
    stored
        Of the outputs as they are stored.
    slices
        Slices that are read and written at once, of a network that takes one at a time.
    """

    read: int = 4
    finished: int = 4
    stored: int = 4
    slices: int = 1


@dataclass(frozen=True, eq=False)
class BlockMemory:
    """The memory of one block of a pass.

    Parameters
    ----------
    graph
        The network.
    boxes, given
        What is computed and from which nodes, as `volflow.partition.graph.needed` says.
    shares
        Voxels that the block stores of each node.
    measured
        Nodes whose statistics are measured.
    voxel
        Bytes beside tensors.
    workspaces
        By node, bytes per voxel that its op takes beside.
    """

    graph: Graph
    boxes: Mapping[int, Roi]
    given: frozenset[int]
    shares: Mapping[int, int]
    measured: Iterable[int] = ()
    voxel: VoxelBytes = field(default_factory=VoxelBytes)
    workspaces: Mapping[int, float] = field(default_factory=dict)

    def on_cpu(self) -> int:
        """Return the bytes where the CPU computes: tensors, and a block as read and as written."""
        finished = 2 * self.voxel.finished * self.voxel.slices
        written = sum(
            size * (finished if n in self.graph.ends else self._value(n))
            for n, size in self.shares.items()
        )
        copied = not is_there()
        tensors = live_bytes(self.graph, self.boxes, self.given, self.workspaces, copied=copied)
        return tensors + self._image() + written

    def beside_gpu(self) -> int:
        """Return the bytes of this machine's memory where a GPU computes."""
        sent, kept = self._sent().values(), self._kept().values()
        # One part after the other is read, and copied into a pinned buffer at once.
        read = max([self._image(), *sent])
        pinned = sum(map(_pinned, (*sent, *kept))) + 2 * self._stored()
        return read + PINNED * pinned + 2 * self._stored()

    def on_gpu(self) -> int:
        """Return the bytes of a GPU's memory."""
        graph, sent = self.graph, self._sent()
        tensors = live_bytes(graph, self.boxes, self.given, self.workspaces, sent)
        scores = sum(self._value(n) * size for n, size in self._ends().items())
        if len(self._ends()) > 1:  # held until all are there
            tensors += scores
        values = sum(graph.nodes[n].depth * size for n, size in self._ends().items())
        finishing = scores + FINISHING_BYTES * min(values, FINISHED_VALUES)
        summed = max((self._summed(n) for n in self.measured), default=0)
        # The next block's; and of all slices but the one that is counted as a tensor.
        ahead = sum(sent.values()) * (1 if self.voxel.slices == 1 else 2)
        leaving = sum(self._kept().values()) + self._stored()
        return max(tensors + summed, finishing) + ahead + PINNED * leaving

    def fits_counters(self) -> bool:
        """Return whether the kernels of a GPU can count the values of each tensor."""
        nodes = self.graph.nodes
        return all(nodes[n].depth * box.size <= MOST_ELEMENTS for n, box in self.boxes.items())

    def _value(self, number: int) -> int:
        return self.graph.nodes[number].value_bytes

    def _image(self) -> int:
        """Return the bytes of the image as it is read."""
        return self.boxes[0].size * self.voxel.read * self.voxel.slices if 0 in self.boxes else 0

    def _sent(self) -> dict[int, int]:
        """Return the bytes that are copied to a GPU, one node after the other."""
        numbers = sorted(self.given & self.boxes.keys())
        times = {0: self.voxel.slices}
        return {n: self._value(n) * self.boxes[n].size * times.get(n, 1) for n in numbers}

    def _ends(self) -> dict[int, int]:
        """Return the voxels of outputs, in the pass that writes them."""
        return dict(self.shares) if self.shares.keys() == set(self.graph.ends) else {}

    def _kept(self) -> dict[int, int]:
        """Return the bytes of nodes that are kept."""
        ends = self._ends()
        return {n: self._value(n) * size for n, size in self.shares.items() if n not in ends}

    def _stored(self) -> int:
        """Return the bytes of all outputs of a block, which are of one size."""
        size = max(self._ends().values(), default=0)
        return size * self.voxel.stored * self.voxel.slices

    def _summed(self, number: int) -> int:
        """Return the bytes that a GPU takes beside a node to measure it."""
        values = self.graph.nodes[number].depth * self.boxes[number].size
        return min(GPU_BYTES, values * MOMENT_BYTES)


def _pinned(size: int) -> int:
    """Return the bytes of a pinned buffer: torch takes a power of two."""
    return 1 << max(0, size - 1).bit_length()
