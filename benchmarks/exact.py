"""Exact inference beside the whole volume in one forward, and beside blended patches.

    python benchmarks/exact.py                                  # the trials below; result filed
    python benchmarks/exact.py --nets unet3,meshnet --sides 192,256 --memory 2GiB --repeats 3
    python benchmarks/exact.py --nets unet3-instance --sides 384

Networks with random weights on smooth noise in float32, stored once as a sharded OME-Zarr:

- ``unet3``, ``unet4``: house U-Nets of 3 and 4 levels, 16 channels at the finest, batch norms;
- ``meshnet``, ``meshnet21``: ten dilated convolutions of 5 and of 21 channels;
- ``unet3-instance``: with instance norms, whose statistics are the whole volume's. Exact as
  planned stands beside exact with nothing kept between passes (``recomputed``).

Methods: ``whole`` is one forward, where an estimate says that it fits 60 % of memory; ``exact`` is
``vf.predict(blend="exact")``; ``volflow`` and ``monai`` blend patches of 96 by a Gaussian, one at a
time, at an overlap of 1/4 or 1/2. ``whole`` and ``monai`` start from an array in memory and leave
one there, counted in their memory; volflow reads and writes OME-Zarr.

Every run is a fresh process and methods are interleaved. Wall and CPU seconds count from after the
imports, a small forward and a small volume; memory is the peak of resident memory above what it
was then, input and result included. ``off`` is the largest difference from ``whole`` (from
``exact`` where that does not fit). Sides by default suit MONAI: no patch is moved at the border, or
at one overlap only. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from inference import status  # noqa: E402
from machine import describe, file_result  # noqa: E402

PATCH = 96
METHODS = ("whole", "exact", "volflow 0.25", "monai 0.25", "monai 0.5")
UNLESS_LITTLE = tuple(m for m in METHODS if m != "volflow 0.25")  # it is refused such memory
OF_INSTANCE = ("exact", "recomputed")
WHOLE_SHARE = 0.6
GOALS = {"monai 0.5": 0.45, "monai 0.25": 1.0}
GOAL_OF_WHOLE = 1.4

Row = dict[str, float]


@dataclass(frozen=True)
class Trial:
    """One network on one volume."""

    net: str
    side: int
    memory: str
    repeats: int = 1
    methods: tuple[str, ...] = METHODS


# Less than 25 minutes on two cores. Memory is such that all are cut into blocks.
TRIALS = (
    Trial("unet3", 240, "1GiB", 2),
    Trial("unet3", 192, "1GiB", 1, ("exact",)),
    Trial("unet3", 384, "1GiB", 1, ("exact",)),
    Trial("unet4", 168, "768MiB"),
    Trial("meshnet", 168, "192MiB", 1, UNLESS_LITTLE),
    Trial("meshnet21", 168, "512MiB", 1, UNLESS_LITTLE),
    Trial("unet3-instance", 256, "1GiB", 1, OF_INSTANCE),
)


def make_model(net: str):
    import torch
    from torch import nn

    from volflow.model.unet import UNet

    torch.manual_seed(0)
    features = (16, 32, 64, 128)
    if net.startswith("unet"):
        norm = "instance" if net.endswith("instance") else "batch"
        model: nn.Module = UNet(1, 3, features=features[: int(net[4])], norm=norm)
    else:
        layers: list[nn.Module] = []
        before, channels = 1, int(net.removeprefix("meshnet") or 5)
        for step in (1, 2, 4, 8, 16, 8, 4, 2, 1):
            layers += [nn.Conv3d(before, channels, 3, padding=step, dilation=step), nn.ReLU()]
            before = channels
        model = nn.Sequential(*layers, nn.Conv3d(channels, 3, 1))
    for layer in model.modules():
        if isinstance(layer, nn.Conv3d):  # else what is far away fades before it is seen
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model.eval()


def make_scan(path: Path, side: int) -> None:
    import torch

    from volflow.geometry.roi import Roi
    from volflow.store.create import create
    from volflow.store.meta import Meta, VolumeSpec

    torch.manual_seed(1)
    coarse = torch.randn(1, 1, *(side // 8,) * 3)
    noise = torch.nn.functional.interpolate(coarse, (side,) * 3, mode="trilinear")[0, 0]
    noise += 0.1 * torch.randn(side, side, side)
    volume = create(path, VolumeSpec.of((side,) * 3, "float32", Meta()))
    step = (volume.shards or volume.chunks)[0]
    for z in range(0, side, step):
        stop = min(side, z + step)
        volume.write(Roi((z, 0, 0), (stop, side, side)), noise[z:stop].numpy())


def scores_of(method: str, model, scan: str, out: str, memory: str):
    """Run a method; its scores ``CZYX``, as an array or a volume."""
    import torch

    import volflow as vf

    name, *overlap = method.split()
    if name == "recomputed":
        import volflow.infer.exact.choose

        assert hasattr(volflow.infer.exact.choose, "SCRATCH_SHARE")
        volflow.infer.exact.choose.SCRATCH_SHARE = 0.0
    options = {"memory": memory, "progress": False}
    if name in OF_INSTANCE:
        return vf.predict(scan, model, out, blend="exact", **options)
    if name == "volflow":
        return vf.predict(
            scan, model, out, patch=PATCH, overlap=float(overlap[0]), batch_size=1, **options
        )
    image = torch.from_numpy(vf.open(scan)[:])[None, None]
    with torch.inference_mode():
        if name == "whole":
            return model(image)[0].numpy()
        from monai.inferers import sliding_window_inference

        return sliding_window_inference(
            image, (PATCH,) * 3, 1, model, overlap=float(overlap[0]), mode="gaussian"
        )[0].numpy()


def child(method: str, net: str, folder: str, memory: str) -> None:
    """One measured run, in a process of its own; what it gives is compared when time is taken."""
    warnings.simplefilter("ignore")
    import numpy as np
    import torch

    import volflow as vf
    from volflow.infer.predict import plan_predict

    if method.startswith("monai"):
        import monai.inferers  # noqa: F401

    scan, out = f"{folder}/scan.zarr", f"{folder}/out.zarr"
    model = make_model(net)
    with torch.inference_mode():
        model(torch.zeros(1, 1, 32, 32, 32))
    if method.startswith(("volflow", *OF_INSTANCE)):  # what is imported when it is first needed
        with tempfile.TemporaryDirectory() as small:
            plain = torch.nn.Conv3d(1, 1, 3, padding=1).eval()
            options = {"patch": 16} if method.startswith("volflow") else {"blend": "exact"}
            image = np.zeros((16, 16, 16), "float32")
            vf.predict(image, plain, f"{small}/out.zarr", progress=False, **options)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # lest what is freed here is used there and not counted
    Path("/proc/self/clear_refs").write_text("5")
    resident = status("VmRSS")
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    scores = scores_of(method, model, scan, out, memory)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    found = {
        "wall_s": wall,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "growth_bytes": status("VmHWM") - resident,
    }
    reference = Path(folder, "reference.npy")
    if not reference.exists():
        np.save(reference, scores[:])
    wanted = np.load(reference, mmap_mode="r")
    off = max(float(np.abs(a - b).max()) for a, b in zip(scores[:], wanted, strict=True))
    found |= {"off": off, "off_of_span": off / max(float(np.ptp(wanted)), 1e-30)}
    if method in OF_INSTANCE:  # of the run that is done, which its journal knows
        plan = plan_predict(scan, model, out, blend="exact", memory=memory)
        passes, computed = re.findall(r"[\d.]+", dict(plan.facts)["passes"])[:2]
        found |= {"passes": int(passes), "computed": float(computed)}
    print(json.dumps(found))


def measure(method: str, trial: Trial, folder: Path) -> Row:
    for path in (folder / "out.zarr", folder / "out.zarr.volflow"):
        shutil.rmtree(path, ignore_errors=True)
    words = [method, trial.net, str(folder), trial.memory]
    command = [sys.executable, __file__, "--child", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(f"{method} {trial} failed with {done.returncode}")
    row: Row = json.loads(done.stdout.splitlines()[-1])
    print(f"{trial.net} {trial.side} {method} {row}", file=sys.stderr, flush=True)
    return row


def fits_whole(trial: Trial) -> bool:
    """Whether one forward of the whole takes less than a share of memory, by an estimate."""
    from volflow.partition.reach import halo_of

    sizes = (trial.side,) * 3
    needs = halo_of(make_model(trial.net), 1, sizes).activation_bytes(sizes)
    return needs < WHOLE_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def run(trial: Trial) -> dict[str, Row]:
    """Medians by method."""
    methods = [m for m in trial.methods if m != "whole" or fits_whole(trial)]
    rows: dict[str, list[Row]] = {m: [] for m in methods}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        make_scan(folder / "scan.zarr", trial.side)
        for _ in range(trial.repeats):
            for method in methods:
                rows[method].append(measure(method, trial, folder))
    return {
        m: {key: statistics.median(row[key] for row in found) for key in found[0]}
        | {"spread_s": max(r["wall_s"] for r in found) - min(r["wall_s"] for r in found)}
        for m, found in rows.items()
    }


def table(trial: Trial, rows: dict[str, Row]) -> str:
    reference = "whole" if "whole" in rows else "exact"
    lines = [
        f"### {trial.net}, {trial.side}³, memory {trial.memory}, median of {trial.repeats}",
        "",
        "| method | wall s | CPU s | growth MiB | passes | computed | off | off / span |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, row in rows.items():
        exact = f"{row['passes']:.0f} | {row['computed']:.2f}" if "passes" in row else "| "
        off = f"{row['off']:.2g} | {row['off_of_span']:.2g}"
        lines.append(
            f"| {method} | {row['wall_s']:.2f} ± {row['spread_s'] / 2:.2f} | {row['cpu_s']:.2f} |"
            f" {row['growth_bytes'] / 2**20:.0f} | {exact} |"
            f" {'reference |' if method == reference else off} |"
        )
    if trial.methods != ("exact",) and "whole" in trial.methods and reference != "whole":
        lines += ["", f"whole: not run, over {WHOLE_SHARE:.0%} of memory by an estimate"]
    return "\n".join([*lines, *goals(rows)])


def goals(rows: dict[str, Row]) -> list[str]:
    """The ratios that were aimed at, as lines of a list."""
    if "exact" not in rows:
        return []
    exact, lines = rows["exact"], []
    for rival, goal in GOALS.items():
        if rival in rows:
            lines.append(judged(f"exact / {rival}", exact["wall_s"] / rows[rival]["wall_s"], goal))
    if "whole" in rows:
        for name, key in (("wall", "wall_s"), ("CPU", "cpu_s")):
            ratio = exact[key] / rows["whole"][key]
            lines.append(judged(f"exact / whole in {name}", ratio, GOAL_OF_WHOLE))
    if "recomputed" in rows:
        ratio = exact["wall_s"] / rows["recomputed"]["wall_s"]
        lines.append(f"- exact / recomputed: {ratio:.2f}")
    return ["", *lines] if lines else []


def judged(name: str, ratio: float, goal: float) -> str:
    return f"- {name}: {ratio:.2f}, goal ≤ {goal:g} {'met' if ratio <= goal else 'missed'}"


def flatness(results: dict[Trial, dict[str, Row]]) -> str:
    """Peak memory of exact inference as the volume grows, where memory is the same."""
    by_kind: dict[tuple[str, str], dict[int, float]] = {}
    for trial, rows in results.items():
        if "exact" in rows:
            growth = rows["exact"]["growth_bytes"] / 2**20
            by_kind.setdefault((trial.net, trial.memory), {})[trial.side] = growth
    lines = [
        f"- {net}, memory {memory}: "
        + ", ".join(f"{growth:.0f} MiB at {side}³" for side, growth in sorted(grown.items()))
        for (net, memory), grown in by_kind.items()
        if len(grown) > 1
    ]
    return "\n".join(["### Peak memory of exact as the volume grows", "", *lines]) if lines else ""


def asked(options: argparse.Namespace) -> tuple[Trial, ...]:
    """The trials by default, or those of the nets and sides that were named."""
    trials = TRIALS
    if options.nets or options.sides:
        nets = (options.nets or "unet3,unet4,meshnet,unet3-instance").split(",")
        sides = [int(side) for side in (options.sides or "192,256,384").split(",")]
        trials = tuple(
            Trial(net, side, "2GiB", 3, OF_INSTANCE if net.endswith("instance") else METHODS)
            for net in nets
            for side in sides
        )
    if any(trial.side % 8 for trial in trials):
        raise SystemExit("sides must be multiples of 8")
    if options.methods:
        trials = tuple(replace(t, methods=tuple(options.methods.split(","))) for t in trials)
    for name in ("memory", "repeats"):
        if getattr(options, name):
            trials = tuple(replace(trial, **{name: getattr(options, name)}) for trial in trials)
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--nets", help="of those above, with commas between")
    parser.add_argument("--sides", help="voxels per axis, with commas between; multiples of 8")
    parser.add_argument("--memory", help="of volflow; 2GiB where nets or sides are named")
    parser.add_argument("--repeats", type=int, help="3 where nets or sides are named")
    parser.add_argument("--methods", help="of those above, with commas between")
    parser.add_argument("--out", type=Path, help="write here instead of benchmarks/results")
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    results: dict[Trial, dict[str, Row]] = {}
    for trial in asked(options):
        results[trial] = run(trial)
        print(table(trial, results[trial]), file=sys.stderr, flush=True)
    parts = [describe(["torch", "monai", "zarr"])]
    parts += [table(trial, rows) for trial, rows in results.items()]
    text = "\n\n".join(filter(None, [*parts, flatness(results)]))
    print(text)
    if options.out:
        options.out.write_text(f"# exact\n\n{text}\n")
    else:
        file_result("exact", text)


if __name__ == "__main__":
    main()
