"""One forward of a batch of patches: device, precision, flips, retry on out-of-memory."""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from volflow.errors import InvalidInput, VolflowError, first_line
from volflow.geometry.grid import slice_axis
from volflow.model.device import (
    arithmetic,
    finite_scores,
    give_back_device,
    is_out_of_memory,
    numbered,
    on_device,
    pick_device,
)
from volflow.model.resident import forward_lock, resident
from volflow.partition.graph import named_outputs
from volflow.store.slabs import refuse_complex

__all__ = [
    "Forward",
    "Output",
    "check_name",
    "check_output",
    "checked_outputs",
    "compute_dtype",
    "explaining_half",
    "has_bfloat16",
    "has_float16",
    "has_half_weights",
    "mirrored_outputs",
    "resolve_precision",
    "torch_threads",
    "tried_outputs",
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
        If bfloat16 or float16 is requested on a CPU that only emulates it, or tf32 on any.
    """
    cuda = device.type == "cuda"
    if precision == "auto":
        fast = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if fast and dtype == "float32" else "float32"
    if precision == "tf32" and not cuda:
        raise InvalidInput(
            f"precision 'tf32' is how GPUs round float32, and the device is {device}; leave"
            ' precision out, or give device="cuda" (--device cuda)'
        )
    if precision == "bfloat16" and device.type == "cpu" and not has_bfloat16():
        raise InvalidInput(
            "precision 'bfloat16' takes 12 times as long as float32 or longer on this CPU, which"
            " has neither AMX nor AVX512-BF16; leave precision out"
        )
    if precision == "float16" and device.type == "cpu" and not has_float16():
        raise InvalidInput(
            "precision 'float16' takes 20 times as long as float32 on this CPU, which has neither"
            " AMX-FP16 nor AVX512-FP16; leave precision out"
        )
    return precision


def has_bfloat16() -> bool:
    """Return True if this CPU multiplies in bfloat16, by AMX, AVX512-BF16 or Arm's BF16."""
    return _has("bf16", ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))


def has_float16() -> bool:
    """Return True if this CPU multiplies in float16, by AMX-FP16, AVX512-FP16 or Arm's FP16."""
    return _has("fp16", ("_is_amx_fp16_supported",))


def _has(ending: str, names: Sequence[str]) -> bool:
    """Ask PyTorch for what the CPU knows, by the end of its name; older versions by functions."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return any(has is True for name, has in found.items() if name.endswith(ending))
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
        ``"bfloat16"`` and ``"float16"`` run under autocast; scores are still returned as float32.
        Patches whose scores overflow in float16 are run again in float32.
    dtype
        The model's own parameter dtype: float32, or float64.
    flips
        Model axes (0, 1, 2) over whose mirrored copies the scores are averaged.
    layout
        Of images and weights on a GPU: ``"contiguous"``, or ``"channels_last"``.
    """

    digest: str
    patch: tuple[int, int, int]
    channels: int
    device: str = "cpu"
    precision: str = "float32"
    dtype: str = "float32"
    flips: tuple[int, ...] = ()
    layout: str = "contiguous"

    @property
    def dropped(self) -> int | None:
        """The spatial axis of size 1 that 2-D models do not have; None for 3-D models."""
        return slice_axis(self.patch)

    @property
    def fallback(self) -> Forward | None:
        """The forward of patches whose scores overflow; None where none can."""
        return replace(self, precision="float32") if self.precision == "float16" else None

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
        return resident(self.digest, torch.device(self.device), self.layout)

    def __call__(self, batch_NCZYX: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return a batch's scores by output name: float32 (float64) ``NCZYX`` on the device."""
        device = numbered(torch.device(self.device))
        with on_device(device):
            return self._averaged(partial(self._once, device), batch_NCZYX)

    def _averaged(
        self, network: Callable[[torch.Tensor], dict[str, torch.Tensor]], batch: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        # The unflipped batch comes last: a model may write into its input, which flips copy.
        copies = [
            axes
            for n in range(len(self.flips), -1, -1)
            for axes in itertools.combinations(self.flips, n)
        ]
        total: dict[str, torch.Tensor] = {}
        for axes in copies:
            for name, scores in mirrored_outputs(network, batch, axes).items():
                total[name] = total[name] + scores if name in total else scores
        if len(copies) > 1:
            total = {name: value / len(copies) for name, value in total.items()}
        return total

    def _once(self, device: torch.device, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        drop = self.dropped
        shown = batch if drop is None else batch.squeeze(2 + drop)
        if self.layout == "channels_last":
            last = torch.channels_last if shown.ndim == 4 else torch.channels_last_3d
            shown = shown.contiguous(memory_format=last)
        run = partial(self._scores, device)
        scores = finite_scores(run, shown) if self.fallback else run(self.precision, shown)
        return {
            name: value if drop is None else value.unsqueeze(2 + drop)
            for name, value in scores.items()
        }

    def _scores(
        self, device: torch.device, precision: str, shown: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        with forward_lock(device), torch.inference_mode(), arithmetic(device, precision):
            raw = resident(self.digest, device, self.layout)(shown)
        return {name: value.to(self.torch_dtype) for name, value in checked_outputs(raw).items()}

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
                f" use a smaller patch; PyTorch says: {first_line(error)}"
            ) from error
        traceback.clear_frames(error.__traceback__)  # which hold what the layers made
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


def check_name(name: str) -> None:
    """Refuse the name of an output that cannot name a folder."""
    if name and not re.fullmatch(r"\w[\w.-]*", name):
        raise InvalidInput(
            f"model output {name!r} cannot name a folder; use letters, digits, underscores, hyphens"
        )


def check_output(forward: Forward, name: str, value: torch.Tensor, batch: int) -> Output:
    """Return what an output is; refuse one that is no image of the patch, or has no usable name."""
    given = (batch, forward.channels, *forward.patch)
    label = f" {name!r}" if name else ""
    check_name(name)
    if value.ndim != 5 or value.shape[0] != batch:
        raise InvalidInput(
            f"model output{label} has shape {tuple(value.shape)} for a batch of shape {given};"
            " it must be NC and the patch's axes"
        )
    scale = []
    for p, out in zip(forward.patch, value.shape[2:], strict=True):
        if out == 0 or p % out:
            raise InvalidInput(
                f"model output{label} has shape {tuple(value.shape)} for a batch of shape {given};"
                " each axis must equal the patch's, or divide it (a model of stride 2 halves it)."
                " For a model that crops its borders pad its convolutions instead"
            )
        scale.append(p // out)
    return Output(name, int(value.shape[1]), (scale[0], scale[1], scale[2]))


def tried_outputs(forward: Forward, data: torch.Tensor) -> tuple[Output, ...]:
    """Return the outputs of a forward, which is run on a batch.

    Raises
    ------
    InvalidInput
        Where the model does not take the batch; exhausted memory is raised as it is.
    """
    with explaining_half(forward.module(), forward.dtype):
        try:
            outputs = forward(data)
            if forward.fallback:  # which may take more memory
                forward.fallback(data[:1])
        except Exception as error:  # models raise errors of any class
            if isinstance(error, InvalidInput) or is_out_of_memory(error):
                raise
            raise InvalidInput(
                f"the model does not take a batch of shape {tuple(data.shape)}: {first_line(error)}"
            ) from error
    return tuple(check_output(forward, name, v, len(data)) for name, v in outputs.items())
