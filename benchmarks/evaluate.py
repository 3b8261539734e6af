"""Scores of two label volumes: volflow beside MONAI and SimpleITK, up to 1024³ voxels.

    python benchmarks/evaluate.py                       # all sides, results filed
    python benchmarks/evaluate.py --side 256 --repeats 1 --no-file

Both volumes are uint8 Zarr (chunks of 64³ voxels in shards of 256³) with three classes: an organ,
balls in it and vessels through it. The prediction is the truth bent by up to two voxels, without
one of the balls and with islands far from anything. All compute Dice, IoU, HD95, the mean surface
distance and the surface Dice of each class, but for SimpleITK, which has no surface Dice and is
asked for distances by contours and an exact distance map.

- volflow: ``vf.evaluate(pred, truth, memory=…)``, on the threads of its process.
- MONAI: each class by itself, which takes the least memory: ``compute_dice``, ``compute_iou``,
  ``compute_hausdorff_distance`` (95), ``compute_average_surface_distance`` (symmetric),
  ``compute_surface_dice``; both volumes are read whole.
- SimpleITK: ``LabelOverlapMeasures``, ``LabelContour`` and ``SignedMaurerDistanceMap``.

Every run is a fresh process that has scored small volumes before, in an address space of
``--limit`` beside what it had taken then; "died" is one that asked for more. Memory is the peak of
resident memory above what it was then. ``off`` is the largest difference of a score from volflow's,
of one above 1 in proportion; SimpleITK's map counts from the rim of a contour, which in thin vessels
is thicker than a voxel.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from inference import status  # noqa: E402
from machine import describe, file_result  # noqa: E402

METHODS = ("volflow", "MONAI", "SimpleITK")
CHUNK, SHARD = (64, 64, 64), (256, 256, 256)
CLASSES = (1, 2, 3)
TOLERANCE = 1.0
SMALL = 64


def classes_of(z, y, x, *, bent: bool, side: int):
    """The classes at places from 0 to 1 along each axis."""
    import numpy as np

    if bent:
        wave = 2 / side
        z, y, x = (
            z + wave * np.sin(9 * y + 5 * x),
            y + wave * np.sin(7 * x + 4 * z),
            x + wave * np.sin(8 * z + 6 * y),
        )
    found = np.zeros(np.broadcast_shapes(z.shape, y.shape, x.shape), "uint8")
    organ = ((z - 0.5) / 0.36) ** 2 + ((y - 0.5) / 0.3) ** 2 + ((x - 0.45) / 0.33) ** 2
    found[organ + 0.08 * np.sin(23 * z) * np.sin(19 * y) < 1] = 1
    for n, (a, b, c) in enumerate([(0.35, 0.4, 0.4), (0.6, 0.6, 0.5), (0.5, 0.35, 0.6)]):
        if not (bent and n == 2):
            ball = (z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2
            found[ball < (0.05 + 0.02 * n) ** 2] = 2
    for n in range(5):
        middle = 0.2 + 0.15 * n + 0.04 * np.sin(12 * z + n), 0.3 + 0.1 * n + 0.05 * np.cos(9 * z)
        found[(y - middle[0]) ** 2 + (x - middle[1]) ** 2 < 0.012**2] = 3
    if bent:
        for a, b, c in ((0.05, 0.05, 0.9), (0.93, 0.9, 0.08), (0.5, 0.95, 0.95)):
            island = (z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2
            found[island < (4 / side) ** 2] = 1 + int(10 * c) % 3
    return found


def make(path: Path, side: int, *, bent: bool) -> None:
    """Write one of the two volumes shard by shard."""
    import numpy as np

    from volflow.geometry.grid import BlockGrid
    from volflow.store.create import create
    from volflow.store.meta import Meta, VolumeSpec

    shard = tuple(min(s, side) for s in SHARD)
    meta = Meta(kind="classes", unit="millimeter")
    spec = VolumeSpec.of((side,) * 3, "uint8", meta, chunk=CHUNK, shard=shard)
    volume = create(path, spec)
    for roi in BlockGrid((side,) * 3, shard):
        places = np.ogrid[tuple(slice(a, b) for a, b in roi)]
        z, y, x = ((place + 0.5).astype("float32") / side for place in places)
        volume.write(roi, classes_of(z, y, x, bent=bent, side=side))


def run_volflow(pred: str, truth: str, memory: str) -> dict[str, list[float]]:
    import volflow as vf

    found = vf.evaluate(
        pred, truth, classes=CLASSES, tolerance=TOLERANCE, memory=memory, progress=False
    )
    names = ("dice", "iou", "hd95", "mean_surface_distance", "surface_dice")
    return {name: [getattr(found, name)[c] for c in CLASSES] for name in names}


def run_monai(pred: str, truth: str, memory: str) -> dict[str, list[float]]:
    import torch
    import zarr
    from monai import metrics

    volumes = [torch.from_numpy(zarr.open_array(f"{path}/0")[:]) for path in (pred, truth)]
    found: dict[str, list[float]] = {}

    def add(name, value):
        found.setdefault(name, []).append(float(value))

    for c in CLASSES:
        both = [(volume == c)[None, None] for volume in volumes]
        add("dice", metrics.compute_dice(*both))
        add("iou", metrics.compute_iou(*both))
        whole = {"include_background": True, "spacing": 1.0}
        add("hd95", metrics.compute_hausdorff_distance(*both, percentile=95, **whole))
        add(
            "mean_surface_distance",
            metrics.compute_average_surface_distance(*both, symmetric=True, **whole),
        )
        add("surface_dice", metrics.compute_surface_dice(*both, [TOLERANCE], **whole))
    return found


def run_simpleitk(pred: str, truth: str, memory: str) -> dict[str, list[float]]:
    import numpy as np
    import SimpleITK as sitk
    import zarr

    images = [sitk.GetImageFromArray(zarr.open_array(f"{path}/0")[:]) for path in (pred, truth)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    found: dict[str, list[float]] = {"dice": [], "iou": [], "hd95": [], "mean_surface_distance": []}
    for c in CLASSES:
        found["dice"].append(overlap.GetDiceCoefficient(c))
        found["iou"].append(overlap.GetJaccardCoefficient(c))
        contours = [sitk.LabelContour(image == c, False) for image in images]
        ways = []
        for n in (0, 1):
            away = sitk.SignedMaurerDistanceMap(contours[1 - n], squaredDistance=False)
            on = sitk.GetArrayViewFromImage(contours[n]) > 0
            ways.append(np.maximum(sitk.GetArrayViewFromImage(away)[on].astype("float64"), 0))
            del away
        found["hd95"].append(max(float(np.percentile(way, 95)) for way in ways))
        found["mean_surface_distance"].append(float(np.concatenate(ways).mean()))
    return found


RUNS = {"volflow": run_volflow, "MONAI": run_monai, "SimpleITK": run_simpleitk}


def child(method: str, folder: str, side: str, memory: str, limit: str) -> None:
    """One measured run, in a process of its own."""
    warnings.simplefilter("ignore")
    run = RUNS[method]
    run(f"{folder}/pred-{SMALL}.zarr", f"{folder}/truth-{SMALL}.zarr", memory)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # lest what the small one left is not counted
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    # Mappings that are never touched, such as thread stacks, are not what is to be limited.
    room = status("VmSize") + int(limit)
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    scores = run(f"{folder}/pred-{side}.zarr", f"{folder}/truth-{side}.zarr", memory)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    growth = status("VmHWM") - resident
    measured = {"wall_s": wall, "cpu_s": cpu, "growth_bytes": growth, "scores": scores}
    print(json.dumps(measured))


def process(*words: str, timeout_s: float) -> dict | str:
    """What a run in a process of its own measures, or why it did not end."""
    command = [sys.executable, __file__, "--child", *words]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"over {timeout_s:.0f} s"
    if done.returncode:
        print(done.stderr[-600:], file=sys.stderr)
        return "died"
    return json.loads(done.stdout.splitlines()[-1])


def difference(one: dict, other: dict) -> float:
    """The largest difference of a score that both have, of large ones in proportion."""
    return max(
        abs(a - b) / max(1.0, abs(a))
        for name in one.keys() & other.keys()
        for a, b in zip(one[name], other[name], strict=True)
    )


def rows_of(side: int, folder: Path, options, failed: set[str]) -> list[str]:
    """The rows of the table for one side."""
    for name, bent in (("pred", True), ("truth", False)):
        if not (folder / f"{name}-{side}.zarr").exists():
            make(folder / f"{name}-{side}.zarr", side, bent=bent)
    if side == SMALL:
        return []
    repeats = options.repeats if side < 512 else 1
    runs: dict[str, list] = {method: [] for method in options.method or METHODS}
    for _ in range(repeats):
        for method, found in runs.items():
            if method in failed:
                continue
            words = (method, str(folder), str(side), options.memory, str(options.limit * 2**30))
            found.append(process(*words, timeout_s=options.timeout))
            print(f"{side} {method} {found[-1]}", file=sys.stderr)
    ours = next((one for one in runs.get("volflow", []) if isinstance(one, dict)), None)
    rows = []
    for method, found in runs.items():
        good = [one for one in found if isinstance(one, dict)]
        if not good:
            failed.add(method)
            why = found[0] if found else "not tried"
            rows.append(f"| {side}³ | {method} | {why} | | | |")
            continue
        middle = {
            key: statistics.median(one[key] for one in good)
            for key in ("wall_s", "cpu_s", "growth_bytes")
        }
        off = "" if ours is None else f"{difference(ours['scores'], good[0]['scores']):.1e}"
        rows.append(
            f"| {side}³ | {method} | {middle['wall_s']:.1f} | {middle['cpu_s']:.1f} |"
            f" {middle['growth_bytes'] / 2**20:.0f} | {off if method != 'volflow' else '–'} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, action="append", help="voxels per axis")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--repeats", type=int, default=3, help="below 512³; larger ones run once")
    parser.add_argument("--memory", default="1GiB", help="volflow's")
    parser.add_argument("--limit", type=int, default=14, help="GiB that a run may take")
    parser.add_argument("--timeout", type=float, default=900, help="seconds of a run")
    parser.add_argument("--folder", help="keep the volumes here, or take those that are there")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    sides = options.side or [128, 256, 512, 1024]
    failed: set[str] = set()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(options.folder or name)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for side in (SMALL, *sides) for row in rows_of(side, folder, options, failed)]
    lines = [
        f"### Two uint8 volumes, three classes, volflow's memory {options.memory}, at most"
        f" {options.limit} GiB for a run",
        "",
        "| volume | method | wall s | CPU s | growth MiB | off |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    packages = ["zarr", "dask", "scipy", "monai", "simpleitk", "torch"]
    text = "\n\n".join([describe(packages), "\n".join(lines)])
    print(text)
    if not options.no_file:
        file_result("evaluate", text)


if __name__ == "__main__":
    main()
