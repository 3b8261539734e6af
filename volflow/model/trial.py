"""Outputs and memory of a model, from its graph or from a trial forward on zeros."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from distributed import Client

from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.task import Context, Step
from volflow.errors import VolflowError
from volflow.model.device import mark_peak, read_peak
from volflow.model.forward import (
    Forward,
    Output,
    check_output,
    checked_outputs,
    torch_threads,
    tried_outputs,
)
from volflow.model.resident import ModelPlugin, trials_of
from volflow.model.search import MOST_BATCH, search
from volflow.partition.reach import trace_any

__all__ = [
    "MOST_TRIALS",
    "Probe",
    "output_shapes",
    "probe",
    "tried_on_worker",
    "usual_batch",
]

T = TypeVar("T")

# The first forward of a process also allocates what torch keeps for later ones.
MOST_TRIALS = 2


@dataclass(frozen=True)
class Probe:
    """Results of a trial forward; memory on a GPU is counted beside that of the host."""

    outputs: tuple[Output, ...]
    dtype: str
    peak_bytes: int
    batch_size: int
    device: str
    precision: str
    threads: int
    layout: str = "contiguous"
    device_peak_bytes: int = 0
    device_memory_bytes: int = 0


def output_shapes(forward: Forward, module: torch.nn.Module) -> tuple[Output, ...] | None:
    """Return the outputs of a module for a patch, without computing them.

    Returns
    -------
    tuple of Output or None
        None if the module depends on values of its input, so that a trial is needed.
    """
    sides = [side for axis, side in enumerate(forward.patch) if axis != forward.dropped]
    dtype = forward.torch_dtype
    weights: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    try:
        # A copy that shares the weights, as a module may keep tensors of its first call.
        shell = copy.deepcopy(module, weights)
    except Exception:  # copying may raise any error
        return None
    try:
        graph = trace_any(shell, forward.channels, sides, dtype)
        raw: Any = {
            name: torch.empty(graph.nodes[n].shape, dtype=graph.nodes[n].dtype, device="meta")
            for name, n in graph.outputs.items()
        }
    except VolflowError:  # an op without a rule
        raw = _faked(shell, torch.Size((1, forward.channels, *sides)), dtype)
    if raw is None:
        return None
    named = checked_outputs(raw)
    if forward.dropped is not None:
        named = {name: value.unsqueeze(2 + forward.dropped) for name, value in named.items()}
    return tuple(check_output(forward, name, value, 1) for name, value in named.items())


def _faked(shell: torch.nn.Module, shape: torch.Size, dtype: torch.dtype) -> Any:
    """Return the outputs for an image without values; None if the module needs values."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # which imports torch's compiler

    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
            return shell(torch.empty(shape, dtype=dtype))
    except Exception:  # any error of the module will be reported by the trial forward
        return None


def usual_batch(patch: Sequence[int]) -> int:
    """Return the number of patches that make up 64³ voxels, so that call overhead stays small.

    Examples
    --------
    >>> usual_batch((96, 96, 96)), usual_batch((32, 32, 32)), usual_batch((1, 8, 8))
    (1, 8, 64)
    """
    return max(1, min(64, 64**3 // math.prod(patch)))


def probe(
    forward: Forward,
    batch_size: int | None,
    memory_bytes: int,
    threads: int,
    most: int = MOST_BATCH,
    device_memory: int | None = None,
) -> Probe:
    """Try one forward on zeros: output shapes, peak memory, and the batch size that fits.

    Parameters
    ----------
    forward
        A forward with device ``"auto"`` or a name; the result holds the device found.
    batch_size
        None chooses one: on a CPU as many patches as make up 64³ voxels, on a GPU by timing it
        (`volflow.model.search`).
    memory_bytes
        The worker's budget; on a CPU a batch takes at most half of it.
    threads
        Torch threads to use on a CPU.
    most
        Patches of a row, of which batches are made.
    device_memory
        Bytes of a GPU's memory that were asked for.
    """
    forward = forward.resolve_device()
    device = torch.device(forward.device)
    if device.type == "cuda":
        found = search(forward, batch_size, most, device_memory)
        return Probe(
            outputs=found.outputs,
            dtype=forward.dtype,
            peak_bytes=0,  # launching kernels takes nothing that is worth counting
            batch_size=batch_size or found.batch_size,
            device=forward.device,
            precision=forward.precision,
            threads=threads,
            layout=found.layout,
            device_peak_bytes=found.peak_bytes,
            device_memory_bytes=found.memory_bytes,
        )
    with torch_threads(threads):
        batch = batch_size or usual_batch(forward.patch)
        outputs, peak, batch = _fitting(forward, batch)
        while batch_size is None and batch > 1 and peak > memory_bytes // 2:
            batch //= 2
            outputs, peak = _trial(forward, batch)
    # A requested batch size is recorded, so that the same call resumes; the run halves it again.
    size = batch_size or batch
    return Probe(outputs, forward.dtype, peak, size, str(device), forward.precision, threads)


def _fitting(forward: Forward, batch: int) -> tuple[tuple[Output, ...], int, int]:
    """Try a batch, halved until it fits: return outputs, peak in bytes, and its size."""
    while True:
        try:
            return *_trial(forward, batch), batch
        except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is one
            batch = forward.halved(batch, error)


def _trial(forward: Forward, batch: int) -> tuple[tuple[Output, ...], int]:
    """Return the outputs of a forward of so many patches, and the memory that it took.

    Both depend only on the model, the patch and the threads, so a loop over many cases tries
    `MOST_TRIALS` times.
    """
    known = trials_of(forward.digest)
    trials: list[tuple[tuple[Output, ...], int]] = known.setdefault(
        (forward, batch, torch.get_num_threads()), []
    )
    if len(trials) < MOST_TRIALS:
        device = torch.device(forward.device)
        data = torch.zeros((batch, forward.channels, *forward.patch), dtype=forward.torch_dtype)
        before = mark_peak(device)
        outputs = tried_outputs(forward, data.to(device))
        trials.append((outputs, max(0, read_peak(device) - before)))
    return min(trials, key=lambda trial: trial[1])


def tried_on_worker(name: str, trial: Callable[[], T], model: ModelPlugin, client: Client) -> T:
    """Return the result of a function that runs on the first free worker of a client.

    Parameters
    ----------
    name
        Name of the trial, for dashboards and logs.
    trial
        A picklable function without arguments.
    model
        The model that is resident on the worker while it runs.
    client
        The cluster.
    """
    plan = Plan(name, _call, trial, ((0,),), 1, "trial", 1, 1, True, (), model)
    found: T = run(plan, cluster=client, progress=False).results[0]
    return found


def _call(trial: Callable[[], T], blocks: tuple[int, ...], context: Context) -> Iterator[Step]:
    yield Step(blocks[0], 1, trial())
