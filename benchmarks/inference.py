"""Inference side by side: bare forward, MONAI, TorchIO, naive map_overlap, plain I/O, volflow.

    python benchmarks/inference.py                   # all cases, 5 repeats, results filed
    python benchmarks/inference.py --case identity --repeats 1
    python benchmarks/inference.py --growth          # memory as the volume grows 8-fold

Every run is a fresh process; methods are interleaved, so that a slow minute hits them all.
Wall and CPU seconds count from after the imports and the loading of the model; memory is the peak
of resident memory above what it was then. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import describe, file_result  # noqa: E402

PATCH = 96
OVERLAP = 0.25
METHODS = ("forward", "io", "monai", "torchio", "map_overlap", "volflow")
SIDES = {"unet": 192, "conv": 256, "identity": 512}


def make_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """Smooth structures with noise, 16 bit, as a CT has."""
    import numpy as np

    import volflow as vf
    from volflow.geometry.roi import Roi
    from volflow.store.create import create
    from volflow.store.meta import Meta, VolumeSpec

    volume = create(
        path, VolumeSpec.of(shape, "uint16", Meta(unit="millimeter", orientation="SAR"))
    )
    rng = np.random.default_rng(0)
    step = (volume.shards or volume.chunks)[0]
    y, x = np.ogrid[: shape[1], : shape[2]]
    for z in range(0, shape[0], step):
        stop = min(shape[0], z + step)
        zz = np.arange(z, stop)[:, None, None]
        wave = 1000 + 400 * np.sin(zz / 17) * np.sin(y / 23) * np.sin(x / 29)
        noise = rng.normal(0, 12, wave.shape)
        volume.write(Roi((z, 0, 0), (stop, *shape[1:])), (wave + noise).astype("uint16"))
    assert vf.open(path).shape == shape


def make_model(case: str):
    import torch

    torch.manual_seed(0)
    if case == "identity":
        return torch.nn.Identity().eval()
    if case == "conv":
        return torch.nn.Conv3d(1, 1, 3, padding=1).eval()
    from volflow.model.unet import UNet

    return UNet(1, 3, features=(8, 16, 32), norm="batch").eval()


def read_whole(scan: str):
    import torch
    import zarr

    data = zarr.open_array(f"{scan}/0")[:].astype("float32")
    return torch.from_numpy(data)[None]


def write_whole(out: str, scores) -> None:
    import zarr

    array = zarr.create_array(
        out, shape=scores.shape, dtype="float32", chunks=(1, 64, 64, 64),
        shards=(1, 256, 256, 256), compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    array[:] = scores


def run_forward(scan: str, out: str, model, memory: str) -> None:
    import torch

    from volflow.geometry.grid import PatchGrid, stride_of

    image = read_whole(scan)
    patch = (PATCH,) * 3
    grid = PatchGrid(tuple(image.shape[1:]), patch, stride_of(patch, OVERLAP))
    with torch.inference_mode():
        for roi in grid:
            model(image[(slice(None), *roi.slices())][None].contiguous())


def run_io(scan: str, out: str, model, memory: str) -> None:
    import zarr

    source = zarr.open_array(f"{scan}/0")
    target = zarr.create_array(
        out, shape=source.shape, dtype="float32", chunks=(64,) * 3, shards=(256,) * 3,
        compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    side = 256
    for z in range(0, source.shape[0], side):
        for y in range(0, source.shape[1], side):
            for x in range(0, source.shape[2], side):
                box = (slice(z, z + side), slice(y, y + side), slice(x, x + side))
                target[box] = source[box].astype("float32")


def run_monai(scan: str, out: str, model, memory: str) -> None:
    import torch
    from monai.inferers import sliding_window_inference

    with torch.inference_mode():
        scores = sliding_window_inference(
            read_whole(scan)[None], (PATCH,) * 3, 1, model, overlap=OVERLAP, mode="gaussian"
        )
    write_whole(out, scores[0].numpy())


def run_torchio(scan: str, out: str, model, memory: str) -> None:
    import torch
    import torchio as tio

    subject = tio.Subject(image=tio.ScalarImage(tensor=read_whole(scan)))
    sampler = tio.inference.GridSampler(subject, PATCH, int(PATCH * OVERLAP))
    aggregator = tio.inference.GridAggregator(sampler, overlap_mode="hann")
    loader = tio.SubjectsLoader(sampler, batch_size=1)
    with torch.inference_mode():
        for batch in loader:
            aggregator.add_batch(model(batch["image"][tio.DATA]), batch[tio.LOCATION])
    write_whole(out, aggregator.get_output_tensor().numpy())


def run_map_overlap(scan: str, out: str, model, memory: str) -> None:
    import dask.array as da
    import numpy as np
    import torch
    import zarr

    source = zarr.open_array(f"{scan}/0")
    chunks = (PATCH,) * 3

    def apply(block):
        with torch.inference_mode():
            scores = model(torch.from_numpy(block.astype("float32"))[None, None])[0]
        return scores.numpy().max(axis=0)

    blocks = da.from_array(source, chunks=chunks)
    scores = da.map_overlap(
        apply, blocks, depth=12, boundary="reflect", dtype="float32",
        meta=np.empty((0, 0, 0), "float32"),
    )  # fmt: skip
    target = zarr.create_array(
        out, shape=source.shape, dtype="float32", chunks=chunks,
        compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    da.store(scores, target, lock=False)


def run_volflow(scan: str, out: str, model, memory: str) -> None:
    import volflow as vf

    vf.predict(
        scan, model, out, patch=PATCH, overlap=OVERLAP, batch_size=1, memory=memory,
        overwrite=True, progress=False,
    )  # fmt: skip


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def child(method: str, case: str, scan: str, out: str, memory: str) -> None:
    """One measured run, in a process of its own."""
    import torch

    import volflow as vf  # noqa: F401

    if method == "monai":
        import monai.inferers  # noqa: F401
    if method == "torchio":
        import torchio  # noqa: F401
    if method in ("volflow", "forward"):
        from volflow.infer.predict import predict  # noqa: F401
    model = make_model(case)
    with torch.inference_mode():
        model(torch.zeros(1, 1, 32, 32, 32))
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    globals()[f"run_{method}"](scan, out, model, memory)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    growth = status("VmHWM") - resident
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "growth_bytes": growth}))


def measure(method: str, case: str, scan: Path, folder: Path, memory: str) -> dict[str, float]:
    out = folder / f"{method}.zarr"
    for path in (out, Path(f"{out}.volflow")):
        shutil.rmtree(path, ignore_errors=True)
    command = [sys.executable, __file__, "--child", method, case, str(scan), str(out), memory]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"{method} {case} failed with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str, side: int, repeats: int, memory: str, methods: list[str]) -> str:
    runs: dict[str, list[dict[str, float]]] = {m: [] for m in methods}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        make_scan(folder / "scan.zarr", (side,) * 3)
        for repeat in range(repeats):
            for method in methods:
                runs[method].append(measure(method, case, folder / "scan.zarr", folder, memory))
                print(f"{case} {repeat} {method} {runs[method][-1]}", file=sys.stderr)
    lines = [
        f"### {case}, {side}³ uint16 → float32, patch {PATCH}, overlap {OVERLAP}, memory {memory}",
        "",
        "| method | wall s | CPU s | CPU / bare forward | rate / plain I/O | hours per TB | growth MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    middle = {m: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for m, rs in runs.items()}
    for method in methods:
        row = middle[method]
        forward = row["cpu_s"] / middle["forward"]["cpu_s"] if "forward" in middle else 0
        rate = middle["io"]["wall_s"] / row["wall_s"] if "io" in middle else 0
        hours = row["wall_s"] / (side**3 * 2) * 1e12 / 3600
        spread = max(r["wall_s"] for r in runs[method]) - min(r["wall_s"] for r in runs[method])
        lines.append(
            f"| {method} | {row['wall_s']:.2f} ± {spread / 2:.2f} | {row['cpu_s']:.2f} |"
            f" {forward:.2f} | {rate:.2f} | {hours:.1f} | {row['growth_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines)


def growth(memory: str, repeats: int, sides: tuple[int, int] = (384, 768)) -> str:
    """Peak memory as the volume grows 8-fold, beside the peers'."""
    lines = [
        f"### Memory as the volume grows 8-fold: one convolution, memory {memory},"
        f" median of {repeats}",
        "",
        f"| method | {sides[0]}³ MiB | {sides[1]}³ MiB | ratio |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        for side in sides:
            make_scan(folder / f"{side}.zarr", (side,) * 3)
        for method in ("monai", "torchio", "map_overlap", "volflow"):
            small, large = (
                statistics.median(
                    measure(method, "conv", folder / f"{side}.zarr", folder, memory)["growth_bytes"]
                    for _ in range(repeats)
                )
                for side in sides
            )
            lines.append(
                f"| {method} | {small / 2**20:.0f} | {large / 2**20:.0f} | {large / small:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=sorted(SIDES), action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, help="voxels per axis; by default 192, 256 or 512")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    if options.growth:
        tables = [growth(options.memory, options.repeats)]
    else:
        tables = [
            compare(
                case, options.side or SIDES[case], options.repeats, options.memory,
                options.method or list(METHODS),
            )
            for case in options.case or SIDES
        ]  # fmt: skip
    text = "\n\n".join([describe(["torch", "zarr", "dask", "monai", "torchio"]), *tables])
    print(text)
    if not options.no_file:
        file_result("memory_growth" if options.growth else "inference", text)


if __name__ == "__main__":
    main()
