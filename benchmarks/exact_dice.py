"""Exact inference beside blended patches: Dice on real cases, of nets trained on patches.

    python benchmarks/exact_dice.py --cache folder       # some 10 min on two cores; result filed
    python benchmarks/exact_dice.py --cache folder       # again: only the evaluation
    python benchmarks/exact_dice.py --quick              # few steps and cases; nothing filed
    python benchmarks/exact_dice.py --exact torch        # the whole volume in one plain forward

Two house U-Nets, with instance and with batch normalisation, are trained from patches of a
PatchStream and tested on what was held out: `vf.predict` with gaussian blending at overlaps of 0.25
and 0.5 of the patch of training, and with ``blend="exact"``, which equals one forward of the whole
volume, zero-padded at the far end to the net's alignment.

- ``hippocampus``: Decathlon task 4, 3 classes, cases of some 35 × 50 × 35 voxels. Every fifth is
  held out. Each case has its own mean and deviation.
- ``mni152``: the T1 template with grey and white matter, 3 classes, cropped to the brain. One net
  is trained on the back half and tested on the front, another the other way about: the template is
  symmetric from left to right, so that those halves would know each other. Mean and deviation are
  those of the whole crop.

Differences of Dice are paired: same net, same case. Their standard error is over the held-out cases
(the mean over seeds of each) where there are many, else over nets; the differences of each net
stand beside it. Neither says how other data or longer training would turn out. An instance
norm takes its statistics from what it is given; trained on patches, it has not met those of a whole
volume. The weights are kept in ``--cache``. Needs the extra ``io``; volumes are looked for in
``VOLFLOW_TEST_DATA``, else in ``../shared/data``.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, pad

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import describe, file_result  # noqa: E402

import volflow as vf  # noqa: E402
from volflow.engine.cluster import connect  # noqa: E402
from volflow.model.unet import UNet  # noqa: E402
from volflow.store.create import create  # noqa: E402
from volflow.store.meta import Meta, VolumeSpec  # noqa: E402

FEATURES, BATCH = (8, 16, 32), 4
NORMS = ("instance", "batch")
OVERLAPS = (0.25, 0.5)
FEW = 8  # fewer cases than this have no standard error of their own
ERRORS = 3  # standard errors from 0 that tell two methods apart; of four nets that is some 94 %

Case = dict[str, str]


@dataclass(frozen=True)
class Split:
    """What is trained on and what is held out."""

    data: str
    held: str
    training: tuple[Case, ...]
    testing: tuple[Case, ...]


@dataclass(frozen=True)
class Data:
    """A data set and how nets are trained on it."""

    classes: tuple[str, ...]
    patch: int
    steps: int
    splits: Callable[[Path, bool], list[Split]]


@dataclass(frozen=True)
class Score:
    """Dice of the classes above 0, of one net on one case."""

    data: str
    norm: str
    net: str
    case: str
    method: str
    dice: tuple[float, ...]


def find(name: str) -> Path:
    base = Path(os.environ.get("VOLFLOW_TEST_DATA", HERE.parents[1] / "shared" / "data"))
    if not (base / name).is_dir():
        raise SystemExit(f"{name} is not at {base}; set VOLFLOW_TEST_DATA")
    return base / name


def read(path: Path) -> np.ndarray:
    import nibabel

    return np.asarray(nibabel.load(path).dataobj, dtype="float32").transpose()


def standard(image: np.ndarray) -> np.ndarray:
    return (image - image.mean()) / image.std()


def store(folder: Path, name: str, image: np.ndarray, label: np.ndarray) -> Case:
    case = {}
    for kind, voxels, meta in (
        ("image", image.astype("float32"), Meta()),
        ("label", label.astype("uint8"), Meta(kind="classes")),
    ):
        path = folder / f"{name}_{kind}.zarr"
        chunk = tuple(min(64, side) for side in voxels.shape)
        volume = create(path, VolumeSpec.of(voxels.shape, voxels.dtype, meta, chunk=chunk))
        volume.write(vf.Roi((0, 0, 0), voxels.shape), voxels)
        case[kind] = str(path)
    return case


def hippocampus(folder: Path, few: bool) -> list[Split]:
    found = find("hippocampus_msd")
    names = sorted(path.name for path in (found / "images").glob("*.nii.gz"))
    names = [name for name in names if (found / "labels" / name).exists()]
    cases = []
    for name in names[:20] if few else names:
        image, label = (read(found / kind / name) for kind in ("images", "labels"))
        cases.append(store(folder, name.split(".")[0], standard(image), label))
    training = tuple(case for n, case in enumerate(cases) if n % 5)
    return [Split("hippocampus", "fifth", training, tuple(cases[::5]))]


def mni152(folder: Path, few: bool) -> list[Split]:
    found = find("mni152")
    t1, grey, white = (
        read(found / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
        for kind in ("t1", "gm", "wm")
    )
    label = np.where(white > 127, 2, np.where(grey > 127, 1, 0))
    brain = tuple(slice(side.min(), side.max() + 1) for side in np.nonzero(t1))
    t1, label = standard(t1[brain]), label[brain]
    cut = t1.shape[1] // 2  # axes are zyx, and y grows from back to front
    halves = {"back": slice(None, cut), "front": slice(cut, None)}
    cases = {name: store(folder, name, t1[:, y], label[:, y]) for name, y in halves.items()}
    pairs = [("back", "front"), ("front", "back")]
    return [
        Split("mni152", held, (cases[seen],), (cases[held],))
        for seen, held in (pairs[:1] if few else pairs)
    ]


DATA = {
    "hippocampus": Data(("anterior", "posterior"), 24, 600, hippocampus),
    "mni152": Data(("grey", "white"), 32, 200, mni152),
}


def train(data: Data, split: Split, norm: str, seed: int, steps: int) -> UNet:
    torch.manual_seed(seed)
    net = UNet(1, 1 + len(data.classes), FEATURES, norm=norm)
    net = net.to(memory_format=torch.channels_last_3d)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, total_steps=steps)
    sampler = vf.LabelSampler(
        data.patch, probabilities=dict.fromkeys(range(1 + len(data.classes)), 1)
    )
    stream = vf.PatchStream(split.training, sampler, steps * BATCH, seed=seed, progress=False)
    for batch in stream.loader(batch_size=BATCH):
        image = batch["image"].to(memory_format=torch.channels_last_3d)
        optimiser.zero_grad()
        cross_entropy(net(image), batch["label"][:, 0]).backward()
        optimiser.step()
        schedule.step()
    return net.to(memory_format=torch.contiguous_format).eval()


def trained(
    cache: Path, data: Data, split: Split, norm: str, seed: int, steps: int
) -> tuple[str, UNet]:
    """A net by its name, from the cache where it is there."""
    name = f"{split.data}_{split.held}_{norm}_{seed}_{steps}steps"
    if not (cache / name).exists():
        began = time.perf_counter()
        net = train(data, split, norm, seed, steps)
        say(f"{name}: trained in {time.perf_counter() - began:.0f} s")
        vf.save_model(net, cache / name, patch=data.patch, classes=["background", *data.classes])
    net = vf.load_model(cache / name).module
    assert isinstance(net, UNet)
    assert net.arguments["features"] == list(FEATURES), f"{cache} holds other nets; remove it"
    return name, net.eval()


def whole(net: UNet, image: np.ndarray) -> np.ndarray:
    """Classes of a whole volume, zero-padded at the far end to the net's alignment."""
    far = [(0, -side % net.alignment) for side in reversed(image.shape)]
    with torch.inference_mode():
        scores = net(pad(torch.from_numpy(image)[None, None], [*itertools.chain(*far)]))[0]
    z, y, x = image.shape
    return scores[:, :z, :y, :x].argmax(0).numpy()


def predictions(
    net: UNet, path: str, patch: int, exact: str, client: object
) -> Iterator[tuple[str, np.ndarray]]:
    """The classes that each method finds."""
    tilings: dict[str, dict[str, object]] = {
        f"gaussian {o}": {"blend": "gaussian", "overlap": o, "patch": patch} for o in OVERLAPS
    }
    if exact == "volflow":
        tilings["exact"] = {"blend": "exact"}
    else:
        yield "exact", whole(net, vf.open(path)[:])
    for method, options in tilings.items():
        with tempfile.TemporaryDirectory() as folder:
            result = vf.predict(
                path, net, f"{folder}/classes.zarr", output="classes", device="cpu",
                cluster=client, progress=False, **options,
            )  # fmt: skip
            yield method, result[:]


def dice(found: np.ndarray, truth: np.ndarray, number: int) -> float:
    """2 |A ∩ B| / (|A| + |B|)."""
    a, b = found == number, truth == number
    return 2 * int((a & b).sum()) / (int(a.sum()) + int(b.sum()))


def evaluate(
    data: Data, split: Split, norm: str, named: tuple[str, UNet], exact: str
) -> list[Score]:
    name, net = named
    scores = []
    with connect("threads") as client:
        for case in split.testing:
            truth = vf.open(case["label"])[:]
            for method, found in predictions(net, case["image"], data.patch, exact, client):
                per_class = tuple(dice(found, truth, n + 1) for n in range(len(data.classes)))
                where = Path(case["image"]).name
                scores.append(Score(split.data, norm, name, where, method, per_class))
    return scores


def paired(scores: list[Score], number: int, base: str) -> dict[tuple[str, str], float]:
    """Exact - base by net and case."""
    by_method: dict[str, dict[tuple[str, str], float]] = {"exact": {}, base: {}}
    for score in scores:
        if score.method in by_method:
            by_method[score.method][score.net, score.case] = score.dice[number]
    return {key: by_method["exact"][key] - value for key, value in by_method[base].items()}


def means(offs: dict[tuple[str, str], float], part: int) -> list[float]:
    """The mean difference of each net (part 0) or of each case (1)."""
    groups: dict[str, list[float]] = {}
    for key, off in offs.items():
        groups.setdefault(key[part], []).append(off)
    return [statistics.fmean(group) for group in groups.values()]


def summary(offs: dict[tuple[str, str], float]) -> tuple[str, str, str]:
    """Mean ± standard error; the nets one by one; what that says."""
    nets, cases = means(offs, 0), means(offs, 1)
    units = cases if len(cases) >= FEW else nets
    off = statistics.fmean(units)
    if len(units) < 2:
        return f"{off:+.4f}", "-", "-"
    error = statistics.stdev(units) / len(units) ** 0.5
    agree = len({net > 0 for net in nets}) == 1
    clear = agree and abs(off) > ERRORS * error
    verdict = ("better" if off > 0 else "worse") if clear else "not told apart"
    return f"{off:+.4f} ± {error:.4f}", ", ".join(f"{net:+.4f}" for net in nets), verdict


def table(name: str, scores: list[Score], steps: int) -> str:
    data = DATA[name]
    nets, cases = ({getattr(s, key) for s in scores} for key in ("net", "case"))
    unit = f"the {len(cases)} cases" if len(cases) >= FEW else f"the {len(nets) // 2} nets"
    methods = [f"gaussian {overlap}" for overlap in OVERLAPS]
    lines = [
        f"### {name}: patch {data.patch}³, {steps} steps of {BATCH} patches, {len(nets) // 2} nets"
        " of each norm",
        "",
        "| norm | class | beside | its Dice | exact's Dice | exact − it ± standard error over"
        f" {unit} | net by net | exact is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for norm, number, base in itertools.product(NORMS, range(len(data.classes)), methods):
        own = [score for score in scores if score.norm == norm]
        its, exact = (
            statistics.fmean(s.dice[number] for s in own if s.method == method)
            for method in (base, "exact")
        )
        lines.append(
            f"| {norm} | {data.classes[number]} | {base} | {its:.4f} | {exact:.4f} |"
            f" {' | '.join(summary(paired(own, number, base)))} |"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def one(split: Split, norm: str, seed: int, steps: int, cache: Path, exact: str) -> list[Score]:
    """A net trained and evaluated in a process with one thread of torch."""
    torch.set_num_threads(1)
    data = DATA[split.data]
    named = trained(cache, data, split, norm, seed, steps)
    began = time.perf_counter()
    scores = evaluate(data, split, norm, named, exact)
    say(f"{named[0]}: evaluated in {time.perf_counter() - began:.0f} s")
    return scores


def run_all(options: argparse.Namespace, folder: Path) -> dict[str, list[Score]]:
    """As many nets side by side as there are cores: threads of one would wait for each other."""
    cache = options.cache or folder / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawn) as pool:
        tasks: dict[str, list[Future[list[Score]]]] = {}
        for name in options.data or DATA:
            (folder / name).mkdir()
            splits = DATA[name].splits(folder / name, options.quick)
            tasks[name] = [
                pool.submit(one, split, norm, seed, steps_of(options, name), cache, options.exact)
                for seed, split, norm in itertools.product(range(options.seeds), splits, NORMS)
            ]
        return {
            name: [score for task in those for score in task.result()]
            for name, those in tasks.items()
        }


def steps_of(options: argparse.Namespace, name: str) -> int:
    return 10 if options.quick else round(DATA[name].steps * options.length)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=DATA, action="append")
    parser.add_argument("--exact", choices=("volflow", "torch"), default="volflow")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--length", type=float, default=1, help="of the training, times the usual")
    parser.add_argument("--cache", type=Path, help="a folder for the trained weights")
    parser.add_argument("--out", type=Path, help="for the result, not benchmarks/results/")
    parser.add_argument("--quick", action="store_true", help="to see that all works; nothing filed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run_all(options, Path(folder))
    tables = [table(name, scores, steps_of(options, name)) for name, scores in found.items()]
    by = {
        "volflow": '`vf.predict(blend="exact")`',
        "torch": "one plain forward of the whole volume",
    }
    text = "\n\n".join([
        describe(["torch", "zarr"]),
        f"U-Net {FEATURES}, Adam, one cycle to 5e-3, cross-entropy, a third of the patches centred on"
        f" each class. Exact: {by[options.exact]}. “Not told apart”: the mean is within {ERRORS} standard"
        " errors of 0, or the nets disagree in sign. Nets stand by seed, and then by the half held"
        " out: front, back.",
        *tables,
    ])  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(f"# exact_dice\n\n{text}\n")
    elif not options.quick:
        file_result("exact_dice", text)


if __name__ == "__main__":
    main()
