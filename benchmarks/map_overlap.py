"""``vf.map_overlap`` beside Dask's own: tasks, optimise time, memory, bytes moved, time.

    python benchmarks/map_overlap.py                     # 1 000 and 10 648 blocks, result filed
    python benchmarks/map_overlap.py --counts 10         # blocks per axis; no result filed

A uint8 volume in chunks of 32³ is filtered with a halo of 4 by two worker processes. Each run is a
process of its own, whose peak is read from the kernel, as are its workers'; one that takes more
than a quarter of an hour is stopped. The first two rows use
the stored chunks as blocks, the worst case for whoever reads halos from the store: 27 chunks are
decoded per block. The third runs the same volume in blocks of 128³, as ``vf.map_overlap`` would by
default where shards are that large. All three must agree on a corner with borders and seams.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

CHUNK, DEPTH = 32, 4
LIMIT_S = 900


def smooth(block: np.ndarray) -> np.ndarray:
    """Of radius 4; the edge of a block counts on."""
    from scipy import ndimage

    return ndimage.uniform_filter(block, 2 * DEPTH + 1, mode="nearest")


def plane_sums(block: np.ndarray) -> np.ndarray:
    """What comes back to the client: small, and another one where any voxel differs."""
    weights = np.arange(1, block[0].size + 1, dtype=np.uint64).reshape(block.shape[1:]) % 65_521
    return (block * weights).sum(axis=(1, 2), dtype=np.uint64).reshape(-1, 1, 1)


def array(path: str, how: str):
    import dask.array as da

    import volflow as vf

    options = {
        "depth": DEPTH,
        "boundary": "reflect",
        "dtype": "u1",
        "meta": np.empty((0, 0, 0), "u1"),
    }
    if how == "dask":
        return da.map_overlap(smooth, da.from_zarr(path), **options)
    block = CHUNK if how == "volflow" else 128
    return vf.map_overlap(smooth, path, block=block, **options)


def status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def graph(path: str, how: str) -> dict[str, float]:
    """Build and optimise only."""
    import dask

    lazy = array(path, how)
    dask.optimize(array(path, "volflow")[:1, :1, :1])  # imports, once
    before = status("VmRSS")
    began = time.perf_counter()
    (ready,) = dask.optimize(lazy)
    tasks = len(ready.__dask_graph__())
    took = time.perf_counter() - began
    return {"tasks": tasks, "optimize_s": took, "client_bytes": status("VmHWM") - before}


def moved(dask_worker) -> int:
    return sum(entry["total"] for entry in dask_worker.transfer_incoming_log)


def peak(dask_worker) -> int:
    del dask_worker
    return status("VmHWM")


def compute(path: str, how: str) -> dict[str, float]:
    """Run on two worker processes."""
    import dask
    import distributed

    dask.config.set(
        {"distributed.worker.memory.target": False, "distributed.worker.memory.spill": False}
    )
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"}) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        base = client.run(peak)
        before = status("VmRSS")
        lazy = array(path, how)
        chunks = tuple((1,) * len(c) for c in lazy.chunks[1:])
        sums = lazy.map_blocks(
            plane_sums, chunks=(lazy.chunks[0], *chunks), dtype="u8", meta=np.empty((0, 0, 0), "u8")
        )
        began = time.perf_counter()
        client.compute(sums).result()
        took = time.perf_counter() - began
        return {
            "wall_s": took,
            "driver_bytes": status("VmHWM") - before,
            "worker_bytes": max(v - base[w] for w, v in client.run(peak).items()),
            "moved_bytes": sum(client.run(moved).values()),
        }


def check(path: str) -> None:
    """The three agree on a corner of the volume that holds borders and seams."""
    corner = tuple(slice(0, 100) for _ in range(3))
    first, *others = (array(path, how)[corner].compute() for how in ("dask", "volflow", "large"))
    assert all(np.array_equal(first, other) for other in others)


def fresh(mode: str, path: str, how: str) -> dict[str, float]:
    """One measurement in a process of its own; empty where it took too long."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--measure", mode, path, how],
            capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, found: dict[str, float]) -> str:
    mib = {k: f"{v / 2**20:,.0f}" for k, v in found.items()}
    wall = f"{found['wall_s']:.1f}" if "wall_s" in found else f"stopped at {LIMIT_S}"
    more = [mib.get(k, "-") for k in ("driver_bytes", "worker_bytes", "moved_bytes")]
    cells = [
        name,
        f"{found['tasks']:,.0f}",
        f"{found['optimize_s']:.1f}",
        mib["client_bytes"],
        wall,
        *more,
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 22], help="blocks per axis")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        mode, path, how = options.measure
        print(json.dumps((graph if mode == "graph" else compute)(path, how)))
        return

    from machine import describe, file_result

    import volflow as vf
    from volflow.store.create import create
    from volflow.store.meta import Meta, VolumeSpec

    lines = [describe(["dask", "distributed", "zarr"]), ""]
    for count in options.counts:
        side = count * CHUNK
        with tempfile.TemporaryDirectory() as folder:
            volume = create(
                f"{folder}/a.zarr",
                VolumeSpec.of((side,) * 3, "u1", Meta(), chunk=CHUNK, shard=CHUNK * 4),
            )
            rng = np.random.default_rng(0)
            for low in range(0, side, CHUNK * 4):
                roi = vf.Roi((low, 0, 0), (min(side, low + CHUNK * 4), side, side))
                volume.write(roi, rng.integers(0, 255, roi.shape, "u1"))
            path = f"{folder}/a.zarr/0"
            check(path)
            lines += [
                f"### {count**3:,} blocks of {CHUNK}³: {side}³ uint8, {side**3 / 2**20:.0f} MiB, halo {DEPTH}",
                "",
                "| | tasks | optimise s | client MiB | wall s | client + scheduler MiB | worker MiB | moved MiB |",
                "|---|---|---|---|---|---|---|---|",
            ]
            names = {
                "dask": "dask.array.map_overlap",
                "volflow": "vf.map_overlap",
                "large": "vf.map_overlap, blocks of 128³",
            }
            for how, name in names.items():
                lines.append(
                    row(name, {**fresh("graph", path, how), **fresh("compute", path, how)})
                )
                print(lines[-1], flush=True)
            lines.append("")
    lines.append("Memory is growth above the process's size after imports; one run each.")
    text = "\n".join(lines)
    print(text)
    if options.counts == [10, 22]:
        file_result("map_overlap", text)


if __name__ == "__main__":
    main()
