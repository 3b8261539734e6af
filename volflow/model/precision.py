"""Numbers that a network computes with: its precision on a device, and what a volume can hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from volflow.errors import InvalidInput, VolflowError

__all__ = [
    "compute_dtype",
    "explaining_half",
    "has_bfloat16",
    "has_half_weights",
    "resolve_precision",
]

HALF = (torch.float16, torch.bfloat16)


def compute_dtype(module: torch.nn.Module) -> str:
    """The dtype of a module's images and scores: float64 where its weights are, else float32.

    Examples
    --------
    >>> compute_dtype(torch.nn.Conv3d(1, 1, 1).double()), compute_dtype(torch.nn.ReLU())
    ('float64', 'float32')
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point() or tensor.is_complex():
            wide = tensor.dtype in (torch.float64, torch.complex128)
            return "float64" if wide else "float32"
    return "float32"


def resolve_precision(precision: str, device: torch.device, dtype: str) -> str:
    """What a precision means on a device: ``"auto"`` is bfloat16 on a GPU that has it.

    Raises
    ------
    InvalidInput
        For bfloat16 on a CPU that only emulates it.
    """
    cuda = device.type == "cuda"
    if precision == "auto":
        fast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast and dtype == "float32" else "float32"
    if precision == "bfloat16" and device.type == "cpu" and not has_bfloat16():
        raise InvalidInput(
            "precision 'bfloat16' takes 12 times as long as float32 or longer on this CPU, which"
            " has neither AMX nor AVX512-BF16; leave precision out"
        )
    return precision


def has_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16, by AMX, AVX512-BF16 or Arm's BF16."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(has is True for name, has in found.items() if name.endswith("bf16"))
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    asked = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    return not asked or any(ask() for ask in asked)  # an older torch cannot tell


def has_half_weights(module: torch.nn.Module) -> bool:
    """Whether a module has weights or buffers of half precision."""
    return any(tensor.dtype in HALF for tensor in (*module.parameters(), *module.buffers()))


@contextmanager
def explaining_half(module: torch.nn.Module, dtype: str) -> Iterator[None]:
    """Where PyTorch refuses an image, say so if weights of half precision may be why.

    A model may have such weights and cast its images itself: only one that fails is explained.

    Examples
    --------
    >>> with explaining_half(torch.nn.Linear(1, 1).half(), "float32"):
    ...     raise InvalidInput("the model takes no such image") from TypeError("dtypes differ")
    Traceback (most recent call last):
    ...
    volflow.errors.InvalidInput: the model's weight is float16, and images are float32: give
    model.float(), or a model that casts its images; PyTorch says: dtypes differ
    """
    try:
        yield
    except InvalidInput as error:
        if error.__cause__ is None or isinstance(error.__cause__, VolflowError):
            raise
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.dtype in HALF:
                raise InvalidInput(
                    f"the model's {name} is {str(tensor.dtype).removeprefix('torch.')}, and images"
                    f" are {dtype}: give model.float(), or a model that casts its images; PyTorch"
                    f" says: {str(error.__cause__).partition(chr(10))[0]}"
                ) from error.__cause__
        raise
