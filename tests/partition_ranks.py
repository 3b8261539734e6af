"""A step divided over real processes, put together again: it must be the step of the whole."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from partition_oracle import enlarged, image
from process_group import ProcessGroup
from torch import nn
from training_oracle import (
    DiceEntropy,
    Step,
    assert_same_step,
    gradients_of,
    padded,
    plain_step,
    segmented,
    target_of,
)

from volflow.geometry.roi import Roi
from volflow.partition.exchange.division import Division
from volflow.partition.exchange.mesh import Mesh
from volflow.partition.exchange.peers import Peers
from volflow.partition.exchange.ranks import Rank
from volflow.partition.gradients import BlockLoss, loss_upstream


@dataclass(frozen=True, eq=False)
class Work:
    """One step: a network, its image, and how the padded volume is divided."""

    module: nn.Module
    x: torch.Tensor
    sizes: tuple[int, ...]
    loss: DiceEntropy
    bounds: tuple[tuple[int, ...], ...]
    portion_bytes: int | None = None


def take_step(peers: Peers, work: Work) -> tuple[Any, ...]:
    """Take a step as one process of a volume; what it has of it."""
    module, whole = copy.deepcopy(work.module), padded(work.x, work.sizes)
    net, boxes = segmented(module, work.x, work.sizes), Division(work.bounds).boxes

    def read(box: Roi) -> torch.Tensor:
        return whole[(..., *box.slices())]

    mesh, before = Mesh(peers, peers), peers.sent_bytes
    rank = Rank(net, mesh, boxes, read, work.portion_bytes)
    loss = run_step(rank, work.loss)
    gradient = rank.image_gradient()
    sent = peers.sent_bytes - before
    for update in net.graph.updates:
        update.apply(rank.statistics())
    weights = gradients_of(module, net, rank.weight_gradients())
    return loss, weights, gradient, dict(module.named_buffers()), sent


def run_step(rank: Rank, loss: BlockLoss) -> torch.Tensor:
    """Run a step forward and backward; the loss of its volume."""
    rank.forward()
    total = rank.total(loss).requires_grad_()
    value = loss.finish(total)
    (vector,) = torch.autograd.grad(value, total)
    rank.backward(loss_upstream(loss, vector), wants_image=True)
    return value.detach()


def kept_and_sent(peers: Peers, work: Work) -> tuple[int, int]:
    """Bytes that one process keeps behind the forward half, and has sent by then."""
    whole, before = padded(work.x, work.sizes), peers.sent_bytes
    net, boxes = segmented(work.module, work.x, work.sizes), Division(work.bounds).boxes
    rank = Rank(net, Mesh(peers, peers), boxes, lambda box: whole[(..., *box.slices())].clone())
    rank.forward()
    return rank.held_bytes, peers.sent_bytes - before


def step_of(group: ProcessGroup, work: Work) -> Step:
    """The step of all processes together; what they share must be equal to the last bit."""
    boxes = Division(work.bounds).boxes
    found = group.run(len(boxes), take_step, work)
    loss, weights, _, buffers, _ = found[0]
    gradient = torch.zeros(*work.x.shape[:2], *work.sizes, dtype=work.x.dtype)
    for (value, same, part, kept, _), box in zip(found, boxes, strict=True):
        assert torch.equal(value, loss)
        assert all(torch.equal(kept[name], buffers[name]) for name in buffers)
        assert all(g is None or torch.equal(same[name], g) for name, g in weights.items())
        gradient[(..., *box.slices())] = part
    inside = (..., *(slice(0, n) for n in work.x.shape[2:]))
    return Step(loss, weights, gradient[inside], buffers)


def check_ranks(
    group: ProcessGroup,
    module: nn.Module,
    bounds: Sequence[Sequence[int]],
    size: Sequence[int] | None = None,
    *,
    training: bool = True,
    batch: int = 1,
    classes: int = 2,
    undone: float = 0.0,
) -> None:
    """A module divided over processes takes the step that plain autograd takes on the whole."""
    work = work_of(module, bounds, size, training=training, batch=batch, classes=classes)
    expected = plain_step(work.module, work.x, work.sizes, work.loss)
    assert_same_step(expected, step_of(group, work), undone=undone)


def work_of(
    module: nn.Module,
    bounds: Sequence[Sequence[int]],
    size: Sequence[int] | None = None,
    *,
    training: bool = True,
    batch: int = 1,
    classes: int = 2,
) -> Work:
    """A step on noise."""
    module = enlarged(module, 1.5).train(training)
    sizes = tuple(axis[-1] for axis in bounds)
    size = tuple(size or sizes)
    x = torch.cat([image(size, 1, seed) for seed in range(batch)])
    loss = DiceEntropy(target_of(size, classes, batch))
    return Work(module, x, sizes, loss, tuple(tuple(axis) for axis in bounds))
