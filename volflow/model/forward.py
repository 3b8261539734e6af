"""One forward of a batch of patches: device, precision, flips, out-of-memory, outputs by name."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from volflow.engine.memory import begin_peak, peak_bytes
from volflow.errors import InvalidInput, first_line
from volflow.model.flips import mirrored_outputs
from volflow.model.precision import explaining_half, resolve_precision
from volflow.model.resident import forward_lock, resident
from volflow.partition.output_names import named_outputs
from volflow.store.slabs import refuse_complex

__all__ = [
    "Forward",
    "Output",
    "Probe",
    "mark_peak",
    "output_shapes",
    "pick_device",
    "probe",
    "read_peak",
    "torch_threads",
    "usual_batch",
]


@dataclass(frozen=True)
class Output:
    """One output of a model: its name (empty for a lone tensor), channels, and scale.

    ``scale`` counts input voxels per output voxel, in the model's axis order.
    """

    name: str
    channels: int
    scale: tuple[int, int, int]


@dataclass(frozen=True)
class Probe:
    """What a trial forward showed."""

    outputs: tuple[Output, ...]
    dtype: str
    peak_bytes: int
    batch_size: int
    device: str
    precision: str
    threads: int


# Trials on a CPU by forward, batch and threads; a forward holds its model's digest.
_TRIALS: dict[tuple[Forward, int, int], list[tuple[tuple[Output, ...], int]]] = {}
MOST_TRIALS = 64


def pick_device(device: str) -> torch.device:
    """The torch device for ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ….

    Examples
    --------
    >>> pick_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device {device!r} cannot be used here: {first_line(error)}") from error
    return chosen


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch's CPU threads within a block; the number decides the last bits of some results."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Forward:
    """How patches go through the model.

    Parameters
    ----------
    digest
        The resident model.
    patch
        Voxels per axis, in the model's order; the first axis of 1 is dropped (``NCYX``).
    channels
        Input channels.
    device, precision
        Precision ``"bfloat16"`` runs under autocast; scores come back as float32 all the same.
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
        """The spatial axis of 1 that 2-D models do not see."""
        return self.patch.index(1) if 1 in self.patch else None

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of inputs and scores."""
        return torch.float64 if self.dtype == "float64" else torch.float32

    def resolve_device(self) -> Forward:
        """The same with the device and precision that "auto" means on this machine."""
        device = pick_device(self.device)
        precision = resolve_precision(self.precision, device, self.dtype)
        return replace(self, device=str(device), precision=precision)

    def module(self) -> torch.nn.Module:
        """The resident model on this forward's device."""
        return resident(self.digest, torch.device(self.device))

    def __call__(self, batch_NCZYX: torch.Tensor) -> dict[str, torch.Tensor]:
        """Scores of a batch, by output name: float32 (float64) ``NCZYX`` on the device."""
        # The batch itself comes last: models may write into their input, and the copies may not.
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
        autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        with forward_lock(device), torch.inference_mode(), autocast:
            raw = self.module()(shown)
        return {
            name: (value if drop is None else value.unsqueeze(2 + drop)).to(self.torch_dtype)
            for name, value in _named(raw).items()
        }

    def run_with_oom_retry(
        self, batch: torch.Tensor, batch_size: int
    ) -> tuple[dict[str, torch.Tensor], int]:
        """Scores of a batch, and the batch size that fitted: halved on out-of-memory."""
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
        """The batch size to try after running out of memory."""
        if not _is_out_of_memory(error):
            raise error
        if batch_size == 1:
            raise InvalidInput(
                f"one patch of {self.patch} does not fit in the memory of {self.device};"
                " use a smaller patch"
            ) from error
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        return batch_size // 2


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "can't allocate memory" in str(error) or "out of memory" in str(error)


def _named(raw: Any) -> dict[str, torch.Tensor]:
    """Return the outputs by name; refuses what is not a tensor of real numbers."""
    named = named_outputs(raw)
    for name, value in named.items():
        refuse_complex(value, f"the model's output {name}".rstrip())
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        raise InvalidInput(
            "the model must return a tensor, or a dict or tuple of tensors;"
            f" got {type(raw).__name__}"
        )
    return named


def _check_output(forward: Forward, name: str, value: torch.Tensor, batch: int) -> Output:
    given = (batch, forward.channels, *forward.patch)
    label = f" {name!r}" if name else ""
    if name and not re.fullmatch(r"\w[\w.-]*", name):
        raise InvalidInput(
            f"model output{label} cannot name a folder; use letters, digits, underscores, hyphens"
        )
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


def output_shapes(forward: Forward, module: torch.nn.Module) -> tuple[Output, ...] | None:
    """What a module returns for a patch, found without computing it.

    Returns
    -------
    tuple of Output or None
        None where the module asks for the values of its input, so that only a trial tells.
    """
    shape = [1, forward.channels, *forward.patch]
    if forward.dropped is not None:
        del shape[2 + forward.dropped]
    weights: dict[int, Any] = {
        id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())
    }
    try:
        # A copy that shares the weights: what a module keeps of its first call has no values here.
        shell = copy.deepcopy(module, weights)
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            raw = shell(torch.empty(shape, dtype=forward.torch_dtype))
    except Exception:  # whatever a module may raise, a trial on numbers shows what it is
        return None
    named = _named(raw)
    if forward.dropped is not None:
        named = {name: value.unsqueeze(2 + forward.dropped) for name, value in named.items()}
    return tuple(_check_output(forward, name, value, 1) for name, value in named.items())


def usual_batch(patch: Sequence[int]) -> int:
    """As many patches as make up 64³ voxels, so that tiny ones do not drown in call overhead.

    Examples
    --------
    >>> usual_batch((96, 96, 96)), usual_batch((32, 32, 32)), usual_batch((1, 8, 8))
    (1, 8, 64)
    """
    return max(1, min(64, 64**3 // math.prod(patch)))


def probe(forward: Forward, batch_size: int | None, memory_bytes: int, threads: int) -> Probe:
    """Try one forward on zeros: output shapes, peak memory, and the batch size that fits.

    Parameters
    ----------
    forward
        With device ``"auto"`` or a name; the device found is in the result.
    batch_size
        None finds one: on a GPU doubled while it fits half of the free memory, on a CPU as many
        patches as make up 64³ voxels, so that tiny patches do not drown in call overhead.
    memory_bytes
        The worker's budget; on a CPU a batch takes at most half of it.
    threads
        Torch threads to use on a CPU.
    """
    forward = forward.resolve_device()
    device = torch.device(forward.device)
    with torch_threads(threads):
        batch = batch_size or (1 if device.type == "cuda" else usual_batch(forward.patch))
        outputs, peak, batch = _fitting(forward, batch)
        if batch_size is None and device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            while batch < 64 and peak * 2 < free // 2:
                try:
                    outputs, peak = _trial(forward, batch * 2)
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    break
                batch *= 2
        while (
            batch_size is None and device.type == "cpu" and batch > 1 and peak > memory_bytes // 2
        ):
            batch //= 2
            outputs, peak = _trial(forward, batch)
    # A batch that was asked for is kept, as the same call must resume; the run halves it again.
    size = batch_size or batch
    return Probe(outputs, forward.dtype, peak, size, str(device), forward.precision, threads)


def _fitting(forward: Forward, batch: int) -> tuple[tuple[Output, ...], int, int]:
    """A trial of the batch, or of what fits of it: outputs, peak, and how many did."""
    while True:
        try:
            return *_trial(forward, batch), batch
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
            batch = forward.halved(batch, error)


def _trial(forward: Forward, batch: int) -> tuple[tuple[Output, ...], int]:
    """Return the outputs of a forward of so many patches, and the memory that it took.

    On a CPU both follow from the model, the patch and the threads, so that a loop over many cases
    tries twice: the first forward of a process also takes what torch keeps for all later ones. On
    a GPU others may have taken memory meanwhile, and it is tried anew.
    """
    if torch.device(forward.device).type != "cpu":
        return _tried(forward, batch)
    if len(_TRIALS) > MOST_TRIALS:
        _TRIALS.clear()
    trials = _TRIALS.setdefault((forward, batch, torch.get_num_threads()), [])
    if len(trials) < 2:
        trials.append(_tried(forward, batch))
    return min(trials, key=lambda trial: trial[1])


def _tried(forward: Forward, batch: int) -> tuple[tuple[Output, ...], int]:
    device = torch.device(forward.device)
    data = torch.zeros((batch, forward.channels, *forward.patch), dtype=forward.torch_dtype)
    before = mark_peak(device)
    with explaining_half(forward.module(), forward.dtype):
        try:
            outputs = forward(data.to(device))
        except Exception as error:  # models raise whatever they like
            if isinstance(error, InvalidInput) or _is_out_of_memory(error):
                raise
            raise InvalidInput(
                f"the model does not take a batch of shape {tuple(data.shape)}: {first_line(error)}"
            ) from error
    peak = max(0, read_peak(device) - before)
    return tuple(_check_output(forward, name, v, batch) for name, v in outputs.items()), peak


def mark_peak(device: torch.device) -> int:
    """Begin to watch the peak of memory on a device; returns what is taken now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return begin_peak()


def read_peak(device: torch.device) -> int:
    """The peak of memory on a device since it is watched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()
