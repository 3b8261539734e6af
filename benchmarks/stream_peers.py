"""What ``stream.py`` compares: each method makes patches, one loop measures it.

A method is a generator: it yields how many patches it has just made, each an array of its own. It
tells its `Tally` how many voxels were decoded for them and after how many patches its work repeats,
so that a queue is measured from one fill to another. Only NumPy is imported with this module:
``stream_zarrdataset.py`` uses it in an environment without the rest.
"""

from __future__ import annotations

import itertools
import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Setup:
    """What a method is asked for."""

    images: list[str]
    labels: list[str]
    patch: int
    seed: int
    warm_s: float
    seconds: float
    memory: str
    cache_bytes: int


@dataclass
class Tally:
    """What a method tells the loop that measures it."""

    patches: float = 0
    decoded: int = 0
    cycle: int = 1
    held_bytes: int = 0


Method = Callable[[Setup, Tally], Iterator[float]]
EQUAL = "volflow as torchio"
SAMPLES = 256  # per volume, of TorchIO and MONAI


def measure(method: Method, setup: Setup) -> dict[str, float]:
    """Patches per second and per CPU second of a method that has got going."""
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    tally = Tally()
    began = time.perf_counter()
    made = method(setup, tally)
    tally.patches += next(made)
    first_s = time.perf_counter() - began
    advance(made, tally, setup.warm_s)
    before = time.perf_counter(), cpu_s(), tally.patches, tally.decoded
    advance(made, tally, setup.seconds)
    after = time.perf_counter(), cpu_s(), tally.patches, tally.decoded
    wall, cpu, patches, decoded = (b - a for a, b in zip(before, after, strict=True))
    return {
        "per_cpu_s": patches / cpu,
        "per_s": patches / wall,
        "reuse": patches * setup.patch**3 / decoded if decoded else math.nan,
        "first_s": first_s,
        "growth_bytes": status("VmHWM") - resident,
        "held_bytes": tally.held_bytes,
    }


def advance(made: Iterator[float], tally: Tally, seconds: float) -> None:
    """For so many seconds and then to the end of the method's cycle."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or tally.patches % tally.cycle:
        tally.patches += next(made)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def boxes(setup: Setup, shapes: list[tuple[int, ...]]) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """A case and a box in it, both drawn at random."""
    rng = np.random.default_rng(setup.seed)
    while True:
        case = int(rng.integers(len(shapes)))
        starts = [int(rng.integers(n - setup.patch + 1)) for n in shapes[case]]
        yield case, tuple(slice(s, s + setup.patch) for s in starts)


def touched(box: tuple[slice, ...], chunk: tuple[int, ...]) -> int:
    """Voxels of the chunks that a box reaches into."""
    return math.prod(
        ((s.stop - 1) // c - s.start // c + 1) * c for s, c in zip(box, chunk, strict=True)
    )


def naive(setup: Setup, tally: Tally) -> Iterator[float]:
    import zarr

    arrays = [zarr.open_array(path, mode="r") for path in setup.images]
    for case, box in boxes(setup, [array.shape for array in arrays]):
        patch = arrays[case][box]
        assert patch.flags.owndata or patch.flags.c_contiguous
        tally.decoded += touched(box, arrays[case].chunks)
        yield 1


def tensorstore(setup: Setup, tally: Tally) -> Iterator[float]:
    """With a cache of decoded chunks of as many bytes as volflow's window."""
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": setup.cache_bytes}})
    arrays = [
        ts.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}},
            context=context, read=True, recheck_cached=False,
        ).result()
        for path in setup.images
    ]  # fmt: skip
    chunk = arrays[0].chunk_layout.read_chunk.shape
    for number, (case, box) in enumerate(boxes(setup, [array.shape for array in arrays])):
        arrays[case][box].read().result()
        if number % 50 == 0:
            tally.decoded = entries_read(ts) * math.prod(chunk)
        yield 1


def entries_read(ts: Any) -> int:
    """Chunks that were not in the cache, and the indices of shards, which are few."""
    found = ts.experimental_collect_matching_metrics("/tensorstore/cache/kvs_cache_read")
    values = [value for metric in found for value in metric["values"]]
    return sum(int(v["value"]) for v in values if v["category"] == "changed")


def ram(setup: Setup, tally: Tally) -> Iterator[float]:
    """A resident array, copied from at random: nothing can be faster."""
    import zarr

    array = zarr.open_array(setup.images[0], mode="r")[:]
    for _, box in boxes(setup, [array.shape]):
        array[box].copy()
        yield 1


def decode(setup: Setup, tally: Tally) -> Iterator[float]:
    """Whole shards, each once, nothing cut out: what a reuse of 1 cannot pass."""
    import zarr

    for path in itertools.cycle(setup.images):
        array = zarr.open_array(path, mode="r")
        shard = array.shards or array.chunks
        starts = itertools.product(
            *(range(0, n, s) for n, s in zip(array.shape, shard, strict=True))
        )
        for start in starts:
            box = tuple(slice(i, i + s) for i, s in zip(start, shard, strict=True))
            voxels = array[box].size
            tally.decoded += voxels
            yield voxels / setup.patch**3


def torchio(setup: Setup, tally: Tally, samples: int = SAMPLES, resident: bool = False):
    """The Queue of two volumes, shuffled; a volume is read from the same Zarr when it is its turn."""
    import torch
    import torchio as tio
    import zarr

    def read(path: str):
        array = zarr.open_array(str(path), mode="r")[:]
        tally.decoded += array.size
        return array[None].astype(np.int32), np.eye(4)

    images = setup.images
    if resident:
        whole = torch.from_numpy(read(images[0])[0])
        subjects = [tio.Subject(image=tio.ScalarImage(tensor=whole)) for _ in images]
        tally.decoded = 0
    else:
        subjects = [tio.Subject(image=tio.ScalarImage(path, reader=read)) for path in images]
    torch.manual_seed(setup.seed)
    queue = tio.Queue(
        tio.SubjectsDataset(subjects), 2 * samples, samples, tio.UniformSampler(setup.patch)
    )
    tally.cycle = 2 * samples
    while True:
        for _ in range(len(queue)):
            assert queue[0]["image"].data.is_contiguous()
            yield 1


class Volumes:
    """Cases that are read from the same Zarr each time they are asked for."""

    def __init__(self, setup: Setup, tally: Tally, labels: bool = False) -> None:
        self.paths = {"image": setup.images} | ({"label": setup.labels} if labels else {})
        self.tally = tally

    def __len__(self) -> int:
        return len(self.paths["image"])

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        import zarr

        # float32, as MONAI's LoadImaged gives.
        found = {
            name: zarr.open_array(paths[number], mode="r")[:].astype(np.float32)[None]
            for name, paths in self.paths.items()
        }
        self.tally.decoded += found["image"].size
        return found


def monai_patches(setup: Setup, tally: Tally, samples: int = SAMPLES, resident: bool = False):
    """PatchDataset with RandSpatialCropSamplesd."""
    from monai.data import PatchDataset
    from monai.transforms import RandSpatialCropSamplesd

    data: Any = Volumes(setup, tally)
    if resident:
        data = [data[0]] * len(data)
        tally.decoded = 0
    crop = RandSpatialCropSamplesd("image", setup.patch, num_samples=samples, random_size=False)
    crop.set_random_state(setup.seed)
    tally.cycle = samples
    dataset = PatchDataset(data, crop, samples)
    while True:
        for patch in dataset:
            patch["image"].contiguous()
            yield 1


def monai_labels(setup: Setup, tally: Tally, samples: int = 16) -> Iterator[float]:
    """RandCropByPosNegLabeld, image and label."""
    from monai.transforms import RandCropByPosNegLabeld

    crop = RandCropByPosNegLabeld(
        ["image", "label"], "label", setup.patch, pos=1, neg=1, num_samples=samples
    )
    crop.set_random_state(setup.seed)
    tally.cycle = samples
    volumes = Volumes(setup, tally, labels=True)
    for number in itertools.cycle(range(len(volumes))):
        for patch in crop(volumes[number]):
            patch["image"].contiguous()
            patch["label"].contiguous()
            yield 1


def volflow_stream(
    setup: Setup, tally: Tally, reuse: float, batch: int = 1, *,
    labels: bool = False, patches: int | None = None,
):  # fmt: skip
    """A stream in whose epochs all that is stored is decoded about once, or of so many patches."""
    import volflow as vf

    cases = [{"image": path} for path in setup.images]
    sampler: Any = vf.UniformSampler(setup.patch)
    if labels:
        pairs = zip(setup.images, setup.labels, strict=True)
        cases = [{"image": image, "label": label} for image, label in pairs]
        sampler = vf.LabelSampler(setup.patch, probabilities={0: 1, 1: 1})
    voxels = sum(math.prod(vf.open(path).shape) for path in setup.images)
    stream = vf.PatchStream(
        cases, sampler,
        patches_per_epoch=patches or batch * int(reuse * voxels / setup.patch**3 / batch),
        reuse=reuse, memory=setup.memory, seed=setup.seed, progress=False,
    )  # fmt: skip
    plan = stream.plan
    tally.held_bytes = (plan.held_lanes + plan.ahead) * plan.superchunk_bytes
    # In so many patches every lane comes to its next superchunk.
    tally.cycle = batch * round(plan.lanes * plan.per_visit / batch)
    return stream


def volflow(
    setup: Setup, tally: Tally, reuse: float | None = None, labels: bool = False
) -> Iterator[float]:
    """Samples of a PatchStream, as iterating it gives them; by default with TorchIO's reuse."""
    stream = volflow_stream(setup, tally, reuse or torchio_reuse(setup), labels=labels)
    while True:
        for sample in stream:
            assert sample["image"].is_contiguous()
            tally.decoded = stream.metrics.decoded_voxels
            yield 1


def torchio_reuse(setup: Setup) -> float:
    import volflow as vf

    return SAMPLES * setup.patch**3 / math.prod(vf.open(setup.images[0]).shape)


def volflow_loader(setup: Setup, tally: Tally, reuse: float, batch: int = 4) -> Iterator[float]:
    """Batches of float32."""
    stream = volflow_stream(setup, tally, reuse, batch)
    while True:
        for found in stream.loader(batch_size=batch):
            tally.decoded = stream.metrics.decoded_voxels
            yield len(found["image"])


METHODS: dict[str, tuple[Callable[..., Iterator[float]], dict[str, Any]]] = {
    "naive": (naive, {}),
    "tensorstore": (tensorstore, {}),
    EQUAL: (volflow, {}),
    "volflow 1": (volflow, {"reuse": 1}),
    "volflow 4": (volflow, {"reuse": 4}),
    "volflow 16": (volflow, {"reuse": 16}),
    "volflow 1 loader": (volflow_loader, {"reuse": 1}),
    "volflow 4 loader": (volflow_loader, {"reuse": 4}),
    "volflow 16 loader": (volflow_loader, {"reuse": 16}),
    "volflow 4 labels": (volflow, {"reuse": 4, "labels": True}),
    "torchio 256": (torchio, {}),
    "torchio resident": (torchio, {"resident": True}),
    "monai 256": (monai_patches, {}),
    "monai resident": (monai_patches, {"resident": True}),
    "monai labels 16": (monai_labels, {}),
    "decode": (decode, {}),
    "ram": (ram, {}),
}
IMPORTS = {"torchio": "torchio", "monai": "monai.data", "tensorstore": "tensorstore"}


def run(name: str, setup: Setup) -> dict[str, float]:
    """Measure a method by name; what it imports is no part of the measurement."""
    import importlib

    function, options = METHODS[name]
    library = name.split()[0]
    importlib.import_module(IMPORTS.get(library, "zarr"))
    if library == "volflow":
        import volflow as vf

        vf.PatchStream  # noqa: B018 - loaded on first use
    return measure(lambda setup, tally: function(setup, tally, **options), setup)


def show(found: dict[str, float]) -> None:
    print(json.dumps(found), flush=True)
