"""Faults done to real processes: whether the bytes are those of a quiet run, and what is done twice.

    python benchmarks/chaos.py                             # all of them, results filed
    python benchmarks/chaos.py --only worker,adaptive --no-file

A volume of 32 blocks of one patch each is predicted by the command line on a Dask scheduler and two
workers, all of them processes of their own; blocks take a third of a second. ``done twice`` are
forwards beyond one a block, ``in flight`` is what may be: two blocks of each worker that the fault
reaches, one being computed and one being written. ``reruns`` of the same command were needed to
end. The last rows are two predictions at once on one worker with two threads, each planned in
``memory``: how far its resident memory grew beyond what it was after its first run.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import describe, file_result  # noqa: E402

BLOCKS, SIDE = 32, 16
SLEEP_S = 0.3
PATIENCE_S = 300
HUNGRY_BLOCK = 13
CLI = "from volflow.cli import main\nif __name__ == '__main__': main()"
WORDS = ["--model", "chaos_net:logged", "--patch", str(SIDE), "--overlap", "0", "--batch-size", "1"]
WORDS += ["--shard", str(SIDE), "--chunk", str(SIDE), "--memory", "256MiB", "--quiet"]
MEMORY_MIB = 400
HEAVY = ["--model", "chaos_net:unet", "--patch", "64", "--overlap", "0.25", "--quiet"]
# Shards are as large as memory lets blocks be, unless they are named: then all bytes compare.
HEAVY += ["--shard", "64", "--chunk", "64", "--memory", f"{MEMORY_MIB}MiB"]


@dataclass
class Stage:
    """A folder with a volume, what a quiet run makes of it, and processes that end with the stage."""

    folder: Path
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        """Start Python in a process group of its own."""
        known = {"PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "CHAOS_SLEEP": f"{SLEEP_S}"}
        process = subprocess.Popen(
            [sys.executable, *words], cwd=self.folder, start_new_session=True, text=True,
            env={**os.environ, **known, "CHAOS_NOTES": str(self.folder / "notes"), **environment},
            stdout=subprocess.DEVNULL, stderr=(self.folder / "errors").open("a"),
        )  # fmt: skip
        self.started.append(process)
        return process

    def predict(self, out: str = "out.zarr", *more: str, **environment: str) -> subprocess.Popen:
        """Start a prediction by the command line."""
        return self.start("-c", CLI, "predict", "scan.zarr", out, *WORDS, *more, **environment)

    def marks(self, out: str = "out.zarr") -> int:
        """Return how many blocks are recorded."""
        return len(list((self.folder / f"{out}.volflow" / "done").glob("*.json")))

    def forwards(self) -> int:
        """Return how many forwards on data there were."""
        return sum(len(p.read_text().splitlines()) for p in (self.folder / "notes").iterdir())

    def same(self, out: str = "out.zarr", whole: str = "whole.zarr") -> bool:
        """Return whether all bytes are those of the quiet run, and nothing else lies there."""
        return contents(self.folder / out) == contents(self.folder / whole)

    def end(self, *processes: subprocess.Popen) -> None:
        """Kill processes with their groups; all of the stage by default."""
        for process in processes or reversed(self.started):
            for number in (signal.SIGCONT, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            process.wait()


@dataclass
class Site:
    """A scheduler with its workers."""

    stage: Stage
    scheduler: subprocess.Popen
    file: Path
    address: str
    workers: list[subprocess.Popen] = field(default_factory=list)

    def add(self, *words: str, nanny: bool = False, threads: int = 1, **more: str) -> None:
        """Start one more worker."""
        self.workers.append(
            self.stage.start(
                "-m", "distributed.cli.dask_worker", "--scheduler-file", str(self.file),
                "--no-dashboard", "--nanny" if nanny else "--no-nanny", "--nthreads", f"{threads}",
                "--host", "127.0.0.1", *words, **more,
            )
        )  # fmt: skip


@contextmanager
def site(stage: Stage, workers: int = 2, **environment: str) -> Iterator[Site]:
    """Yield a scheduler with workers."""
    file = stage.folder / f"scheduler-{len(stage.started)}.json"
    scheduler = stage.start(
        "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
        "--no-dashboard", "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file),
        **environment,
    )  # fmt: skip
    wait_for(file.exists)
    from distributed import Client

    with Client(scheduler_file=str(file), set_as_default=False, timeout="60s") as client:
        found = Site(stage, scheduler, file, client.scheduler.address)
        for _ in range(workers):
            found.add(**environment)
        if workers:
            client.wait_for_workers(workers, timeout=PATIENCE_S)
    try:
        yield found
    finally:
        stage.end(*found.workers, scheduler)


@contextmanager
def prepared() -> Iterator[Stage]:
    """Yield a stage with its volume and the result of a quiet run."""
    import volflow as vf

    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        stage = Stage(Path(name))
        (stage.folder / "notes").mkdir()
        voxels = np.random.default_rng(0).random((BLOCKS * SIDE, SIDE, SIDE), "float32") + 0.1
        voxels[HUNGRY_BLOCK * SIDE + 3] = 9
        vf.convert(voxels, stage.folder / "scan.zarr", progress=False)
        assert stage.predict("whole.zarr", CHAOS_SLEEP="0").wait() == 0, errors_of(stage)
        assert stage.forwards() == BLOCKS
        try:
            yield stage
        finally:
            stage.end()


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    fault: str
    moment: str
    reruns: int
    twice: int
    in_flight: int
    same: bool
    seconds: float
    note: str = ""

    def __str__(self) -> str:
        same = "yes" if self.same else "**no**"
        return (
            f"| {self.fault} | {self.moment} | {same} | {self.reruns} | {self.twice} |"
            f" {self.in_flight} | {self.seconds:.0f} | {self.note} |"
        )


def acted(
    fault: str, moment: str, act: Callable[[Stage], tuple[int, int, str]]
) -> Row:  # fmt: skip
    """Let a fault happen on a fresh stage; ``act`` returns reruns, blocks in flight and a note."""
    with prepared() as stage:
        before, began = stage.forwards(), time.perf_counter()
        reruns, in_flight, note = act(stage)
        took, twice = time.perf_counter() - began, stage.forwards() - before - BLOCKS
        row = Row(fault, moment, reruns, twice, in_flight, stage.same(), took, note)
    print(row, file=sys.stderr, flush=True)
    return row


def until(stage: Stage, share: float, driver: subprocess.Popen) -> None:
    """Wait until a share of the blocks is recorded."""
    wait_for(lambda: stage.marks() >= share * BLOCKS, driver, stage)


def ended(stage: Stage, driver: subprocess.Popen, code: int = 0) -> None:
    """Wait for a driver, which must end with an exit code."""
    assert driver.wait(PATIENCE_S) == code, errors_of(stage)


def worker(share: float) -> Row:
    """A worker is killed, and another joins."""

    def act(stage: Stage) -> tuple[int, int, str]:
        with site(stage) as at:
            driver = stage.predict("out.zarr", "--cluster", at.address)
            until(stage, share, driver)
            stage.end(at.workers[0])
            at.add()
            ended(stage, driver)
        return 0, 2, "the run goes on"

    return acted("kill -9 of a worker", f"{share:.0%}", act)


def driver(share: float) -> Row:
    """The driver is killed."""

    def act(stage: Stage) -> tuple[int, int, str]:
        with site(stage) as at:
            first = stage.predict("out.zarr", "--cluster", at.address)
            until(stage, share, first)
            stage.end(first)
            ended(stage, stage.predict("out.zarr", "--cluster", at.address))
        return 1, 4, "same workers"

    return acted("kill -9 of the driver", f"{share:.0%}", act)


def scheduler(share: float) -> Row:
    """The scheduler is killed."""

    def act(stage: Stage) -> tuple[int, int, str]:
        with site(stage) as at:
            first = stage.predict("out.zarr", "--cluster", at.address)
            until(stage, share, first)
            stage.end(at.scheduler)
            ended(stage, first, 1)
        with site(stage) as at:
            ended(stage, stage.predict("out.zarr", "--cluster", at.address))
        return 1, 4, "exit code 1, then another scheduler"

    return acted("kill -9 of the scheduler", f"{share:.0%}", act)


def stopped() -> Row:
    """A worker is stopped until its blocks are another's, and comes back in the run."""
    from distributed import Client

    def act(stage: Stage) -> tuple[int, int, str]:
        with (
            site(stage, DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL="15s") as at,
            Client(at.address, set_as_default=False) as client,
        ):
            first = stage.predict("out.zarr", "--cluster", at.address)
            until(stage, 0.2, first)
            os.kill(at.workers[0].pid, signal.SIGSTOP)
            wait_for(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 1)
            os.kill(at.workers[0].pid, signal.SIGCONT)
            ended(stage, first)
        return 0, 2, "late writes change nothing"

    return acted("SIGSTOP, SIGCONT of a worker", "20%", act)


def starved() -> Row:
    """A worker takes all its memory in one block, and its nanny ends it."""

    def act(stage: Stage) -> tuple[int, int, str]:
        hungry = stage.folder / "hungry"
        hungry.touch()
        given = {"CHAOS_HUNGRY": str(hungry)}
        with site(stage, workers=0) as at:
            for _ in range(2):
                at.add("--memory-limit", "1500MiB", nanny=True, **given)
            ended(stage, stage.predict("out.zarr", "--cluster", at.address))
        assert not hungry.exists()
        return 0, 2, "its nanny ends it at 1.5 GiB"

    return acted("a worker starved of memory", f"block {HUNGRY_BLOCK}", act)


def disk() -> Row:
    """The disk of the output is full, and grows."""

    def act(stage: Stage) -> tuple[int, int, str]:
        small = stage.folder / "small"
        small.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)]
        if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
            raise SystemExit("mounting a small disk takes root; leave `disk` out by --only")
        try:
            (stage.folder / "out.zarr").symlink_to(small / "out.zarr")
            ended(stage, stage.predict("small/out.zarr"), 1)
            done = stage.marks("small/out.zarr")
            subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
            ended(stage, stage.predict("small/out.zarr"))
            (stage.folder / "out.zarr").unlink()
            shutil.copytree(small / "out.zarr", stage.folder / "out.zarr")
        finally:
            subprocess.run(["umount", "-l", str(small)], check=True)
        return 1, 2, f"exit code 1 with {done} blocks done"

    return acted("a full disk", "when it is full", act)


def two() -> Row:
    """A second driver comes in the middle."""

    def act(stage: Stage) -> tuple[int, int, str]:
        with site(stage, CHAOS_SLEEP=f"{5 * SLEEP_S}") as at:  # longer than starting takes
            first = stage.predict("out.zarr", "--cluster", at.address)
            until(stage, 0.5, first)
            ended(stage, stage.predict("out.zarr", "--cluster", at.address), 4)
            ended(stage, first)
        return 0, 0, "the second ends with exit code 4"

    return acted("two drivers", "50%", act)


def adaptive() -> Row:
    """A cluster grows from no worker to two, shrinks to none, and once more."""
    from chaos_net import logged
    from distributed import LocalCluster

    import volflow as vf
    from volflow.errors import TimeUp

    def act(stage: Stage) -> tuple[int, int, str]:
        most = 0
        os.environ["CHAOS_NOTES"] = str(stage.folder / "notes")
        os.environ["CHAOS_SLEEP"] = f"{SLEEP_S}"
        with LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=None,
            worker_dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster:  # fmt: skip
            cluster.adapt(minimum=0, maximum=2, interval="200ms")

            def watch(state: object) -> None:
                nonlocal most
                most = max(most, len(cluster.scheduler.workers))

            for limit_s in (BLOCKS * SLEEP_S / 4, PATIENCE_S):
                with suppress(TimeUp), vf.time_limit(after=limit_s):
                    vf.predict(
                        stage.folder / "scan.zarr", logged(), stage.folder / "out.zarr",
                        patch=SIDE, overlap=0, batch_size=1, shard=SIDE, chunk=SIDE,
                        memory="256MiB", cluster=cluster, progress=watch,
                    )  # fmt: skip
                wait_for(lambda: not cluster.scheduler.workers)
        return 1, 0, f"ended by its time, 0 → {most} → 0 twice"

    return acted("an adaptive cluster", "from 0 workers", act)


FAULTS: dict[str, list[Callable[[], Row]]] = {
    "worker": [lambda share=share: worker(share) for share in (0.2, 0.5, 0.8)],
    "driver": [lambda share=share: driver(share) for share in (0.2, 0.5, 0.8)],
    "scheduler": [lambda: scheduler(0.5)],
    "stopped": [stopped],
    "starved": [starved],
    "disk": [disk],
    "two": [two],
    "adaptive": [adaptive],
}


def at_once() -> str:
    """Two predictions on one worker: growth of its memory, beside that of one alone."""
    import psutil

    import volflow as vf

    lines = [
        f"| predictions on one worker of two threads, {MEMORY_MIB} MiB | s | growth, MiB |",
        "|---|---:|---:|",
    ]
    with tempfile.TemporaryDirectory(prefix="chaos-") as name:
        stage = Stage(Path(name))
        (stage.folder / "notes").mkdir()
        voxels = np.random.default_rng(0).random((160, 160, 160), "float32")
        vf.convert(voxels, stage.folder / "scan.zarr", progress=False)

        def predict(out: str) -> subprocess.Popen:
            words = ["predict", "scan.zarr", out, *HEAVY, "--cluster", at.address]
            return stage.start("-c", CLI, *words)

        try:
            with site(stage, workers=0) as at:
                at.add(threads=2)
                ended(stage, predict("whole.zarr"))
                process = psutil.Process(at.workers[0].pid)
                resting = process.memory_info().rss
                for outs in (["one.zarr"], ["two.zarr", "three.zarr"]):
                    with sampled(process) as peak:
                        began = time.perf_counter()
                        for running in [predict(out) for out in outs]:
                            ended(stage, running)
                        took = time.perf_counter() - began
                    same = all(stage.same(out) for out in outs)
                    what = "alone" if len(outs) == 1 else "two at once"
                    lines.append(
                        f"| {what}, {'bytes as alone' if same else '**other bytes**'} |"
                        f" {took:.0f} | {(peak[0] - resting) / 2**20:.0f} |"
                    )
        finally:
            stage.end()
    return "\n".join(lines)


@contextmanager
def sampled(process) -> Iterator[list[int]]:
    """Yield the largest resident memory of a process so far, looked at every 20 ms."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of all files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def wait_for(
    condition: Callable[[], object],
    process: subprocess.Popen | None = None,
    stage: Stage | None = None,
) -> None:
    """Wait for a condition; a process that ends before it is an error."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "nothing happens"
        assert process is None or process.poll() is None, stage and errors_of(stage)
        time.sleep(0.02)


def errors_of(stage: Stage) -> str:
    """Return the last of what the processes of a stage said."""
    return (stage.folder / "errors").read_text()[-3000:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = ", ".join([*FAULTS, "at-once"])
    parser.add_argument("--only", metavar="NAMES", help=f"of these, with commas: {known}")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [*FAULTS, "at-once"]
    if unknown := set(wanted) - {*FAULTS, "at-once"}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected some of {known}")
    rows = [one() for name in wanted if name in FAULTS for one in FAULTS[name]]
    parts = [describe(["zarr", "dask", "distributed", "torch"])]
    if rows:
        head = "| fault | at | bytes of a quiet run | reruns | done twice | in flight | s | |"
        parts.append("\n".join([head, "|---|---|---|---:|---:|---:|---:|---|", *map(str, rows)]))
    if "at-once" in wanted:
        parts.append(at_once())
    text = "\n\n".join(parts)
    print(text)
    if not options.no_file:
        print(file_result("chaos", text))


if __name__ == "__main__":
    main()
