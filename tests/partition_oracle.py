"""A module run whole, and run block by block through its graph: the two must be one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, compute
from volflow.partition.trace import trace

EXACT = 1e-12  # of what is computed in float64
# A gradient below this share of the largest of all is compared with that one: it is 0 in exact
# arithmetic, as a bias's before a norm, and rounding in fact, of at most 1.3e-14 where it was
# measured. Gradients that are not 0 were seen down to 4e-12, at the bottom of deep U-Nets.
ROUNDING = 1e-13


class Apply(nn.Module):
    """A function as a module, with layers that it may use."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: Tensor):
        return self.function(self, x) if self._modules else self.function(x)


# A norm undoes the weights of what is right before it but for its eps: of their gradient that is
# left in which terms up to 1e12 times as large cancel. Where this is so, gradients below this share
# of the largest of all are compared with the share. In a random network one was 1.5e-5 off, by its
# own norm; so was plain autograd, 4e-6, by the last bit of its image.
UNDONE = 1e-2


def scale_of(gradient: Tensor, largest: float, undone: float = 0.0) -> float:
    """What an error of a gradient is relative to: its own largest value, where it is not 0."""
    own = float(gradient.abs().max())
    return max(own, undone * largest) if own > ROUNDING * largest else largest


def enlarged(module: nn.Module, factor: float = 2.0) -> nn.Module:
    """A copy in float64 and eval mode with weights so large that no voxel of a halo is idle."""
    module = copy.deepcopy(module).double().eval()
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(factor)
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2.0)
    return module


def image(sizes: Sequence[int], channels: int, seed: int = 0) -> Tensor:
    """Noise ``(1, channels, *sizes)`` in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, channels, *sizes), dtype=torch.float64, generator=generator)


def boxes(sizes: Sequence[int], cuts: Sequence[Sequence[int]]) -> Iterator[Roi]:
    """The boxes between cuts, which may lie anywhere in a volume."""
    edges = [
        sorted({0, n, *(c for c in at if 0 < c < n)}) for n, at in zip(sizes, cuts, strict=True)
    ]
    for box in itertools.product(*(itertools.pairwise(one) for one in edges)):
        yield Roi(tuple(low for low, _ in box), tuple(high for _, high in box))


def uneven(sizes: Sequence[int], seed: int) -> list[list[int]]:
    """At most two cuts per axis, anywhere."""
    random = np.random.default_rng(seed)
    return [random.integers(0, n + 1, 2).tolist() for n in sizes]


def blocked(graph: Graph, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """All outputs, assembled from blocks; statistics from blocks of another grid."""
    held: dict[int, Tensor] = {}

    def fetch(number: int, box: Roi) -> Tensor:
        return x[(..., *box.slices())] if number == 0 else held[number]

    with torch.inference_mode():
        for number in graph.statistics:
            node = graph.nodes[number]
            (source,) = node.inputs
            grid = boxes(graph.sizes(source), uneven(graph.sizes(source), seed + number))
            partials = [
                node.compute.partial(values, box)
                for box in grid
                for _, values in compute(graph, {source: box}, {0, *held}, fetch)
            ]
            held[number] = node.compute.finish(node.compute.merged(partials), graph.device)
        return {
            name: _assembled(graph, number, {0, *held}, fetch, seed)
            for name, number in graph.outputs.items()
        }


def _assembled(graph: Graph, number: int, given: set[int], fetch, seed: int) -> Tensor:
    node = graph.nodes[number]
    result = torch.empty(node.shape, dtype=node.dtype)
    sizes = graph.sizes(number)
    for box in boxes(sizes, uneven(sizes, seed + 500 + number)):
        for _, values in compute(graph, {number: box}, given, fetch):
            index = [slice(None) if a is None else box.slices()[a] for a in node.dims]
            assert result[tuple(index)].shape == values.shape
            assert values.dtype == node.dtype
            result[tuple(index)] = values
    return result


def named(raw) -> dict[str, Tensor]:
    """The outputs of a module by name."""
    if isinstance(raw, Tensor):
        return {"": raw}
    return dict(raw) if isinstance(raw, dict) else {f"output{n}": x for n, x in enumerate(raw)}


def difference(module: nn.Module, x: Tensor, seed: int = 0, *, grids: int = 1) -> float:
    """The largest difference between both ways, relative to the largest value.

    Parameters
    ----------
    module
        In eval mode.
    x
        Its input.
    seed
        Of the cuts.
    grids
        How many are tried.
    """
    with torch.inference_mode():
        whole = named(module(x.clone()))
    graph = trace(module, x.shape[1], x.shape[2:], x.dtype)
    return max(
        _relative(parts[name], value)
        for n in range(grids)
        for parts in [blocked(graph, x, seed + 1000 * n)]
        for name, value in whole.items()
    )


def _relative(found: Tensor, wanted: Tensor) -> float:
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    found, wanted = found.double(), wanted.double()
    if torch.equal(found.nan_to_num(0.5), wanted.nan_to_num(0.5)):
        return 0.0
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300))
