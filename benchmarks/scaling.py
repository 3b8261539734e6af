"""More workers: two processes beside one on two cores, and how busy many simulated workers are.

    python benchmarks/scaling.py             # two minutes on free cores; the result is filed
    python benchmarks/scaling.py --no-file

*Processes*: a U-Net with one thread a process over a long volume, whose patches overlap by a
quarter; one process and two take turns on warm clusters, and medians are shown. *plain* is the same
patches in plain torch in one process and in two, without a volume, a blend or a block: what the
cores give. *Many workers* are threads of one process whose network sleeps: busy is the time that
all of them slept over the time that they were there, planning and the seams that they compute twice
included.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import describe, file_result  # noqa: E402

import volflow as vf  # noqa: E402

LONG, SIDE, PATCH = 1536, 64, 64
GOAL, BUSY_GOAL = 1.8, 0.9
MANY, SMALL, SLEEP_S = 64, 16, 0.5
SLEPT_IN = (640, 100, 100)


class Sleeping(torch.nn.Module):
    """Sleeps for each patch that holds data, and counts; one process only."""

    lock = threading.Lock()
    slept_s = 0.0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return the batch."""
        if bool(batch.any()):
            seconds = SLEEP_S * len(batch)
            time.sleep(seconds)
            with self.lock:
                type(self).slept_s += seconds
        return batch


def local(workers: int, *, processes: bool):
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=processes, memory_limit=None,
        dashboard_address=None, worker_dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    )  # fmt: skip


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return vf.UNet(1, 2, features=(16, 32)).eval()


def plain(count: int) -> None:
    """So many patches through the network, on one thread."""
    torch.set_num_threads(1)
    net, patch = network(), torch.rand(1, 1, PATCH, PATCH, PATCH)
    with torch.inference_mode():
        net(patch)
        ready.wait()
        for _ in range(count):
            net(patch)


def shares(barrier: threading.Barrier) -> None:
    """Hand a barrier to a process."""
    global ready
    ready = barrier


def in_plain(processes: int, patches: int) -> float:
    """Seconds of plain torch for so many patches, from when all processes are ready."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes + 1)
    with context.Pool(processes, shares, (barrier,)) as pool:
        done = pool.map_async(plain, [patches // processes] * processes, chunksize=1)
        barrier.wait()
        began = time.perf_counter()
        done.get()
        return time.perf_counter() - began


def processes(folder: Path, rounds: int) -> str:
    voxels = np.random.default_rng(0).random((LONG, SIDE, SIDE), "float32")
    vf.convert(voxels, folder / "scan.zarr", progress=False)
    vf.convert(voxels[:128], folder / "warm.zarr", progress=False)
    patches = 1 + -(-(LONG - PATCH) // (PATCH * 3 // 4))
    found: dict[tuple[str, int], list[float]] = {}
    with local(1, processes=True) as one, local(2, processes=True) as two:
        for turn in range(rounds + 1):
            for count, cluster in ((1, one), (2, two)):
                began = time.perf_counter()
                vf.predict(
                    folder / "scan.zarr" if turn else folder / "warm.zarr", network(),
                    folder / f"{turn}{count}.zarr", patch=PATCH, overlap=0.25, batch_size=1,
                    shard=64, chunk=64, memory="1GiB", cluster=cluster, progress=False,
                )  # fmt: skip
                if turn:
                    took = time.perf_counter() - began
                    found.setdefault(("volflow", count), []).append(took)
                    found.setdefault(("plain", count), []).append(in_plain(count, patches))
                    print(count, took, found["plain", count][-1], file=sys.stderr, flush=True)
    lines = [
        f"{patches} patches of {PATCH}³, medians of {rounds} interleaved rounds; goal {GOAL} ×.\n",
        "| | one process, s | two, s | times as fast |",
        "|---|---:|---:|---:|",
    ]
    for name in ("volflow", "plain"):
        alone, both = (statistics.median(found[name, n]) for n in (1, 2))
        lines.append(f"| {name} | {alone:.1f} | {both:.1f} | {alone / both:.2f} |")
    return "\n".join(lines)


def busy(folder: Path) -> str:
    vf.convert(np.ones(SLEPT_IN, "uint8"), folder / "slept.zarr", progress=False)
    with local(MANY, processes=False) as cluster:
        began = time.perf_counter()
        vf.predict(
            folder / "slept.zarr", Sleeping(), folder / "awake.zarr", patch=SMALL, overlap=0.25,
            batch_size=1, shard=SMALL, chunk=SMALL, memory="64MiB", cluster=cluster,
            progress=False, device="cpu",
        )  # fmt: skip
        took = time.perf_counter() - began
    patches = int(np.prod([1 + -(-(side - SMALL) // (SMALL * 3 // 4)) for side in SLEPT_IN]))
    share = Sleeping.slept_s / (MANY * took)
    return (
        f"| simulated workers | patches | forwards a patch | s | busy (goal {BUSY_GOAL:.0%}) |\n"
        "|---:|---:|---:|---:|---:|\n"
        f"| {MANY} | {patches} | {Sleeping.slept_s / SLEEP_S / patches:.2f} | {took:.1f} |"
        f" {share:.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        parts = [busy(Path(name)), processes(Path(name), options.rounds)]
    text = "\n\n".join([describe(["zarr", "dask", "distributed", "torch"]), *parts])
    print(text)
    if not options.no_file:
        print(file_result("scaling", text))


if __name__ == "__main__":
    main()
