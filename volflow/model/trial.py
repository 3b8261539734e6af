"""Outputs and memory of a model, from its graph or from a trial forward on zeros."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from distributed import Client

from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.engine.task import Context, Step
from volflow.errors import InvalidInput, VolflowError, first_line
from volflow.model.device import give_back_device, is_out_of_memory, mark_peak, read_peak
from volflow.model.forward import (
    Forward,
    Output,
    checked_outputs,
    explaining_half,
    torch_threads,
)
from volflow.model.resident import ModelPlugin, trials_of
from volflow.partition.reach import trace_any

__all__ = [
    "Probe",
    "output_shapes",
    "probe",
    "tried_on_worker",
    "usual_batch",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Probe:
    """Results of a trial forward."""

    outputs: tuple[Output, ...]
    dtype: str
    peak_bytes: int
    batch_size: int
    device: str
    precision: str
    threads: int


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
    return tuple(_check_output(forward, name, value, 1) for name, value in named.items())


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


def probe(forward: Forward, batch_size: int | None, memory_bytes: int, threads: int) -> Probe:
    """Try one forward on zeros: output shapes, peak memory, and the batch size that fits.

    Parameters
    ----------
    forward
        A forward with device ``"auto"`` or a name; the result holds the device found.
    batch_size
        None chooses one: on a GPU doubled while it fits in half of the free memory, on a CPU as
        many patches as make up 64³ voxels.
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
                    give_back_device(device)
                    break
                batch *= 2
        while (
            batch_size is None and device.type == "cpu" and batch > 1 and peak > memory_bytes // 2
        ):
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

    On a CPU both depend only on the model, the patch and the threads, so a loop over many cases
    tries twice: the first forward of a process also allocates what torch keeps for later ones. On
    a GPU other processes may have taken memory meanwhile, so each call tries again.
    """
    if torch.device(forward.device).type != "cpu":
        return _tried(forward, batch)
    known = trials_of(forward.digest)
    trials: list[tuple[tuple[Output, ...], int]] = known.setdefault(
        (forward, batch, torch.get_num_threads()), []
    )
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
        except Exception as error:  # models raise errors of any class
            if isinstance(error, InvalidInput) or is_out_of_memory(error):
                raise
            raise InvalidInput(
                f"the model does not take a batch of shape {tuple(data.shape)}: {first_line(error)}"
            ) from error
    peak = max(0, read_peak(device) - before)
    return tuple(_check_output(forward, name, v, batch) for name, v in outputs.items()), peak


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
