"""What the gradient of each op takes: its time, and what autograd keeps for it until then.

Ops are profiled on a worker; what was not is estimated, and kept for certain where unknown.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, Node, read_by
from volflow.partition.rules.onednn import planes_at_once
from volflow.passes.cost import MEMORY_BYTES_PER_S, Costs

__all__ = ["GradientCost", "estimated_gradient", "pieced_box", "share_at_once", "with_gradient"]

# Ops whose gradient follows from their result, and those whose gradient needs no values at all.
OF_RESULT = frozenset(
    ("relu", "relu6", "sigmoid", "tanh", "softmax", "log_softmax", "exp", "expm1", "sqrt", "rsqrt")
)
OF_NOTHING = frozenset(
    ("cat", "add", "sub", "neg", "__add__", "__radd__", "__sub__", "__neg__", "interpolate", "pad",
     "reshape", "view", "flatten", "permute", "flip", "roll", "__getitem__", "to", "contiguous",
     "clone", "pixel_shuffle", "avg_pool1d", "avg_pool2d", "avg_pool3d", "mean", "sum")
)  # fmt: skip
# Bytes that a max pooling keeps of where each of its values was found.
INDEX_BYTES = 8
# Times that the gradient of an op other than a convolution reads or writes its tensors, and that
# what pulls at a statistic does.
MOVES, PULL_MOVES = 3, 4


@dataclass(frozen=True)
class GradientCost:
    """Cost of the gradient of an op per voxel of its output (of its input, for a statistic).

    Parameters
    ----------
    seconds
        Time on one worker, with the gradients of its weights.
    workspace_bytes
        Memory beside what is kept and the gradients of output and inputs.
    keeps_inputs
        By input, whether its values are kept from forward to backward.
    keeps_output
        Whether those of the output are.
    kept_bytes
        Of other tensors that are kept.
    pieced
        Whether the gradient is computed in pieces, and the workspace is that of a voxel of a piece.
    """

    seconds: float
    workspace_bytes: float
    keeps_inputs: tuple[bool, ...]
    keeps_output: bool = False
    kept_bytes: float = 0.0
    pieced: bool = False

    def beside_bytes(self, box: Roi, taken: Roi) -> int:
        """Return the memory that a box takes beside what is kept and gradients.

        Parameters
        ----------
        box
            Of the output.
        taken
            The box that is cut into pieces: the same, or of the input of a transposed convolution.
        """
        return int(self.workspace_bytes * box.size * (share_at_once(taken) if self.pieced else 1))


def pieced_box(node: Node, box: Roi) -> Roi:
    """Return the box that is cut into pieces for a box of an op: that of its result, or its input.

    A transposed convolution spreads its input, as the gradient of a plain one does its result.
    """
    return read_by(node.reads[0], box) if node.name.startswith("conv_transpose") else box


def share_at_once(box: Roi) -> float:
    """Return which share of a box is computed at once where a gradient is computed in pieces."""
    return min(1.0, planes_at_once(box.shape) / max(1, box.shape[0]))


def estimated_gradient(costs: Costs, number: int, *, input_wanted: bool = True) -> GradientCost:
    """Estimate what the gradient of an op takes.

    Parameters
    ----------
    costs
        Of the ops forward.
    number
        The op's node.
    input_wanted
        Whether the gradient of its input is wanted beside that of its weights.
    """
    node = costs.graph.nodes[number]
    sources = [costs.graph.nodes[source] for source in node.inputs]
    moved = (sources[0] if node.statistic else node).value_bytes / MEMORY_BYTES_PER_S
    if node.statistic:
        return GradientCost(PULL_MOVES * moved, 0.0, (False,))
    if node.flops:
        # As the convolution itself: its input and its output are copied into another layout.
        seconds = (1 + input_wanted) * costs.seconds_of(number)
        beside = node.value_bytes + sources[0].value_bytes
        return GradientCost(seconds, beside, (True, *(False for _ in sources[1:])))
    seconds, none = MOVES * moved, (False,) * len(sources)
    if node.name in OF_RESULT:
        return GradientCost(seconds, 0.0, none, keeps_output=True)
    if node.name in OF_NOTHING:
        return GradientCost(seconds, 0.0, none)
    if node.name.endswith("_norm"):
        return GradientCost(seconds, 0.0, (True, *none[1:]))
    if node.name.startswith("max_pool"):
        return GradientCost(seconds, 0.0, (True, *none[1:]), kept_bytes=INDEX_BYTES * node.depth)
    return GradientCost(seconds, 0.0, (True,) * len(sources), keeps_output=True)


def with_gradient(graph: Graph, computed: Collection[int], leaves: Collection[int]) -> set[int]:
    """Return which of some nodes, computed together, have a gradient.

    Parameters
    ----------
    graph
        Traced for training.
    computed
        The nodes.
    leaves
        Nodes that they are computed from and that have one.
    """
    found = set(leaves)
    for number in sorted(computed):
        node = graph.nodes[number]
        if node.weights or found.intersection(node.inputs):
            found.add(number)
    return found
