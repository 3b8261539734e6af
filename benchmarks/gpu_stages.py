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

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from inference import make_scan  # noqa: E402

SHAPE = (320, 512, 512)
PATCH, OVERLAP = 96, 0.25
FEATURES = ((32, 64, 128), (16, 32, 64))

Rows = Callable[..., None]


def unet(features: tuple[int, ...] = FEATURES[0], norm: str = "batch") -> Any:
    import torch

    from volflow.model.unet import UNet

    torch.manual_seed(0)
    return UNet(1, 3, features=features, norm=norm).eval()


def scan_of(folder: Path, shape: tuple[int, int, int]) -> Path:
    """Return the scan of a shape, made once."""
    path = folder / f"scan{'x'.join(map(str, shape))}.zarr"
    if not path.exists():
        make_scan(path, shape)
    return path


def timed_ms(run: Callable[[], Any], least_s: float = 0.3) -> float:
    """Return the milliseconds of a call on the device: warm, the median of several."""
    import torch

    run()
    torch.cuda.synchronize()
    found, began = [], time.perf_counter()
    while len(found) < 3 or time.perf_counter() - began < least_s:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last))
    return statistics.median(found)


class Utilization:
    """What NVML says of this GPU every 20 ms, in per cent."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            import pynvml
            import torch

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except Exception as error:  # without NVML the column is empty
            print(f"no NVML: {error}", file=sys.stderr)
            return
        while not self.stopped.wait(0.02):
            self.samples.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    def share(self) -> float | str:
        self.stopped.set()
        self.thread.join()
        return statistics.mean(self.samples) / 100 if self.samples else ""


@contextmanager
def kernel_union() -> Iterator[dict[str, float]]:
    """Fill in the share of the block's wall time in which a kernel ran, and the copies' share."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, float] = {}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        began = time.perf_counter()
        yield found
        torch.cuda.synchronize()
        wall_ns = 1e9 * (time.perf_counter() - began)
    kernels, copies = [], []
    for event in profiler.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            moved = event.name().startswith(("Memcpy", "Memset"))
            where = copies if moved else kernels
            where.append((event.start_ns(), event.start_ns() + event.duration_ns()))
    found.update(busy=union(kernels) / wall_ns, copies=union(copies) / wall_ns)
    found["kernels"] = len(kernels)


def union(intervals: list[tuple[int, int]]) -> int:
    """Return the length of the union of intervals.

    Examples
    --------
    >>> union([(0, 4), (2, 5), (7, 8)])
    6
    """
    total, until = 0, 0
    for low, high in sorted(intervals):
        total += max(0, high - max(low, until))
        until = max(until, high)
    return total


def predicted(scan: Path, net: Any, out: Path, **options: Any) -> dict[str, Any]:
    """Predict twice, plainly and under the profiler; return the figures of both."""
    import torch

    import volflow as vf

    def once() -> float:
        for path in (out, Path(f"{out}.volflow")):
            shutil.rmtree(path, ignore_errors=True)
        began = time.perf_counter()
        vf.predict(str(scan), net, str(out), device="cuda", progress=False, **options)
        return time.perf_counter() - began

    torch.cuda.reset_peak_memory_stats()
    utilization = Utilization()
    wall_s = once()
    row: dict[str, Any] = {"wall_s": wall_s, "nvml": utilization.share()}
    with kernel_union() as found:
        once()
    plan = json.loads((Path(f"{out}.volflow") / "plan.json").read_text())["settings"]
    reserved = torch.cuda.max_memory_reserved() / 2**30
    planned = plan.get("device_peak_bytes", 0) / 2**30
    return {
        **row, **found, "batch": plan["batch_size"], "layout": plan.get("layout", "contiguous"),
        "reserved_gib": reserved, "planned_gib": planned,
    }  # fmt: skip


def correct(rows: Rows, folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "tests/gpu",
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
    rows(
        what="pytest -m gpu",
        result=done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr[-300:],
    )
    import numpy as np
    import torch

    import volflow as vf

    scan, net = scan_of(folder, (96, 192, 192)), unet((8, 16, 32), "instance")
    whole = {"device": "cuda", "precision": "float32", "progress": False}

    def result(name: str, model: Any = net, **options: Any) -> Any:
        return vf.predict(str(scan), model, str(folder / f"{name}.zarr"), **{**whole, **options})[:]

    image = torch.from_numpy(vf.open(str(scan))[:].astype("float32"))[None, None]
    blended = result("first", patch=64)
    on_cpu = result("cpu", patch=64, device="cpu")
    rows(
        what="blended twice, largest difference",
        result=float(abs(result("again", patch=64) - blended).max()),
    )
    small = result("small", patch=64, device_memory="1500MiB")
    rows(what="blended in less device memory", result=float(abs(small - blended).max()))
    rows(what="blended beside the CPU", result=float(abs(on_cpu - blended).max()))
    exact = result("exact", blend="exact")
    for tf32 in (False, True):
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=tf32),
        ):
            alone = net.cuda()(image.cuda())[0].cpu().numpy()
        rows(
            what=f"exact beside whole, TF32 {'on' if tf32 else 'off'} in whole",
            result=float(abs(exact - alone).max()),
        )
    net.cpu().train()
    net(torch.rand(1, 1, 32, 32, 32)).sum().backward()
    trained = all(p.grad is not None for p in net.parameters())
    rows(what="a training step after predict", result="gradients" if trained else "none")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        min(1.0, (torch.cuda.memory_reserved() + 2**30) / total)
    )
    short = result("short", unet((8, 16, 32), "instance"), patch=64, batch_size=64)
    rows(
        what="batches of 64 in 1 GiB, halved", result=float(abs(short - np.asarray(blended)).max())
    )


def kernels(rows: Rows, folder: Path) -> None:
    import torch

    from volflow.model.device import arithmetic
    from volflow.partition.reductions import MeanVariance

    cuda = torch.device("cuda")
    conv, image = (
        torch.nn.Conv3d(1, 32, 3, padding=1).cuda(),
        torch.rand(1, 1, 96, 96, 96, device="cuda"),
    )
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.inference_mode():
        conv(image)
    torch.cuda.synchronize()
    rows(what="first convolution of a process", ms=1e3 * (time.perf_counter() - began))
    ends = time.perf_counter() + 50
    for features in FEATURES:
        for norm in ("batch", "instance"):
            for precision in ("float32", "tf32", "bfloat16"):
                for layout in (torch.contiguous_format, torch.channels_last_3d):
                    net = unet(features, norm).cuda().to(memory_format=layout)
                    for batch in (1, 2, 4, 8):
                        if time.perf_counter() > ends:
                            rows(what="the rest of the kernels was left out for want of time")
                            return
                        given = torch.rand(batch, 1, *(PATCH,) * 3, device="cuda").contiguous(
                            memory_format=layout
                        )
                        with torch.inference_mode(), arithmetic(cuda, precision):
                            took = timed_ms(partial(net, given), 0.15)
                        rows(
                            what="/".join(map(str, features)), norm=norm, precision=precision,
                            layout="channels_last" if layout is torch.channels_last_3d else "contiguous",
                            batch=batch, ms=took, patches_per_s=1e3 * batch / took,
                        )  # fmt: skip
    values = torch.rand(1, 32, 256, 256, 256, device="cuda")
    moments = MeanVariance((None, None, 0, 1, 2), (1, 32))
    rows(what="statistics of 32 × 256³", ms=timed_ms(partial(moments.partial, values)))
    host = torch.empty(2**28, dtype=torch.uint8)
    for name, source in (("pageable", host), ("pinned", host.pin_memory())):
        took = timed_ms(partial(source.to, "cuda", non_blocking=True))
        rows(what=f"copy of 256 MiB, {name}", ms=took, gb_per_s=source.numel() / took / 1e6)


def predict(rows: Rows, folder: Path) -> None:
    scan = scan_of(folder, SHAPE)
    for features in FEATURES:
        for precision in ("float32", "bfloat16"):
            for output in ("classes", "scores"):
                found = predicted(
                    scan, unet(features), folder / "out.zarr", patch=PATCH, overlap=OVERLAP,
                    output=output, precision=precision,
                )  # fmt: skip
                rows(what="/".join(map(str, features)), precision=precision, output=output, **found)


def exact(rows: Rows, folder: Path) -> None:
    import torch

    import volflow as vf

    for side in (256, 384):
        scan = scan_of(folder, (side,) * 3)
        for norm in ("batch", "instance"):
            net = unet(norm=norm)
            out = folder / "exact.zarr"
            found = predicted(scan, net, out, blend="exact", output="scores")
            if side == 256:
                image = torch.from_numpy(vf.open(str(scan))[:].astype("float32"))[None, None].cuda()
                from volflow.model.device import arithmetic

                with torch.inference_mode(), arithmetic(image.device, "float32"):
                    on_gpu = net.cuda()
                    took = timed_ms(partial(on_gpu, image))
                    alone = on_gpu(image)[0].cpu().numpy()
                found |= {
                    "whole_s": took / 1e3,
                    "off": float(abs(vf.open(str(out))[:] - alone).max()),
                }
                net.cpu()
            rows(what=f"{side}³ {norm}", **found)


def image_of(scan: Path, device: str) -> Any:
    """Return a whole volume as MONAI is given it: float32, in memory."""
    import torch
    import zarr

    voxels = zarr.open_array(f"{scan}/0")[:].astype("float32")
    return torch.from_numpy(voxels)[None, None].to(device)


def run_floor(scan: Path, net: Any, precision: str, folder: Path) -> tuple[float, None]:
    """Run the patches alone, from a volume that lies on the device; nothing is blended."""
    import torch

    from volflow.geometry.grid import PatchGrid, stride_of
    from volflow.model.device import arithmetic

    image, on_gpu, sides = image_of(scan, "cuda")[0], net.cuda(), (PATCH,) * 3
    rois = list(PatchGrid(SHAPE, sides, stride_of(sides, OVERLAP)))
    torch.cuda.synchronize()
    began = time.perf_counter()
    with torch.inference_mode(), arithmetic(image.device, precision):
        for first in range(0, len(rois), 4):
            on_gpu(torch.stack([image[:, *roi.slices()] for roi in rois[first : first + 4]]))
    torch.cuda.synchronize()
    return time.perf_counter() - began, None


def run_monai(scan: Path, net: Any, precision: str, folder: Path, device: str) -> tuple[float, Any]:
    import torch
    import zarr
    from monai.inferers import sliding_window_inference

    from volflow.model.device import arithmetic

    began = time.perf_counter()
    image, on_gpu = image_of(scan, device), net.cuda()
    with torch.inference_mode(), arithmetic(torch.device("cuda"), precision):
        scores = sliding_window_inference(
            image, (PATCH,) * 3, 4, on_gpu, overlap=OVERLAP, mode="gaussian", sw_device="cuda",
            device=device,
        )  # fmt: skip
    classes = scores[0].argmax(0).to(torch.uint8).cpu().numpy()
    target = zarr.create_array(
        str(folder / "monai.zarr"), shape=classes.shape, dtype="uint8", chunks=(64,) * 3,
        shards=(256,) * 3, compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    target[:] = classes
    return time.perf_counter() - began, classes


def run_volflow(scan: Path, net: Any, precision: str, folder: Path) -> tuple[float, Any]:
    import volflow as vf

    began = time.perf_counter()
    result = vf.predict(
        str(scan), net, str(folder / "ours.zarr"), patch=PATCH, overlap=OVERLAP, output="classes",
        device="cuda", precision=precision, overwrite=True, progress=False,
    )  # fmt: skip
    return time.perf_counter() - began, result[:]


def peers(rows: Rows, folder: Path) -> None:
    scan, net = scan_of(folder, SHAPE), unet()
    methods: dict[str, Callable[..., tuple[float, Any]]] = {
        "floor": run_floor,
        "volflow": run_volflow,
        "monai, image on the CPU": partial(run_monai, device="cpu"),
        "monai, image on the GPU": partial(run_monai, device="cuda"),
    }
    if importlib.util.find_spec("monai") is None:
        methods = {name: run for name, run in methods.items() if "monai" not in name}
        rows(what="monai is not installed here")
    ends = time.perf_counter() + 70
    for precision in ("float32", "bfloat16"):
        times: dict[str, list[float]] = {name: [] for name in methods}
        classes: dict[str, Any] = {}
        for repeat in range(3):
            for name, run in methods.items():
                if not repeat or time.perf_counter() < ends:
                    took, classes[name] = run(scan, net, precision, folder)
                    times[name].append(took)
        least = statistics.median(times["floor"])
        for name, found in times.items():
            row = {"wall_s": statistics.median(found), "repeats": len(found)}
            if name.startswith("monai"):
                row["classes_differ"] = float((classes[name] != classes["volflow"]).mean())
            rows(what=name, precision=precision, **row, over_floor=row["wall_s"] / least)


def main() -> None:
    name, path, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])

    def rows(**row: Any) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"stage": name, **row}) + "\n")
        print(row, file=sys.stderr)

    stages = {
        "correct": correct,
        "kernels": kernels,
        "predict": predict,
        "exact": exact,
        "peers": peers,
    }
    stages[name](rows, folder)


if __name__ == "__main__":
    main()
