"""How busy 64 workers are that only sleep: what the plan, the driver and Dask's scheduler leave idle.

    python benchmarks/simulated_workers.py            # a minute; the result is filed
    python benchmarks/simulated_workers.py --workers 8 --no-file

The workers are threads of one process. The runs are those of a prediction as the planner cuts them
for so many workers; each block sleeps for as long as its patches, those of the seam that other
workers compute, too, would take, and is recorded in a journal. ``busy`` is what all workers slept,
over workers × the seconds of the whole run; ``by the plan`` is that where nothing but sleeping takes
time. CPU is that of the process: driver, scheduler, and all workers.

What a worker does for itself is switched off, as 64 of them would do it in one process: watch its
memory, sample stacks, measure the machine, look at the clock. With Dask's own limit, a share of the machine's memory,
each finds the whole process too large, pauses, and collects garbage ten times a second for ever.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import dask  # noqa: E402
from distributed import LocalCluster  # noqa: E402
from machine import describe, file_result  # noqa: E402
from worker_seams import VOLUMES, Cut, Volume, cut_of  # noqa: E402

import volflow as vf  # noqa: E402
from volflow.engine.plan import Plan  # noqa: E402
from volflow.engine.run import run  # noqa: E402
from volflow.engine.task import Context, Step  # noqa: E402
from volflow.infer.patches.runs import last_end  # noqa: E402
from volflow.store.journal.journal import Journal, Record, journal_dir  # noqa: E402

GIB = 2**30
ALONE = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "1h",
    "distributed.admin.tick.interval": "1s",
}
GOAL = "Goal: at least 90 % busy with 64 workers."


@dataclass(frozen=True)
class Sleeps:
    """The job: seconds by block. Like those of predictions no plain dict, which Dask would walk."""

    seconds: dict[int, float]


def sleep(job: Sleeps, blocks: tuple[int, ...], context: Context) -> Any:
    """A task whose blocks take time and nothing else."""
    for number in blocks:
        with context.block(number), context.stage("sleep"):
            time.sleep(job.seconds[number])
        yield Step(number, 1)


def seconds_of(cut: Cut, mean_s: float) -> dict[int, float]:
    """Seconds by block, of so many on average: those of the patches that it adds to its run."""
    patches = {}
    for one in cut.runs():
        before = 0
        for at, number in enumerate(one):
            until = cut.patches(one[: at + 1])
            patches[number], before = until - before, until
    each_s = mean_s * len(patches) / sum(patches.values())
    return {number: count * each_s for number, count in patches.items()}


def row(volume: Volume, workers: int, mean_s: float) -> str:
    """A line of the table."""
    cut = cut_of(volume, workers, 4 * GIB)
    seconds, runs = seconds_of(cut, mean_s), cut.runs()
    slept_s, count = sum(seconds.values()), len(seconds)
    with (
        tempfile.TemporaryDirectory() as folder,
        dask.config.set(ALONE),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=False, memory_limit=None,
            silence_logs=logging.ERROR, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        vf.connect(cluster) as client,
    ):  # fmt: skip
        plan = Plan(
            "sleep", sleep, Sleeps(seconds), runs, count, "blocks", 1, 4 * GIB,
            journal=Journal(journal_dir(Path(folder) / "out.zarr")),
            record=Record("sleep", {}, {"grid": [count]}),
        )  # fmt: skip
        cpu_s = time.process_time()
        report = run(plan, cluster=client, progress=False)
        cpu_s = time.process_time() - cpu_s
    last_s = last_end([sum(seconds[number] for number in one) for one in runs], workers)
    planned = slept_s / workers / last_s
    busy = report.stages["sleep"] / workers / report.wall_s
    return (
        f"| {'×'.join(map(str, volume[0]))} | {workers} | {len(runs)} | {count} |"
        f" {slept_s / count:.2f} | {report.wall_s:.2f} | {cpu_s:.2f} | {planned:.0%} | {busy:.0%} |"
    )


def main() -> None:
    """Measure, print and file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--seconds", type=float, default=1.0, help="mean of a block")
    parser.add_argument("--no-file", action="store_true", help="do not file the result")
    given = parser.parse_args()
    lines = [
        "| volume | workers | runs | blocks | s a block | s | CPU s | busy by the plan | busy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for volume in VOLUMES:
        for workers in given.workers:
            lines.append(row(volume, workers, given.seconds))
            print(lines[-1], file=sys.stderr, flush=True)
    about = [describe(["dask", "distributed"]), "", "    python benchmarks/simulated_workers.py"]
    text = "\n".join([*about, "", GOAL, "", *lines])
    print(text)
    if not given.no_file:
        print(f"\nfiled under {file_result('simulated_workers', text)}")


if __name__ == "__main__":
    main()
