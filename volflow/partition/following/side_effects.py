"""What a module does beside its computation while it is followed: refused where it would be lost.

A trace must leave the module as it was. What training mode does to the buffers of batch norms is
noted instead, to be done once a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.modules.module as _of_all
from torch import Tensor, nn
from torch._C import _functorch as functorch
from torch.overrides import TorchFunctionMode

from volflow.partition.following.calls import changes_first, draws_alone, name_of, works_in_place
from volflow.partition.rules.norming.running import Counted
from volflow.partition.rules.tracing import OpCall, Traced, Tracer, leaves

__all__ = ["SideEffects", "refuse_hooks", "unchanged"]

# Size of tensors that a module may create; one as large as a volume would have to be cut, too.
LARGEST_CONSTANT = 2**20

_FACTORIES = frozenset(
    (torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange,
     torch.linspace, torch.eye)
)  # fmt: skip


class SideEffects(TorchFunctionMode):
    """Refuses operations of a module apart from its input: large constants, state changes.

    A batch norm in training mode counts batches in a buffer, once a step: while it is followed it
    sees a copy that counts.
    """

    def __init__(self, tracer: Tracer, module: nn.Module) -> None:
        super().__init__()
        self.tracer = tracer
        self.state = {id(one) for one in (*module.parameters(), *module.buffers())}
        self.memory = {
            one.untyped_storage()._cdata for one in (*module.parameters(), *module.buffers())
        }
        self.counters = {
            id(one) for name, one in module.named_buffers() if name.endswith("num_batches_tracked")
        }
        self.counted: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            size = func(*args, **{**kwargs, "device": "meta"}).numel()
            if size > LARGEST_CONSTANT:
                raise OpCall(self.tracer, func.__name__, func, args, kwargs).refuse(
                    f"it makes a tensor of {size:,} values of its own"
                )
        call = OpCall(self.tracer, name_of(func), func, args, kwargs)
        if _transformed(call):
            raise call.refuse(
                "torch.vmap, or another transform of torch.func, shows it the image in parts or"
                " copies; call it on the whole tensor"
            )
        written = _written(call)
        if any(one.untyped_storage()._cdata in self.tracer.given for one in written):
            raise call.refuse("it changes a tensor that an op before it was given; use a copy")
        if self.tracer.training:
            return self._in_training(call, written)
        if args and id(args[0]) in self.state and changes_first(call.name):
            raise call.refuse(
                "it changes the model's own state (in training mode?); call model.eval()"
            )
        return func(*args, **kwargs)

    def _in_training(self, call: OpCall, written: Sequence[Tensor]) -> Any:
        first: Any = call.args[0] if call.args else None
        if call.name == "add_" and id(first) in self.counters:
            (more,) = call.args[1:] or (None,)
            if type(more) is not int:
                raise call.refuse("it counts batches in another way than torch's norms")
            self.counted[id(first)] = self.counted.get(id(first), first) + more
            self.tracer.updates.append(Counted(first, more))
            return first
        if any(one.untyped_storage()._cdata in self.memory for one in written):
            raise call.refuse("it changes the model's own state; freeze it (module.eval())")
        if not call.inputs and draws_alone(call):
            raise call.refuse(
                "it draws random numbers that do not follow from seed and step; use nn.Dropout"
            )
        args = tuple(self.counted.get(id(one), one) for one in call.args)
        return call.func(*args, **call.kwargs)


def _transformed(call: OpCall) -> bool:
    """Return True if a transform of functions gives the image, or something beside it, to a call.

    The tensors that it makes hide the traced ones, and torch's own code would be followed.
    """
    transformed = shown = False
    for one in leaves((call.args, call.kwargs)):
        while isinstance(one, Tensor) and functorch.is_functorch_wrapped_tensor(one):
            transformed, one = True, functorch.get_unwrapped(one)
        shown |= isinstance(one, Traced)
    return transformed and shown


def _written(call: OpCall) -> list[Tensor]:
    """Return the plain tensors that a call changes."""
    found = [*leaves(call.kwargs.get("out"))]
    # An attribute such as the data of a tensor is set.
    if call.name == "__set__" or works_in_place(call.name, call.func, call.args, call.kwargs):
        found += leaves(call.args[0] if call.args else None)
    return [one for one in found if isinstance(one, Tensor) and not isinstance(one, Traced)]


@contextmanager
def unchanged(tracer: Tracer, module: nn.Module) -> Iterator[None]:
    """Refuse, in training, a module that replaces its buffers or parameters."""
    parts = list(module.named_modules()) if tracer.training else []
    before = [
        (kind, path, kept, dict(kept))
        for path, part in parts
        for kind, kept in (("buffer", part._buffers), ("parameter", part._parameters))
    ]
    replaced = list[tuple[str, str]]()
    try:
        yield
    finally:
        for kind, path, now, old in before:
            changed = [n for n in {**old, **now} if now.get(n) is not old.get(n)]
            replaced += [(f"the {kind} {name}", path) for name in changed]
            if changed:
                now.clear()
                now.update(old)
    if replaced:
        raise tracer.refusal(*replaced[0], "the model puts another tensor in its place")


def refuse_hooks(tracer: Tracer, module: nn.Module) -> None:
    """Refuse modules with hooks that look at gradients, which are taken block by block here."""
    everywhere = _of_all._global_backward_hooks or _of_all._global_backward_pre_hooks
    for path, part in module.named_modules():
        if everywhere or part._backward_hooks or part._backward_pre_hooks:
            raise tracer.refusal("a backward hook", path, "it would see gradients of blocks")
