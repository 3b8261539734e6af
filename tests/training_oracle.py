"""A step of plain autograd on the whole volume and the same step in blocks: they must be one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from partition_oracle import boxes, enlarged, image, scale_of, uneven
from torch import Tensor, nn

import volflow as vf
from tests.pulled import masks_of
from volflow.geometry.roi import Roi
from volflow.partition.draws import Draws
from volflow.partition.gradients import BlockLoss, Segmented
from volflow.partition.in_memory import step_in_memory
from volflow.partition.segments import Segment
from volflow.partition.stages import segments_for_ranks
from volflow.partition.trace import trace

# Relative to the largest value of each gradient, in float64.
EXACT_GRADIENT = 1e-12


@dataclass(frozen=True, eq=False)
class DiceEntropy:
    """Cross-entropy plus soft Dice of all outputs, as sums over blocks; written for tests alone."""

    target: Tensor  # (N, *sizes), classes

    def sums(self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]) -> Tensor:
        return torch.cat([self._sums(v, boxes[n]) for n, v in sorted(outputs.items())])

    def _sums(self, scores: Tensor, box: Roi) -> Tensor:
        target = self.target[(..., *box.slices())]
        axes = [0, *range(2, scores.ndim)]
        likely = scores.softmax(1)
        true = F.one_hot(target, scores.shape[1]).movedim(-1, 1).to(scores.dtype)
        entropy = F.cross_entropy(scores, target, reduction="sum").reshape(1)
        count = torch.full_like(entropy, target.numel())
        met = [(likely * true).sum(axes), likely.sum(axes), true.sum(axes)]
        return torch.cat([entropy, count, *met]).double()

    def finish(self, total: Tensor) -> Tensor:
        loss = total.new_zeros(())
        per = 2 + 3 * self.classes(total)
        for one in total.split(per):
            met, likely, true = one[2:].chunk(3)
            loss = loss + one[0] / one[1] + 1 - ((2 * met + 1e-5) / (likely + true + 1e-5)).mean()
        return loss

    def classes(self, total: Tensor) -> int:
        return int(self.target.max()) + 1

    def __call__(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.finish(torch.cat([self._sums(v, _all(v)) for v in outputs]))


def _all(scores: Tensor) -> Roi:
    return Roi.full(scores.shape[2:])


@dataclass(frozen=True, eq=False)
class Step:
    """What one step of training computed."""

    loss: Tensor
    weights: Mapping[str, Tensor | None]
    image: Tensor
    buffers: Mapping[str, Tensor] = field(default_factory=dict)


def target_of(sizes: Sequence[int], classes: int = 2, batch: int = 1, seed: int = 1) -> Tensor:
    """Random classes, among them the last."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (batch, *sizes), generator=generator)
    target.view(-1)[0] = classes - 1
    return target


def padded(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """An image zero-padded at its far end."""
    sides = [
        side
        for n, m in zip(reversed(x.shape[2:]), reversed(sizes), strict=True)
        for side in (0, m - n)
    ]
    return F.pad(x, sides)


def listed(raw) -> list[Tensor]:
    """The outputs of a network in the order of their names."""
    if isinstance(raw, Tensor):
        return [raw]
    return [*raw.values()] if isinstance(raw, Mapping) else [*raw]


def plain_step(module: nn.Module, x: Tensor, sizes: Sequence[int], loss: DiceEntropy) -> Step:
    """Loss and gradients of plain autograd on the padded volume, scores cropped before the loss."""
    module = copy.deepcopy(module)
    x = x.clone().requires_grad_()
    outputs = listed(module(padded(x, sizes)))
    value = loss([v[(..., *(slice(0, n) for n in x.shape[2:]))] for v in outputs])
    value.backward()
    assert x.grad is not None
    return Step(
        value.detach(),
        {name: p.grad for name, p in module.named_parameters()},
        x.grad,
        dict(module.named_buffers()),
    )


def masked_step(module: nn.Module, x: Tensor, sizes: Sequence[int], loss: DiceEntropy) -> Step:
    """The plain step of a module whose dropouts draw the masks that blocks draw."""
    graph = trace(module, x.shape[1], sizes, training=Draws(0, 0), batch=x.shape[0])
    with masks_of(graph):
        return plain_step(module, x, sizes, loss)


def segmented(
    module: nn.Module, x: Tensor, sizes: Sequence[int], segments: Sequence[Segment] | None = None
) -> Segmented:
    """A module in segments that end behind each convolution, or in those given."""
    graph = trace(module, x.shape[1], sizes, training=Draws(0, 0), batch=x.shape[0])
    return Segmented(graph, segments or segments_for_ranks(graph), tuple(x.shape[2:]))


def gradients_of(
    module: nn.Module, net: Segmented, found: Mapping[int, Tensor]
) -> dict[str, Tensor | None]:
    """Gradients of a module's parameters by name, from those of the graph's weights."""
    pairs = [(net.graph.weights[w].source, g) for w, g in sorted(found.items())]
    clean = {p: p.grad for p in module.parameters()}
    for p in clean:
        p.grad = None
    torch.autograd.backward(
        [source for source, _ in pairs], [g.to(source.dtype) for source, g in pairs]
    )
    result = {name: p.grad for name, p in module.named_parameters()}
    for p, before in clean.items():
        p.grad = before
    return result


def blocked_step(
    module: nn.Module,
    x: Tensor,
    sizes: Sequence[int],
    loss: BlockLoss,
    seed: int = 0,
    segments: Sequence[Segment] | None = None,
) -> Step:
    """The same step in blocks of any size, other ones for each segment."""
    module = copy.deepcopy(module)
    net = segmented(module, x, sizes, segments)
    grids = [[*boxes(sizes, uneven(sizes, seed + n))] for n in range(len(net.segments))]
    value, board = step_in_memory(net, padded(x, sizes), grids, loss, wants_image=True)
    for update in net.graph.updates:
        update.apply(board.statistics)
    gradient = board.taken(0, Roi.full(sizes))
    assert gradient is not None
    return Step(
        value,
        gradients_of(module, net, board.weights),
        gradient[(..., *(slice(0, n) for n in x.shape[2:]))],
        dict(module.named_buffers()),
    )


def whole_step(
    module: nn.Module, x: Tensor, loss: DiceEntropy, scratch: Path | None = None
) -> Step:
    """The same step by `vf.WholeVolume`, on disk."""
    module, given = copy.deepcopy(module), x.clone().requires_grad_()
    whole = vf.WholeVolume(module, "1GiB", scratch, device="cpu")
    value = loss(listed(whole(given)))
    value.backward()
    assert given.grad is not None
    return Step(
        value.detach(),
        {name: p.grad for name, p in module.named_parameters()},
        given.grad,
        dict(module.named_buffers()),
    )


def assert_same_step(
    one: Step, other: Step, exact: float = EXACT_GRADIENT, undone: float = 0.0
) -> None:
    """Loss, gradients and buffers are equal to rounding."""
    assert abs(one.loss - other.loss) <= exact * abs(one.loss)
    assert one.weights.keys() == other.weights.keys()
    largest = max(
        (float(g.abs().max()) for g in one.weights.values() if g is not None), default=0.0
    )
    for name, expected in one.weights.items():
        found = other.weights[name]
        if expected is None or found is None:
            assert (
                found is expected
                or float((found if expected is None else expected).abs().max()) == 0
            ), name
            continue
        error = float((found - expected).abs().max())
        scale = scale_of(expected, largest, undone)
        assert error <= exact * scale, f"{name}: {error:.1e} of {scale:.1e}"
    scale = float(one.image.abs().max())
    assert float((one.image - other.image).abs().max()) <= exact * scale
    for name, expected in one.buffers.items():
        torch.testing.assert_close(other.buffers[name], expected, rtol=exact, atol=exact)


def check_step(
    module: nn.Module,
    size: Sequence[int] = (12, 16, 20),
    sizes: Sequence[int] | None = None,
    *,
    training: bool = True,
    seed: int = 0,
    segments: Sequence[Segment] | None = None,
    undone: float = 0.0,
    **given: int,
) -> None:
    """A module in blocks takes the step that plain autograd takes on the whole volume."""
    batch, classes = given.get("batch", 1), given.get("classes", 2)
    module = enlarged(module, 1.5).train(training)
    x = torch.cat([image(size, given.get("channels", 1), seed + n) for n in range(batch)])
    loss = DiceEntropy(target_of(size, classes, batch))
    sizes = tuple(size if sizes is None else sizes)
    assert_same_step(
        masked_step(module, x, sizes, loss),
        blocked_step(module, x, sizes, loss, seed, segments),
        undone=undone,
    )
