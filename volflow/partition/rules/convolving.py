"""Convolutions of a window, in any dtype on any device, and their gradients.

What only gradients are wanted of is not computed: see `unread`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from volflow.partition.rules import onednn
from volflow.partition.rules.onednn import Form

__all__ = ["Edges", "convolve", "precision_of", "unread"]

# Per axis, voxels before and behind.
Edges = tuple[tuple[int, int], ...]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """Return the convolution of a window, zero-padded alike on both sides, or all it spreads to."""
    tensors = (x, weight, bias)
    if not onednn.is_taken(x, weight):
        return _by_torch(x, weight, bias, form)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _applied(_Convolved, x, weight, bias, form)
    return _by_onednn(x, weight, bias, form)


def unread(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Form,
    shape: tuple[int, ...],
    edges: Edges | None = None,
) -> Tensor:
    """Return a convolution with its history, but zeros in one place as its values.

    Parameters
    ----------
    x, weight, bias, form
        As for `convolve`.
    shape
        Of the result.
    edges
        By how much the result is larger than what `convolve` returns, or smaller where negative.
    """
    dtype = precision_of(x)
    return _applied(_Unread, x.to(dtype), weight.to(dtype), bias, form, shape, edges)


def precision_of(x: Tensor) -> torch.dtype:
    """Return the dtype in which torch convolves a tensor, with autocast or without."""
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return x.dtype


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    rank = x.ndim - 3
    function: Any = (F.conv1d, F.conv2d, F.conv3d)[rank]
    more: tuple[Any, ...] = (form.padding, form.dilation, form.groups)
    if form.transposed:
        function = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank]
        more = (form.padding, 0, form.groups, form.dilation)
    result: Tensor = function(x, weight, bias, form.stride, *more)
    return result


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    return (onednn.spread if form.transposed else onednn.convolved)(x, weight, bias, form)


def _applied(function: Any, *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)
    return result


class _Convolved(torch.autograd.Function):
    """A convolution by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form = form
        return _by_onednn(x, weight, bias, form)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, gradient), _of_bias(ctx, gradient), None


class _Unread(torch.autograd.Function):
    """A convolution that is not computed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        form: Form,
        shape: tuple[int, ...],
        edges: Edges | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.form, ctx.edges = form, edges or ()
        return x.new_zeros(()).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        sides = [-side for edge in reversed(ctx.edges) for side in edge]
        inner = F.pad(gradient, sides) if any(sides) else gradient
        # Of the bias it is that of all of the result, also where no input reaches.
        return *_gradients(ctx, inner), _of_bias(ctx, gradient), None, None, None


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of the input and of the weight, those that are wanted."""
    (x, weight), form = ctx.saved_tensors, ctx.form
    wanted = ctx.needs_input_grad[:2]
    if not any(wanted):
        return None, None
    if onednn.is_taken(x, weight):
        rules = (onednn.of_input, onednn.of_weight)
        of_x, of_weight = (
            rule(gradient, x, weight, form) if due else None
            for rule, due in zip(rules, wanted, strict=True)
        )
        return of_x, of_weight
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, form.stride, form.padding, form.dilation, form.transposed,
        (0,) * len(form.stride), form.groups, (*wanted, False),
    )  # fmt: skip
    return found[0], found[1]


def _of_bias(ctx: Any, gradient: Tensor) -> Tensor | None:
    return gradient.sum([0, *range(2, gradient.ndim)]) if ctx.needs_input_grad[2] else None
