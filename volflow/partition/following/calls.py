"""The meaning of a call of a torch function: its name, its effect in place, what it computes."""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from volflow.partition.rules.tracing import OpCall, Tracer, leaves

__all__ = [
    "AUTOGRAD",
    "as_called",
    "changes_first",
    "draws_alone",
    "is_random",
    "name_of",
    "works_in_place",
]

_OPERATORS = "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul div"
_WRITES = (
    "__setitem__ __delitem__ copy_ fill_ zero_ set_ resize_ put_ scatter_ scatter_add_ index_add_"
    " index_copy_ index_fill_ index_put_ masked_scatter_ normal_ uniform_ bernoulli_ random_"
    " exponential_ log_normal_ cauchy_ geometric_"
)
_DROPOUTS = (
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"
    " rrelu"
)
_DRAWS = (
    "bernoulli multinomial normal poisson binomial rand_like randn_like randint_like"
    " gumbel_softmax native_dropout fractional_max_pool2d fractional_max_pool3d"
)
_DRAWS_ALONE = (
    "rand randn randint randperm normal_ uniform_ bernoulli_ random_ exponential_ log_normal_"
    " cauchy_ geometric_ trunc_normal_"
)
_AUTOGRAD = (
    "backward grad grad_fn is_leaf register_hook register_post_accumulate_grad_hook requires_grad"
    " requires_grad_ retain_grad"
)
OPERATORS_IN_PLACE = frozenset(f"__i{name}__" for name in _OPERATORS.split())
WRITES, DROPOUTS, DRAWS = (frozenset(names.split()) for names in (_WRITES, _DROPOUTS, _DRAWS))
# They ask autograd, or change what it does.
AUTOGRAD = frozenset(_AUTOGRAD.split())
DRAWS_ALONE = DRAWS | frozenset(_DRAWS_ALONE.split())


def name_of(func: Any) -> str:
    """Return the bare name of a function, a method, a property or an ATen op."""
    name = str(getattr(func, "__name__", func))
    if name == "__get__":
        return str(func.__self__.__name__)
    return name.split(".")[0]


def changes_first(name: str) -> bool:
    """Return True if a function of this name exists to change its first argument."""
    return name in OPERATORS_IN_PLACE | WRITES or (name.endswith("_") and not name.endswith("__"))


def works_in_place(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Return True if a call changes its first argument."""
    return changes_first(name) or bool(_bound(func, args, kwargs).get("inplace", False))


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by name; empty for a function that is not written in Python."""
    if not inspect.isfunction(func):
        return {}
    try:
        return dict(inspect.signature(func).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        return {}


def as_called(
    tracer: Tracer, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> OpCall:
    """Return the call; if it works in place, the equivalent call that does not."""
    call = OpCall(tracer, name, func, args, kwargs)
    if name in WRITES:
        raise call.refuse("it writes into a tensor; compute a new one")
    if kwargs.get("out") is not None:
        raise call.refuse("it writes into the tensor out=; use what it returns")
    bound = _bound(func, args, kwargs)
    if bound.get("inplace"):
        return OpCall(tracer, name, func, (), {**bound, "inplace": False})
    if name in ("to", "type_as", "cpu", "cuda"):
        return _cast(call)
    plain = name
    if name in OPERATORS_IN_PLACE:
        plain = f"__{name[3:]}"
    elif name.endswith("_") and not name.endswith("__"):
        plain = name[:-1]
    if plain == name:
        return call
    for home in (Tensor, torch, F):
        found = getattr(home, plain, None)
        if callable(found):
            return OpCall(tracer, plain, found, args, kwargs)
    raise call.refuse("what it computes is not known")


def _cast(call: OpCall) -> OpCall:
    """Return a cast of the dtype alone; a move to another device is refused."""
    x, *rest = leaves((call.args, call.kwargs))
    device, dtype = call.tracer.device, x.dtype
    if call.name == "cuda":
        rest.append("cuda")
    if call.name == "cpu":
        rest.append("cpu")
    for one in rest:
        if isinstance(one, Tensor):
            dtype = one.dtype
        elif isinstance(one, torch.dtype):
            dtype = one
        elif isinstance(one, str | torch.device):
            wanted = torch.device(one)
            if wanted.type != device.type or wanted.index not in (None, device.index):
                raise call.refuse(f"it moves the image from {device} to {wanted}")
    return OpCall(call.tracer, "to", Tensor.to, (x, dtype), {})


def is_random(call: OpCall) -> bool:
    """Return True if a call draws random numbers."""
    if call.name in DRAWS:
        return True
    if call.name not in DROPOUTS:
        return False
    rrelu = call.name == "rrelu"
    given = call.named(
        ("input", "lower", "upper", "training") if rrelu else ("input", "p", "training")
    )
    off = rrelu or call.name == "alpha_dropout" or call.name.startswith("feature")
    training = given.get("training", given.get("train", not off))
    return bool(training) and given.get("p", 0.5) != 0


def draws_alone(call: OpCall) -> bool:
    """Return True if a call that is not given the image draws random numbers."""
    return call.name in DRAWS_ALONE or is_random(call)
