"""One backward pass through a graph traced for training, cut by hand: plain autograd must agree."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.partition_oracle import boxes, image, named, scale_of, uneven
from volflow.geometry.roi import Roi
from volflow.partition.draws import Draws
from volflow.partition.graph import Graph, compute
from volflow.partition.rules.dropout import DROPPED, Dropout
from volflow.partition.trace import trace
from volflow.partition.weights import Partial

EXACT = 1e-12  # relative to the largest value of each gradient
DRAWS = Draws(seed=3, step=5)


def upstreams(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any gradients of the outputs; of whole numbers there is none."""
    return {
        name: torch.randn(
            value.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(11 + n)
        ).to(value.dtype)
        for n, (name, value) in enumerate(outputs.items())
        if value.is_floating_point()
    }


class Cut:
    """A graph in blocks: the image and finished statistics are leaves."""

    def __init__(self, graph: Graph, x: Tensor, seed: int) -> None:
        self.graph, self.seed = graph, seed
        self.image = x.clone().requires_grad_()
        self.leaves: dict[int, Tensor] = {}
        self.merged: dict[int, Partial] = {}

    def shares(self, number: int, salt: int) -> Iterator[tuple[Roi, Tensor]]:
        """A node, box by box; other boxes for each salt."""

        def fetch(node: int, box: Roi) -> Tensor:
            return self.leaves[node] if node else self.image[(..., *box.slices())]

        sizes = self.graph.sizes(number)
        for box in boxes(sizes, uneven(sizes, self.seed + salt + number)):
            for _, values in compute(self.graph, {number: box}, {0, *self.leaves}, fetch):
                yield box, values

    def measure(self) -> None:
        """Measure all statistics, in order."""
        for number in self.graph.statistics:
            rule, source = self.graph.nodes[number].compute, self.graph.nodes[number].inputs[0]
            with torch.no_grad():
                parts = [rule.partial(v, box).numpy() for box, v in self.shares(source, 100)]
            self.merged[number] = rule.merged(parts)
            value = rule.finish(self.merged[number], self.graph.device)
            self.leaves[number] = value.requires_grad_()

    def outputs(self) -> dict[str, Tensor]:
        """Compute the outputs, and their gradients at once."""
        found = {}
        nodes = {name: self.graph.nodes[n] for name, n in self.graph.outputs.items()}
        metas = {name: torch.empty(node.shape, dtype=node.dtype) for name, node in nodes.items()}
        gradients = upstreams(metas)
        for name, whole in metas.items():
            found[name] = whole
            for box, values in self.shares(self.graph.outputs[name], 7):
                sides = box.slices()
                index = tuple(slice(None) if a is None else sides[a] for a in nodes[name].dims)
                whole[index] = values.detach()
                if values.requires_grad:
                    values.backward(gradients[name][index])
        return found

    def pull(self) -> None:
        """Let the statistics pull at what they were measured of, the last one first."""
        for number in reversed(self.graph.statistics):
            rule, source = self.graph.nodes[number].compute, self.graph.nodes[number].inputs[0]
            upon = self.leaves[number].grad
            for box, values in self.shares(source, 13):
                if upon is not None and values.requires_grad:
                    values.backward(rule.pulled(values, box, self.merged[number], upon))

    def finish(self) -> None:
        """Take gradients to the parameters, and update the buffers."""
        for weight in self.graph.weights:
            if weight.leaf is not weight.source and weight.leaf.grad is not None:
                torch.autograd.backward(weight.source, weight.leaf.grad)
        for update in self.graph.updates:
            update.apply(self.merged)


def cut_gradients(module: nn.Module, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Outputs, the gradient of the image, and the module's own gradients and buffers, in blocks.

    The module's gradients and buffers change.
    """
    graph = trace(module, x.shape[1], x.shape[2:], x.dtype, training=DRAWS, batch=x.shape[0])
    cut = Cut(graph, x, seed)
    cut.measure()
    outputs = cut.outputs()
    cut.pull()
    cut.finish()
    return _found(module, outputs, cut.image)


def plain_gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The same by plain autograd; dropouts of a module draw the masks of its graph."""
    with torch.random.fork_rng():
        graph = trace(module, x.shape[1], x.shape[2:], x.dtype, training=DRAWS, batch=x.shape[0])
    x = x.clone().requires_grad_()
    with masks_of(graph):
        outputs = named(module(x.clone()))
    heads = [(outputs[name], g) for name, g in upstreams(outputs).items()]
    heads = [(y, g) for y, g in heads if y.requires_grad]
    torch.autograd.backward([y for y, _ in heads], [g for _, g in heads])
    return _found(module, {name: y.detach() for name, y in outputs.items()}, x)


def _found(module: nn.Module, outputs: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    zero = torch.zeros_like(x)
    return {
        **{f"output {name}": value for name, value in outputs.items()},
        "image": zero if x.grad is None else x.grad,
        **{
            f"gradient {n}": torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for n, p in module.named_parameters()
        },
        **{f"buffer {name}": buffer.clone() for name, buffer in module.named_buffers()},
    }


@contextmanager
def masks_of(graph: Graph) -> Iterator[None]:
    """Torch's dropouts multiply with the masks of a graph's, in their order."""
    rules = iter([node.compute for node in graph.nodes if isinstance(node.compute, Dropout)])
    before = {name: getattr(F, name) for name in DROPPED if hasattr(F, name)}

    def dropped(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        rule = next(rules)
        sizes = [n for n, axis in zip(rule.shape, rule.dims, strict=True) if axis is not None]
        mask = rule.mask(Roi.full(sizes or [1] * graph.ndim))
        assert mask.dtype == torch.bool
        return x * mask / (1 - p) if p < 1 else x * 0

    try:
        for name in before:
            setattr(F, name, dropped)
        yield
    finally:
        for name, function in before.items():
            setattr(F, name, function)
    assert next(rules, None) is None


def check_gradients(
    module: nn.Module,
    sizes: Sequence[int] = (6, 5, 7),
    channels: int = 2,
    *,
    batch: int = 1,
    grids: int = 2,
    training: bool = True,
    exact: float = EXACT,
) -> None:
    """Both ways agree, to rounding, in float64."""
    module = module.double().train(training)
    state = copy.deepcopy(module.state_dict())
    x = torch.cat([image(sizes, channels, n) for n in range(batch)])
    module.zero_grad()
    expected = plain_gradients(module, x)
    for n in range(grids):
        # Modules whose weights are computed cannot be copied.
        module.load_state_dict(state)
        module.zero_grad()
        found = cut_gradients(module, x, 1000 * n)
        assert_gradients(found, expected, exact)


def assert_gradients(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    exact: float,
    undone: float = 0.0,
) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(v.abs().max()) for n, v in expected.items() if not n.startswith("buffer"))
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].dtype == value.dtype, name
        scale = scale_of(value, largest, undone) if value.is_floating_point() else 1
        error = float((found[name].double() - value.double()).abs().max())
        assert error <= exact * scale, f"{name}: {error:.1e} of {scale:.1e}"
