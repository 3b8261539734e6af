"""A network run on a region whole, and how far a stored result lies from that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.engine.memory import begin_peak, peak_bytes
from volflow.errors import InvalidInput, NoExactRule
from volflow.geometry.roi import Roi
from volflow.infer.exact.plan import dropped_axis
from volflow.infer.finish import Finish
from volflow.infer.request import Request
from volflow.model.resident import ModelPlugin, lent
from volflow.partition.reach import Halo, halo_of, padded_sizes
from volflow.store.volume import Volume

__all__ = ["Difference", "Whole", "difference", "finishes", "memory_of", "run_whole", "score_range"]

Array = npt.NDArray[Any]

SLAB_VALUES = 2**22  # compared at a time
# Beside tensors alive: copies that fast convolutions make of them.
WORKSPACE = 1.5
# What networks without a rule, which padding cannot be derived of, are padded to at most.
LIKELY_ALIGNMENT = 32


@dataclass(frozen=True)
class Whole:
    """Scores of a network run on a region whole.

    Parameters
    ----------
    scores
        ``CZYX`` by output, as the network makes them.
    padded
        What the network saw.
    scale
        Input voxels per output voxel.
    cpu_seconds
        That it took.
    """

    scores: dict[str, Array]
    padded: tuple[int, ...]
    scale: tuple[int, ...]
    cpu_seconds: float


@dataclass(frozen=True)
class Difference:
    """Of scores and classes; and where, as sums of voxels' largest difference per plane."""

    largest: float
    mean: float
    changed: float
    along: Array


def memory_of(request: Request) -> tuple[Callable[[tuple[int, ...]], int], Halo | None, str]:
    """What a region run whole takes, by its sides; the halo, or why there is none."""
    inputs, module = request.inputs, request.model.module
    itemsize = 8 if request.forward("cpu", "float32").dtype == "float64" else 4
    dropped = dropped_axis(request)

    def seen(sides: Sequence[int]) -> list[int]:
        return [n for axis, n in enumerate(sides) if axis != dropped]

    try:
        found = halo_of(module, inputs.channels, seen(request.options.sides))
    except NoExactRule as error:
        at_once, values = _tried(request)
        tried = math.prod(request.options.sides)

        def about(sides: tuple[int, ...]) -> int:
            together = WORKSPACE * at_once * math.prod(seen(sides)) / tried
            return int(together + itemsize * values * math.prod(sides))

        return about, None, str(error)
    outputs = {*found.graph.outputs.values()}
    # The image, the scores, and those that they are compared with.
    values = inputs.channels + 2 * sum(found.graph.nodes[n].depth for n in outputs)

    def needed(sides: tuple[int, ...]) -> int:
        at_once = halo_of(module, inputs.channels, seen(sides)).activation_bytes(max(sides))
        return int(WORKSPACE * at_once + itemsize * values * math.prod(sides))

    return needed, found, ""


def _tried(request: Request) -> tuple[int, int]:
    """What a forward of one patch takes, and values per voxel to be held."""
    options, channels = request.options, request.inputs.channels
    forward = request.forward("cpu", "float32")
    patch = torch.zeros((1, channels, *options.sides), dtype=forward.torch_dtype)
    with lent(ModelPlugin(request.model.module, request.model.digest)):
        before = begin_peak()
        scores = forward(patch)
        # Of a small patch nothing may be seen.
        least = patch.nbytes + 2 * sum(s.nbytes for s in scores.values())
        held = channels + 2 * sum(s.shape[1] for s in scores.values())
        return max(peak_bytes() - before, least), held


def run_whole(request: Request, image: Array, device: str) -> Whole:
    """Run a network on an image as a whole: the plain module, without blocks.

    Parameters
    ----------
    request
        Whose network it is.
    image
        ``CZYX``; zero-padded at its far end to the network's alignment, the result cropped back.
    device
        Where.
    """
    dropped, module = dropped_axis(request), request.model.module
    shape = image.shape[1:]
    seen = [axis for axis in range(3) if axis != dropped]
    padded = _padded(request, [shape[a] for a in seen], [request.options.sides[a] for a in seen])
    sizes = list(shape)
    for axis, n in zip(seen, padded, strict=True):
        sizes[axis] = n
    wide = np.pad(image, [(0, 0), *((0, m - n) for n, m in zip(shape, sizes, strict=True))])
    forward = request.forward(device, "float32")
    began = time.process_time()
    parts = [wide] if dropped is None else np.split(wide, shape[dropped], axis=1 + dropped)
    with lent(ModelPlugin(module, request.model.digest)):
        try:
            found = [forward(torch.from_numpy(part)[None].to(device)) for part in parts]
        except Exception as error:  # models raise whatever they like
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InvalidInput(
                f"the model cannot be run on a region of {tuple(shape)} whole: {reason}"
            ) from error
        joined = {
            name: np.concatenate(
                [one[name][0].numpy(force=True) for one in found], axis=1 + (dropped or 0)
            )
            for name in found[0]
        }
    took = time.process_time() - began
    first = next(iter(joined.values()))
    scale = tuple(n // m for n, m in zip(sizes, first.shape[1:], strict=True))
    kept = tuple(slice(-(-n // s)) for n, s in zip(shape, scale, strict=True))
    return Whole({name: s[:, *kept] for name, s in joined.items()}, padded, scale, took)


def _padded(request: Request, shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    sizes = padded_sizes(request.model.module, request.inputs.channels, shape)
    if sizes != tuple(shape):
        return sizes
    try:
        halo_of(request.model.module, request.inputs.channels, shape)
    except InvalidInput:  # no rule, or sides that it does not take
        # What divides a patch, which it takes, by halves.
        likely = (min(LIKELY_ALIGNMENT, p & -p) for p in patch)
        return tuple(-(-n // a) * a for n, a in zip(shape, likely, strict=True))
    return sizes


def difference(
    whole: Whole, stored: Mapping[str, Volume], request: Request, normal: int
) -> Difference:
    """How far a stored result lies from the whole run, a few rows at a time.

    Parameters
    ----------
    whole
        The network on all of it.
    stored
        Scores by output, before the activation.
    request
        Whose activation and classes they are compared in.
    normal
        The axis along which differences are told.
    """
    computed = request.forward("cpu", "float32").dtype
    scores, classes = finishes(request, computed)
    first = next(iter(whole.scores.values()))
    depth, rows = first.shape[1], max(1, SLAB_VALUES // max(1, first[:, :1].size))
    along = np.zeros(first.shape[1 + normal])
    largest = total = 0.0
    values = changed = 0
    for low in range(0, depth, rows):
        high = min(depth, low + rows)
        away = np.zeros((high - low, *first.shape[2:]))
        other = np.zeros(away.shape, bool)
        for name, mine in whole.scores.items():
            theirs = stored[name].read(Roi((low, 0, 0), (high, *first.shape[2:])))
            part = mine[:, low:high]
            distance = np.abs(scores(part.copy()) - scores(theirs.copy()))
            total += float(distance.sum(dtype=np.float64))
            values += distance.size
            np.maximum(away, distance.max(axis=0), out=away)
            other |= classes(part.copy()) != classes(theirs)
        largest = max(largest, float(away.max()))
        changed += int(other.sum())
        sums = away.sum(axis=tuple(axis for axis in range(3) if axis != normal))
        along[slice(low, high) if normal == 0 else slice(None)] += sums
    return Difference(largest, total / values, changed / first[0].size, along)


def score_range(whole: Whole, request: Request) -> tuple[float, float]:
    """The lowest and highest score behind the activation."""
    scores, _ = finishes(request, next(iter(whole.scores.values())).dtype.name)
    activated = [scores(one.copy()) for one in whole.scores.values()]
    return min(float(s.min()) for s in activated), max(float(s.max()) for s in activated)


def finishes(request: Request, computed: str) -> tuple[Finish, Finish]:
    """What turns scores of the network into activated ones, and into classes."""
    activation = request.options.activation
    return Finish("scores", activation, computed), Finish("classes", activation, "uint16")
