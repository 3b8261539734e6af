"""What fresh memory costs: bare forwards, peers and volflow, with and without huge pages.

    python benchmarks/pages.py                       # both networks, 3 repeats, result filed
    python benchmarks/pages.py --case small --side 112 --repeats 1 --no-file

"set" is a user who sets THP_MEM_ALLOC_ENABLE=1 before Python starts, "plain" one who sets nothing,
as most do. volflow runs as its command does (on threads), on a worker process that Dask's nanny
started, and in both as it was before it saw to memory: by variables of the user, which win.
Every run is a fresh process; methods are interleaved, so that a slow minute hits them all.
Seconds and page faults are those of the process and its worker, after imports, the start of the
cluster, the loading of the model and a first small forward or prediction. Needs the extra ``peers``.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import inference
from machine import describe, file_result

SET = {"THP_MEM_ALLOC_ENABLE": "1"}
# What a user chose is left alone, so that these give what was before; 65536 itself is Dask's.
BEFORE = {"THP_MEM_ALLOC_ENABLE": "0", "MALLOC_TRIM_THRESHOLD_": "65537"}
ROWS: dict[str, tuple[str, dict[str, str]]] = {
    "forward, plain": ("forward", {}),
    "forward, set": ("forward", SET),
    "monai, plain": ("monai", {}),
    "monai, set": ("monai", SET),
    "torchio, plain": ("torchio", {}),
    "torchio, set": ("torchio", SET),
    "volflow, its network made before": ("session", {}),
    "volflow": ("threads", {}),
    "volflow, process, before": ("process", BEFORE),
    "volflow, process": ("process", {}),
}
SMALL_ROWS = tuple(row for row in ROWS if not row.startswith(("monai", "torchio")))
# Shape, patch, rows: 18 and 64 patches.
CASES = {
    "unet": ((144, 192, 192), 96, tuple(ROWS)),
    "small": ((208, 208, 208), 64, SMALL_ROWS),
}


def make_unet():
    import torch

    from volflow.model.unet import UNet

    torch.manual_seed(0)
    return UNet(1, 3, features=(16, 32, 64), norm="batch").eval()


def make_small():
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv3d(8, 2, 1)).eval()


def load() -> None:
    """What a worker loads before it is measured."""
    from volflow.infer import predict  # noqa: F401


def usage() -> tuple[float, int]:
    """CPU seconds and page faults of this process so far."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime, spent.ru_minflt


@contextmanager
def workers(method: str) -> Iterator[Callable[[], list[tuple[float, int]]]]:
    """The worker that a method wants, and what asks all processes for their usage."""
    if method != "process":
        yield lambda: [usage()]
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster) as client,  # the active one, which volflow takes
    ):
        client.run(load)
        yield lambda: [usage(), *client.run(usage).values()]


def child(method: str, case: str, scan: str, out: str, memory: str) -> None:
    """One measured run, in a process of its own."""
    from volflow.engine.pages import prepare_allocators

    if method == "threads":
        prepare_allocators(own=True)  # what the command does first
    import numpy
    import torch

    import volflow as vf

    load()
    if method == "monai":
        import monai.inferers  # noqa: F401
    if method == "torchio":
        import torchio  # noqa: F401
    inference.PATCH = CASES[case][1]
    model = globals()[f"make_{case}"]()
    with torch.inference_mode():
        model(torch.zeros(1, 1, 32, 32, 32))
    call = getattr(inference, f"run_{method}", inference.run_volflow)
    with workers(method) as ask:
        if call is inference.run_volflow:
            first = numpy.zeros((32, 32, 32), "float32")
            beside = Path(out).with_name("first.zarr")
            vf.predict(first, model, beside, patch=32, progress=False, overwrite=True)
        before = ask()
        began = time.perf_counter()
        call(scan, out, model, memory)
        wall = time.perf_counter() - began
        after = ask()
    cpu, faults = (sum(a[i] - b[i] for a, b in zip(after, before, strict=True)) for i in (0, 1))
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "faults": faults}))


def measure(row: str, case: str, scan: Path, folder: Path, memory: str) -> dict[str, float]:
    method, chosen = ROWS[row]
    out = folder / "out.zarr"
    for path in (out, Path(f"{out}.volflow")):
        shutil.rmtree(path, ignore_errors=True)
    plain = {name: value for name, value in os.environ.items() if name not in BEFORE}
    done = subprocess.run(
        [sys.executable, __file__, "--child", method, case, str(scan), str(out), memory],
        env={**plain, **chosen}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"{row} failed with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(case: str, shape: tuple[int, int, int], repeats: int, memory: str) -> str:
    _, patch, rows = CASES[case]
    runs: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        inference.make_scan(folder / "scan.zarr", shape)
        for repeat in range(repeats):
            for row in rows:
                runs[row].append(measure(row, case, folder / "scan.zarr", folder, memory))
                print(f"{case} {repeat} {row} {runs[row][-1]}", file=sys.stderr)
    middle = {r: {k: statistics.median(x[k] for x in xs) for k in xs[0]} for r, xs in runs.items()}
    bare, threads = middle["forward, plain"]["cpu_s"], middle["volflow"]["cpu_s"]
    lines = [
        f"### {case}, {' × '.join(map(str, shape))} uint16 → float32, patch {patch}, overlap {inference.OVERLAP},"
        f" memory {memory}, median of {repeats}",
        "",
        "| | wall s | CPU s | CPU / bare forward, plain | CPU / volflow | thousand page faults |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        wall, cpu, faults = (middle[row][key] for key in ("wall_s", "cpu_s", "faults"))
        spread = max(x["wall_s"] for x in runs[row]) - min(x["wall_s"] for x in runs[row])
        lines.append(
            f"| {row} | {wall:.2f} ± {spread / 2:.2f} | {cpu:.2f} | {cpu / bare:.2f} |"
            f" {cpu / threads:.2f} | {faults / 1000:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, help="voxels per axis, smaller for a try")
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    tables = [
        compare(
            case,
            (options.side,) * 3 if options.side else CASES[case][0],
            options.repeats,
            options.memory,
        )
        for case in options.case or CASES
    ]
    text = "\n\n".join([describe(["torch", "zarr", "dask", "monai", "torchio"]), *tables])
    print(text)
    if not options.no_file:
        file_result("pages", text)


if __name__ == "__main__":
    main()
