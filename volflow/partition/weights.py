"""What a step changes: the weights that get gradients, and the buffers that training updates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

__all__ = ["Partial", "Update", "Weight", "WeightsInUse"]

# The merged result of a statistic: a row of float64 per number that its blocks give.
Partial = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Weight:
    """A tensor that requires a gradient and is given to an op of the network.

    Parameters
    ----------
    name
        The parameter's name; ``op@path.of.module`` of its first use if it was computed.
    leaf
        What the op holds: a leaf that requires a gradient.
    source
        The tensor with its history: the parameter itself, which then is the leaf unless it has
        hooks, or what the module computed from parameters. The gradient of the leaf goes to the
        parameters by ``torch.autograd.backward(source, gradient)``.
    """

    name: str
    leaf: Tensor
    source: Tensor


class Update(Protocol):
    """What training mode does to the buffers of a module, once a step."""

    def apply(self, merged: Mapping[int, Partial]) -> None:
        """Change the module's own buffers.

        Parameters
        ----------
        merged
            The merged results of the statistics of the graph, by node.
        """


class WeightsInUse:
    """Collects the weights of a graph, in the order of their first use.

    Parameters
    ----------
    module
        The network, whose parameters they are or are computed from.
    """

    def __init__(self, module: nn.Module) -> None:
        self.found: list[Weight] = []
        self._names = {id(one): name for name, one in module.named_parameters()}
        self._numbers: dict[int, int] = {}

    def number(self, tensor: Tensor, user: str) -> int | None:
        """Return the number of a weight; None for a tensor that is no parameter's.

        Parameters
        ----------
        tensor
            It requires a gradient.
        user
            The op that is given it and the path of its module, ``op@path``.
        """
        if id(tensor) not in self._numbers:
            name = self._names.get(id(tensor))
            if name is None and not self._is_computed(tensor):
                return None
            # A hook of a parameter sees its gradient once, not that of every block.
            plain = name is not None and not tensor._backward_hooks
            leaf = tensor if plain else tensor.detach().requires_grad_()
            self._numbers[id(tensor)] = len(self.found)  # the source is kept: no id is reused
            self.found.append(Weight(user if name is None else name, leaf, tensor))
        return self._numbers[id(tensor)]

    def _is_computed(self, tensor: Tensor) -> bool:
        """Return True if a tensor was computed from the module's parameters and from them alone."""
        return tensor.grad_fn is not None and all(
            id(one) in self._names for one in _origins(tensor.grad_fn)
        )


def _origins(step: Any) -> Iterator[Tensor]:
    """Yield the leaves from which autograd knows that a result was computed."""
    seen, stack = set[Any](), [step]
    while stack:
        step = stack.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if hasattr(step, "variable"):
            yield step.variable
        stack.extend(before for before, _ in step.next_functions)
