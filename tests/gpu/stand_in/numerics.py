"""What decides the numbers of an op: autocast, the switches of cuDNN, memory that nobody wrote."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

__all__ = ["autocast", "loose_switches", "spoil"]

CONVOLUTIONS = {
    f"{start}conv{middle}{n}d"
    for start in ("", "_")
    for middle in ("", "_transpose")
    for n in "123"
} | {"convolution", "_convolution", "convolution_overrideable"}
PRODUCTS = {"matmul", "mm", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "linear"}
# Of torch's lists, what networks of volumes use.
IN_FLOAT32 = {
    "softmax", "_softmax", "log_softmax", "_log_softmax", "layer_norm", "native_layer_norm",
    "group_norm", "native_group_norm", "softplus", "exp", "log", "pow", "norm", "sum", "prod",
    "cumsum", "reciprocal", "rsqrt", "tan", "sinh", "cosh", "erfinv", "cdist",
}  # fmt: skip


def autocast(name: str, given: Any, *, bfloat16: bool) -> Any:
    """Cast the arguments of an op as autocast does, where no gradients are wanted.

    Every device computes in float16, only some in bfloat16.

    Without it an op keeps float32, and dtypes meet that do not meet on a device.
    """
    with torch._C._RestorePythonTLSSnapshot():  # within a dispatch autocast seems to be off
        on, low = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    if torch.is_grad_enabled() or not on or (low == torch.bfloat16 and not bfloat16):
        return given
    if name in CONVOLUTIONS or name in PRODUCTS:
        return _cast(given, torch.float32, low)
    if name in IN_FLOAT32:
        return _cast(given, low, torch.float32)
    return given


def _cast(given: Any, old: torch.dtype, new: torch.dtype) -> Any:
    def cast(x: Any) -> Any:
        return x.to(new) if isinstance(x, torch.Tensor) and x.dtype == old else x

    return tree_map(cast, given)


def loose_switches(name: str, dtype: torch.dtype) -> list[str]:
    """Which switches leave the numbers of an op open: to TF32, to chance, or to another library."""
    if name in PRODUCTS:
        return ["tf32"] if dtype == torch.float32 and _tf32(torch.backends.cuda.matmul) else []
    if name not in CONVOLUTIONS:
        return []
    switches = torch.backends.cudnn
    loose = {
        "tf32": dtype == torch.float32 and _tf32(switches),
        "benchmark": switches.benchmark,
        "undetermined": not switches.deterministic,
        "no cudnn": not switches.enabled,
    }
    return [name for name, found in loose.items() if found]


def _tf32(switches: Any) -> bool:
    try:
        return bool(switches.allow_tf32)
    except RuntimeError:  # set in the newer way
        home = getattr(switches, "conv", switches)
        return str(home.fp32_precision) == "tf32"


def spoil(tensor: torch.Tensor) -> torch.Tensor:
    """Fill memory that nobody has written, so that who reads it is noticed."""
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return tensor.fill_(float("nan"))
    return tensor.fill_(True if tensor.dtype == torch.bool else 0x5B)
