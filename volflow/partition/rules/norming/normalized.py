"""The voxelwise part of a norm: one pass over the image, with gradients of mean and variance, too.

Torch's own function takes mean and variance as constants, or hides them: here they are measured
elsewhere, of the whole volume, and get gradients like any other tensor.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from volflow.partition.reductions import pieces

__all__ = ["normalized", "normalized_over"]


def normalized(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Subtract means and divide by deviations, then scale and shift, in one pass.

    Parameters
    ----------
    x
        Image ``(N, C, *axes)``.
    mean, var
        Per channel ``(C,)``, or per volume and channel ``(N, C)``.
    weight, bias
        Per channel.
    eps
        Added to the variance.
    """
    if mean.ndim == 1:
        return _per_channel(x, mean, var, weight, bias, eps)
    if len(x) == 1:
        return _per_channel(x, mean[0], var[0], weight, bias, eps)
    if not x.is_contiguous():
        parts = zip(x.split(1), mean, var, strict=True)
        return torch.cat([_per_channel(one, m, v, weight, bias, eps) for one, m, v in parts])
    # A volume's channels are channels of their own.
    weight, bias = (None if one is None else one.repeat(len(x)) for one in (weight, bias))
    flat = x.reshape(1, -1, *x.shape[2:])
    return _per_channel(flat, mean.flatten(), var.flatten(), weight, bias, eps).reshape(x.shape)


def _per_channel(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    known = [one for one in (x, mean, var, weight, bias) if one is not None]
    if torch.is_grad_enabled() and any(one.requires_grad for one in known):
        function: Any = _Normalized.apply
        return function(x, mean, var, weight, bias, eps)  # type: ignore[no-any-return]
    return _forward(x, mean, var, weight, bias, eps)


def _forward(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean, var = mean.to(dtype).contiguous(), var.to(dtype).contiguous()
    weight, bias = (None if one is None else one.to(dtype).contiguous() for one in (weight, bias))
    return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)


def normalized_over(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Return what torch's batch norm returns with given statistics; it may overwrite its input."""
    known = [one for one in (mean, var, weight, bias) if one is not None]
    if x.device.type != "cpu" or any(one.dtype != x.dtype for one in known):
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)
    unused = (x.new_empty(0), x.new_empty(0))
    torch.ops.aten.native_batch_norm.out(
        x,
        weight,
        bias,
        mean,
        var,
        False,
        0.0,
        eps,
        out=x,
        save_mean=unused[0],
        save_invstd=unused[1],
    )
    return x


class _Normalized(torch.autograd.Function):
    """Keeps its input alone; what else its backward needs is per channel.

    With deviations d = √(var + eps), x̂ = (x − mean) / d and the gradient g of the result, those of
    weight and bias are Σ g·x̂ and Σ g, that of the mean −weight / d · Σ g, and that of the variance
    −½ · weight / d² · Σ g·x̂. They are summed in float64: where many voxels are alike, as around a
    scan's subject, what is given to them cancels what statistics pull, but for a small rest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, var, weight)
        ctx.eps, ctx.bias_dtype = eps, None if bias is None else bias.dtype
        return _forward(x, mean, var, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight = ctx.saved_tensors
        layout = _layout_of(x)
        x, gradient = (_laid_out(one, layout) for one in (x, gradient))
        inverse = (var.double() + ctx.eps).rsqrt()
        scale = inverse if weight is None else weight.double() * inverse
        # Voxels and statistics are given the same rounded slope, or they would not cancel.
        slope = scale.to(torch.promote_types(x.dtype, torch.float32))
        rule: Any = _on_cpu if x.device.type == "cpu" else _on_gpu
        of_x, plain, centred = rule(gradient, x, mean, slope, wanted=ctx.needs_input_grad[0])
        rounded = mean.to(slope.dtype) - mean.double()
        of_weight = (centred + rounded * plain) * inverse
        return (
            of_x,
            (-slope * plain).to(mean.dtype),
            (-0.5 * slope * inverse * of_weight).to(var.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            None if ctx.bias_dtype is None else plain.to(ctx.bias_dtype),
            None,
        )


def _on_cpu(
    gradient: Tensor, x: Tensor, mean: Tensor, slope: Tensor, *, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the input's gradient, and in float64 Σ g and Σ g·(x − mean) of each channel.

    The mean is taken as it is rounded. Torch's own sums go through all voxels in float32.
    """
    axes, dims = [0, *range(2, x.ndim)], (None, None, *range(x.ndim - 2))
    shape = [1, -1, *(1,) * (x.ndim - 2)]
    factor, centre = slope.reshape(shape), mean.to(slope.dtype).reshape(shape)
    of_x, sums = torch.empty_like(x), mean.new_zeros(2, len(mean), dtype=torch.float64)
    parts = (pieces(one, dims) for one in (of_x, gradient, x))
    for into, part, values in zip(*parts, strict=True):
        wide = part.to(slope.dtype)
        sums[0] += wide.sum(axes)
        sums[1] += (values.to(slope.dtype) - centre).mul_(wide).sum(axes)
        if wanted:
            torch.mul(wide, factor, out=into)
    plain, centred = sums
    return of_x if wanted else None, plain, centred


def _on_gpu(
    gradient: Tensor, x: Tensor, mean: Tensor, slope: Tensor, *, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return the same by one kernel, whose sums are those of many threads."""
    mean, ones = mean.to(slope.dtype).contiguous(), torch.ones_like(slope)
    of_x, centred, plain = torch.ops.aten.native_batch_norm_backward(
        gradient, x, slope, mean, ones, None, None, False, 0.0, [wanted, True, True]
    )
    return of_x, plain.double(), centred.double()


def _layout_of(x: Tensor) -> torch.memory_format:
    """Return whether a tensor lies channels last."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is not None and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        return last
    return torch.contiguous_format


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Return a tensor with the very strides of a layout, also along dims of 1.

    Torch's backward of a norm takes two tensors that lie differently for alike if dims of 1 have
    odd strides, and reads beyond them.
    """
    x = x.contiguous(memory_format=layout)
    strides = torch.empty(x.shape, device="meta", memory_format=layout).stride()
    return x if x.stride() == strides else x.as_strided(x.shape, strides)
