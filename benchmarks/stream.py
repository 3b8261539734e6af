"""Random training patches from stored volumes: volflow beside what people use, and its goals.

    python benchmarks/stream.py --zarrdataset zds/bin/python    # all of it, some 45 min; filed
    python benchmarks/stream.py --quick                         # everything once, on little data
    python benchmarks/stream.py --setting 64,64 --method naive --method "volflow 4"

Every run is a fresh process; methods are interleaved, so that a slow minute hits them all. All read
the same cases, uint16 of 384³ in shards of 256³, zstd with bitshuffle, from the page cache; a few
volumes are stored and linked to often enough that the cases hold several times what volflow's
window does. tensorstore's cache may hold as much as that window. Rates count from when a method has
got going, to the end of its cycle where it works in fills. CPU seconds are of all its threads; torch
has one, since those that wait for one another spin. Memory is the peak of resident memory above
what it was after the imports.

Reuse is voxels emitted per voxel decoded, halo included. It is what makes streams fast, so rates are
fair between equal ones only; ``reuse_learning.py`` shows what it costs in learning. TorchIO and
MONAI load whole volumes, from the same Zarr; "resident" ones load nothing, hold one volume in memory
and so have no reuse. A chunk and patch of 64 let zarrdataset, whose patches lie on a grid, decode
each chunk for one patch. Needs the extras ``peers`` and ``fast``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import stream_extra  # noqa: E402
from machine import describe, file_result  # noqa: E402
from stream_peers import EQUAL, METHODS, Setup, run, show  # noqa: E402

ZARRDATASET = ("zarrdataset shuffled", "zarrdataset drained")
SETTINGS = ((64, 64), (64, 128), (32, 64))  # patch, chunk
FEW = ("naive", "tensorstore", "volflow 1", "volflow 4", "volflow 16", "ram")  # of the lesser two
SHARD, DISTINCT = 256, 4

Found = dict[str, float]


@dataclass(frozen=True)
class Goal:
    """So many times the rate of another method."""

    ours: str
    theirs: str
    times: float

    def row(self, setting: tuple[int, int], middle: dict[str, Found]) -> str | None:
        if not {self.ours, self.theirs} <= middle.keys():
            return None
        ours, theirs = middle[self.ours], middle[self.theirs]
        cpu, wall = (ours[k] / theirs[k] for k in ("per_cpu_s", "per_s"))
        verdict = "met" if min(cpu, wall) >= self.times else "**missed**"
        return (
            f"| {setting[0]} / {setting[1]} | {self.ours} | {self.theirs} | {self.times:g} × |"
            f" {cpu:.2f} × | {wall:.2f} × | {verdict} |"
        )


GOALS = {
    (64, 64): [
        Goal("volflow 1", "naive", 2.5),
        Goal("volflow 4", "naive", 8),
        Goal("volflow 16", "naive", 25),
        Goal("volflow 1", "tensorstore", 1.5),
        Goal("volflow 4", "tensorstore", 4),
        Goal(EQUAL, "torchio 256", 1.5),
        Goal("volflow 4", "torchio 256", 4),
        Goal("volflow 4", "zarrdataset shuffled", 1.2),
        Goal("volflow 4", "monai resident", 0.4),
        Goal("volflow 4 labels", "monai labels 16", 20),
    ],
    (64, 128): [Goal("volflow 4", "naive", 8), Goal("volflow 4", "zarrdataset shuffled", 2)],
    (32, 64): [Goal("volflow 4", "naive", 20)],
}


def layer(side: int, low: int, high: int, seed: int) -> np.ndarray:
    """Smooth structures with noise, 16 bit, as a CT has."""
    z, y, x = np.ogrid[low:high, :side, :side]
    wave = 1000 + 400 * (np.sin(z / 17) * np.sin(y / 23) * np.sin(x / 29)).astype("float32")
    noise = np.random.default_rng((seed, low)).standard_normal(wave.shape, "float32")
    return (wave + 12 * noise).astype("uint16")


def create(path: Path, kind: str, side: int, chunk: int):
    import numcodecs
    import zarr

    if kind == "v2":
        layout = {"compressors": numcodecs.Blosc("zstd", 1, numcodecs.Blosc.BITSHUFFLE)}
    else:
        codec = zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
        layout = {"compressors": codec, "shards": (SHARD,) * 3}
    return zarr.create_array(
        path, shape=(side,) * 3, dtype="uint8" if kind == "label" else "uint16",
        chunks=(chunk,) * 3, zarr_format=2 if kind == "v2" else 3, **layout,
    )  # fmt: skip


def make(folder: Path, side: int, chunk: int, cases: int, kinds: Iterable[str]) -> None:
    """``image``, ``label`` and ``v2``, each ``cases`` times; all but a few are linked copies."""
    folder.mkdir(parents=True)
    for number in range(cases):
        paths = {kind: folder / f"{kind}{number}.zarr" for kind in kinds}
        if number >= DISTINCT:
            for kind, path in paths.items():
                first = folder / f"{kind}{number % DISTINCT}.zarr"
                shutil.copytree(first, path, copy_function=os.link)
            continue
        arrays = {kind: create(path, kind, side, chunk) for kind, path in paths.items()}
        for low in range(0, side, SHARD):
            data = layer(side, low, min(side, low + SHARD), number)
            for kind, array in arrays.items():
                array[low : low + SHARD] = data > 1150 if kind == "label" else data


def listed(folder: Path, kind: str, cases: int) -> list[str]:
    return [str(folder / f"{kind}{n}.zarr") for n in range(cases)]


def child(command: list[str]) -> Found:
    # Threads of torch spin while they wait for one another: patches are too small for them.
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one)
    if done.returncode:
        raise SystemExit(f"{command[1:4]} failed\n{done.stderr[-3000:]}")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, setup: Setup, v2: list[str], zarrdataset: str | None) -> Found:
    if name in ZARRDATASET:
        script = str(HERE / "stream_zarrdataset.py")
        words = json.dumps(asdict(replace(setup, images=v2, labels=[])))
        return child([str(zarrdataset), script, name.split()[1], words])
    return child([sys.executable, __file__, "--child", name, json.dumps(asdict(setup))])


def compare(
    options: argparse.Namespace, setting: tuple[int, int], folder: Path
) -> tuple[dict[str, list[Found]], int]:
    """All runs of each method; bytes of what volflow held."""
    patch, chunk = setting
    wanted = methods_of(options, setting)
    kinds = ["image", "label"] + ["v2"] * any(name in ZARRDATASET for name in wanted)
    make(folder, options.side, chunk, options.cases, kinds)
    runs: dict[str, list[Found]] = {name: [] for name in wanted}
    held = 256 << 20
    images, labels, v2 = (listed(folder, k, options.cases) for k in ("image", "label", "v2"))
    for number in range(options.rounds):
        setup = Setup(
            images, labels, patch, number, options.seconds / 2, options.seconds, options.memory, held
        )  # fmt: skip
        for name in wanted:
            runs[name].append(measure(name, setup, v2, options.zarrdataset))
            print(f"{setting} {number} {name} {runs[name][-1]}", file=sys.stderr, flush=True)
            if name.startswith("volflow") and "labels" not in name:
                held = int(runs[name][-1]["held_bytes"])
                setup = replace(setup, cache_bytes=held)
    return runs, held


def methods_of(options: argparse.Namespace, setting: tuple[int, int]) -> list[str]:
    """In the order they are run: volflow first, which tells the bytes of its window."""
    names = [*METHODS, *(ZARRDATASET if options.zarrdataset else ())]
    names = [name for name in names if name in (options.method or names)]
    if setting != SETTINGS[0] and not options.method:
        names = [name for name in names if name in (*FEW, *ZARRDATASET)]
    return sorted(names, key=lambda name: not name.startswith("volflow"))


def middle_of(runs: dict[str, list[Found]]) -> dict[str, Found]:
    return {
        name: {key: statistics.median(f[key] for f in found) for key in found[0]}
        for name, found in runs.items()
    }


def table(runs: dict[str, list[Found]], names: list[str]) -> list[str]:
    lines = [
        "| method | reuse | patches / CPU s | × naive | patches / s | × naive | first after s |"
        " growth MiB | held MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    middle = middle_of(runs)
    for name in names:
        row = middle[name]
        cells = [name, "-" if math.isnan(row["reuse"]) else f"{row['reuse']:.2f}"]
        for key in ("per_cpu_s", "per_s"):
            rates = [found[key] for found in runs[name]]
            cells.append(f"{row[key]:,.0f} ± {(max(rates) - min(rates)) / 2:,.0f}")
            times = row[key] / middle["naive"][key] if "naive" in middle else math.nan
            cells.append(f"{times:.1f}")
        held = f"{row['held_bytes'] / 2**20:,.0f}" if row["held_bytes"] else "-"
        cells += [f"{row['first_s']:.2f}", f"{row['growth_bytes'] / 2**20:,.0f}", held]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def report(options: argparse.Namespace, setting: tuple[int, int], runs, held: int) -> list[str]:
    patch, chunk = setting
    whole = options.cases * options.side**3 * 2
    lines = [
        f"### Patch {patch}³, chunk {chunk}³: {options.cases} cases of {options.side}³ uint16"
        f" ({whole / 2**20:,.0f} MiB), cache and window {held / 2**20:,.0f} MiB"
        f" ({held / whole:.0%}), memory {options.memory}, median of {options.rounds}",
        "",
    ]
    equal = [name for name in ("torchio 256", "monai 256", EQUAL) if name in runs]
    if len(equal) > 1:
        lines += ["At equal reuse:", "", *table(runs, equal), "", "All:", ""]
    return [*lines, *table(runs, list(runs)), ""]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--setting", action="append", help="patch,chunk; by default three")
    parser.add_argument("--method", choices=[*METHODS, *ZARRDATASET], action="append")
    parser.add_argument("--zarrdataset", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="of each run, after half as many")
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--quick", action="store_true", help="to see that all works; nothing filed")
    parser.add_argument("--no-file", action="store_true", help="print only")
    parser.add_argument(
        "--only-extra", action="store_true", help="only memory, stalls and start-up"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.side, options.cases = 1, 0.2, 128, 4
        options.setting = options.setting or ["64,64"]
        alike = {"volflow 1 loader", "volflow 16 loader", "torchio resident", *ZARRDATASET[1:]}
        options.method = options.method or sorted({*METHODS, *ZARRDATASET} - alike)
    return options


def main() -> None:
    options = parse()
    if options.child:
        name, words = options.child
        setup = Setup(**json.loads(words))
        extra = stream_extra.CHILDREN.get(name)
        show(extra(setup) if extra else run(name, setup))
        return
    settings = [tuple(map(int, s.split(","))) for s in options.setting or ()] or list(SETTINGS)
    lines = [describe(["zarr", "tensorstore", "torch", "torchio", "monai"]), ""]
    goals = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        for patch, chunk in [] if options.only_extra else settings:
            folder = Path(name, f"{patch}-{chunk}")
            runs, held = compare(options, (patch, chunk), folder)
            shutil.rmtree(folder)
            lines += report(options, (patch, chunk), runs, held)
            middle = middle_of(runs)
            goals += [g.row((patch, chunk), middle) for g in GOALS.get((patch, chunk), ())]
        if options.only_extra or options.quick or not options.method:
            lines += extra_lines(options, Path(name, "extra"))
    lines += [
        "### Goals" + ", of which so little data tells nothing" * options.quick, "",
        "| patch / chunk | ours | theirs | goal | per CPU s | per s | |",
        "|---|---|---|---|---|---|---|",
        *filter(None, goals),
    ]  # fmt: skip
    if not options.zarrdataset:
        lines += ["", "zarrdataset was left out: no interpreter that has it (`--zarrdataset`)."]
    text = "\n".join(lines)
    print(text)
    if not (options.quick or options.no_file or options.method or options.only_extra):
        file_result("stream", text)


def extra_lines(options: argparse.Namespace, folder: Path) -> list[str]:
    """Memory as the volume grows, stalls and start-up: volflow alone."""
    sides = {"small": options.side, "large": 2 * options.side}
    for kind, side in sides.items():
        make(folder / kind, side, 64, 1, ["image"])
    setup = Setup([], [], 64, 0, options.seconds / 2, options.seconds, options.memory, 0)

    def repeat(name: str, kind: str) -> list[Found]:
        one = replace(setup, images=listed(folder / kind, "image", 1))
        words = json.dumps(asdict(one))
        command = [sys.executable, __file__, "--child", name, words]
        return [child(command) for _ in range(options.rounds)]

    grown = {sides[kind]: repeat("volflow 4", kind) for kind in sides}
    stalls = repeat("stall", "large")
    shutil.rmtree(folder)
    return stream_extra.report(grown, stalls, options.memory)


if __name__ == "__main__":
    main()
