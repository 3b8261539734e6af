"""A volume on other voxels: volflow from store to store, scipy and skimage whole in memory.

    python benchmarks/resample.py                       # 256³, 512³ and 1024³, results filed
    python benchmarks/resample.py --side 512 --method skimage --order 3 --no-file

Each makes voxels 1.5 times and 0.7 times as long of one uint16 volume (chunks of 64³ voxels in
shards of 256³).

- volflow: reads from Zarr and writes Zarr in chunks and shards of the same size, within
  ``--memory``, journalled.
- ``scipy.ndimage.zoom`` (``grid_mode=True, mode="mirror"``) and ``skimage.transform.resize``
  (``mode="reflect"``): of a float32 array in memory to one in memory; nothing is read or written.

Every run is a fresh process that has resampled a small volume before. Memory is the peak of
resident memory above what it was then; scipy's and skimage's do not count their input.
Needs scipy and scikit-image.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from inference import make_scan, status  # noqa: E402
from machine import describe, file_result  # noqa: E402

METHODS = ("volflow", "scipy", "skimage")
ORDERS = (0, 1, 3)
# What is run without being asked for otherwise: the others take minutes, or more memory than is.
USUAL = {256: (METHODS, ORDERS), 512: (METHODS[:2], ORDERS), 1024: (METHODS[:1], (1,))}
STEPS = (1.5, 0.7)
CHUNK, SHARD = 64, 256


def prepare(method: str, source: str, step: float, order: int, out: str, memory: str):
    """What is measured, ready to be called; it returns the shape of what it made."""
    import numpy as np

    import volflow as vf

    if method == "volflow":
        options = {"spacing": step, "order": order, "chunk": CHUNK, "shard": SHARD}
        return lambda: vf.resample(source, out, memory=memory, progress=False, **options).shape
    voxels = vf.open(source)[:].astype("float32")
    shape = tuple(round(n / step) for n in voxels.shape)
    if method == "scipy":
        from scipy.ndimage import zoom

        factors = [m / n for m, n in zip(shape, voxels.shape, strict=True)]
        return lambda: zoom(voxels, factors, order=order, mode="mirror", grid_mode=True).shape
    from skimage.transform import resize

    return lambda: (
        resize(voxels, shape, order=order, mode="reflect", anti_aliasing=False, preserve_range=True)
        .astype(np.float32)
        .shape
    )


def child(method: str, source: str, small: str, out: str, step: str, order: str, memory: str):
    """One measured run, in a process of its own."""
    warnings.simplefilter("ignore")
    prepare(method, small, float(step), int(order), f"{out}-small", memory)()
    call = prepare(method, source, float(step), int(order), out, memory)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # lest what the small one left is not counted
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    shape = call()
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"wall_s": wall, "cpu_s": cpu, "growth_bytes": status("VmHWM") - resident}
    print(json.dumps(found | {"side": shape[0]}))


def measured(folder: Path, method: str, side: int, step: float, order: int, memory: str) -> dict:
    out = folder / "out.zarr"
    words = [method, folder / f"{side}.zarr", folder / "64.zarr", out, step, order, memory]
    done = subprocess.run(
        [sys.executable, __file__, "--child", *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    for left in folder.glob("out.zarr*"):
        shutil.rmtree(left)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"{words} failed with {done.returncode}")
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{method} {side} {step} {order} {found}", file=sys.stderr)
    return found


def table(side: int, methods, orders, memory: str, repeats: int) -> str:
    lines = [
        f"### {side}³ uint16, volflow's memory {memory}, best of {repeats}",
        "",
        "| voxel size | order | method | wall s | Mvoxels/s made | CPU s | growth MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        for size in (64, side):
            make_scan(folder / f"{size}.zarr", (size,) * 3)
        for step in STEPS:
            for order in orders:
                for method in methods:
                    runs = [
                        measured(folder, method, side, step, order, memory) for _ in range(repeats)
                    ]
                    best = min(runs, key=lambda run: run["wall_s"])
                    rate = best["side"] ** 3 / best["wall_s"] / 1e6
                    growth = max(run["growth_bytes"] for run in runs) / 2**20
                    lines.append(
                        f"| {step} | {order} | {method} | {best['wall_s']:.2f} | {rate:.1f} |"
                        f" {best['cpu_s']:.2f} | {growth:.0f} |"
                    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=7, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, action="append", help="voxels per axis")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--order", type=int, choices=ORDERS, action="append")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    tables = []
    for side in options.side or USUAL:
        methods, orders = USUAL.get(side, (METHODS, ORDERS))
        methods, orders = options.method or methods, options.order or orders
        tables.append(table(side, methods, orders, options.memory, options.repeats))
    load = f"Load of the machine at the end: {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores."
    text = "\n\n".join([describe(["zarr", "dask", "scipy", "scikit-image"]), *tables, load])
    print(text)
    if not options.no_file:
        file_result("resample", text)


if __name__ == "__main__":
    main()
