"""Patches: streams, samples, aggregations."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import dask.array as da
import numpy as np
import torch
from bits_inputs import (
    SHAPE,
    Cases,
    conv_net,
    halved,
    labels,
    scan,
    stored,
    unused,
)
from bits_lines import line_of, sha
from torch import nn

import volflow as vf

SAMPLES = 24
MOTIONS: dict[str, Any] = {
    "rotate": 15, "scale": 0.1, "shear": 0.1, "translate": 2, "elastic": 2, "turn": 0.5,
}  # fmt: skip
VALUES: dict[str, Any] = {
    "gamma": 0.3, "contrast": 0.3, "brightness": 0.2, "bias": 0.3, "blur": 1, "noise": 0.1,
}  # fmt: skip


def sample_lines(samples: Iterable[dict[str, Any]], most: int = SAMPLES) -> list[str]:
    """Each sample or batch: places, names and voxels."""
    found = []
    for sample in itertools.islice(samples, most):
        parts = []
        for name, value in sorted(sample.items()):
            large = isinstance(value, torch.Tensor) and value.ndim > 2
            plain = value.tolist() if isinstance(value, torch.Tensor) and not large else value
            parts.append(f"{name} {line_of(value) if large else plain}")
        found.append(" ".join(parts))
    digest = sha("\n".join(found).encode())
    return [f"{len(found)} samples {digest}", found[0].split(" key ")[0] if found else ""]


def weights(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    found = np.random.default_rng(5).random(shape, "float32")
    return np.where(found > 0.7, found, 0).astype("float32")


def several() -> list[dict[str, Any]]:
    """Cases of different sizes."""
    shapes = (SHAPE, (30, 18, 16), (17, 40, 21))
    found = []
    for number, shape in enumerate(shapes):
        arrays = {
            "image": (scan(shape, number) * 1000).astype("int16"),
            "label": labels(shape),
            "prob": weights(shape),
        }
        places = {name: stored(f"{name}-{number}.zarr", a) for name, a in arrays.items()}
        found.append(places)
    return found


def streams() -> Cases:
    cases = several()
    samplers = {
        "uniform": vf.UniformSampler(8),
        "uniform pad": vf.UniformSampler((6, 8, 10), border="pad"),
        "uniform slices": vf.UniformSampler((1, 8, 8)),
        "weighted": vf.WeightedSampler(8),
        "weighted pad": vf.WeightedSampler(7, border="pad"),
        "label": vf.LabelSampler(8),
        "label classes": vf.LabelSampler(8, probabilities={0: 1, 1: 1, 3: 4}),
        "label pad": vf.LabelSampler((5, 8, 8), probabilities={0: 1, 2: 1}, border="pad"),
    }

    def stream(sampler: Any, given: Any = cases, **options: Any) -> Any:
        grid = isinstance(sampler, vf.GridSampler)
        count = {} if grid or "patches_per_case" in options else {"patches_per_epoch": 200}
        more = {"memory": "1GiB", "seed": 3, "threads": 2, "progress": False} | count | options
        return vf.PatchStream(given, sampler, **more)

    def case(name: str, sampler: Any, **options: Any) -> Any:
        return f"stream/{name}", lambda: sample_lines(stream(sampler, **options))

    for name, sampler in samplers.items():
        yield case(name, sampler)
    uniform = samplers["uniform"]
    yield case("seed 4", uniform, seed=4)
    yield case("lanes 2 reuse 1", uniform, lanes=2, reuse=1)
    yield case("reuse 16", samplers["label classes"], reuse=16)
    yield case("per case", uniform, patches_per_case=20)
    yield case("rank 1 of 2", samplers["label"], rank=1, world_size=2)
    yield case("grid", vf.GridSampler(8, overlap=0.25))
    yield case("grid padding", vf.GridSampler(8, overlap=2, padding=3))
    yield case("one volume", uniform, given=stored("scan.zarr", scan()))
    computed = {"image": da.from_array(scan(), chunks=9) * 3, "label": labels()}
    yield case("computed", samplers["label"], given=computed)

    def later_epoch() -> Any:
        found = stream(uniform)
        found.set_epoch(5)
        return sample_lines(found)

    def resumed() -> Any:
        first = stream(samplers["weighted"])
        list(itertools.islice(iter(first), 17))
        second = stream(samplers["weighted"])
        second.load_state_dict(first.state_dict())
        return sample_lines(second)

    def batches(augment: Any = None, **options: Any) -> Any:
        found = stream(samplers["label classes"], augment=augment, **options)
        return sample_lines(found.loader(batch_size=3), 8)

    yield "stream/epoch 5", later_epoch
    yield "stream/resumed", resumed
    yield "stream/counts", lambda: stream(samplers["label"]).case_counts()
    yield "stream/loader", batches
    yield "stream/augment flips", lambda: batches(vf.Augment())
    yield "stream/augment motions", lambda: batches(vf.Augment(**MOTIONS))
    yield "stream/augment values", lambda: batches(vf.Augment(flip=0, **VALUES))
    some = vf.Augment(**MOTIONS, **VALUES, probability=0.5, outside="edge")
    yield "stream/augment some", lambda: batches(some)

    first = cases[0]
    for name, sampler in samplers.items():
        yield f"sample/{name}", lambda s=sampler: vf.sample(cases, s, n=16, seed=2)
    grid = vf.GridSampler(8, overlap=0.25)
    yield "sample/grid", lambda: vf.sample(first, grid)
    yield "sample/label array", lambda: vf.sample(cases, uniform, n=9, array="label")


def aggregations() -> Cases:
    net = conv_net()

    def aggregate(net: nn.Module = net, order: int = 1, **options: Any) -> Any:
        """One's own loop over two cases, in the stream's order or backwards."""
        images = [{"image": one["image"]} for one in several()[:2]]
        stream = vf.PatchStream(images, vf.GridSampler(8, overlap=0.25), memory="1GiB")
        out = unused("aggregated", "-{case}.zarr")
        options = {"chunk": 8, "shard": 8, "memory": "1GiB"} | options
        with vf.GridAggregator(out, stream, **options) as aggregator, torch.inference_mode():
            for batch in list(stream.loader(batch_size=4))[::order]:
                aggregator.add_batch(net(batch["image"]), batch)
            return dict(aggregator.close())

    for blend in ("crop", "average", "gaussian", "hann"):
        yield f"aggregate/{blend}", lambda b=blend: aggregate(blend=b)
    yield "aggregate/backwards", lambda: aggregate(order=-1)
    yield "aggregate/files", lambda: aggregate(order=-1, memory="1MiB")
    more = {"activation": "softmax", "output": "classes"}
    yield "aggregate/classes", lambda: aggregate(**more)
    yield "aggregate/uint8", lambda: aggregate(activation=halved, dtype="uint8")
    yield "aggregate/float64", lambda: aggregate(conv_net().double().float(), dtype="float64")
