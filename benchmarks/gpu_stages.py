"""The stages of ``gpu.py``: ``python gpu_stages.py STAGE ROWS FOLDER`` appends rows of JSON to a file.

``correct``: the tests of ``tests/gpu`` on the device, equal bits twice and in two budgets, exact
beside the whole forward. ``kernels``: a U-Net's forward by CUDA events, per precision, layout and
batch, beside the first convolution of a process, statistics and copies. ``predict``: a volume of
320 × 512 × 512, by precision and output. ``exact``: 256³ and 384³. ``peers``: MONAI, with the image
on the CPU and on the GPU, and the floor, the same patches from a volume that lies on the device.

Busy is the union of kernel intervals that the profiler saw over the wall time of that run; the wall
time reported is that of a run without it. NVML is asked for the utilisation every 20 ms.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
import zarr  # noqa: E402
from gpu_measures import predicted, timed_ms  # noqa: E402
from inference import make_scan  # noqa: E402

import volflow as vf  # noqa: E402
from volflow.geometry.grid import PatchGrid, stride_of  # noqa: E402
from volflow.geometry.roi import Roi  # noqa: E402
from volflow.model.device import arithmetic  # noqa: E402
from volflow.model.unet import UNet  # noqa: E402
from volflow.partition.reductions import MeanVariance  # noqa: E402

OVERLAP = 0.25
CUDA = torch.device("cuda")
TESTS = ("-m", "pytest", "-m", "gpu", "tests/gpu", "-q", "-n0", "-p", "no:cacheprovider")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


@dataclass(frozen=True)
class Sizes:
    """How large everything is: for a GPU, and for the tests' stand-in, which shows that it runs."""

    small: tuple[int, int, int] = (96, 192, 192)
    small_patch: int = 64
    shape: tuple[int, int, int] = (320, 512, 512)
    patch: int = 96
    features: tuple[tuple[int, ...], ...] = ((32, 64, 128), (16, 32, 64))
    batches: tuple[int, ...] = (1, 2, 4, 8)
    sides: tuple[int, ...] = (256, 384)
    measured: tuple[int, int] = (32, 256)
    copied: int = 2**28
    least_s: float = 0.15


SMALL = Sizes((24, 32, 32), 16, (24, 32, 32), 16, ((4, 8),), (1,), (24,), (2, 8), 2**16, 0.0)


@dataclass(frozen=True)
class Stage:
    """A stage at work: its sizes, its folder, where its rows go, and whether they are all real."""

    sizes: Sizes
    folder: Path
    rows: Callable[..., None]
    stand_in: bool

    def scan(self, shape: tuple[int, int, int]) -> Path:
        """Return the scan of a shape, made once."""
        path = self.folder / f"scan{'x'.join(map(str, shape))}.zarr"
        if not path.exists():
            make_scan(path, shape)
        return path


def unet(features: tuple[int, ...], norm: str = "batch") -> Any:
    torch.manual_seed(0)
    return UNet(1, 3, features=features, norm=norm).eval()


def image_of(scan: Path, device: str) -> Any:
    """Return a whole volume as MONAI is given it: float32, in memory."""
    voxels = zarr.open_array(f"{scan}/0")[:].astype("float32")
    return torch.from_numpy(voxels)[None, None].to(device)


def correct(stage: Stage) -> None:
    if not stage.stand_in:
        done = subprocess.run(
            [sys.executable, *TESTS], cwd=HERE.parent, capture_output=True, text=True, check=False
        )
        told = (done.stdout.strip() or done.stderr.strip()).splitlines()
        stage.rows(what="pytest -m gpu", result=told[-1])
    scan, net = stage.scan(stage.sizes.small), unet((8, 16, 32), "instance")

    def result(**options: Any) -> Any:
        given = {"device": "cuda", "precision": "float32", "overwrite": True, "progress": False}
        return vf.predict(str(scan), net, str(stage.folder / "a.zarr"), **{**given, **options})[:]

    def compared(what: str, one: Any, other: Any) -> None:
        stage.rows(what=what, result=float(abs(one - other).max()))

    blended = partial(result, patch=stage.sizes.small_patch)
    first = blended()
    compared("blended twice, largest difference", first, blended())
    compared("blended in less device memory", first, blended(device_memory="1500MiB"))
    compared("blended beside the CPU", first, blended(device="cpu"))
    exact, image = result(blend="exact"), image_of(scan, "cuda")
    for precision in ("float32", "tf32"):
        on_gpu = unet((8, 16, 32), "instance").cuda()
        with torch.inference_mode(), arithmetic(CUDA, precision):
            whole = on_gpu(image)[0].cpu().numpy()
        compared(f"exact beside the whole volume in {precision}", exact, whole)
    net.train()
    net(torch.rand(1, 1, 32, 32, 32)).sum().backward()
    trained = all(p.grad is not None for p in net.parameters())
    stage.rows(what="a training step after predict", result="gradients" if trained else "none")
    net.eval()
    if not stage.stand_in:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        share = (torch.cuda.memory_reserved() + 2**30) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        compared("batches of 64 where 1 GiB is left", first, blended(batch_size=64))


def kernels(stage: Stage) -> None:
    sizes = stage.sizes
    conv = torch.nn.Conv3d(1, 32, 3, padding=1).cuda()
    image = torch.rand(1, 1, *(sizes.patch,) * 3, device="cuda")
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.inference_mode():
        conv(image)
    torch.cuda.synchronize()
    stage.rows(what="first convolution of a process", ms=1e3 * (time.perf_counter() - began))
    channels, side = sizes.measured
    values = torch.rand(1, channels, *(side,) * 3, device="cuda")
    moments = MeanVariance((None, None, 0, 1, 2), (1, channels))
    took = timed_ms(partial(moments.partial, values, Roi.full((side,) * 3)), sizes.least_s)
    stage.rows(what=f"statistics of {channels} × {side}³", ms=took)
    host = torch.empty(sizes.copied, dtype=torch.uint8)
    for name, source in (("pageable", host), ("pinned", host.pin_memory())):
        took = timed_ms(partial(source.to, "cuda", non_blocking=True), sizes.least_s)
        rate = source.numel() / took / 1e6
        stage.rows(what=f"copy of {source.numel() >> 20} MiB, {name}", ms=took, gb_per_s=rate)
    ends = time.perf_counter() + 55
    for features in sizes.features:
        for norm in ("batch", "instance"):
            for precision in ("float32", "tf32", "bfloat16"):
                for layout in LAYOUTS:
                    if time.perf_counter() > ends:
                        stage.rows(what="what is missing here was left out for want of time")
                        return
                    forwards(stage, features, norm, precision, layout)


def forwards(
    stage: Stage, features: tuple[int, ...], norm: str, precision: str, layout: str
) -> None:
    """Time the forward of a network for each batch."""
    memory = LAYOUTS[layout]
    net = unet(features, norm).cuda().to(memory_format=memory)
    for batch in stage.sizes.batches:
        given = torch.rand(batch, 1, *(stage.sizes.patch,) * 3, device="cuda")
        given = given.contiguous(memory_format=memory)
        with torch.inference_mode(), arithmetic(CUDA, precision):
            took = timed_ms(partial(net, given), stage.sizes.least_s)
        stage.rows(
            what="/".join(map(str, features)), norm=norm, precision=precision, layout=layout,
            batch=batch, ms=took, patches_per_s=1e3 * batch / took,
        )  # fmt: skip


def predict(stage: Stage) -> None:
    scan, out = stage.scan(stage.sizes.shape), stage.folder / "out.zarr"
    for features in stage.sizes.features:
        for precision in ("float32", "bfloat16"):
            for output in ("classes", "scores"):
                found = predicted(
                    scan, unet(features), out, patch=stage.sizes.patch, overlap=OVERLAP,
                    output=output, precision=precision,
                )  # fmt: skip
                name = "/".join(map(str, features))
                stage.rows(what=name, precision=precision, output=output, **found)


def exact(stage: Stage) -> None:
    features, out = stage.sizes.features[0], stage.folder / "exact.zarr"
    for side in stage.sizes.sides:
        scan = stage.scan((side,) * 3)
        for norm in ("batch", "instance"):
            found = predicted(scan, unet(features, norm), out, blend="exact", output="scores")
            if side == stage.sizes.sides[0]:
                image, on_gpu = image_of(scan, "cuda"), unet(features, norm).cuda()
                with torch.inference_mode(), arithmetic(CUDA, "float32"):
                    took = timed_ms(partial(on_gpu, image), stage.sizes.least_s)
                    whole = on_gpu(image)[0].cpu().numpy()
                off = float(abs(vf.open(str(out))[:] - whole).max())
                found |= {"whole_s": took / 1e3, "off": off}
            stage.rows(what=f"{side}³ {norm}", **found)


def run_floor(stage: Stage, net: Any, precision: str) -> tuple[float, None]:
    """Run the patches alone, from a volume that lies on the device; nothing is blended."""
    shape, sides = stage.sizes.shape, (stage.sizes.patch,) * 3
    image, on_gpu = image_of(stage.scan(shape), "cuda")[0], net.cuda()
    rois = list(PatchGrid(shape, sides, stride_of(sides, OVERLAP)))
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.inference_mode(), arithmetic(CUDA, precision):
        for first in range(0, len(rois), 4):
            on_gpu(torch.stack([image[:, *roi.slices()] for roi in rois[first : first + 4]]))
    torch.cuda.synchronize()
    return time.perf_counter() - began, None


def run_monai(stage: Stage, net: Any, precision: str, device: str) -> tuple[float, Any]:
    from monai.inferers import sliding_window_inference

    began = time.perf_counter()
    image, on_gpu = image_of(stage.scan(stage.sizes.shape), device), net.cuda()
    with torch.inference_mode(), arithmetic(CUDA, precision):
        scores = sliding_window_inference(
            image, (stage.sizes.patch,) * 3, 4, on_gpu, overlap=OVERLAP, mode="gaussian",
            sw_device="cuda", device=device,
        )  # fmt: skip
    classes = scores[0].argmax(0).to(torch.uint8).cpu().numpy()
    target = zarr.create_array(
        str(stage.folder / "monai.zarr"), shape=classes.shape, dtype="uint8", chunks=(64,) * 3,
        shards=(256,) * 3, compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    target[:] = classes
    return time.perf_counter() - began, classes


def run_volflow(stage: Stage, net: Any, precision: str) -> tuple[float, Any]:
    began = time.perf_counter()
    result = vf.predict(
        str(stage.scan(stage.sizes.shape)), net, str(stage.folder / "ours.zarr"),
        patch=stage.sizes.patch, overlap=OVERLAP, output="classes", device="cuda",
        precision=precision, overwrite=True, progress=False,
    )  # fmt: skip
    return time.perf_counter() - began, result[:]


def peers(stage: Stage) -> None:
    methods: dict[str, Callable[..., tuple[float, Any]]] = {
        "floor": run_floor, "volflow": run_volflow,
        "monai, image on the CPU": partial(run_monai, device="cpu"),
        "monai, image on the GPU": partial(run_monai, device="cuda"),
    }  # fmt: skip
    if stage.stand_in or importlib.util.find_spec("monai") is None:
        methods = {name: run for name, run in methods.items() if "monai" not in name}
        stage.rows(what="without monai")
    stage.scan(stage.sizes.shape)
    ends = time.perf_counter() + 70
    for precision in ("float32", "bfloat16"):
        times: dict[str, list[float]] = {name: [] for name in methods}
        classes: dict[str, Any] = {}
        for repeat in range(3):
            for name, run in methods.items():
                if not repeat or time.perf_counter() < ends:
                    net = unet(stage.sizes.features[0])
                    took, classes[name] = run(stage, net, precision)
                    times[name].append(took)
        least = statistics.median(times["floor"])
        for name, found in times.items():
            row = {"wall_s": statistics.median(found), "repeats": len(found)}
            if name.startswith("monai"):
                row["classes_differ"] = float((classes[name] != classes["volflow"]).mean())
            stage.rows(what=name, precision=precision, **row, over_floor=row["wall_s"] / least)


STAGES = {f.__name__: f for f in (correct, kernels, predict, exact, peers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("rows", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stand-in", action="store_true")
    options = parser.parse_args()

    def rows(**row: Any) -> None:
        with options.rows.open("a") as file:
            file.write(json.dumps({"stage": options.stage, **row}) + "\n")

    run = STAGES[options.stage]
    if not options.stand_in:
        run(Stage(Sizes(), options.folder, rows, False))
        return
    from tests.gpu.stand_in import stand_in

    with stand_in() as gpu:
        run(Stage(SMALL, options.folder, rows, True))
        counts = gpu.counts()
    rows(what="counted", kernels=counts.kernels, pageable=counts.pageable, waits=counts.syncs)


if __name__ == "__main__":
    main()
