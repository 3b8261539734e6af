"""Rules of ops that slide a window: convolutions, transposed convolutions, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volflow.partition.ranges import Slide, Spread
from volflow.partition.rules.kernels import AveragePool, Convolution, MaxPool, Transposed
from volflow.partition.rules.norming.norms import mean_over
from volflow.partition.rules.tracing import OpCall, Traced

__all__ = ["WINDOWED"]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (
    "input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation",
)  # fmt: skip
_MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE = (
    "input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad",
    "divisor_override",
)  # fmt: skip


def _per_axis(value: Any, ndim: int) -> tuple[int, ...]:
    return (
        (int(value),) * ndim
        if isinstance(value, int)
        else tuple(int(v) for v in value) * (ndim if len(value) == 1 else 1)
    )


def _image(call: OpCall) -> Traced:
    """Return the input, which must be ``(1, C, *axes)``."""
    x = call.inputs[0]
    if call.tracer.dims(x) != (None, None, *range(call.tracer.ndim)):
        raise call.refuse(
            f"it is given a tensor of shape {tuple(x.shape)} whose dims are not batch, channels"
            f" and the {call.tracer.ndim} axes of the image"
        )
    return x


def _checked(call: OpCall, given: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    weight, bias = given["weight"], given.get("bias")
    if isinstance(weight, Traced) or isinstance(bias, Traced):
        raise call.refuse("its weights depend on the image")
    return weight, bias


def convolution(call: OpCall) -> Traced:
    """Record a convolution."""
    x, given = _image(call), call.named(_CONV)
    weight, bias = _checked(call, given)
    ndim, sizes = call.tracer.ndim, call.tracer.sizes(x)
    stride = _per_axis(given.get("stride", 1), ndim)
    dilation = _per_axis(given.get("dilation", 1), ndim)
    padding = given.get("padding", 0)
    kernel = tuple(weight.shape[2:])
    if padding == "valid":
        padding = 0
    if padding == "same":  # of an uneven sum torch pads the larger half behind
        padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    axes = tuple(
        Slide(*one)
        for one in zip(kernel, stride, _per_axis(padding, ndim), dilation, sizes, strict=True)
    )
    compute = Convolution(weight, bias, axes, int(given.get("groups", 1)))
    flops = 2 * math.prod(weight.shape[1:])
    return call.tracer.add(
        call, [x], [axes], compute, call.metas(), call.tracer.dims(x), flops=flops
    )


def transposed(call: OpCall) -> Traced:
    """Record a transposed convolution."""
    x, given = _image(call), call.named(_TRANSPOSED)
    weight, bias = _checked(call, given)
    ndim, sizes = call.tracer.ndim, call.tracer.sizes(x)
    stride = _per_axis(given.get("stride", 1), ndim)
    dilation = _per_axis(given.get("dilation", 1), ndim)
    padding = _per_axis(given.get("padding", 0), ndim)
    kernel = tuple(weight.shape[2:])
    axes = tuple(Spread(*one) for one in zip(kernel, stride, padding, dilation, sizes, strict=True))
    groups = int(given.get("groups", 1))
    taps = math.prod(kernel) / math.prod(stride)
    flops = max(1, round(2 * weight.shape[0] // groups * taps))
    compute = Transposed(weight, bias, axes, groups)
    return call.tracer.add(
        call, [x], [axes], compute, call.metas(), call.tracer.dims(x), flops=flops
    )


def _slides(call: OpCall, given: dict[str, Any], x: Traced) -> tuple[Slide, ...]:
    ndim = call.tracer.ndim
    kernel = _per_axis(given["kernel_size"], ndim)
    stride = given.get("stride")
    stride = kernel if stride is None or stride == [] else _per_axis(stride, ndim)
    padding = _per_axis(given.get("padding", 0), ndim)
    dilation = _per_axis(given.get("dilation", 1), ndim)
    sizes = call.tracer.sizes(x)
    return tuple(Slide(*one) for one in zip(kernel, stride, padding, dilation, sizes, strict=True))


def max_pool(call: OpCall) -> Traced:
    """Record a max pooling."""
    x, given = _image(call), call.named(_MAX)
    if given.get("return_indices"):
        raise call.refuse("it returns indices, which are positions in the whole volume")
    axes = _slides(call, given, x)
    return call.tracer.add(call, [x], [axes], MaxPool(axes), call.metas(), call.tracer.dims(x))


def average_pool(call: OpCall) -> Traced:
    """Record an average pooling; one over the whole volume is a statistic."""
    x, given = _image(call), call.named(_AVERAGE)
    axes, meta = _slides(call, given, x), call.metas()
    divisor = given.get("divisor_override")
    if divisor is None and all(
        a.kernel == a.size and not a.padding and n == 1
        for a, n in zip(axes, meta.shape[2:], strict=True)
    ):
        return mean_over(call, x, list(range(2, x.ndim)))
    counted = bool(given.get("count_include_pad", True))
    counts = tuple(_counts(axis, n, counted) for axis, n in zip(axes, meta.shape[2:], strict=True))
    compute = AveragePool(axes, counts, divisor)
    return call.tracer.add(call, [x], [axes], compute, meta, call.tracer.dims(x))


def _counts(axis: Slide, outputs: int, counted: bool) -> Tensor:
    """Return the number of voxels per window; with ``ceil_mode`` the last may have fewer."""
    starts = np.arange(outputs, dtype=np.int64) * axis.stride - axis.padding
    stops = np.minimum(starts + axis.kernel, axis.size + axis.padding)
    if not counted:
        starts, stops = np.maximum(starts, 0), np.minimum(stops, axis.size)
    return torch.from_numpy((stops - starts).astype(np.float64))


def adaptive(largest: bool) -> Callable[[OpCall], Traced]:
    """Record an adaptive pooling, of maxima or means."""

    def pool(call: OpCall) -> Traced:
        x, given = _image(call), call.named(("input", "output_size", "return_indices"))
        if given.get("return_indices"):
            raise call.refuse("it returns indices, which are positions in the whole volume")
        meta, sizes = call.metas(), call.tracer.sizes(x)
        wanted = tuple(meta.shape[2:])
        if set(wanted) == {1}:
            return mean_over(call, x, list(range(2, x.ndim)), largest=largest)
        if any(n % m for n, m in zip(sizes, wanted, strict=True)):
            raise call.refuse(f"an image of {sizes} is not divided evenly into {wanted}")
        axes = _adaptive_axes(sizes, wanted)
        compute: Any = MaxPool(axes)
        if not largest:
            counts = tuple(_counts(a, m, True) for a, m in zip(axes, wanted, strict=True))
            compute = AveragePool(axes, counts, None)
        return call.tracer.add(call, [x], [axes], compute, meta, call.tracer.dims(x))

    return pool


def _adaptive_axes(sizes: Sequence[int], wanted: Sequence[int]) -> tuple[Slide, ...]:
    return tuple(Slide(n // m, n // m, 0, 1, n) for n, m in zip(sizes, wanted, strict=True))


WINDOWED: dict[str, Callable[[OpCall], Any]] = {
    **{f"conv{d}d": convolution for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": transposed for d in (1, 2, 3)},
    **{f"max_pool{d}d": max_pool for d in (1, 2, 3)},
    **{f"avg_pool{d}d": average_pool for d in (1, 2, 3)},
    **{f"adaptive_max_pool{d}d": adaptive(True) for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": adaptive(False) for d in (1, 2, 3)},
}
