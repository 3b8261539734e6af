"""One forward of a batch of patches: device, precision, flips, retry on out-of-memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from volflow.errors import InvalidInput, VolflowError, first_line
from volflow.model.device import (
    arithmetic,
    give_back_device,
    is_out_of_memory,
    on_device,
    pick_device,
)
from volflow.model.resident import forward_lock, resident
from volflow.partition.graph import named_outputs
from volflow.store.slabs import refuse_complex

__all__ = [
    "Forward",
    "Output",
    "checked_outputs",
    "compute_dtype",
    "explaining_half",
    "has_bfloat16",
    "has_half_weights",
    "mirrored_outputs",
    "resolve_precision",
    "torch_threads",
]

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Output:
    """One output of a model: its name (empty for a lone tensor), channels, and scale.

    ``scale`` counts input voxels per output voxel, in the model's axis order.
    """

    name: str
    channels: int
    scale: tuple[int, int, int]


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set torch's CPU threads within a block; the last bits of some results depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compute_dtype(module: torch.nn.Module) -> str:
    """Return the dtype of a module's images and scores: float64 if its weights are, else float32.

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
    """Return the precision on a device: ``"auto"`` is bfloat16 on a GPU that supports it.

    Raises
    ------
    InvalidInput
        If bfloat16 is requested on a CPU that only emulates it.
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
    """Return True if this CPU multiplies in bfloat16, by AMX, AVX512-BF16 or Arm's BF16."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(has is True for name, has in found.items() if name.endswith("bf16"))
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    asked = [getattr(torch.cpu, name) for name in names if hasattr(torch.cpu, name)]
    return not asked or any(ask() for ask in asked)  # older versions of torch do not know


def has_half_weights(module: torch.nn.Module) -> bool:
    """Return True if a module has weights or buffers of half precision."""
    return any(tensor.dtype in HALF for tensor in (*module.parameters(), *module.buffers()))


@contextmanager
def explaining_half(module: torch.nn.Module, dtype: str) -> Iterator[None]:
    """Explain an error of PyTorch if weights of half precision may be its cause.

    A model may have such weights and cast its images itself, so only a failure is explained.

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
                    f" says: {first_line(error.__cause__)}"
                ) from error.__cause__
        raise


@dataclass(frozen=True)
class Forward:
    """How a batch of patches is computed: model, device, precision and flips.

    Parameters
    ----------
    digest
        Digest of the resident model.
    patch
        Voxels per axis, in the model's order; the first axis of size 1 is dropped (``NCYX``).
    channels
        Number of input channels.
    device, precision
        Precision ``"bfloat16"`` runs under autocast; scores are still returned as float32.
    dtype
        The model's own parameter dtype: float32, or float64.
    flips
        Model axes (0, 1, 2) over whose mirrored copies the scores are averaged.
    """

    digest: str
    patch: tuple[int, int, int]
    channels: int
    device: str = "cpu"
    precision: str = "float32"
    dtype: str = "float32"
    flips: tuple[int, ...] = ()

    @property
    def dropped(self) -> int | None:
        """The spatial axis of size 1 that 2-D models do not have; None for 3-D models."""
        return self.patch.index(1) if 1 in self.patch else None

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of inputs and scores."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def resolve_device(self) -> Forward:
        """Return the same with "auto" resolved to a device and precision of this machine."""
        device = pick_device(self.device)
        precision = resolve_precision(self.precision, device, self.dtype)
        return replace(self, device=str(device), precision=precision)

    def module(self) -> torch.nn.Module:
        """Return the resident model on this forward's device."""
        return resident(self.digest, torch.device(self.device))

    def __call__(self, batch_NCZYX: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a batch's scores by output name: float32 (float64) ``NCZYX`` on the device."""
        # The unflipped batch comes last: a model may write into its input, which flips copy.
        copies = [
            axes
            for n in range(len(self.flips), -1, -1)
            for axes in itertools.combinations(self.flips, n)
        ]
        total: dict[str, torch.Tensor] = {}
        for axes in copies:
            for name, scores in mirrored_outputs(self._once, batch_NCZYX, axes).items():
                total[name] = total[name] + scores if name in total else scores
        if len(copies) > 1:
            total = {name: value / len(copies) for name, value in total.items()}
        return total

    def _once(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        drop = self.dropped
        device = torch.device(self.device)
        shown = batch if drop is None else batch.squeeze(2 + drop)
        if device.type == "cuda" and shown.ndim == 5:
            shown = shown.contiguous(memory_format=torch.channels_last_3d)
        with (
            on_device(device),
            forward_lock(device),
            torch.inference_mode(),
            arithmetic(device, self.precision),
        ):
            raw = self.module()(shown)
        return {
            name: (value if drop is None else value.unsqueeze(2 + drop)).to(self.torch_dtype)
            for name, value in checked_outputs(raw).items()
        }

    def run_with_oom_retry(
        self, batch: torch.Tensor, batch_size: int
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Return a batch's scores by output name, ``NCZYX``, and the batch size that fitted."""
        while True:
            try:
                parts = [self(part) for part in batch.split(batch_size)]
            except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
                batch_size = self.halved(batch_size, error)
                continue
            if len(parts) == 1:
                return parts[0], batch_size
            return {name: torch.cat([p[name] for p in parts]) for name in parts[0]}, batch_size

    def halved(self, batch_size: int, error: Exception) -> int:
        """Return the batch size to try after running out of memory."""
        if not is_out_of_memory(error):
            raise error
        if batch_size == 1:
            raise InvalidInput(
                f"one patch of {self.patch} does not fit in the memory of {self.device};"
                " use a smaller patch"
            ) from error
        give_back_device(torch.device(self.device))
        return batch_size // 2


def mirrored_outputs(
    network: Callable[[torch.Tensor], dict[str, torch.Tensor]],
    image: torch.Tensor,
    axes: Sequence[int],
) -> dict[str, torch.Tensor]:
    """Return the outputs of a mirrored image, mirrored back.

    Parameters
    ----------
    network
        Returns outputs by name.
    image
        The image, ``NCZYX`` (``NCYX``).
    axes
        Axes of the image, counted from 0; none for the image itself.
    """
    dims = [2 + axis for axis in axes]
    outputs = network(image.flip(dims) if dims else image)
    return {name: value.flip(dims) if dims else value for name, value in outputs.items()}


def checked_outputs(raw: Any) -> dict[str, torch.Tensor]:
    """Return the outputs by name; refuse anything but tensors of real numbers."""
    named = named_outputs(raw)
    for name, value in named.items():
        refuse_complex(value, f"the model's output {name}".rstrip())
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        raise InvalidInput(
            "the model must return a tensor, or a dict or tuple of tensors;"
            f" got {type(raw).__name__}"
        )
    return named
