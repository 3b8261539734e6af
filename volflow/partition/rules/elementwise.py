"""Rules of elementwise ops, which compute each voxel from the voxels at its position."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from volflow.partition.rules.kernels import Local
from volflow.partition.rules.tracing import OpCall, Traced, leaves

__all__ = ["COMPUTED", "POINTWISE", "broadcast_dims", "pointwise"]

_ARITHMETIC = (
    "add sub subtract mul multiply div divide true_divide floor_divide fmod remainder pow rsub"
    " neg negative positive abs absolute square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10"
    " log1p sin cos tan asin acos atan sinh cosh tanh erf erfc floor ceil round trunc frac sign sgn"
    " clamp clip clamp_min clamp_max maximum minimum fmax fmin lerp addcmul addcdiv where"
    " masked_fill eq ne lt le gt ge isnan isfinite isinf logical_and logical_or logical_xor"
    " logical_not bitwise_and bitwise_or bitwise_xor bitwise_not atan2 hypot copysign nan_to_num"
    " sigmoid logit deg2rad rad2deg heaviside"
)
_ACTIVATIONS = (
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardtanh hardswish"
    " hardsigmoid hardshrink softshrink tanhshrink softplus softsign logsigmoid log_sigmoid"
    " threshold _threshold dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout"
    " feature_alpha_dropout"
)
# Activations that torch computes in place, too; and what may return its argument.
_OVERWRITING = (
    "relu relu6 leaky_relu elu selu celu silu mish hardtanh hardswish hardsigmoid _threshold"
    " sigmoid tanh"
)
_ITSELF = (
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"
    " positive __pos__"
)
_CASTS = "to float double half bfloat16 type contiguous clone detach alias zeros_like ones_like"
_OPERATORS = (
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __div__ __rdiv__"
    " __floordiv__ __rfloordiv__ __mod__ __rmod__ __pow__ __rpow__ __neg__ __pos__ __abs__"
    " __and__ __rand__ __or__ __ror__ __xor__ __rxor__ __invert__"
    " __eq__ __ne__ __lt__ __le__ __gt__ __ge__"
)
COMPUTED = frozenset(f"{_ARITHMETIC} {_ACTIVATIONS} {_OPERATORS}".split())
FRESH = COMPUTED - frozenset(_ITSELF.split())
OVERWRITING = frozenset(_OVERWRITING.split())
POINTWISE = COMPUTED | frozenset(_CASTS.split())


def pointwise(call: OpCall) -> Traced:
    """Record an op whose output voxel depends only on the inputs' voxels at its position."""
    meta = call.metas()
    dims = broadcast_dims(call, meta)
    inputs = call.inputs
    sizes = dict(zip(dims, meta.shape, strict=True))
    wanted = [sizes.get(axis, 1) for axis in range(call.tracer.ndim)]
    reads = [call.tracer.straight(x, wanted) for x in inputs]
    compute = Local(
        lambda tensors, sizes: call.run(tensors),
        fresh=call.name in FRESH,
        over=_over(call) if len(inputs) == 1 else None,
    )
    return call.tracer.add(call, inputs, reads, compute, meta, dims)


def _over(call: OpCall) -> Callable[[Tensor, tuple[int, ...]], Tensor] | None:
    """Return an activation that overwrites its tensor; None if torch has no such function."""
    if call.name not in OVERWRITING:
        return None
    func, args, kwargs = call.func, call.args, call.kwargs
    if inspect.isfunction(func) and "inplace" in inspect.signature(func).parameters:
        bound = inspect.signature(func).bind(*args, **kwargs).arguments
        args, kwargs = (), {**bound, "inplace": True}
    else:
        func = getattr(Tensor, f"{call.name}_", None)
    again = OpCall(call.tracer, call.name, func, args, kwargs)
    return None if func is None else lambda tensor, sizes: again.run([tensor])


def broadcast_dims(call: OpCall, meta: Tensor) -> tuple[int | None, ...]:
    """Return the axis along each dim of the tensor to which several are broadcast."""
    dims: list[int | None] = [None] * meta.ndim
    for x in call.inputs:
        for back, axis in enumerate(reversed(call.tracer.dims(x)), start=1):
            if axis is None:
                continue
            if dims[-back] not in (None, axis):
                raise call.refuse("it combines tensors whose axes lie along different dims")
            dims[-back] = axis
    for x in leaves((call.args, call.kwargs)):
        if isinstance(x, Tensor):
            _check_operand(call, x, dims)
    return tuple(dims)


def _check_operand(call: OpCall, x: Any, dims: Sequence[int | None]) -> None:
    """Refuse a tensor with its own values along an axis, as their positions are unknown."""
    own = call.tracer.dims(x) if isinstance(x, Traced) else (None,) * x.ndim
    if call.name == "prelu" and x is not call.inputs[0]:
        if isinstance(x, Traced) or (x.numel() > 1 and dims[1:2] != [None]):
            raise call.refuse("its weights are not one per channel")
        return
    for back in range(1, min(x.ndim, len(dims)) + 1):
        if own[-back] is None and dims[-back] is not None and x.shape[-back] != 1:
            raise call.refuse(
                f"it combines the image with values of shape {tuple(x.shape)} that lie along an"
                " axis of the volume"
            )
