"""A scan of half the network's spacing, 24 classes: scores brought back in blocks, or in memory.

    python benchmarks/other_spacing.py                     # 128³, 256³ and 512³, result filed
    python benchmarks/other_spacing.py --sides 128 --no-file

The scan is noise on smooth structures, uint16; the network, a small U-Net of 24 classes, sees it at
twice its voxel size. Ways:

- volflow: ``vf.predict`` within ``--memory``, to a stored volume of classes, journalled.
- memory: as nnU-Net does it. The scan is resampled whole (cubic), a sliding window (MONAI's, where
  it is installed) makes scores of the whole on the network's grid, each class is resampled
  linearly to the scan's grid into one array, whose argmax is taken.

Every run is a fresh process that has predicted a small scan before. Memory is the peak of resident
memory above what it was then. What the way in memory takes at sides above ``--whole`` is not
measured but said by the size of its arrays: the scores on both grids, float32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from convert import Peak, make_voxels  # noqa: E402
from machine import describe, file_result  # noqa: E402

CLASSES, PATCH, FINE, COARSE = 24, 64, 0.5, 1.0


def network():
    import torch

    import volflow as vf

    torch.manual_seed(0)
    return vf.UNet(1, CLASSES, features=(8, 16)).eval()


def by_volflow(path: Path, out: Path, memory: str) -> dict:
    import volflow as vf

    vf.predict(
        path, network(), out, patch=PATCH, overlap=0.25, spacing=COARSE, output="classes",
        memory=memory, progress=False,
    )  # fmt: skip
    return {}


def in_memory(path: Path, out: Path, memory: str) -> dict:
    import numpy as np
    import torch
    from scipy import ndimage

    import volflow as vf

    scan = vf.open(path)[:]
    factor = FINE / COARSE
    seen = ndimage.zoom(scan.astype("f4"), factor, order=3, grid_mode=True, mode="nearest")
    with torch.inference_mode():
        given = torch.from_numpy(seen)[None, None]
        try:
            from monai.inferers import sliding_window_inference

            scores = sliding_window_inference(
                given, (PATCH,) * 3, 4, network(), overlap=0.25, mode="gaussian"
            )[0].numpy()
        except ImportError:
            scores = network()(given)[0].numpy()
    back = np.empty((CLASSES, *scan.shape), "f4")
    for channel, one in zip(back, scores, strict=True):
        ndimage.zoom(one, 1 / factor, output=channel, order=1, grid_mode=True, mode="nearest")
    np.save(out, back.argmax(0).astype("u1"))
    return {}


WAYS = {"volflow": by_volflow, "memory": in_memory}


def make(side: int, folder: Path) -> Path:
    import volflow as vf

    path = folder / f"{side}.zarr"
    vf.write(make_voxels(side), path, spacing=FINE, unit="mm", orientation="SAR", progress=False)
    return path


def measure(way: str, path: Path, small: Path, memory: str) -> dict:
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        WAYS[way](small, Path(name, "small.npy" if way == "memory" else "small.zarr"), memory)
        peak = Peak()
        peak.start()
        began, cpu = time.perf_counter(), time.process_time()
        WAYS[way](path, Path(name, "out.npy" if way == "memory" else "out.zarr"), memory)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        peak.ended.set()
        peak.join()
        return {"s": seconds, "cpu_s": cpu_s, "growth": peak.most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", default="128,256,512")
    parser.add_argument("--whole", type=int, default=256, help="the largest side held in memory")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--folder", default=None, help="where the scans are kept while it runs")
    parser.add_argument("--no-file", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        way, path, small = asked.one
        print(json.dumps(measure(way, Path(path), Path(small), asked.memory)))
        return
    folder = Path(tempfile.mkdtemp(dir=asked.folder))
    rows = []
    try:
        small = make(64, folder)
        for side in map(int, asked.sides.split(",")):
            path = make(side, folder)
            for way in WAYS:
                row = one_row(way, side, path, small, asked)
                print(row, flush=True)
                rows.append(row)
            shutil.rmtree(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = describe(["zarr", "dask", "torch", "scipy", "monai"])
    head = "| scan | way | s | CPU-s | memory, MiB |\n|---|---|---:|---:|---:|"
    text = (
        f"{about}\n\n    python benchmarks/other_spacing.py\n\n{CLASSES} classes, patches of {PATCH}³,"
        f" the network's voxels twice as long; volflow in {asked.memory}.\n\n"
    )
    text += "\n".join([head, *rows])
    print(text)
    if not asked.no_file:
        print(file_result("other_spacing", text))


def one_row(way: str, side: int, path: Path, small: Path, asked) -> str:
    if way == "memory" and side > asked.whole:
        arrays = CLASSES * 4 * (side**3 + (side // 2) ** 3) / 2**20
        return f"| {side}³ | {way} | | | at least {arrays:.0f}, not run |"
    words = [sys.executable, __file__, "--memory", asked.memory, "--one", way]
    done = subprocess.run([*words, str(path), str(small)], capture_output=True, text=True)
    if done.returncode:
        return f"| {side}³ | {way} | | | {done.stderr.splitlines()[-1]} |"
    one = json.loads(done.stdout.splitlines()[-1])
    return (
        f"| {side}³ | {way} | {one['s']:.1f} | {one['cpu_s']:.1f} | {one['growth'] / 2**20:.0f} |"
    )


if __name__ == "__main__":
    main()
