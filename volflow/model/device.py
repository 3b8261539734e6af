"""A device: its name, its number in this process, how it computes, and its memory.

On a CPU most of this does nothing; what asks for a GPU asks here.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from volflow.engine.memory import begin_peak, peak_bytes
from volflow.errors import InvalidInput, MemoryRefused, first_line
from volflow.geometry.budget import format_bytes
from volflow.model.places import own_number, sharers, take_place
from volflow.store.journal.provenance import Machine

__all__ = [
    "LOW",
    "MOST_ELEMENTS",
    "arithmetic",
    "device_memory",
    "finite_scores",
    "give_back_device",
    "is_out_of_memory",
    "machine_of",
    "mark_peak",
    "numbered",
    "on_device",
    "pick_device",
    "read_peak",
    "retried",
    "timed",
    "unless_exhausted",
]

R = TypeVar("R")
Scores = dict[str, torch.Tensor]

# Precisions to which torch casts the inputs of some ops.
LOW = ("bfloat16", "float16")
# Elements of a tensor on a GPU. Pooling, upsampling and the convolutions of older versions of cuDNN
# count in 32 bits: of larger tensors they are slow, or refuse them, or compute nonsense.
MOST_ELEMENTS = 2**31 - 1
# Share of a device's free memory that a run takes: fragments and kernels need some, too.
SHARE = 0.9
# What CUDA and its libraries take of a device for each process.
CONTEXT_BYTES = 600 * 2**20
# What errors say that mean exhausted memory, beside torch's own class.
EXHAUSTED = (
    "out of memory",
    "can't allocate memory",
    "ALLOC_FAILED",  # of cuDNN, cuBLAS and cuFFT
    "ALLOCATION_FAILED",  # of cuDNN since version 9
    "unable to find an engine",  # of cuDNN, which had no memory for the workspace of any
)


def pick_device(device: str) -> torch.device:
    """Return the torch device for ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ….

    Examples
    --------
    >>> pick_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=numbered(chosen))
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(f"device {device!r} cannot be used here: {first_line(error)}") from error
    return chosen


def numbered(device: torch.device) -> torch.device:
    """Return a device with its number: "cuda" is the one that this process works on."""
    if device.type != "cuda":
        return device
    unnumbered = device == torch.device("cuda")
    return torch.device("cuda", own_number() if unnumbered else take_place(device.index))


def machine_of(device: str) -> Machine:
    """Return the kind of this machine, with a device that is used and torch's threads now.

    Examples
    --------
    >>> machine_of("cpu") == machine_of("cpu"), machine_of("cpu").device
    (True, 'cpu')
    """
    place, name = torch.device(device), "cpu"
    if place.type == "cuda":
        name = torch.cuda.get_device_name(numbered(place))
    versions = (str(torch.__version__), np.__version__)
    return Machine(name, torch.get_num_threads(), _processor(), *versions)


@contextmanager
def on_device(device: torch.device) -> Iterator[None]:
    """Make a device the current one of this thread, as a new thread begins on the first."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(numbered(device)):
        yield


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """Compute within a block as a precision says, whatever the process has set.

    On a GPU convolutions choose the same kernel every time, and float32 is not rounded to TF32
    unless the precision is ``"tf32"``. The settings are those of the process, so only one thread
    at a time may be in here (`volflow.model.resident.forward_lock`).
    """
    dtype = getattr(torch, precision) if precision in LOW else torch.bfloat16
    with torch.autocast(device.type, dtype=dtype, enabled=precision in LOW):
        if device.type != "cuda":
            yield
            return
        switches = _switches(precision)
        before = [(place, name, getattr(place, name)) for place, name, _ in switches]
        try:
            for place, name, value in switches:
                setattr(place, name, value)
            yield
        finally:
            for place, name, value in reversed(before):
                setattr(place, name, value)


@torch.inference_mode()
def finite_scores(run: Callable[[str, torch.Tensor], Scores], batch: torch.Tensor) -> Scores:
    """Return the scores of a batch in float16; of each patch that overflowed, those in float32.

    Numbers of float16 end at 65504. Patches are run again one by one, so that the bits of one do
    not depend on its neighbours. What is not finite in float32 either stays so.

    Parameters
    ----------
    run
        Returns the scores of a batch, by output, in the precision that is named.
    batch
        The patches; a model may write into what it gets, so it gets a copy.
    """
    scores = run("float16", batch.clone())
    if all(bool(value.isfinite().all()) for value in scores.values()):
        return scores
    wrong = torch.zeros(len(batch), dtype=torch.bool, device=batch.device)
    for value in scores.values():
        wrong |= ~value.flatten(1).isfinite().all(dim=1)
    mended = {name: value.clone() for name, value in scores.items()}
    for number in wrong.nonzero().flatten().tolist():
        for name, value in run("float32", batch[number : number + 1].clone()).items():
            mended[name][number : number + 1] = value
    return mended


def _switches(precision: str) -> list[tuple[Any, str, Any]]:
    """Return what is set for a precision: where, the name, and the value."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    steady = [(cudnn, "enabled", True), (cudnn, "benchmark", False), (cudnn, "deterministic", True)]
    rounded = precision == "tf32"
    if not hasattr(cudnn, "conv"):  # before torch 2.9
        return [*steady, (cudnn, "allow_tf32", rounded), (matmul, "allow_tf32", rounded)]
    with suppress(RuntimeError):  # a user set one op by the newer name: the older has no answer
        _ = cudnn.allow_tf32
        steady.append((cudnn, "allow_tf32", rounded))
    value, places = "tf32" if rounded else "ieee", (cudnn.conv, cudnn.rnn, matmul)
    return [*steady, *((place, "fp32_precision", value) for place in places)]


def device_memory(device: torch.device, asked: int | None) -> int:
    """Return the bytes of a device that a task may take; 0 on a CPU.

    Parameters
    ----------
    device
        On which the model and what the process keeps lie already.
    asked
        The user's request; None takes a share of what is free, divided among the processes that
        work on the device.

    Raises
    ------
    MemoryRefused
        Where more is asked for than is free.
    """
    if device.type != "cuda":
        return 0
    device = numbered(device)
    # What torch keeps for this process is free to it.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(torch.cuda.mem_get_info(device)[0]) + kept
    if asked is None:
        processes = sharers(device.index)
        # Those that have not begun will take a context before anything else.
        return max(1, int(SHARE * (free - (processes - 1) * CONTEXT_BYTES) / processes))
    if asked > free:
        raise MemoryRefused(
            f"device_memory is {format_bytes(asked)}, and {device} has {format_bytes(free)} free;"
            " give less (--device-memory), or end what else runs there"
        )
    return asked


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that memory, of this machine or a GPU, is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in EXHAUSTED)


def give_back_device(device: torch.device) -> None:
    """Return what torch keeps of a device's memory, so that a large piece can be had again."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def retried(device: torch.device, run: Callable[[], R]) -> R:
    """Call a function once more, where memory is exhausted, after torch has given back its own."""
    try:
        return run()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    give_back_device(device)  # behind the error, whose frames hold what was made
    return run()


def unless_exhausted(device: torch.device, run: Callable[[], R]) -> R | None:
    """Return the same, but None where memory is exhausted the second time, too."""
    try:
        return retried(device, run)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def mark_peak(device: torch.device) -> int:
    """Start to record the peak memory on a device; return the bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return begin_peak()


def read_peak(device: torch.device) -> int:
    """Return the peak memory on a device since `mark_peak`, in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()


def timed(
    device: torch.device, run: Callable[[], object], most: int = 3, long_s: float = 0.1
) -> float:
    """Return the least seconds that a call takes on a device.

    On a GPU it is called once before, as the first call may load libraries and wait for memory, and
    its time is that between two events on the current stream.

    Parameters
    ----------
    device
        Where it computes; on a GPU it is made the current device.
    run
        What is called, with nothing to be waited for.
    most, long_s
        Calls at most, and seconds of all of them after which it is not called again.

    Examples
    --------
    >>> 0 <= timed(torch.device("cpu"), lambda: torch.ones(2, 2) @ torch.ones(2, 2)) < 60
    True
    """
    best, spent = math.inf, 0.0
    with on_device(device):
        if device.type == "cuda":
            run()
        for _ in range(most):
            seconds = _seconds(device, run)
            best, spent = min(best, seconds), spent + seconds
            if spent > long_s:
                break
    return best


def _seconds(device: torch.device, run: Callable[[], object]) -> float:
    if device.type != "cuda":
        began_s = time.perf_counter()
        run()
        return time.perf_counter() - began_s
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000


def _processor() -> str:
    """Return the name of the processor."""
    with suppress(OSError), Path("/proc/cpuinfo").open(errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
