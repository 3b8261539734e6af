"""Convolutions of float32 by the processor's library (oneDNN), and their gradients.

Torch unfolds small windows, at a tenth of the speed of this library, which it calls for large ones,
and has it copy these into a layout of its own and back. Here every window of two or three axes goes
to the library, its channels last in memory: a layout that it takes as it is. Where a build of torch
has no such library, or its version lacks an op, torch convolves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Form",
    "convolved",
    "is_taken",
    "is_there",
    "of_input",
    "of_weight",
    "planes_at_once",
    "spread",
]

# Values of an input, but for its last axis, up to which torch unfolds it.
UNFOLDED = 20480
# Voxels of a result whose gradient of a weight is summed at once, in float32; and planes across the
# first axis, at the least, as each piece reads a margin of its neighbour's.
PIECE, LEAST_PLANES = 2**17, 8


@dataclass(frozen=True)
class Form:
    """Steps of a convolution along each axis, its groups, and whether it is transposed.

    A transposed one spreads its input; the padding is that of a plain one, and 0 otherwise.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False

    def span(self, weight: Tensor, axis: int) -> int:
        """Return the voxels of an axis that a kernel lies over."""
        return (weight.shape[2 + axis] - 1) * self.dilation[axis] + 1


def is_taken(x: Tensor, weight: Tensor) -> bool:
    """Return whether a window is convolved here; others go torch's own way."""
    plain = not torch.is_autocast_enabled("cpu") and bool(torch.backends.mkldnn.enabled)
    return (
        plain
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.ndim in (4, 5)
        and is_there()
    )


@cache
def is_there() -> bool:
    """Return whether this torch has the library and both ops, which are tried on a few voxels."""
    if not torch.backends.mkldnn.is_available():
        return False
    cube = torch.ones((1, 1, 2, 2, 2), dtype=torch.float32, device="cpu")
    form = Form((1,) * 3, (0,) * 3, (1,) * 3, 1)
    try:
        with torch.no_grad():
            convolved(cube, cube, None, form)
            spread(cube, cube, None, form)
    except (AttributeError, RuntimeError, TypeError):  # no such op, or another signature
        return False
    return True


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """Return the convolution of a window, zero-padded alike on both sides."""
    if _pointwise(weight, form):  # a product of matrices, without a copy
        return F.linear(_last(x).movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    result: Tensor = torch.ops.aten.mkldnn_convolution(
        _last(x), weight, bias, form.padding, form.stride, form.dilation, form.groups
    )
    return result


def spread(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    form: Form,
    behind: tuple[int, ...] | None = None,
) -> Tensor:
    """Return all that a window spreads over, and voxels behind it: torch's output padding."""
    result: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
        _last(x), weight, bias, form.padding, behind or (0,) * len(form.stride), form.stride,
        form.dilation, form.groups, "none", [], "",
    )  # fmt: skip
    return result


def of_input(gradient: Tensor, x: Tensor, weight: Tensor, form: Form) -> Tensor:
    """Return the gradient of the input, given that of the result."""
    if form.transposed:
        return convolved(gradient, weight, None, form)
    if _pointwise(weight, form):
        return convolved(gradient, weight.transpose(0, 1), None, form)
    behind = tuple(
        n + 2 * p - (m - 1) * s - form.span(weight, axis)
        for axis, (n, m, s, p) in enumerate(
            zip(x.shape[2:], gradient.shape[2:], form.stride, form.padding, strict=True)
        )
    )
    return spread(gradient, weight, None, form, behind)


def of_weight(gradient: Tensor, x: Tensor, weight: Tensor, form: Form) -> Tensor:
    """Return the gradient of the weight, given that of the result."""
    if form.transposed:  # what was spread is what a plain convolution of the result would give
        gradient, x = x, gradient
    if _pointwise(weight, form):
        rows, columns = (_last(one).movedim(1, -1).flatten(0, -2) for one in (gradient, x))
        return (rows.T @ columns).reshape(weight.shape)
    # The library adds up all voxels in float32: the pieces of a large window are added in float64.
    total: Tensor | None = None
    for result, window, plain in _pieces(gradient, x, weight, form):
        part = _of_piece(_last(result), _last(window), weight, plain)
        if result.shape == gradient.shape:
            return part
        total = part.double() if total is None else total.add_(part)
    assert total is not None
    return total.to(weight.dtype)


def planes_at_once(shape: Sequence[int]) -> int:
    """Return how many voxels along its first axis a result is summed at once for a weight."""
    return max(LEAST_PLANES, PIECE // max(1, math.prod(shape[1:])))


def _pieces(
    gradient: Tensor, x: Tensor, weight: Tensor, form: Form
) -> Iterator[tuple[Tensor, Tensor, Form]]:
    """Yield the result's gradient cut along its first axis, and the window that each piece needs.

    Channels last in memory, a piece of a batch of one lies there as a whole and is not copied.
    """
    size, planes = gradient.shape[2], planes_at_once(gradient.shape[2:])
    if size <= planes:
        yield gradient, x, form
        return
    step, padding, span = form.stride[0], form.padding[0], form.span(weight, 0)
    bare = replace(form, padding=(0, *form.padding[1:]))
    for first in range(0, size, planes):
        last = min(size, first + planes)
        low, high = first * step - padding, (last - 1) * step - padding + span
        window = x[:, :, max(0, low) : min(x.shape[2], high)]
        edges = max(0, -low), max(0, high - x.shape[2])
        if any(edges):
            window = F.pad(window, (0, 0) * (len(form.stride) - 1) + edges)
        yield gradient[:, :, first:last], window, bare


def _of_piece(gradient: Tensor, x: Tensor, weight: Tensor, form: Form) -> Tensor:
    """Return the gradient of the weight by one call of the library."""
    if _unfolded(x, weight, form):
        x, gradient, form = _in_halves(gradient, x, weight, form)
    found: Tensor = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, form.stride, form.padding, form.dilation, False,
        (0,) * len(form.stride), form.groups, (False, True, False),
    )[1]  # fmt: skip
    return found


def _in_halves(
    gradient: Tensor, x: Tensor, weight: Tensor, form: Form
) -> tuple[Tensor, Tensor, Form]:
    """Return a small window as a batch of two, which torch does not unfold.

    The longest axis of the result is cut in the middle; the second half is filled up with
    zeros, and so is the padding.
    """
    axis = max(range(len(form.stride)), key=lambda a: gradient.shape[2 + a])
    half, step = -(-gradient.shape[2 + axis] // 2), form.stride[axis]
    reach = (half - 1) * step + form.span(weight, axis)
    if any(form.padding):
        x = F.pad(x, [side for p in reversed(form.padding) for side in (p, p)])
    window = _first_and_second(x, 2 + axis, half * step, reach)
    result = _first_and_second(gradient, 2 + axis, half, half)
    return window, result, replace(form, padding=(0,) * len(form.padding))


def _first_and_second(x: Tensor, dim: int, second: int, size: int) -> Tensor:
    """Return two parts of a tensor along a dim as a batch, the second one filled up with zeros."""
    shape = list(x.shape)
    shape[dim] = size
    batch = _last(x.new_zeros(2, *shape[1:]))
    for part, low in zip(batch, (0, second), strict=True):
        rows = x[0].movedim(dim - 1, 0)[low : low + size]
        part.movedim(dim - 1, 0)[: len(rows)] = rows
    return batch


def _last(x: Tensor) -> Tensor:
    """Return a tensor whose channels lie last in memory; one channel lies first as well as last."""
    if x.shape[1] == 1:
        return x.squeeze(1).contiguous().unsqueeze(-1).movedim(-1, 1)
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _unfolded(x: Tensor, weight: Tensor, form: Form) -> bool:
    """Return whether torch unfolds a window."""
    return (
        len(x) == 1
        and form.groups == 1
        and min(weight.shape[-2:]) <= 3
        and math.prod(x.shape[1:4]) <= UNFOLDED
    )


def _pointwise(weight: Tensor, form: Form) -> bool:
    ones = {form.groups, *form.stride, *weight.shape[2:]}
    return ones == {1} and not any(form.padding)
