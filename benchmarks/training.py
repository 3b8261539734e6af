"""Training on whole volumes: out of core beside its plan and plain autograd, and over processes.

    python benchmarks/training.py                        # all parts; goes on where it was stopped
    python benchmarks/training.py --part sizes --sides 128,256
    python benchmarks/training.py --part ranks --again   # measured anew
    python benchmarks/training.py --small                # next to nothing, to see that all works

sizes
    The 3-D U-Net of Hou et al. 2019 (4 levels, 32 filters at the finest, batch norms, dropout):
    one full step at 128³ to 512³ in 4 GiB, image and labels on disk, float32, cross-entropy and
    Dice; beside it plain autograd and ``torch.utils.checkpoint`` per block of the network, where
    the growth that they had at the size before says that they fit. ``bound`` is three forwards at
    the best rate that the convolution with the most operations has here.
plane
    The same for a 2-D U-Net with batch norms, on planes of up to 16 384², beside plain autograd.
ranks
    What 2 and 4 processes keep between forward and backward, of what plain autograd saves; what
    they send; steps of two processes with a thread each beside one with two threads, in turns; and
    what larger volumes would need, projected.
float32
    Errors of gradients against float64, of steps out of core and of plain autograd: the worst
    tensor's, by its own norm, and that of all together; the worst of three seeds. With ReLUs and
    maxima, and without such kinks.

Memory is the growth of resident memory over what it was before the step, files that are mapped
included; ``of it private`` leaves those out. It is sampled every 50 ms, and its peak is the
kernel's. ``written`` is what was written to files, ``asked`` what was read from the image, from
what is kept and from gradients on disk, most of which the page cache serves; what the disk itself
read and wrote stands beside. Planning is not counted.

Every measurement is a process of its own, and what is done is kept in ``training_*.json`` beside
the result, from which the tables are made. A step out of core that is interrupted goes on when the
same command is given again; its seconds and bytes then are those of all attempts, but for the
last second before each was stopped. ``--folder`` needs the room that ``plan`` says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import describe, file_result  # noqa: E402
from training_tables import tables  # noqa: E402
from training_watch import Row, Stopped, free_memory_bytes, load, save, watched  # noqa: E402

PARTS = ("sizes", "plane", "ranks", "float32")
# Share of the memory that is free which plain autograd may take, as it took at the size before.
PLAIN_SHARE = 0.9


@dataclass(frozen=True)
class Case:
    """One measurement: what, of which part, and how."""

    part: str
    kind: str
    options: dict[str, Any]

    @property
    def key(self) -> str:
        return f"{self.part} {self.kind} {json.dumps(self.options)}"

    @property
    def name(self) -> str:
        """A name for its folder; a step that is interrupted finds it again."""
        words = (
            "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            for value in self.options.values()
        )
        return "-".join([self.part, self.kind, *words])


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    features: tuple[int, ...] = (32, 64, 128, 256)
    sides: tuple[int, ...] = (128, 256, 384, 512)
    memory: str = "4GiB"
    plane_features: tuple[int, ...] = (16, 32, 64)
    planes: tuple[int, ...] = (2048, 4096, 8192, 16384)
    plane_memory: str = "512MiB"
    rate_side: int = 64
    ranks_side: int = 96
    norms: tuple[str, ...] = ("batch", "instance")
    counts: tuple[int, ...] = (2, 4)
    rounds: int = 5
    projected: tuple[int, ...] = (512, 1024)
    precise_features: tuple[int, ...] = (8, 16, 32)
    precise_norms: tuple[str, ...] = ("none", "batch", "instance", "group")
    precise_side: int = 64
    precise_block: int = 16
    seeds: int = 3
    block: int | None = None  # of steps out of core; by default as planned


SMALL = Scale(
    (4, 8), (24,), "1GiB", (4, 8), (64,), "1GiB", 16, 16, ("batch",), (2,), 1, (64,), (4, 8),
    ("batch",), 16, 8, 1, 16,
)  # fmt: skip


def cases(scale: Scale, threads: int) -> Iterator[Case]:
    """All measurements, in their order."""
    given = {"net": "batch", "features": scale.features}
    yield from _steps("sizes", given, [[n] * 3 for n in scale.sides], scale, threads)
    given = {"net": "plane", "features": scale.plane_features}
    yield from _steps("plane", given, [[n] * 2 for n in scale.planes], scale, threads)
    for norm in scale.norms:
        net = {"norm": norm, "features": scale.features}
        for count in scale.counts:
            yield Case(
                "ranks",
                "kept",
                {**net, "side": scale.ranks_side, "count": count, "threads": threads},
            )
        timed = {**net, "side": scale.ranks_side, "count": 2, "rounds": scale.rounds}
        yield Case("ranks", "speed", {**timed, "threads": threads})
        for side in scale.projected:
            options = {**net, "side": side, "counts": [1, 2, 4, 8, 16]}
            yield Case("ranks", "projection", options)
    for norm in scale.precise_norms:
        options = {"norm": norm, "features": scale.precise_features, "side": scale.precise_side}
        options |= {"block": scale.precise_block, "seeds": scale.seeds}
        for kinks in (True, False):
            yield Case("float32", "precision", {**options, "kinks": kinks})


def _steps(
    part: str, given: Row, sizes: Sequence[list[int]], scale: Scale, threads: int
) -> Iterator[Case]:
    """Steps over volumes of growing size."""
    with_threads = {**given, "threads": threads}
    memory = scale.memory if part == "sizes" else scale.plane_memory
    for sides in sizes:
        yield Case(part, "rate", {**with_threads, "sides": sides, "side": scale.rate_side})
        for checkpointed in (False, True) if part == "sizes" else (False,):
            options = {**with_threads, "sides": sides, "checkpointed": checkpointed}
            yield Case(part, "in_memory", options)
        options = {**with_threads, "sides": sides, "memory": memory, "block": scale.block}
        yield Case(part, "step", options)


@dataclass(frozen=True)
class Bench:
    """Where measurements are taken and kept."""

    folder: Path
    store: Path

    def rows(self) -> dict[str, Row]:
        """What was measured, by measurement."""
        found: dict[str, Row] = load(self.store, {})
        return found

    def measure(self, case: Case) -> Row:
        """Measure, and keep what was found; failures are kept, too, and tried again next time."""
        refusal = self._refusal(case)
        row: Row = {"case": {"part": case.part, "kind": case.kind, **case.options}}
        place = self.folder / case.name
        if refusal:
            row["refused"] = refusal
        else:
            try:
                self._made(case)
                row |= watched(command(case.kind, case.options, place), place)
            except Stopped as error:
                row["failed"] = str(error)
        row |= {"commit": commit(), "at": f"{datetime.datetime.now(tz=datetime.UTC):%F %R} UTC"}
        save(self.store, {**self.rows(), case.key: row})
        if "failed" not in row:
            shutil.rmtree(place, ignore_errors=True)
        return row

    def _made(self, case: Case) -> None:
        """Make the image and the labels of a measurement, in a process that is not measured."""
        if "sides" not in case.options or case.kind == "rate":
            return
        sides, place = case.options["sides"], self.folder / "make"
        if not (self.folder / f"labels{'x'.join(map(str, sides))}.zarr").exists():
            watched(command("make", {"sides": sides}, place), place)

    def _refusal(self, case: Case) -> str:
        """Say why a step in memory cannot be taken; empty if it can, as far as is known."""
        if case.kind != "in_memory":
            return ""
        voxels, before = volume(case.options["sides"]), list[tuple[int, Row]]()
        for row in self.rows().values():
            other = {**row["case"], "sides": None}
            mine = {"part": case.part, "kind": case.kind, **case.options, "sides": None}
            if json.dumps(other) == json.dumps(mine) and volume(row["case"]["sides"]) < voxels:
                before.append((volume(row["case"]["sides"]), row))
        if not before:
            return ""
        size, row = max(before, key=lambda one: one[0])
        if "growth_bytes" not in row:
            return "as at the size before"
        needs = row["growth_bytes"] * voxels / size
        free = PLAIN_SHARE * free_memory_bytes()
        if needs <= free:
            return ""
        return f"would take {needs / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB may be used"


def command(kind: str, options: Row, place: Path) -> list[str]:
    """The command of a measurement."""
    script = str(HERE / "training_cases.py")
    return [sys.executable, script, kind, json.dumps(options), str(place)]


def volume(sides: Sequence[int]) -> int:
    """The number of voxels."""
    found = 1
    for side in sides:
        found *= side
    return found


def commit() -> str:
    """The revision of this tree."""
    words = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def report(rows: dict[str, Row], wanted: Sequence[Case]) -> str:
    """The result: hardware, versions, when, of which revision and by which command; then tables."""
    mine = [rows[case.key] for case in wanted if case.key in rows]
    taken = [f"{row['commit']} ({row['at']})" for row in mine]
    head = [
        describe(["torch", "zarr", "dask", "distributed"]),
        "",
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        f"measured at {', '.join(dict.fromkeys(one.split()[0] for one in taken))}, from"
        f" {min((row['at'] for row in mine), default='never')} to"
        f" {max((row['at'] for row in mine), default='never')};"
        f" {len(mine)} of {len(wanted)} measurements are done",
    ]
    return "\n".join([*head, "", tables(mine)])


def asked(options: argparse.Namespace) -> list[Case]:
    """The measurements that were asked for."""
    scale = SMALL if options.small else Scale()
    parts = options.part or PARTS
    found = [case for case in cases(scale, options.threads) if case.part in parts]
    if options.sides:
        sides = [int(side) for side in options.sides.split(",")]
        found = [case for case in found if case.options.get("sides", sides)[0] in sides]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--sides", help="only volumes of these sides, with commas between")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="next to nothing; not filed")
    parser.add_argument("--again", action="store_true", help="measure anew what is done")
    parser.add_argument("--folder", type=Path, help="for images and scratch; kept if interrupted")
    parser.add_argument("--out", type=Path, help="folder of the result, not benchmarks/results")
    options = parser.parse_args()
    kept = Path(tempfile.gettempdir()) / ("training-small" if options.small else "training")
    folder = options.folder or kept
    folder.mkdir(parents=True, exist_ok=True)
    out = options.out or (Path.cwd() if options.small else HERE / "results")
    bench = Bench(folder, out / f"training_{os.cpu_count()}cpu.json")
    wanted, failed = asked(options), 0
    for case in wanted:
        before = bench.rows().get(case.key, {"failed": "not yet"})
        if options.again or "failed" in before:
            row = bench.measure(case)
            failed += "failed" in row
            print(f"{case.name}: {json.dumps(row)}", file=sys.stderr, flush=True)
    every = [case for case in cases(SMALL if options.small else Scale(), options.threads)]
    text = report(bench.rows(), every)
    print(text)
    if options.out or options.small:
        (out / "training.md").write_text(f"# training\n\n{text}\n")
    else:
        file_result("training", text)
    if not any(folder.glob("*/scratch")):  # else something is left that will go on
        for path in (*folder.glob("image*.zarr"), *folder.glob("labels*.zarr"), folder / "make"):
            shutil.rmtree(path, ignore_errors=True)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
