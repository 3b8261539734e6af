"""What the processes of ``rebuild.py`` do, on whatever tree ``PYTHONPATH`` names.

Of volflow they use public names alone, so that older and newer trees can run them. A ``run_``
function prepares, does a small piece of work of its kind, and returns what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATCH, OVERLAP = 96, 0.25
CASE = (35, 51, 35)


@dataclass(frozen=True)
class Size:
    """How much there is to do."""

    unet: int = 160
    identity: int = 384
    exact: int = 112
    exact_memory: str = "512MiB"
    stream: int = 160
    batches: int = 400
    blocks: int = 22
    cases: int = 65


SMOKE = Size(96, 96, 48, "128MiB", 96, 8, 4, 3)


def double(before: int, after: int, norm: str):
    from torch import nn

    layers = []
    for channels in (before, after):
        layers += [nn.Conv3d(channels, after, 3, padding=1)]
        layers += [nn.BatchNorm3d(after)] if norm else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers)


def unet(first: int, levels: int = 3, norm: str = "batch"):
    """A plain U-Net with three classes."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [first * 2**level for level in range(levels)]
            befores = [1, *sizes]
            self.down = nn.ModuleList(
                double(a, b, norm) for a, b in zip(befores, sizes, strict=False)
            )
            self.pool = nn.MaxPool3d(2)
            pairs = list(zip(sizes[1:], sizes, strict=False))[::-1]
            self.up = nn.ModuleList(nn.ConvTranspose3d(a, b, 2, stride=2) for a, b in pairs)
            self.fuse = nn.ModuleList(double(2 * b, b, norm) for _, b in pairs)
            self.head = nn.Conv3d(first, 3, 1)

        def forward(self, x):
            skips = []
            for number, step in enumerate(self.down):
                x = step(self.pool(x) if number else x)
                skips.append(x)
            for up, fuse, skip in zip(self.up, self.fuse, skips[-2::-1], strict=True):
                x = fuse(torch.cat([skip, up(x)], 1))
            return self.head(x)

    torch.manual_seed(0)
    return Net().eval()


def case_net():
    """For small scans: a network that costs little beside what is around it."""
    import torch

    torch.manual_seed(0)
    conv = torch.nn.Conv3d
    layers = (conv(1, 8, 3, padding=1), torch.nn.ReLU(), conv(8, 3, 3, padding=1))
    return torch.nn.Sequential(*layers).eval()


def make_volume(path: Path, side: int, seed: int = 0, dtype: str = "uint16") -> None:
    """Smooth structures with noise, stored as a volume."""
    import numpy as np

    import volflow as vf

    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:side, :side]
    values = np.empty((side, side, side), dtype)
    for z in range(side):
        wave = 1000 + 400 * np.sin(z / 17) * np.sin(y / 23) * np.sin(x / 29)
        values[z] = (wave + rng.normal(0, 12, wave.shape)).astype(dtype)
    vf.convert(values, path, progress=False)


def make_case(path: Path, seed: int) -> None:
    import nibabel
    import numpy as np

    values = np.random.default_rng(seed).normal(300, 40, CASE).astype("int16")
    nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 1.0, 1.0])), path)


def make(folder: Path, size: Size, parts: list[str]) -> None:
    """All inputs that these parts need."""
    if "unet" in parts:
        make_volume(folder / "unet.zarr", size.unet)
    if {"identity", "io"} & set(parts):
        make_volume(folder / "identity.zarr", size.identity)
    if "exact" in parts:
        make_volume(folder / "exact.zarr", size.exact, dtype="float32")
    for number in range(4 if "stream" in parts else 0):
        make_volume(folder / f"stream-{number}.zarr", size.stream, number)
    for number in range(size.cases if {"idle", "cases"} & set(parts) else 0):
        make_case(folder / f"case-{number:03}.nii.gz", number)


def run_unet(folder: Path, size: Size) -> Callable[[], object]:
    import volflow as vf

    options = {"patch": PATCH, "overlap": OVERLAP, "batch_size": 1, "memory": "1GiB"}
    net, out = unet(8), folder / "out.zarr"
    vf.predict(folder / "case-small.zarr", net, folder / "small.zarr", progress=False, **options)
    return lambda: vf.predict(folder / "unet.zarr", net, out, progress=False, **options)


def run_identity(folder: Path, size: Size) -> Callable[[], object]:
    import torch

    import volflow as vf

    options = {"patch": PATCH, "overlap": OVERLAP, "batch_size": 1, "memory": "1GiB"}
    net, out = torch.nn.Identity(), folder / "out.zarr"
    vf.predict(folder / "case-small.zarr", net, folder / "small.zarr", progress=False, **options)
    return lambda: vf.predict(folder / "identity.zarr", net, out, progress=False, **options)


def run_io(folder: Path, size: Size) -> Callable[[], object]:
    import itertools

    import zarr

    def copy() -> None:
        source = zarr.open_array(folder / "identity.zarr" / "0")
        target = zarr.create_array(
            folder / "out.zarr", shape=source.shape, dtype="float32", chunks=(64,) * 3,
            shards=(256,) * 3, compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
        )  # fmt: skip
        for start in itertools.product(*(range(0, n, 256) for n in source.shape)):
            box = tuple(slice(a, a + 256) for a in start)
            target[box] = source[box].astype("float32")

    return copy


def run_exact(folder: Path, size: Size) -> Callable[[], object]:
    import volflow as vf

    options = {"blend": "exact", "memory": size.exact_memory, "progress": False}
    net, out = unet(16), folder / "out.zarr"
    vf.predict(folder / "case-small.zarr", case_net(), folder / "small.zarr", **options)
    return lambda: vf.predict(folder / "exact.zarr", net, out, **options)


def run_stream(folder: Path, size: Size) -> Callable[[], object]:
    import itertools

    import volflow as vf

    cases = [{"image": str(folder / f"stream-{number}.zarr")} for number in range(4)]
    patches = 4 * size.batches + 40
    stream = vf.PatchStream(cases, vf.UniformSampler(64), patches, reuse=4, memory="2GiB", seed=1)
    batches = iter(stream.loader(batch_size=4))
    list(itertools.islice(batches, 5))  # the window is filled
    return lambda: sum(1 for _ in itertools.islice(batches, size.batches))


def run_graph(folder: Path, size: Size) -> Callable[[], object]:
    import dask
    import zarr

    import volflow as vf

    def graph(count: int) -> int:
        shape = (32 * count,) * 3
        array = zarr.create_array(
            folder / f"graph-{count}.zarr", shape=shape, chunks=(32,) * 3, dtype="u1",
            overwrite=True,
        )  # fmt: skip
        options = {"depth": 4, "boundary": "reflect", "dtype": "u1", "block": 32}
        lazy = vf.map_overlap(lambda block: block, array, **options)
        (ready,) = dask.optimize(lazy)
        return len(ready.__dask_graph__())

    graph(3)
    return lambda: graph(size.blocks)


def predict_case(number: int, folder: Path, net: object) -> None:
    import volflow as vf

    vf.predict(
        folder / f"case-{number:03}.nii.gz", net, folder / f"out-{number:03}.nii.gz", patch=32,
        output="classes", device="cpu", batch_size=1, progress=False,
    )  # fmt: skip


def run_cases(folder: Path, size: Size) -> Callable[[], object]:
    net = case_net()
    predict_case(0, folder, net)
    return lambda: [predict_case(number, folder, net) for number in range(1, size.cases)]


def needed() -> None:
    """What any program must do that predicts a case."""
    import distributed  # noqa: F401
    import torch
    import zarr  # noqa: F401

    net = case_net()
    with torch.inference_mode():
        for _ in range(8):
            net(torch.zeros(1, 1, 32, 32, 32))


def child(part: str, folder: Path, size: Size) -> None:
    """One measurement in this process."""
    if part == "make":
        make(folder, size, os.environ["PARTS"].split(","))
        make_volume(folder / "case-small.zarr", 32, dtype="float32")
        return
    if part == "needed":
        needed()
        return
    if part == "one":
        predict_case(int(os.environ.get("CASE", "0")), folder, case_net())
        return
    work = WORK[part](folder, size)
    before, began = cpu_s(), time.perf_counter()
    result = work()
    found = {"wall_s": time.perf_counter() - began, "cpu_s": cpu_s() - before}
    if part == "graph":
        found["tasks"] = result
    if part == "cases":
        found = {name: value / (size.cases - 1) for name, value in found.items()}
    print(json.dumps(found))


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


WORK = {
    "unet": run_unet,
    "identity": run_identity,
    "io": run_io,
    "exact": run_exact,
    "stream": run_stream,
    "graph": run_graph,
    "cases": run_cases,
}
