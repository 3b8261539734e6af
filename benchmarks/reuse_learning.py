"""Does reuse hurt learning? Validation loss against reuse and lanes, beside independent draws.

    python benchmarks/reuse_learning.py                  # some 20 min on two cores; result filed
    python benchmarks/reuse_learning.py --quick          # one seed, few steps; nothing filed
    VOLFLOW_TEST_DATA=folder python benchmarks/reuse_learning.py --data hippocampus

A small U-Net is trained on patches of 16³, in batches of 8, for a fixed number of steps. Weights,
order of patches and batches follow from the seed; only the stream differs: ``random`` draws each
patch by itself from volumes held in memory, ``reuse`` 1, 4 and 16 by a PatchStream that mixes
``lanes`` superchunks. What can hurt is that a batch holds patches of few superchunks, and that few
superchunks are seen at all. So they are small beside the data here, as in volumes far larger:

- ``hippocampus``: Decathlon task 4, 3 classes. A superchunk is a case of some 35 × 50 × 35 voxels;
  every fourth case validates.
- ``mni152``: the T1 template with grey and white matter, 3 classes. Superchunks are held to 32³
  voxels, which makes more than a thousand; the front third of the head validates.

Loss is the cross-entropy over fixed validation patches, the mean of the last three looks. The
difference from ``random`` is taken seed by seed, ± its standard error. Equal time is that of the
quickest setting. Each run has one thread of torch; as many go side by side as there are cores.
Needs the extras ``io`` and ``report``; volumes are looked for in ``VOLFLOW_TEST_DATA``, else in
``../shared/data``.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import describe, file_result  # noqa: E402

import volflow as vf  # noqa: E402
from volflow.model.unet import UNet  # noqa: E402
from volflow.sampling.epoch import superchunks  # noqa: E402

PATCH, BATCH, LOOKS, CLASSES = 16, 8, 10, 3
VALIDATION = 256  # patches
REUSES, LANES = (1, 4, 16), (2, 8, 32)
RANDOM = (0, 0)  # in place of reuse and lanes
COLORS = ("#E69F00", "#009E73", "#0072B2")

Case = dict[str, str]
Cases = tuple[list[Case], list[Case]]  # to train with, to validate with
Setting = tuple[int, int]


@dataclass(frozen=True)
class Look:
    """One look at the validation loss."""

    data: str
    reuse: int
    lanes: int
    as_run: float  # the reuse, of an epoch that may be too short for what was asked
    seed: int
    step: int
    seconds: float
    loss: float


def find(name: str) -> Path:
    base = Path(os.environ.get("VOLFLOW_TEST_DATA", HERE.parents[1] / "shared" / "data"))
    if not (base / name).is_dir():
        raise SystemExit(f"{name} is not at {base}; set VOLFLOW_TEST_DATA")
    return base / name


def read(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj, dtype="float32").transpose()


def store(folder: Path, number: int, image: np.ndarray, label: np.ndarray, chunk: Any) -> Case:
    """As Zarr; the image has mean 0 and deviation 1."""
    from volflow.store.create import create
    from volflow.store.meta import Meta, VolumeSpec

    image = ((image - image.mean()) / image.std()).astype("float32")
    arrays = {"image": (image, Meta()), "label": (label.astype("uint8"), Meta(kind="classes"))}
    case = {}
    for name, (voxels, meta) in arrays.items():
        path = folder / f"{name}{number}.zarr"
        volume = create(path, VolumeSpec.of(voxels.shape, voxels.dtype, meta, chunk=chunk))
        volume.write(vf.Roi((0, 0, 0), voxels.shape), voxels)
        case[name] = str(path)
    return case


def hippocampus(folder: Path, few: bool) -> Cases:
    found = find("hippocampus_msd")
    names = sorted(path.name for path in (found / "images").glob("*.nii.gz"))
    names = [name for name in names if (found / "labels" / name).exists()]
    cases = []
    for number, name in enumerate(names[:24] if few else names):
        image, label = (read(found / kind / name) for kind in ("images", "labels"))
        cases.append(store(folder, number, image, label, image.shape))
    return [c for n, c in enumerate(cases) if n % 4], cases[::4]


def mni152(folder: Path, few: bool) -> Cases:
    found = find("mni152")
    t1, grey, white = (
        read(found / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        for kind in ("t1", "gm", "wm")
    )
    label = np.where(white > 127, 2, np.where(grey > 127, 1, 0))
    # The head is symmetric from left to right: its halves would know each other.
    cut = t1.shape[1] * 2 // 3
    train = store(folder, 0, t1[:, :cut], label[:, :cut], PATCH)
    return [train], [store(folder, 1, t1[:, cut:], label[:, cut:], PATCH)]


DATA = {"hippocampus": hippocampus, "mni152": mni152}


def stream(
    cases: list[Case], patches: int, seed: int, setting: Setting
) -> tuple[Iterator[Any], float]:
    """The batches of one epoch, and its reuse, which is less than asked where it is short."""
    reuse, lanes = setting
    found = vf.PatchStream(
        cases, vf.UniformSampler(PATCH), patches, reuse=reuse, lanes=lanes, seed=seed
    )
    batches = ((b["image"], b["label"][:, 0]) for b in found.loader(batch_size=BATCH))
    return batches, found.plan.reuse


@functools.cache
def voxels(path: str) -> np.ndarray:
    return vf.open(path)[:]


def independent(cases: list[Case], patches: int, seed: int, batch: int = BATCH) -> Iterator[Any]:
    """The same law, every start equally likely, without a stream."""
    images, labels = ([voxels(case[name]) for case in cases] for name in ("image", "label"))
    starts = np.array([[n - PATCH + 1 for n in image.shape] for image in images])
    mass = starts.prod(axis=1) / starts.prod(axis=1).sum()
    rng = np.random.default_rng(seed)
    for _ in range(patches // batch):
        drawn = []
        for number in rng.choice(len(cases), batch, p=mass):
            box = tuple(slice(s, s + PATCH) for s in rng.integers(starts[number]))
            drawn.append((images[number][box][None], labels[number][box].astype("int64")))
        image, label = (np.stack(part) for part in zip(*drawn, strict=True))
        yield torch.from_numpy(image), torch.from_numpy(label)


def train(data: str, cases: Cases, setting: Setting, seed: int, steps: int) -> list[Look]:
    """One run, in a process of its own kind: one thread, small superchunks."""
    torch.set_num_threads(1)
    superchunks.HELD_VOXELS = (2 * PATCH) ** 3
    training, held_out = cases
    torch.manual_seed(seed)
    # On a CPU with so few channels a third faster than the usual layout.
    net = UNet(1, CLASSES, features=(8, 16, 32)).to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.Adam(net.parameters(), 2e-3)
    fixed = list(independent(held_out, VALIDATION if steps > LOOKS else 32, 10**6, batch=32))
    if setting == RANDOM:
        for path in itertools.chain.from_iterable(case.values() for case in training):
            voxels(path)  # in memory before the clock starts
        batches, reuse = independent(training, steps * BATCH, seed), 0.0
    else:
        batches, reuse = stream(training, steps * BATCH, seed, setting)
    looks, spent, began = [], 0.0, time.perf_counter()
    for step, (image, label) in enumerate(batches, 1):
        optimiser.zero_grad()
        loss_of(net, image, label).backward()
        optimiser.step()
        if step % (steps // LOOKS) == 0:
            spent += time.perf_counter() - began
            loss = validate(net, fixed)
            looks.append(Look(data, *setting, reuse, seed, step, spent, loss))
            began = time.perf_counter()
    assert len(looks) == LOOKS
    return looks


def loss_of(net: UNet, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return cross_entropy(net(image.to(memory_format=torch.channels_last_3d)), label)


def validate(net: UNet, fixed: list[Any]) -> float:
    net.eval()
    with torch.inference_mode():
        losses = [float(loss_of(net, image, label)) for image, label in fixed]
    net.train()
    return statistics.fmean(losses)


def last(looks: list[Look]) -> float:
    return statistics.fmean(look.loss for look in looks[-3:])


def at(looks: list[Look], seconds: float) -> float:
    """The loss then, between two looks."""
    return float(np.interp(seconds, [k.seconds for k in looks], [k.loss for k in looks]))


def gather(looks: list[Look]) -> dict[Setting, dict[int, list[Look]]]:
    """By setting and seed."""
    found: dict[Setting, dict[int, list[Look]]] = {}
    for look in looks:
        found.setdefault((look.reuse, look.lanes), {}).setdefault(look.seed, []).append(look)
    return found


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def table(data: str, looks: list[Look], steps: int) -> str:
    runs = gather(looks)
    seeds = len(runs[RANDOM])
    quickest = min(min(r[-1].seconds for r in by_seed.values()) for by_seed in runs.values())
    base = {seed: last(run) for seed, run in runs[RANDOM].items()}
    lines = [
        f"### {data}: {steps} steps, {seeds} seeds",
        "",
        "| reuse | lanes | reuse as run | loss at equal steps ± sd over seeds | − random ± standard error |"
        f" loss at equal time ({quickest:.1f} s) | training s |",
        "|---|---|---|---|---|---|---|",
    ]
    for (reuse, lanes), by_seed in sorted(runs.items()):
        losses = {seed: last(run) for seed, run in by_seed.items()}
        offs = [losses[seed] - base[seed] for seed in losses]
        timed = statistics.fmean(at(run, quickest) for run in by_seed.values())
        seconds = statistics.median(run[-1].seconds for run in by_seed.values())
        as_run = next(iter(by_seed.values()))[0].as_run
        name = f"{reuse} | {lanes} | {as_run:.1f}" if reuse else "random | - | -"
        off = f"{statistics.fmean(offs):+.4f} ± {spread(offs) / seeds**0.5:.4f}" if reuse else "-"
        values = list(losses.values())
        lines.append(
            f"| {name} | {statistics.fmean(values):.4f} ± {spread(values):.4f} | {off} |"
            f" {timed:.4f} | {seconds:.1f} |"
        )
    return "\n".join(lines)


def draw(looks: list[Look], path: Path) -> None:
    """Loss at equal steps against reuse, a line per lanes, a band for independent draws."""
    from matplotlib.figure import Figure

    names = sorted({look.data for look in looks})
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        runs = gather([look for look in looks if look.data == name])
        values = [last(run) for run in runs[RANDOM].values()]
        middle, half = statistics.fmean(values), spread(values)
        axes.axhline(middle, color="0.4", lw=1, label="independent draws")
        axes.axhspan(middle - half, middle + half, color="0.88")
        for lanes, color in zip(LANES, COLORS, strict=True):
            there = [reuse for reuse in REUSES if (reuse, lanes) in runs]
            column = [[last(run) for run in runs[reuse, lanes].values()] for reuse in there]
            axes.errorbar(
                there, [statistics.fmean(v) for v in column], [spread(v) for v in column],
                color=color, marker="o", capsize=3, lw=1.4, label=f"{lanes} lanes",
            )  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(REUSES, map(str, REUSES))
        axes.set_xlabel("reuse: voxels emitted per voxel decoded")
        axes.set_ylabel("validation cross-entropy, ± sd over seeds")
        axes.set_title(name, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def run_all(options: argparse.Namespace, names: list[str], folder: Path) -> list[Look]:
    """Seed by seed, so that a slow minute hits all settings."""
    settings = [RANDOM, *(options.setting or itertools.product(REUSES, LANES))]
    looks: list[Look] = []
    if options.quick:
        settings = [RANDOM, *settings[1::3]]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn) as pool:
        tasks = []
        for name in names:
            (folder / name).mkdir()
            cases = DATA[name](folder / name, options.quick)
            for seed, setting in itertools.product(range(options.seeds), settings):
                tasks.append(pool.submit(train, name, cases, setting, seed, options.steps))
        for task in as_completed(tasks):
            looks += task.result()
            print(looks[-1], file=sys.stderr, flush=True)
    return looks


def pair(text: str) -> Setting:
    reuse, lanes = map(int, text.split(","))
    return reuse, lanes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=DATA, action="append")
    parser.add_argument("--steps", type=int, default=500, help=f"a multiple of {LOOKS}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--setting", type=pair, action="append", help="reuse,lanes; by default nine"
    )
    parser.add_argument("--quick", action="store_true", help="to see that all works; nothing filed")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds = LOOKS, 2
    names = options.data or list(DATA)
    with tempfile.TemporaryDirectory() as folder:
        looks = run_all(options, names, Path(folder))
    tables = [table(name, [k for k in looks if k.data == name], options.steps) for name in names]
    text = "\n\n".join([
        describe(["torch", "zarr"]),
        f"Patch {PATCH}³, batch {BATCH}, U-Net (8, 16, 32), Adam 2e-3, cross-entropy.",
        *tables,
    ])  # fmt: skip
    print(text)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            draw(looks, Path(folder, "plot.png"))
        return
    path = file_result("reuse_learning", text)
    draw(looks, path.with_suffix(".png"))
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Look.__dataclass_fields__)
        writer.writerows(
            [f"{v:.5g}" if isinstance(v, float) else v for v in astuple(look)] for look in looks
        )


if __name__ == "__main__":
    main()
