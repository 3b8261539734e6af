"""Whether two worker processes do more than one.

    python benchmarks/scaling.py                 # some eight minutes; the result is filed
    python benchmarks/scaling.py --small         # next to nothing, to see that all works; not filed

A U-Net that uses one core, over a long volume on disk, by one worker process and by two; the
workers are started before, and runs of both alternate. Beside it the physical limit: plain forwards
of the same network in one process and in two at once, without volflow, as two cores of a machine
share its memory and often its clock; and what the plan allows, as patches at the seam between two
runs are computed by both workers, and one run may have a layer of patches more than the other. The
two together are what can be had.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import describe, file_result  # noqa: E402

import volflow as vf  # noqa: E402
from volflow.engine.plan import Plan  # noqa: E402
from volflow.infer.patches.runs import last_end  # noqa: E402
from volflow.infer.patches.tiling import patch_count  # noqa: E402
from volflow.infer.patches.writer import tile_of  # noqa: E402

GOAL = "Goal: two over one at least 1.8."


@dataclass(frozen=True)
class Scale:
    """How much is measured: the volume's length, the network, and rounds."""

    length: int = 1536
    features: tuple[int, ...] = (8, 16, 32)
    rounds: int = 3


SMALL = Scale(length=64, features=(4, 8), rounds=1)

ALONE = """
import sys, time, torch
import volflow as vf
torch.set_num_threads(1)
features, count = tuple(map(int, sys.argv[1].split(","))), int(sys.argv[2])
torch.manual_seed(0)
net, x = vf.UNet(1, 3, features=features).eval(), torch.randn(1, 1, 64, 64, 64)
with torch.inference_mode():
    net(x)
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    for _ in range(count):
        net(x)
print(time.perf_counter() - begin)
"""


class OneThread(torch.nn.Module):
    """A network that uses one core, however many its worker has to itself."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.set_num_threads(1)  # until volflow sets it back
        return self.net(x)


def volume(folder: Path, *shape: int) -> str:
    """A volume of noise on disk."""
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return str(vf.write(noise, folder / "noise.zarr", chunk=32, shard=64, progress=False).path)


def forwards(count: int, processes: int, features: tuple[int, ...]) -> float:
    """Forwards a second of so many processes at once, without volflow."""
    given = [sys.executable, "-c", ALONE, ",".join(map(str, features)), str(count)]
    running = [
        subprocess.Popen(given, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for one in running:
        assert one.stdout.readline() == "ready\n"
    for one in running:
        one.stdin.write("go\n")
        one.stdin.flush()
    return sum(count / float(one.communicate()[0]) for one in running)


def by_plan(plan: Plan) -> float:
    """Two over one where nothing but forwards takes time, and two are no slower than one."""
    window = plan.job.window
    tiles = (tile_of(plan.job.grid, window.inputs.frame, run) for run in plan.runs)
    each = [patch_count(window.grid, [[side] for side in tile], crop=False) for tile in tiles]
    return len(window.grid) / last_end(each, 2)


def of_processes(folder: Path, scale: Scale) -> Iterator[str]:
    """The lines of one worker process beside two."""
    torch.manual_seed(0)
    net = OneThread(vf.UNet(1, 3, features=scale.features))
    image = volume(folder, scale.length, 96, 96)
    took: dict[int, list[float]] = {1: [], 2: []}
    plain: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        clients = {n: stack.enter_context(vf.connect(f"processes:{n}")) for n in took}
        given = {
            "patch": 64, "overlap": 0.25, "batch_size": 1, "output": "classes", "memory": "1GiB",
            "overwrite": True,
        }  # fmt: skip
        allowed = by_plan(
            vf.plan_predict(image, net, folder / "out.zarr", cluster=clients[2], **given)
        )
        for turn in range(scale.rounds + 1):  # the first warms
            for count, client in clients.items():
                begin, out = time.perf_counter(), folder / f"out{count}.zarr"
                vf.predict(image, net, out, cluster=client, progress=False, **given)
                found = time.perf_counter() - begin
                if turn:
                    took[count].append(found)
                    plain[count].append(forwards(6, count, scale.features))
                print(f"round {turn}: {count} processes, {found:.2f} s", file=sys.stderr)
    one, two = (statistics.median(took[n]) for n in took)
    ratios = [a / b for a, b in zip(took[1], took[2], strict=True)]
    limits = [b / a for a, b in zip(plain[1], plain[2], strict=True)]
    limit = statistics.median(limits)
    yield (
        "| | one process, s | two, s | ratio of medians | by rounds | plain forwards, two over one |"
        " by the plan | both |"
    )
    yield "|---|---:|---:|---:|---|---:|---:|---:|"
    yield (
        f"| {scale.length} × 96 × 96, U-Net {scale.features}, patch 64³ | {one:.2f} | {two:.2f} |"
        f" {one / two:.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        f" {limit:.2f} ({min(limits):.2f} to {max(limits):.2f}) |"
        f" {allowed:.2f} | {limit * allowed / 2:.2f} |"
    )


def main() -> None:
    """Measure, print and file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="next to nothing; not filed")
    given = parser.parse_args()
    scale = SMALL if given.small else Scale()
    with tempfile.TemporaryDirectory() as folder:
        table = "\n".join(of_processes(Path(folder), scale))
    text = "\n\n".join(
        [
            describe(["dask", "distributed", "torch"]),
            "    python benchmarks/scaling.py",
            GOAL,
            table,
        ]
    )
    print(text)
    if not given.small:
        print(file_result("scaling", text))


if __name__ == "__main__":
    main()
