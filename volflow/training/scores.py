"""The outputs of a network as tensors with a gradient, whose activations are elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from volflow.partition.graph import Graph
from volflow.training.targets import TargetLoss

__all__ = ["Found", "Scores", "StepRun", "computed_scores"]

# What a network returns.
Scores = Tensor | tuple[Tensor, ...] | dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Found:
    """Gradients that a step has found.

    Parameters
    ----------
    weights
        By number in `Graph.weights`.
    image
        Of the image, where it is wanted.
    """

    weights: Mapping[int, Tensor] = field(default_factory=dict)
    image: Tensor | None = None


class StepRun(Protocol):
    """One step over one batch, out of core or divided over processes."""

    def graph(self) -> Graph:
        """Return the network's graph, over the caller's own module."""

    def forward(self, *, gradient: bool, image: bool) -> dict[int, Tensor]:
        """Return the outputs by node; buffers are updated as training mode does.

        Parameters
        ----------
        gradient, image
            Whether `backward` will follow, and whether it shall find the gradient of the image.
        """

    def backward(self, gradients: Mapping[int, Tensor], *, image: bool) -> Found:
        """Return what follows from the gradients of the outputs; once."""

    def loss(self, loss: TargetLoss, weight: float, *, gradient: bool) -> tuple[Tensor, Found]:
        """Return a loss of the outputs, and the gradients of it times the weight if wanted."""


def computed_scores(run: StepRun, image: Tensor | None) -> Scores:
    """Return what the network returns, in memory; their gradient runs the step backward.

    Parameters
    ----------
    run
        The step.
    image
        The volume as a tensor, where its gradient may be wanted.
    """
    graph = run.graph()
    sources = [weight.source for weight in graph.weights]
    image = image if image is not None and image.requires_grad else None
    if torch.is_grad_enabled() and (sources or image is not None):
        found: tuple[Tensor, ...] = _Scores.apply(run, image, *sources)  # type: ignore[no-untyped-call]
    else:
        found = tuple(run.forward(gradient=False, image=False).values())
    return _as_returned(graph, dict(zip(graph.ends, found, strict=True)))


def _as_returned(graph: Graph, values: Mapping[int, Tensor]) -> Scores:
    """Return outputs as the module returns them: a tensor, a tuple or a dict."""
    named = {name: values[node] for name, node in graph.outputs.items()}
    if list(named) == [""]:
        return named[""]
    if list(named) == [f"output{n}" for n in range(len(named))]:
        return tuple(named.values())
    return named


class _Scores(torch.autograd.Function):
    """Forward runs the step forward, backward backward."""

    @staticmethod
    def forward(
        ctx: Any, run: StepRun, image: Tensor | None, *sources: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.run, ctx.places = run, [(source.dtype, source.device) for source in sources]
        ctx.image = None if image is None else (image.shape, image.dtype, image.device)
        # What is saved is checked for changes in place meanwhile, as plain autograd does.
        ctx.save_for_backward(*sources)
        outputs = run.forward(gradient=True, image=image is not None)
        ctx.ends = tuple(outputs)
        return tuple(outputs.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        _ = ctx.saved_tensors
        ends = zip(ctx.ends, gradients, strict=True)
        found: Found = ctx.run.backward(
            {n: g for n, g in ends if g is not None}, image=ctx.image is not None
        )
        weights = [
            found.weights[n].to(device, dtype) if n in found.weights else None
            for n, (dtype, device) in enumerate(ctx.places)
        ]
        image = None
        if ctx.image is not None and found.image is not None:
            shape, dtype, device = ctx.image
            inside: Any = (..., *(slice(0, n) for n in shape[-found.image.ndim + 2 :]))
            image = found.image[inside].reshape(shape).to(device, dtype)
        return None, image, *weights
