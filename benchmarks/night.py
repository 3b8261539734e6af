"""A night: 195 cases, three of them broken; killed in the middle, two timers at once, done by morning.

    python benchmarks/night.py                       # all cases, results filed
    python benchmarks/night.py --cases 24 --no-file

The cases are the hippocampus scans of the Medical Segmentation Decathlon (about 36 × 50 × 35
voxels), of which one is cut short, one has two channels and one is a text file. The network is a
small U-Net in patches of 32³. ``the night`` starts the command, kills it (-9) when half is done,
and starts it twice at once; then every good case must have been done once, and the broken ones be
named. ``seconds a case`` runs all good ones in fresh folders: what is not the model is overhead,
that of the process before its first case apart. Beside it a bare loop: nibabel, a sliding window
in plain torch in memory, nibabel; without a journal, a checksum or a block. Needs the extra ``io``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import describe, file_result  # noqa: E402

DATA = Path(os.environ.get("VOLFLOW_TEST_DATA", HERE.parents[1] / "shared" / "data"))
CLI = "from volflow.cli import main\nif __name__ == '__main__': main()"
PATCH, OVERLAP = 32, 0.25
BROKEN = ("cut short", "two channels", "a text file")


def prepare(folder: Path, count: int) -> tuple[list[str], list[str]]:
    """Copy cases, and break three; return the names of the good and of the broken ones."""
    import nibabel
    import numpy as np

    import volflow as vf

    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    pairs = DATA / "hippocampus_msd"
    labels = {path.name for path in (pairs / "labels").iterdir()}
    names = sorted(path.name for path in (pairs / "images").iterdir() if path.name in labels)
    names = names[:count]
    for name in names:
        shutil.copyfile(pairs / "images" / name, folder / "in" / name)
    cut, two, text = (names[len(names) * part // 4] for part in (1, 2, 3))
    path = folder / "in" / cut
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    image = nibabel.load(folder / "in" / two)
    doubled = np.stack([image.get_fdata(dtype="f4")] * 2, axis=-1)
    nibabel.save(nibabel.Nifti1Image(doubled, image.affine), folder / "in" / two)
    (folder / "in" / text).write_text("the scan of this patient was not exported\n")
    net = vf.UNet(1, 3, features=(16, 32, 64))
    vf.save_model(
        net, folder / "bundle", channels=["mr"], classes=["none", "anterior", "posterior"],
        patch=PATCH, overlap=OVERLAP, normalize="zscore", output="classes",
    )  # fmt: skip
    broken = [cut, two, text]
    bare = [name.removesuffix(".nii.gz") for name in names]
    bad = [name.removesuffix(".nii.gz") for name in broken]
    return [name for name in bare if name not in bad], bad


def start(
    folder: Path, *words: str, out: str = "out", cases: Path | None = None
) -> subprocess.Popen:
    given = [f"{folder}/in/{{case}}.nii.gz"] if cases is None else ["--cases", str(cases)]
    line = [
        "predict", *given, f"{folder}/{out}/{{case}}_seg.nii.gz",
        "--model", f"{folder}/bundle", "--json", *words,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", CLI, *line], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def done(folder: Path) -> Counter:
    """How often each case was done, by the logs of all runs."""
    lines = [
        line.split()
        for log in (folder / "out" / "{case}_seg.nii.gz.volflow").glob("log-*.txt")
        for line in log.read_text().splitlines()
    ]
    return Counter(words[1] for words in lines if words[2:3] == ["done"])


def night(folder: Path, good: list[str], bad: list[str]) -> str:
    began = time.perf_counter()
    first = start(folder)
    while sum(done(folder).values()) < len(good) // 2:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    at_kill = sum(done(folder).values())
    timers = [start(folder), start(folder)]
    told = [timer.communicate() for timer in timers]
    codes = sorted(timer.returncode for timer in timers)
    took = time.perf_counter() - began
    winner = next(n for n, timer in enumerate(timers) if timer.returncode != 4)
    table = json.loads(told[winner][0])
    times = done(folder)
    again = time.perf_counter()
    third = start(folder)
    kept = json.loads(third.communicate()[0])
    again = time.perf_counter() - again
    assert codes == [1, 4], (codes, told)
    assert sorted(times) == sorted(good), set(good) ^ set(times)
    assert sorted(row["case"] for row in table["cases"] if row["status"] == "failed") == sorted(bad)
    reasons = {row["case"]: row["reason"] for row in table["cases"]}
    named = "\n".join(
        f"| {what} | {reasons[case].replace(str(folder), '…')} |"
        for what, case in zip(BROKEN, bad, strict=True)
    )
    loser = told[1 - winner][1].strip().splitlines()[-1].replace(str(folder), "…")
    return (
        f"### The night: {len(good) + len(bad)} cases in {took:.0f} s\n\n"
        f"Killed (-9) with {at_kill} done; then two timers at once: exit codes {codes}. Done in the"
        f" end: {len(times)} of {len(good)} good cases, each once but"
        f" {sum(n > 1 for n in times.values())}; failed: {table['counts']['failed']}. A third run,"
        f" in which nothing is left: {again:.1f} s, {kept['counts']}.\n\n"
        f"The second timer: `{loser}`\n\n"
        f"| broken | reason in the summary |\n|---|---|\n{named}"
    )


def children_cpu() -> float:
    """CPU seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(folder: Path, good: list[str], at_once: int, repeat: int) -> dict[str, float]:
    """Seconds of a quiet run of all good cases, in a process of its own."""
    out = f"quiet{at_once}{repeat}"
    (folder / out).mkdir()
    began, cpu = time.perf_counter(), children_cpu()
    cases = folder / "timed.csv"
    cases.write_text("case,image\n" + "".join(f"{x},in/{x}.nii.gz\n" for x in good))
    process = start(folder, "--at-once", str(at_once), out=out, cases=cases)
    shown, told = process.communicate()
    wall, cpu = time.perf_counter() - began, children_cpu() - cpu
    assert process.returncode == 0, told
    table = json.loads(shown)
    rows = [row for row in table["cases"] if row["status"] == "done"]
    assert len(rows) == len(good)
    model = sum(row["model_s"] for row in rows)
    shutil.rmtree(folder / out)
    return {
        "wall": wall, "cpu": cpu / len(rows),
        "case": table["seconds"] / len(rows), "alone": model / len(rows),
    }  # fmt: skip


PEER = (
    f"PATCH, OVERLAP = {PATCH}, {OVERLAP}"
    + """
import itertools, json, sys, time
from pathlib import Path
import nibabel, numpy, torch
import volflow as vf
folder, names = Path(sys.argv[1]), json.loads(sys.argv[2])
(folder / "peer").mkdir()
net, model = vf.load_model(folder / "bundle").module, 0.0
step = int(PATCH * (1 - OVERLAP))
ramp = torch.exp(-0.5 * ((torch.arange(PATCH) - (PATCH - 1) / 2) / (PATCH / 8)) ** 2)
window = (ramp[:, None, None] * ramp[:, None] * ramp).clamp(min=1e-3)
began = time.perf_counter()
with torch.inference_mode():
    for name in names:
        image = nibabel.load(folder / "in" / f"{name}.nii.gz")
        x = torch.from_numpy(image.get_fdata(dtype="f4"))
        x, shape = (x - x.mean()) / x.std(), x.shape
        short = [max(0, PATCH - n) for n in shape]
        x = torch.nn.functional.pad(x, [n for side in reversed(short) for n in (0, side)])
        sums, weights = torch.zeros(3, *x.shape), torch.zeros(x.shape)
        starts = [sorted({*range(0, n - PATCH, step), n - PATCH}) for n in x.shape]
        for corner in itertools.product(*starts):
            box = tuple(slice(a, a + PATCH) for a in corner)
            now = time.perf_counter()
            scores = net(x[box][None, None])[0]
            model += time.perf_counter() - now
            sums[(slice(None), *box)] += window * scores
            weights[box] += window
        classes = (sums / weights).argmax(0)[tuple(slice(n) for n in shape)].numpy().astype("u1")
        nibabel.save(nibabel.Nifti1Image(classes, image.affine), folder / "peer" / f"{name}.nii.gz")
print(json.dumps({"batch": time.perf_counter() - began, "model": model}))
"""
)


def peer(folder: Path, good: list[str]) -> dict[str, float]:
    began, cpu = time.perf_counter(), children_cpu()
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEER, str(folder), json.dumps(good)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found = json.loads(ran.stdout.splitlines()[-1])
    shutil.rmtree(folder / "peer")
    return {
        "wall": time.perf_counter() - began, "cpu": (children_cpu() - cpu) / len(good),
        "case": found["batch"] / len(good), "alone": found["model"] / len(good),
    }  # fmt: skip


def per_case(folder: Path, good: list[str], repeats: int) -> str:
    runs: dict[str, list[dict[str, float]]] = {}
    for repeat in range(repeats):
        for at_once in (1, 2):
            name = f"volflow, {at_once} at a time"
            runs.setdefault(name, []).append(measured(folder, good, at_once, repeat))
            print(name, runs[name][-1], file=sys.stderr)
        runs.setdefault("bare loop, in memory", []).append(peer(folder, good))
        print("peer", runs["bare loop, in memory"][-1], file=sys.stderr)
    best = {name: min(found, key=lambda one: one["wall"]) for name, found in runs.items()}
    # Several at a time wait for each other within the network's time: that of one alone is meant.
    network = {name: best["volflow, 1 at a time"]["alone"] for name in best}
    network |= {name: row["alone"] for name, row in best.items() if "volflow" not in name}
    lines = [
        f"### Seconds a case, {len(good)} good cases, best of {repeats}\n",
        "CPU is that of the whole process, starting Python and torch included.\n",
        "| | wall s of all | wall s a case | of it the model | overhead | CPU s a case |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in best.items():
        lines.append(
            f"| {name} | {row['wall']:.1f} | {row['case']:.3f} | {network[name]:.3f} |"
            f" {row['case'] - network[name]:.3f} | {row['cpu']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=195)
    parser.add_argument("--timed", type=int, default=64, help="how many of them are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("night", "seconds"))
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    os.environ.setdefault("PYTHONPATH", str(HERE.parent))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, bad = prepare(folder, options.cases)
        parts = [] if options.only == "seconds" else [night(folder, good, bad)]
        if options.only != "night":
            parts.append(per_case(folder, good[: options.timed], options.repeats))
    load = f"load of the machine when it ended: {os.getloadavg()[1]:.1f}"
    machine = f"{describe(['zarr', 'dask', 'torch', 'nibabel'])} · {load}"
    text = "\n\n".join([machine, *parts])
    print(text)
    if not options.no_file:
        file_result("night", text)


if __name__ == "__main__":
    main()
