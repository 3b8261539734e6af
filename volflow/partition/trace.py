"""Follow an unmodified module on a tensor without values, and record every op as a graph.

The tensor that goes through the module is of the whole volume's shape but lies on torch's meta
device, so nothing is computed and torch itself checks every shape. Each function that is called
with it comes here, functional calls and control flow included; one without a rule raises.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from volflow.errors import NoExactRule
from volflow.partition.draws import Draws
from volflow.partition.following.calls import (
    AUTOGRAD,
    as_called,
    is_random,
    name_of,
    works_in_place,
)
from volflow.partition.following.side_effects import SideEffects, refuse_hooks, unchanged
from volflow.partition.graph import Graph, Node, named_outputs
from volflow.partition.rules.dropout import DROPPED, dropout
from volflow.partition.rules.norming.norms import updates_buffers
from volflow.partition.rules.precision import autocast_of
from volflow.partition.rules.results import result_of
from volflow.partition.rules.table import RULES, SPREADING, VIEWS
from volflow.partition.rules.tracing import OpCall, Traced, Tracer, leaves, mapped

__all__ = ["trace"]


def trace(
    module: nn.Module,
    channels: int,
    sizes: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    *,
    training: Draws | None = None,
    batch: int = 1,
) -> Graph:
    """Trace the graph of a module for a volume of one shape; nothing is computed.

    Parameters
    ----------
    module
        With its weights; in eval mode unless it is traced for training.
    channels, sizes
        Channels and sides of its input ``(batch, channels, *sizes)``: one, two or three axes.
    dtype, device
        Of the input; those of the weights by default, and the CPU where there are none.
    training
        If given, the graph is for one training step: its ops hold weights with gradients, and
        modules in training mode do what they do there, random things by these draws.
    batch
        Volumes of this shape that go through the network at once.

    Raises
    ------
    NoExactRule
        If an op cannot be cut into blocks, naming it and its module.
    Exception
        Any error that the module raises for an input of this shape.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU())
    >>> [node.name for node in trace(net, 1, (64, 64, 64)).nodes]
    ['input', 'conv3d', 'relu']
    """
    module = _eager(module, {})
    weights = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    dtype = dtype or (weights[0].dtype if weights else torch.float32)
    device = device or (weights[0].device if weights else torch.device("cpu"))
    tracer = Tracer(module, len(sizes), device, record, training)
    meta = torch.empty((batch, channels, *sizes), dtype=dtype, device="meta")
    dims = (None, None, *range(len(sizes)))
    tracer.nodes.append(Node("input", "", (), (), None, tuple(meta.shape), dims, dtype))
    if tracer.training:
        refuse_hooks(tracer, module)
    with (
        torch.inference_mode(False), torch.set_grad_enabled(tracer.training),
        _forgetting(module), unchanged(tracer, module), SideEffects(tracer, module),
    ):  # fmt: skip
        raw = module(tracer.stand_in(0, meta))
    return Graph(
        len(sizes), tuple(tracer.nodes), _outputs(raw), device,
        tracer.training, tuple(tracer.weights.found), tuple(tracer.updates),
    )  # fmt: skip


def _eager(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    """Return the module without torch.compile, in whole or in parts; itself if unused."""
    if module not in seen:
        wrapped = getattr(module, "_orig_mod", None)
        seen[module] = module if wrapped is None else _eager(wrapped, seen)
        if wrapped is None:
            parts = {name: part for name, part in module._modules.items() if part is not None}
            eager = {name: _eager(part, seen) for name, part in parts.items()}
            if module._compiled_call_impl is not None or eager != parts:
                # A copy that shares the weights: other threads may be running the module.
                seen[module] = bare = copy.copy(module)
                bare._compiled_call_impl = None
                bare._modules = {**module._modules, **eager}
    return seen[module]


@contextmanager
def _forgetting(module: nn.Module) -> Iterator[None]:
    """Restore what a module keeps of traced tensors: in attributes, and in lists and dicts."""
    before = [(one, copy.copy(one)) for one in _kept(module)]
    try:
        yield
    finally:
        for now, old in before:
            if isinstance(now, list):
                if _holds_traced(now):
                    now[:] = old
                continue
            # Copied first: another thread that runs the module may keep something meanwhile.
            for name in [name for name, value in list(now.items()) if _holds_traced(value)]:
                if name in old:
                    now[name] = old[name]
                else:
                    del now[name]


def _kept(module: nn.Module) -> list[Any]:
    """Return the attributes of a module and its parts, and every list and dict in them, once."""
    seen, stack = dict[int, Any](), [vars(part) for part in module.modules()]
    while stack:
        one: Any = stack.pop()
        if isinstance(one, tuple | list | dict) and id(one) not in seen:
            seen[id(one)] = one
            stack.extend(one.values() if isinstance(one, dict) else one)
    return [one for one in seen.values() if not isinstance(one, tuple)]


def _holds_traced(value: Any) -> bool:
    return any(isinstance(one, Traced) for one in leaves(value))


def _outputs(raw: Any) -> Mapping[str, int]:
    """Return node numbers of the outputs by name."""
    named = named_outputs(raw)
    if not named or not all(isinstance(x, Traced) for x in named.values()):
        kind = type(raw).__name__ if not named else "one that does not depend on its input"
        raise NoExactRule(
            f"the model must return a tensor, or a dict or tuple of tensors, got {kind}; return"
            " what depends on the image alone"
        )
    if any(x.stale for x in named.values()):
        raise NoExactRule(
            "the model returns a tensor that was changed in place through another view of it;"
            " return a copy"
        )
    return {name: x.number for name, x in named.items()}


def record(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Record one call as nodes; answer calls that need no values at once."""
    name = name_of(func)
    if name in ("device", "is_cuda"):
        return tracer.device if name == "device" else tracer.device.type == "cuda"
    if name == "__iter__":
        return iter(record(tracer, Tensor.unbind, (*args, 0), {}))
    call = as_called(tracer, name, func, args, kwargs)
    if not call.inputs:  # a weight that is cast as the image is
        return call.run([])
    if tracer.training:
        call = _for_training(call)
    random = is_random(call)
    if random and not (tracer.training and call.name in DROPPED):
        raise call.refuse(
            "it is random, and only dropout of single values or whole channels has a rule"
            if tracer.training
            else "it is random (in training mode?); call model.eval()"
        )
    answer = call.inputs[0].meta if random else _answer(call)
    if not any(isinstance(x, Tensor) for x in leaves(answer)):
        return answer
    if tracer.training:
        _check_modes(call)
    if any(x.stale for x in call.inputs):
        raise call.refuse("its input was changed in place through another view of it")
    result = dropout(call) if random else _recorded(call)
    tracer.note_given(call)
    if works_in_place(name, func, args, kwargs):
        return _replace(call, result)
    shared = call.inputs[0].memory if call.name in VIEWS and not random else None
    return mapped(result, lambda x: tracer.stand_in(x.number, x.meta, shared))


def _for_training(call: OpCall) -> OpCall:
    """Return the call on leaves in place of weights."""
    if call.name in AUTOGRAD:
        raise call.refuse("it depends on how gradients are taken, which is otherwise here")
    return call.with_leaves()


def _check_modes(call: OpCall) -> None:
    """Refuse an op in another mode than that of the model."""
    if not torch.is_grad_enabled():
        raise call.refuse(
            "it is called under no_grad (leave that out and detach() the result), or by an autograd"
            " function of the model's own"
        )
    if call.tracer.precision != autocast_of(call.tracer.device):
        raise call.refuse("it is called in an autocast region of the model's own")


def _replace(call: OpCall, result: Any) -> Traced:
    """Make the tensor that is changed in place stand for the result."""
    target = next(leaves((call.args, call.kwargs)))
    if not isinstance(target, Traced):
        raise call.refuse("it writes values of the image into another tensor")
    if result.shape != target.shape:
        raise call.refuse("it works in place and changes the shape")
    if result.dtype != target.dtype:
        result = record(call.tracer, Tensor.to, (result, target.dtype), {})
    target.become(result)
    return target


def _recorded(call: OpCall) -> Any:
    rule = RULES.get(call.name)
    if call.name not in SPREADING and _without_axes(call):
        return _as_any(call)
    if rule is None:
        raise call.refuse("it is not in the table of known operations")
    return rule(call)


def _without_axes(call: OpCall) -> bool:
    return not any(call.tracer.nodes[x.number].has_axes for x in call.inputs)


def _as_any(call: OpCall) -> Any:
    """Record an op on a tensor without axes, such as a statistic per channel: any op is allowed.

    Every block computes it, so none may change a buffer.
    """
    if updates_buffers(call):
        raise call.refuse(
            "it updates its running statistics with values that have no axis of the volume; freeze"
            " it (module.eval())"
        )
    metas = call.metas()
    first = metas if isinstance(metas, Tensor) else metas[0]
    if not isinstance(metas, Tensor) and len({meta.ndim for meta in metas}) > 1:
        raise call.refuse("its results differ in their number of dims")
    return call.as_is((None,) * first.ndim)


def _answer(call: OpCall) -> Any:
    """Return torch's answer on meta tensors; a call that needs values is refused."""
    call.result = result_of(call)
    try:
        return call.metas()
    except (RuntimeError, TypeError) as error:
        if "meta" in str(error).lower():
            raise call.refuse("it looks at the values of its input") from error
        raise
