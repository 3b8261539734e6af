"""Rules of dropout in training: what is dropped follows from the place in the whole tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from volflow.geometry.roi import Roi
from volflow.partition.draws import Draws
from volflow.partition.graph import Window
from volflow.partition.rules.tracing import OpCall, Traced

__all__ = ["DROPPED", "Dropout", "dropout"]

# Torch's functions, and after how many dims all values are dropped together.
DROPPED = {
    "dropout": None, "dropout1d": 2, "dropout2d": 2, "dropout3d": 2, "feature_dropout": 2,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Dropout:
    """Values are set to 0 at random, and the others scaled to keep their mean.

    Parameters
    ----------
    p
        Probability that a value is dropped.
    draws, salt
        What the mask depends on beside the place.
    shape, dims
        Of the whole tensor: its shape, and the axis along each dim or None.
    own
        How many of the dims, from the first, tell masks apart; along the others all values are
        dropped together.
    """

    p: float
    draws: Draws
    salt: int
    shape: tuple[int, ...]
    dims: tuple[int | None, ...]
    own: int

    def __call__(self, windows: Sequence[Window], box: Roi) -> Tensor:
        """Return the window times the mask and the scale."""
        x = windows[0].values
        scale = 1 / (1 - self.p) if self.p < 1 else 0.0
        function: Any = _Dropped.apply
        result: Tensor = function(x, self.mask(box, x.device).logical_not_(), scale)
        return result

    def mask(self, box: Roi, device: torch.device | None = None) -> Tensor:
        """Return the mask of a box: True where values are kept."""
        ranges = [*box]
        spans = [
            ((0, n) if axis is None else ranges[axis]) if d < self.own else (0, 1)
            for d, (n, axis) in enumerate(zip(self.shape, self.dims, strict=True))
        ]
        return self.draws.kept(self.p, self.salt, spans, device)


class _Dropped(torch.autograd.Function):
    """Scales values and sets some to 0; of them it keeps a byte per value.

    Torch multiplies by the mask, of which it makes a copy in floats, both ways.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(dropped)
        ctx.scale = scale
        return (x * scale).masked_fill_(dropped, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (dropped,) = ctx.saved_tensors
        return (gradient * ctx.scale).masked_fill_(dropped, 0), None, None


def dropout(call: OpCall) -> Traced:
    """Record a dropout in training mode."""
    x, tracer = call.inputs[0], call.tracer
    dims = tracer.dims(x)
    p = float(call.named(("input", "p")).get("p", 0.5))
    if not 0 <= p <= 1:
        raise call.refuse(f"its probability is {p}, which is not between 0 and 1")
    own = DROPPED[call.name] or x.ndim
    # Torch takes these for images without their batch.
    if (call.name, x.ndim) in (("dropout1d", 2), ("dropout3d", 4)):
        own = 1
    assert tracer.draws is not None
    salt = sum(isinstance(node.compute, Dropout) for node in tracer.nodes)
    compute = Dropout(p, tracer.draws, salt, tuple(x.shape), dims, own)
    reads = [tracer.straight(x, tracer.sizes(x))]
    return tracer.add(call, [x], reads, compute, torch.empty_like(x.meta), dims)
