"""The rebuild, before and after: what each journey costs, and what a process costs idle.

    python benchmarks/rebuild.py --against 455252b               # all parts, 5 rounds, filed
    python benchmarks/rebuild.py --against 455252b --smoke       # see that all works
    python benchmarks/rebuild.py --against HEAD~3 --part identity --part io --rounds 9 --no-file

This tree stands beside a revision. Each measurement is a process of its own, and the trees take
turns, so that a slow minute hits both.
Every process first does a small one of its kind, so that imports are not counted; figures are
medians over the rounds, ± half of what they span. Less than ten minutes on two free cores.

unet, identity
    ``vf.predict`` in patches of 96, overlap 1/4, of a sharded volume; ``io`` reads and writes the
    same volume shard by shard with zarr alone, and the share of it is how much of plain reading
    and writing the identity keeps.
exact
    A U-Net of three levels over the whole volume, exactly, in blocks.
stream
    Batches of four patches of 64 from a few volumes, at reuse 4.
graph
    ``vf.map_overlap`` of 22³ blocks, built and optimised; nothing is computed.
idle
    Whole processes, imports counted: ``import volflow``, ``volflow --version``, ``--help``, and one
    that predicts one NIfTI file of 35 x 51 x 35 voxels. ``needed`` imports torch, zarr and
    distributed and runs the same network on the same patch, as any program must.
cases
    65 such files in one loop, from NIfTI to NIfTI, per case; three of them by a process each. The
    network alone takes what ``needed`` says per case. In the first two rounds.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from machine import describe, file_result  # noqa: E402
from rebuild_work import SMOKE, Size, child, cpu_s  # noqa: E402

IDLE = ("needed", "import", "version", "help", "one")
PARTS = ("unet", "identity", "io", "exact", "stream", "graph", "idle", "cases")

Found = dict[str, float]
Runs = dict[str, list[Found]]

COMMANDS = {
    "import": "import volflow",
    "version": "import sys; sys.argv = ['volflow', '--version']; import volflow.cli as c; c.main()",
    "help": "import sys; sys.argv = ['volflow', '--help']; import volflow.cli as c; c.main()",
}


@dataclass(frozen=True)
class Bench:
    """Where the inputs lie, and how large they are."""

    folder: Path
    smoke: bool

    def process(self, tree: Path, *words: str, **environment: str) -> tuple[str, Found]:
        """Run a process on a tree; what it printed, and its wall and CPU seconds."""
        before, began = cpu_s(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(tree), **environment}, cwd=self.folder,
        )  # fmt: skip
        used = {"wall_s": time.perf_counter() - began, "cpu_s": cpu_s() - before}
        if done.returncode and "--version" not in words[-1]:  # which older trees refuse
            raise SystemExit(f"{' '.join(words)} on {tree} failed:\n{done.stderr[-3000:]}")
        return done.stdout, used

    def ours(self, tree: Path, part: str, **environment: str) -> tuple[str, Found]:
        smoke = ["--smoke"] if self.smoke else []
        words = (__file__, "--child", part, str(self.folder), *smoke)
        return self.process(tree, *words, **environment)

    def measure(self, part: str, tree: Path) -> dict[str, Found]:
        """The figures of a part, by row."""
        for path in self.folder.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(self.folder / "small.zarr", ignore_errors=True)
        shutil.rmtree(self.folder / "small.zarr.volflow", ignore_errors=True)
        if part == "idle":
            return {f"idle: {name}": self.idle(name, tree) for name in IDLE}
        text, _ = self.ours(tree, part)
        found = {part: json.loads(text.splitlines()[-1])}
        if part == "cases":
            each = [self.ours(tree, "one", CASE=str(number))[1] for number in range(3)]
            found["cases: a process each"] = medians(each)
        return found

    def idle(self, name: str, tree: Path) -> Found:
        if name in COMMANDS:
            return self.process(tree, "-c", COMMANDS[name])[1]
        return self.ours(tree, name)[1]


def medians(runs: list[Found]) -> Found:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def spread(runs: list[Found], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{statistics.median(values):.2f} ± {(max(values) - min(values)) / 2:.2f}"


def table(before: Runs, after: Runs) -> list[str]:
    lines = [
        "| | wall s before | after | after / before | CPU s before | after | after / before |",
        "|---|---|---|---|---|---|---|",
    ]
    for row, runs in after.items():
        cells = [row]
        for key in ("wall_s", "cpu_s"):
            old, new = medians(before[row])[key], medians(runs)[key]
            cells += [spread(before[row], key), spread(runs, key), f"{new / old:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def remarks(before: Runs, after: Runs) -> list[str]:
    """What follows from several rows."""
    lines = []
    for name, runs in (("before", before), ("after", after)):
        known = {row: medians(found) for row, found in runs.items()}
        if {"identity", "io"} <= known.keys():
            share = known["io"]["wall_s"] / known["identity"]["wall_s"]
            lines.append(f"- {name}: the identity runs at {share:.2f} of plain read-and-write")
        if "idle: one" in known:
            more = known["idle: one"]["cpu_s"] - known["idle: needed"]["cpu_s"]
            lines.append(f"- {name}: a process of one case takes {more:.2f} CPU s beyond needed")
        if "graph" in known:
            lines.append(f"- {name}: the graph has {known['graph']['tasks']:,.0f} tasks")
    return lines


def compare(bench: Bench, trees: dict[str, Path], parts: list[str], rounds: int) -> list[str]:
    """All parts on both trees, in turns."""
    bench.ours(trees["after"], "make", PARTS=",".join(parts))
    runs: dict[str, Runs] = {name: {} for name in trees}
    for number in range(rounds):
        order = list(trees) if number % 2 == 0 else list(trees)[::-1]
        for part in parts:
            if part == "cases" and number > 1:
                continue
            for name in order:
                for row, found in bench.measure(part, trees[name]).items():
                    runs[name].setdefault(row, []).append(found)
                    print(f"{number} {row} {name} {found}", file=sys.stderr, flush=True)
    return [*table(runs["before"], runs["after"]), "", *remarks(runs["before"], runs["after"])]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--against", metavar="REV", help="the revision that stands beside it")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="one round of next to nothing")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.child:
        part, folder = options.child
        child(part, Path(folder), SMOKE if options.smoke else Size())
        return
    if not options.against:
        parser.error("--against REV is missing: the revision to compare with")
    # What lies in the root must not hide the tree that PYTHONPATH names, so it comes last.
    sys.path.append(str(HERE.parent))
    from tests.house.revisions import package_of

    parts = options.part or list(PARTS)
    rounds = 1 if options.smoke else options.rounds
    with (
        package_of(options.against) as before,
        tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder,
        tempfile.TemporaryDirectory() as after,
    ):
        shutil.copytree(HERE.parent / "volflow", f"{after}/volflow")
        trees = {"before": before, "after": Path(after)}
        for tree in trees.values():
            compileall.compile_dir(tree, quiet=2)
        lines = compare(Bench(Path(folder), options.smoke), trees, parts, rounds)
    head = describe(["torch", "zarr", "dask", "distributed"])
    told = f"before: {options.against}; {rounds} rounds; seconds, medians ± half the span"
    text = "\n".join([head, "", told, "", *lines])
    print(text)
    if not (options.smoke or options.no_file or options.part):
        file_result("rebuild", text)


if __name__ == "__main__":
    main()
