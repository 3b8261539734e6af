"""Follow an unmodified module on a tensor without values, and note every op as a graph.

The tensor that goes through the module is of the whole volume's shape but lies on torch's meta
device, so nothing is computed and torch itself checks every shape. Each function that is called
with it comes here, functional calls and control flow included; one without a rule raises.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from volflow.errors import NoExactRule
from volflow.partition.graph import Graph, Node
from volflow.partition.table import RULES, VIEWS
from volflow.partition.tracing import OpCall, Traced, Tracer, leaves

__all__ = ["trace"]

# Values that a module may make of nothing; a tensor as large as a volume would have to be cut too.
LARGEST_CONSTANT = 2**20

_FACTORIES = frozenset(
    (torch.zeros, torch.ones, torch.full, torch.empty, torch.rand, torch.randn, torch.arange,
     torch.linspace, torch.eye)
)  # fmt: skip


def trace(
    module: nn.Module, channels: int, sizes: Sequence[int], dtype: torch.dtype | None = None
) -> Graph:
    """The graph of a module for a volume of one shape; computes nothing.

    Parameters
    ----------
    module
        In eval mode, its weights in place.
    channels, sizes
        Of its input ``(1, channels, *sizes)``: one, two or three axes.
    dtype
        Of the input; that of the weights by default.

    Raises
    ------
    NoExactRule
        Where an op cannot be cut into blocks, naming it and its module.
    Exception
        Whatever the module raises for an input of this shape.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU())
    >>> [node.name for node in trace(net, 1, (64, 64, 64)).nodes]
    ['input', 'conv3d', 'relu']
    """
    weights = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    dtype = dtype or (weights[0].dtype if weights else torch.float32)
    device = weights[0].device if weights else torch.device("cpu")
    tracer = Tracer(len(sizes), device, note)
    meta = torch.empty((1, channels, *sizes), dtype=dtype, device="meta")
    dims = (None, None, *range(len(sizes)))
    tracer.nodes.append(Node("input", "", (), (), None, tuple(meta.shape), dims, dtype))
    with torch.no_grad(), _watched(module, tracer.modules), _SmallConstants(tracer):
        raw = module(tracer.stand_in(0, meta))
    return Graph(len(sizes), tuple(tracer.nodes), _outputs(raw), device)


def _outputs(raw: Any) -> Mapping[str, int]:
    """Numbers by name, as patches' outputs are named."""
    if isinstance(raw, Tensor):
        named: dict[str, Any] = {"": raw}
    elif isinstance(raw, Mapping):
        named = {str(name): value for name, value in raw.items()}
    elif isinstance(raw, Sequence):
        named = {f"output{n}": value for n, value in enumerate(raw)}
    else:
        named = {}
    if not named or not all(isinstance(x, Traced) for x in named.values()):
        kind = type(raw).__name__ if not named else "one that does not depend on its input"
        raise NoExactRule(
            f"the model must return a tensor, or a dict or tuple of tensors, got {kind}; return"
            " what depends on the image alone"
        )
    return {name: x.number for name, x in named.items()}


class _SmallConstants(TorchFunctionMode):
    """Refuses tensors of the volume's size that a module makes of nothing, before they are made."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            size = func(*args, **{**kwargs, "device": "meta"}).numel()
            if size > LARGEST_CONSTANT:
                raise OpCall(self.tracer, func.__name__, func, args, kwargs).refuse(
                    f"it makes a tensor of {size:,} values of its own"
                )
        return func(*args, **kwargs)


@contextmanager
def _watched(module: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the path of the module at work on a stack."""
    handles = []

    def enter(name: str) -> Any:
        return lambda *_: path.append(name)

    def leave(*_: Any) -> None:
        path.pop()

    for name, child in module.named_modules():
        if name and not isinstance(child, torch.jit.ScriptModule):
            handles.append(child.register_forward_pre_hook(enter(name)))
            handles.append(child.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def note(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Note one call as nodes; answer at once what asks for no values."""
    name = _name(func)
    if name in ("device", "is_cuda"):
        return tracer.device if name == "device" else tracer.device.type == "cuda"
    in_place = _works_in_place(name, func, args, kwargs)
    call = _as_called(tracer, name, func, args, kwargs)
    answer = _answer(call)
    if not any(isinstance(x, Tensor) for x in leaves(answer)):
        return answer
    result = _noted(call)
    if not in_place:
        return result
    target = call.inputs[0]
    if target.number in tracer.shared:
        raise call.refuse("it works in place on a tensor of which there are other views")
    if result.shape != target.shape:
        raise call.refuse("it works in place and changes the shape")
    target.number, target.meta = result.number, result.meta
    return target


def _noted(call: OpCall) -> Any:
    if all(not any(axis is not None for axis in call.tracer.dims(x)) for x in call.inputs):
        return _without_axes(call)
    rule = RULES.get(call.name)
    if rule is None:
        raise call.refuse("it is not in the table of known operations")
    result = rule(call)
    if call.name in VIEWS:  # which may be views of one another
        call.tracer.shared |= {x.number for x in call.inputs}
        call.tracer.shared |= {x.number for x in leaves(result) if isinstance(x, Traced)}
    return result


def _without_axes(call: OpCall) -> Any:
    """Note an op on what has no axes left, such as a statistic per channel: any op will do."""
    metas = call.metas()
    if isinstance(metas, Tensor):
        return call.as_is((None,) * metas.ndim)
    if len({meta.ndim for meta in metas}) > 1:
        raise call.refuse("its results differ in their number of dims")
    return call.as_is((None,) * metas[0].ndim)


def _name(func: Any) -> str:
    """The bare name of a function, a method, a property or an ATen op."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":
        return str(func.__self__.__name__)
    return name.split(".")[0]


def _works_in_place(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    if name in ("__setitem__", "copy_", "fill_", "zero_", "normal_", "uniform_", "set_"):
        raise NoExactRule(
            f"the model writes into a tensor ({name}), which has no exact rule; compute a new one,"
            " or use blend='gaussian'"
        )
    if name.endswith("_") and not name.endswith("__"):
        return True
    if name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"):
        return True
    return bool(_bound(func, args, kwargs).get("inplace", False))


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name, of a function written in Python."""
    if not inspect.isfunction(func):
        return {}
    try:
        return dict(inspect.signature(func).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {}


def _as_called(
    tracer: Tracer, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> OpCall:
    """The call, as what it computes where it works in place."""
    bound = _bound(func, args, kwargs)
    if bound.get("inplace"):
        return OpCall(tracer, name, func, (), {**bound, "inplace": False})
    plain = name
    if name.startswith("__i") and name not in ("__invert__", "__index__", "__int__"):
        plain = f"__{name[3:]}"
    elif name.endswith("_") and not name.endswith("__"):
        plain = name[:-1]
    if plain != name:
        func = getattr(Tensor, plain, None) or getattr(torch, plain)
    return OpCall(tracer, plain, func, args, kwargs)


def _answer(call: OpCall) -> Any:
    """What torch says on meta tensors; whoever asks for values is refused."""
    try:
        return call.metas()
    except (NotImplementedError, RuntimeError) as error:
        text = str(error)
        if "meta" in text and ("item" in text or "data" in text or "bool" in text):
            raise call.refuse("it looks at the values of its input") from error
        raise
