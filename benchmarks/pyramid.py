"""Coarser levels side by side: volflow, ngff-zarr, ome-zarr-py.

    python benchmarks/pyramid.py                        # all cases, 5 repeats, results filed
    python benchmarks/pyramid.py --case levels --repeats 1 --side 256

Cases: ``levels`` writes levels 1 to 3 of an image that is stored already; ``image`` copies level 0
into a new store as well; ``classes`` writes levels of a segmentation. All read the same volume
(chunks of 64³ voxels in shards of 256³) and halve z, y and x; all but ngff-zarr's ITK variants,
which are faster without, write the same shards.

- volflow: mean of 2×2×2, exact, half to even; classes by mode; within ``--memory``, journalled.
- ngff-zarr: ``dask_bin_shrink`` and ``itkwasm_bin_shrink`` are means as well; its default,
  ``itkwasm_gaussian``, smooths and is slower. Classes: ``itkwasm_label_image``.
- ome-zarr-py: ``local_mean``; its default, ``resize``, smooths and is slower. Classes: ``nearest``
  picks one voxel of eight.

Every run is a fresh process that has made the levels of a small image before; methods are
interleaved. Memory is the peak of resident memory above what it was then. ``off`` is the largest
difference of a voxel of level 1 from the mean; for classes the share that are not the mode.
Needs ngff-zarr and ome-zarr.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import shutil
import statistics
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

CASES = ("levels", "image", "classes")
METHODS = ("volflow", "ngff-zarr dask", "ngff-zarr itkwasm", "ome-zarr-py")
FACTORS = (2, 4, 8)
CHUNK, SHARD = (64, 64, 64), (256, 256, 256)


def make_classes(path: Path, scan: Path) -> None:
    """Three classes in blobs with ragged edges."""
    import numpy as np

    import volflow as vf
    from volflow.geometry.roi import Roi
    from volflow.store.create import create
    from volflow.store.meta import Meta, VolumeSpec

    source = vf.open(scan)
    volume = create(
        path, VolumeSpec.of(source.shape, "uint8", Meta(kind="classes"), chunk=CHUNK, shard=SHARD)
    )
    for z in range(0, source.shape[0], SHARD[0]):
        roi = Roi((z, 0, 0), (min(z + SHARD[0], source.shape[0]), *source.shape[1:]))
        voxels = source.read(roi)
        volume.write(roi, np.digitize(voxels, (800, 1200)).astype("uint8"))


def run_volflow(case: str, source: str, out: str, memory: str) -> None:
    import volflow as vf

    if case == "image":
        vf.convert(source, out, chunk=CHUNK, shard=SHARD, memory=memory, progress=False)
    vf.pyramid(out, levels=len(FACTORS), memory=memory, progress=False)


def run_ngff(case: str, source: str, out: str, method: str) -> None:
    import dask.array as da
    import ngff_zarr as nz

    sharded = method == "dask"
    methods = {"dask": nz.Methods.DASK_BIN_SHRINK, "itkwasm": nz.Methods.ITKWASM_BIN_SHRINK}
    kind = nz.Methods.ITKWASM_LABEL_IMAGE if case == "classes" else methods[method]
    image = nz.to_ngff_image(da.from_zarr(f"{source}/0"), dims=["z", "y", "x"])
    found = nz.to_multiscales(image, scale_factors=list(FACTORS), method=kind, chunks=CHUNK[0])
    options = {"chunks_per_shard": SHARD[0] // CHUNK[0]} if sharded else {}
    if case != "image":
        options |= {"start_level": 1, "overwrite": False}
    nz.to_ngff_zarr(out, found, version="0.5", **options)


def run_ome(case: str, source: str, out: str) -> None:
    import dask.array as da
    import zarr
    from ome_zarr.classes import OMEZarrImage, OMEZarrMultiscale
    from ome_zarr.scale import Methods
    from ome_zarr.writer import write_image, write_multiscale

    # Whole shards as Dask's chunks: its tasks would else write into each other's.
    data = da.from_zarr(f"{source}/0", chunks=SHARD)
    factors = [dict.fromkeys("zyx", factor) for factor in FACTORS]
    method = Methods.NEAREST if case == "classes" else Methods.LOCAL_MEAN
    group = zarr.open_group(out, mode="w", zarr_format=3)
    options = {"chunks": CHUNK, "shards": SHARD}
    if case == "image":
        write_image(data, group, factors, method=method, axes="zyx", storage_options=options)
        return
    image = OMEZarrImage(data=data, scale=dict.fromkeys("zyx", 1.0), axes="zyx", name="image")
    found = OMEZarrMultiscale(image=image, scale_factors=factors, method=method)
    coarser = [one.data for one in found.images[1:]]
    write_multiscale(coarser, group, axes="zyx", storage_options=options)


def run(method: str, case: str, source: str, out: str, memory: str) -> None:
    if method == "volflow":
        run_volflow(case, source, out, memory)
    elif method == "ome-zarr-py":
        run_ome(case, source, out)
    else:
        run_ngff(case, source, out, method.split()[1])


def remove(out: Path) -> None:
    for path in (out, Path(f"{out}.volflow")):
        shutil.rmtree(path, ignore_errors=True)


def prepare(method: str, case: str, source: Path, out: Path) -> None:
    """What is there before: level 0, where only levels are written."""
    if case == "image" or method == "ome-zarr-py":
        return
    if method == "volflow":
        shutil.copytree(source, out)
        return
    import dask.array as da
    import ngff_zarr as nz

    image = nz.to_ngff_image(da.from_zarr(f"{source}/0"), dims=["z", "y", "x"])
    found = nz.to_multiscales(image, scale_factors=[], chunks=CHUNK[0])
    options = {"chunks_per_shard": SHARD[0] // CHUNK[0]} if method.endswith("dask") else {}
    nz.to_ngff_zarr(str(out), found, version="0.5", **options)


def child(method: str, case: str, source: str, out: str, memory: str, small: str) -> None:
    """One measured run, in a process of its own."""
    warnings.simplefilter("ignore")
    if not small:
        prepare(method, case, Path(source), Path(out))
        return
    remove(Path(f"{out}-small"))
    prepare(method, case, Path(small), Path(f"{out}-small"))
    run(method, case, small, f"{out}-small", memory)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # lest what the small one left is not counted
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    run(method, case, source, out, memory)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    growth = status("VmHWM") - resident
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "growth_bytes": growth}))


def exact(source: Path, case: str):
    """Level 1 as it should be."""
    import numpy as np
    import zarr

    voxels = zarr.open_array(source / "0")[:]
    if case == "classes":
        from volflow.volumes.pyramid.halving import mode

        out = np.empty([n // 2 for n in voxels.shape], voxels.dtype)
        mode(voxels, (2, 2, 2), out)
        return out
    sums = sum(
        voxels[z::2, y::2, x::2].astype("u4") for z in (0, 1) for y in (0, 1) for x in (0, 1)
    )
    return sums / 8


def off(out: Path, case: str, level_1) -> float:
    """How far level 1 is from what it should be."""
    import numpy as np
    import zarr

    names = ("1", "scale1/image", "s1") if case == "image" else ("1", "scale1/image", "s0")
    name = next(name for name in names if (out / name / "zarr.json").exists())
    found = zarr.open_array(out / name)[:]
    if case == "classes":
        return float((found != level_1).mean())
    return float(np.abs(found - level_1).max())


def process(*words: str) -> str:
    """What a process of its own prints."""
    command = [sys.executable, __file__, "--child", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"{words} failed with {done.returncode}")
    return done.stdout


def compare(case: str, side: int, repeats: int, memory: str, methods: list[str]) -> str:
    runs: dict[str, list[dict[str, float]]] = {m: [] for m in methods}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        sources = {}
        for size in (side, 2 * CHUNK[0]):
            sources[size] = folder / f"{size}.zarr"
            make_scan(sources[size], (size,) * 3)
            if case == "classes":
                make_classes(folder / f"{size}-classes.zarr", sources[size])
                sources[size] = folder / f"{size}-classes.zarr"
        level_1 = exact(sources[side], case)
        for repeat in range(repeats):
            for method in methods:
                out = folder / f"{method.replace(' ', '-')}.zarr"
                words = (method, case, str(sources[side]), str(out), memory)
                remove(out)
                if case != "image" and method != "ome-zarr-py":  # there is a level 0 before
                    process(*words, "")
                measured = json.loads(process(*words, str(sources[2 * CHUNK[0]])).splitlines()[-1])
                runs[method].append(measured | {"off": off(out, case, level_1)})
                print(f"{case} {repeat} {method} {runs[method][-1]}", file=sys.stderr)
    kind = "uint8" if case == "classes" else "uint16"
    lines = [
        f"### {case}, {side}³ {kind}, {len(FACTORS)} levels, volflow's memory {memory},"
        f" median of {repeats}",
        "",
        "| method | wall s | CPU s | wall / volflow | growth MiB | off |",
        "|---|---|---|---|---|---|",
    ]
    middle = {m: {k: statistics.median(r[k] for r in rs) for k in rs[0]} for m, rs in runs.items()}
    for method in methods:
        row = middle[method]
        spread = max(r["wall_s"] for r in runs[method]) - min(r["wall_s"] for r in runs[method])
        ratio = row["wall_s"] / middle.get("volflow", row)["wall_s"]
        lines.append(
            f"| {method} | {row['wall_s']:.2f} ± {spread / 2:.2f} | {row['cpu_s']:.2f} |"
            f" {ratio:.1f} | {row['growth_bytes'] / 2**20:.0f} | {row['off']:.3g} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=512, help="voxels per axis")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    tables = []
    for case in options.case or CASES:
        methods = [m for m in options.method or METHODS if case != "classes" or m != METHODS[1]]
        tables.append(compare(case, options.side, options.repeats, options.memory, methods))
    packages = ["zarr", "dask", "ngff-zarr", "ome-zarr"]
    text = "\n\n".join([describe(packages), *tables])
    print(text)
    if not options.no_file:
        file_result("pyramid", text)


if __name__ == "__main__":
    main()
