"""What a block costs that does nothing: volflow beside plain ``client.map`` and daisy 2.

    python benchmarks/scheduler.py                       # 10³, 10⁴, 10⁵ blocks; result filed
    python benchmarks/scheduler.py --counts 1000 --repeats 1    # no result filed

Each run is a process of its own with two worker processes beside it, warmed by some blocks before
the clock starts. Of volflow there are the worst case, a run for every block, with a journal on
disk and without, and what most plans do: a few runs of neighbouring blocks per worker.
Memory is that by which the process of driver, client and scheduler grew at its peak; CPU is that
process's own. Runs of all contestants alternate, and medians are shown. daisy comes with the extra
`peers`, and is left out where it is missing. Of more than 10⁴ blocks only those run that need less
than a millisecond each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

WORKERS, WARM = 2, 64
GOAL_MS = 1.5
QUICK, MOST_OF_OTHERS = ("task", "journal", "runs", "daisy"), 10**4
HOWS = {
    "volflow, a run per block": "task",
    "volflow, the same with a journal": "journal",
    "volflow, runs as planned": "runs",
    "client.map": "map",
    "daisy 2": "daisy",
}


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measured(work: Any, count: int) -> dict[str, float]:
    """Seconds, CPU seconds and growth of what does so many blocks, after it did a few."""
    work(WARM)
    bytes_before, cpu_s, began = peak_bytes(), time.process_time(), time.perf_counter()
    work(count)
    took, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    return {"seconds": took, "cpu_s": cpu_s, "bytes": peak_bytes() - bytes_before}


def nothing(job: Any, blocks: tuple[int, ...], context: Any):
    """A task of volflow whose blocks are empty."""
    from volflow.engine.task import Step

    for number in blocks:
        if context.journal is not None:
            with context.block(number):
                pass
        yield Step(number, 1)


def volflow(count: int, how: str) -> dict[str, float]:
    import volflow as vf
    from volflow.engine.plan import Plan, runs_for
    from volflow.engine.run import run
    from volflow.store.journal.journal import Journal, Record, journal_dir

    with tempfile.TemporaryDirectory() as folder, vf.connect(WORKERS) as client:

        def work(blocks: int) -> None:
            pieces = [(n,) for n in range(blocks)]
            kept: dict[str, Any] = {}
            if how == "runs":
                pieces = list(runs_for(range(blocks), WORKERS))
            if how == "journal":
                out = journal_dir(Path(folder) / f"{blocks}.zarr")
                kept = {
                    "journal": Journal(out),
                    "record": Record("nothing", {}, {"grid": [blocks]}),
                }
            plan = Plan("nothing", nothing, None, tuple(pieces), blocks, "blocks", 1, 2**30, **kept)
            assert len(run(plan, cluster=client, progress=False).results) == blocks

        return measured(work, count)


def empty(number: Any) -> None:
    """A task of Dask, or a block of daisy."""


def plain_map(count: int) -> dict[str, float]:
    import volflow as vf

    with vf.connect(WORKERS) as client:

        def work(blocks: int) -> None:
            client.gather(client.map(empty, range(blocks), pure=False))

        return measured(work, count)


def daisy(count: int) -> dict[str, float]:
    import daisy.v2 as daisy
    from funlib.geometry import Coordinate, Roi

    def work(blocks: int) -> None:
        one, whole = Roi((0,), (1,)), Roi((0,), (blocks,))
        task = daisy.Task(
            f"nothing{blocks}", whole, one, Roi(Coordinate((0,)), Coordinate((1,))),
            process_function=empty, read_write_conflict=False, max_workers=WORKERS,
        )  # fmt: skip
        assert daisy.run_blockwise(task, progress=False, host="127.0.0.1", summary=False)

    return measured(work, count)


def one(how: str, count: int) -> dict[str, float]:
    if how == "map":
        return plain_map(count)
    return daisy(count) if how == "daisy" else volflow(count, how)


def apart(how: str, count: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--one", how, str(count)]
    with tempfile.TemporaryDirectory() as folder:  # daisy writes its logs where it runs
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{how}, {count} blocks: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def table(counts: list[int], repeats: list[int], hows: dict[str, str]) -> str:
    lines = ["| | blocks | s | ms per block | its CPU, ms per block | growth, bytes per block |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for count, times in zip(counts, repeats, strict=True):
        wanted = {n: how for n, how in hows.items() if how in QUICK or count <= MOST_OF_OTHERS}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
        for _ in range(times):
            for name, how in wanted.items():
                found[name].append(apart(how, count))
                print(name, count, found[name][-1], file=sys.stderr, flush=True)
        for name, runs in found.items():
            s, cpu_s, size = (
                statistics.median(r[k] for r in runs) for k in ("seconds", "cpu_s", "bytes")
            )
            per_block = f"{1000 * s / count:.2f} | {1000 * cpu_s / count:.2f} | {size / count:.0f}"
            lines.append(f"| {name} | {count:,} | {s:.2f} | {per_block} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs="+", default=[10**3, 10**4, 10**5])
    parser.add_argument("--repeats", type=int, help="3 of 10³ blocks and 1 of more, by default")
    parser.add_argument("--one", nargs=2, metavar=("HOW", "COUNT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], int(given.one[1]))))
        return
    from machine import describe, file_result

    hows = {
        name: how
        for name, how in HOWS.items()
        if how != "daisy" or importlib.util.find_spec("daisy")
    }
    repeats = [given.repeats or (3 if count <= 10**3 else 1) for count in given.counts]
    text = "\n\n".join([
        describe(["dask", "distributed", "daisy"]),
        f"Two worker processes; medians of {', '.join(map(str, repeats))} interleaved runs. Goal: at most"
        f" {GOAL_MS} ms per block.",
        table(given.counts, repeats, hows),
    ])  # fmt: skip
    print(text)
    if given.counts == [10**3, 10**4, 10**5]:
        print(file_result("scheduler", text))


if __name__ == "__main__":
    main()
