"""Profile the gradients of a network's ops: their time, and what autograd keeps for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from distributed import Client
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from volflow.geometry.roi import Roi
from volflow.model.device import device_memory, give_back_device
from volflow.model.forward import torch_threads
from volflow.model.resident import ModelPlugin
from volflow.model.trial import tried_on_worker
from volflow.partition.graph import Graph, Node, Window
from volflow.partition.reductions import statistic_of
from volflow.partition.rules.onednn import is_taken
from volflow.passes.network import Network
from volflow.passes.planning.gradient_cost import (
    GradientCost,
    pieced_box,
    share_at_once,
    with_gradient,
)
from volflow.passes.profile import (
    BOX_SHARE,
    BoxLimits,
    OpProfile,
    by_kind,
    laid_out,
    limits_of,
    measured,
    parts_of,
    taken_by,
)

__all__ = ["WEIGHT_COPIES", "TrainingProfile", "measured_gradients", "profile_training"]

# Times the operations on a box that profiles of exact inference allow: deep gradients reach their
# rate on larger boxes only.
MORE = 5.0

# Copies that a library of convolutions makes of weights and of their gradients, beside these.
WEIGHT_COPIES = 4


@dataclass(frozen=True)
class TrainingProfile(OpProfile):
    """Device of a worker, and the costs of a network's ops and of their gradients on it.

    Parameters
    ----------
    network, costs, device_memory_bytes
        As for `OpProfile`.
    gradients
        By node, what the gradient of its op takes.
    """

    gradients: Mapping[int, GradientCost] = field(default_factory=dict, repr=False)


def profile_training(
    network: Network,
    model: ModelPlugin,
    client: Client,
    threads: int,
    memory_bytes: int,
    device_bytes: int | None = None,
) -> TrainingProfile:
    """Profile the ops of a network and their gradients on the first free worker of a client.

    Parameters
    ----------
    network, model, client, threads, memory_bytes, device_bytes
        As for `volflow.passes.profile.profile_ops`; the network is one that is trained.
    """
    trial = partial(_profile, network, threads, memory_bytes, device_bytes)
    return tried_on_worker("profile", trial, model, client)


def _profile(
    network: Network, threads: int, memory_bytes: int, device_bytes: int | None
) -> TrainingProfile:
    network = network.resolved()
    graph, device = network.graph(), network.place
    budget = device_memory(device, device_bytes) or memory_bytes
    share = int(BOX_SHARE * budget)
    with torch_threads(threads), network.training():
        with torch.no_grad():
            costs = measured(graph, device, share, MORE)
        gradients = measured_gradients(graph, device, limits_of(device, share, MORE))
    give_back_device(device)
    return TrainingProfile(network, costs, device_memory(device, device_bytes), gradients)


def measured_gradients(
    graph: Graph, device: torch.device, limits: BoxLimits, *, wants_image: bool = False
) -> dict[int, GradientCost]:
    """Return what the gradient of each op costs; ops that are alike are run once.

    Parameters
    ----------
    graph
        Traced for training.
    device, limits
        That computes, and of boxes.
    wants_image
        Whether the gradient of the image is wanted.
    """
    moving = with_gradient(graph, range(len(graph.nodes)), {0} if wants_image else ())
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones(1, device=device, requires_grad=True)
        torch.autograd.grad(one * one, one, one.detach())  # the first one loads modules of torch
        return by_kind(graph, device, limits, partial(_cost, moving))


def _cost(
    moving: set[int], graph: Graph, number: int, box: Roi, device: torch.device
) -> GradientCost:
    """Run the gradient of one op on a box a few times."""
    node = graph.nodes[number]
    if node.statistic:
        return _pulled(graph, number, box, device)
    windows = []
    for source, part in zip(node.inputs, parts_of(graph, number, box), strict=True):
        found = graph.nodes[source]
        sides = dict(enumerate(part.shape))
        shape = [
            n if axis is None else sides[axis]
            for n, axis in zip(found.shape, found.dims, strict=True)
        ]
        values = laid_out(shape, found.dtype, device)
        windows.append(Window(values.requires_grad_(source in moving and _real(values)), part))
    kept: list[Tensor] = []

    def keep(values: Tensor) -> Tensor:
        kept.append(values)
        return values

    rule: Any = node.compute
    with saved_tensors_hooks(keep, lambda values: values):
        result: Tensor = rule(windows, box)
    leaves = [w.values for w in windows if w.values.requires_grad]
    leaves += [graph.weights[w].leaf for w in node.weights]
    none = (False,) * len(windows)
    if not result.requires_grad or not leaves:
        return GradientCost(0.0, 0.0, none)
    known = [w.values for w in windows] + [result, *(weight.leaf for weight in graph.weights)]
    gradient = torch.ones_like(result)
    back = partial(
        torch.autograd.grad, result, leaves, gradient, retain_graph=True, allow_unused=True
    )
    seconds, most = taken_by(device, back)
    # What the library makes of weights is the same for boxes of any size.
    weights = sum(graph.weights[w].leaf.nbytes for w in node.weights)
    made = sum(leaf.nbytes for leaf in leaves) + WEIGHT_COPIES * weights
    beside, pieced = max(0, most - made), _is_pieced(graph, node, windows)
    at_once = box.size * (share_at_once(pieced_box(node, box)) if pieced else 1)
    return GradientCost(
        seconds / box.size,
        beside / at_once,
        tuple(_among(w.values, kept) for w in windows),
        _among(result, kept),
        _others(kept, known) / box.size,
        pieced,
    )


def _is_pieced(graph: Graph, node: Node, windows: Sequence[Window]) -> bool:
    """Return whether the gradient of an op's weight is summed in pieces."""
    values = windows[0].values
    weights = (graph.weights[w].leaf for w in node.weights)
    return any(is_taken(values, w) for w in weights if max(w.shape[2:], default=1) > 1)


def _real(values: Tensor) -> bool:
    return values.is_floating_point()


def _pulled(graph: Graph, number: int, box: Roi, device: torch.device) -> GradientCost:
    """Run what pulls at a statistic's input."""
    node, source = graph.nodes[number], graph.nodes[graph.nodes[number].inputs[0]]
    sides = dict(enumerate(box.shape))
    shape = [
        n if axis is None else sides[axis]
        for n, axis in zip(source.shape, source.dims, strict=True)
    ]
    values, rule = laid_out(shape, source.dtype, device), statistic_of(graph, number)
    merged = rule.merged([rule.partial(values, box).cpu().numpy()])
    gradient = torch.ones(node.shape, dtype=torch.float64, device=device)
    seconds, most = taken_by(device, partial(rule.pulled, values, box, merged, gradient))
    return GradientCost(seconds / box.size, max(0, most - values.nbytes) / box.size, (False,))


def _place(values: Tensor) -> int:
    return values.untyped_storage().data_ptr()


def _among(values: Tensor, kept: Sequence[Tensor]) -> bool:
    """Return whether a tensor, or a view of it, is kept."""
    return _place(values) in map(_place, kept)


def _others(kept: Sequence[Tensor], known: Sequence[Tensor]) -> int:
    """Return the bytes of what is kept beside known tensors, each once."""
    places = set(map(_place, known))
    found = {_place(one): one.untyped_storage().nbytes() for one in kept}
    return sum(size for place, size in found.items() if place not in places)
