"""A CT of 1.04 GiB through one small network, by MONAI, TorchIO and volflow, in 768 MiB.

    python benchmarks/huge.py --folder /tmp/huge                 # capped, then free; results filed
    python benchmarks/huge.py --folder /tmp/huge --picture memory.png
    python benchmarks/huge.py --folder /tmp/huge --method monai --free 0B    # capped only

Each run is a process of its own, watched as in ``volflow demo huge``: the same CT, network, patch
and overlap; all read the same Zarr and write uint8 classes. Blends are gaussian, TorchIO's is hann.
What is killed at the cap is run again, freely up to ``--free``, to see what it would need; the
machine should have that much memory to spare. One run each. Needs the extra ``peers``.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import describe, file_result  # noqa: E402

from volflow.demo.curve import draw_memory  # noqa: E402
from volflow.demo.steps import Watched, watch  # noqa: E402
from volflow.demo.torso import SHAPE  # noqa: E402
from volflow.geometry.budget import format_bytes, parse_bytes  # noqa: E402

METHODS = ("volflow", "monai", "torchio")
COLORS = {"volflow": "#009E73", "monai": "#E69F00", "torchio": "#56B4E9"}
MEMORY, SHARD = "352MiB", 128
BEGAN = time.monotonic()


def phase(name: str) -> None:
    print(f"{time.monotonic() - BEGAN:6.1f} s  {name}", flush=True)


def run_monai(scan: str, net: str, out: str) -> None:
    phase("imports")
    import torch
    from monai.inferers import sliding_window_inference

    from volflow.model.bundle import load_model

    model = load_model(net)
    phase("read the volume")
    image = read(scan)
    phase("sliding_window_inference")
    with torch.inference_mode():
        scores = sliding_window_inference(
            image[None, None], model.spec.patch, 1, model.module, overlap=0.25, mode="gaussian"
        )
    phase("argmax")
    classes = scores[0].argmax(0).to(torch.uint8).numpy()
    phase("write")
    write(out, classes)


def run_torchio(scan: str, net: str, out: str) -> None:
    phase("imports")
    import torch
    import torchio as tio

    from volflow.model.bundle import load_model

    model = load_model(net)
    patch = model.spec.patch
    phase("read the volume")
    subject = tio.Subject(image=tio.ScalarImage(tensor=read(scan)[None]))
    phase("GridSampler, GridAggregator")
    sampler = tio.inference.GridSampler(subject, patch, [side // 4 for side in patch])
    aggregator = tio.inference.GridAggregator(sampler, overlap_mode="hann")
    with torch.inference_mode():
        for batch in tio.SubjectsLoader(sampler, batch_size=1):
            aggregator.add_batch(model.module(batch["image"][tio.DATA]), batch[tio.LOCATION])
    phase("argmax")
    classes = aggregator.get_output_tensor().argmax(0).to(torch.uint8).numpy()
    phase("write")
    write(out, classes)


def read(scan: str):
    import torch
    import zarr

    return torch.from_numpy(zarr.open_array(f"{scan}/0", mode="r")[:])


def write(out: str, classes) -> None:
    import zarr

    array = zarr.create_array(
        out, shape=classes.shape, dtype="uint8", chunks=(64,) * 3, shards=(128,) * 3,
        compressors=zarr.codecs.ZstdCodec(level=1), overwrite=True,
    )  # fmt: skip
    array[:] = classes


def command(method: str, folder: Path) -> list[str]:
    scan, net, out = (str(folder / name) for name in ("ct.zarr", "ct_net", f"{method}.zarr"))
    if method == "volflow":
        line = "from volflow.cli import main; main()"
        words = ["predict", scan, out, "--model", net, "--memory", MEMORY, "--shard", str(SHARD)]
        return [sys.executable, "-c", line, *words, "--quiet", "--overwrite"]
    return [sys.executable, __file__, "--child", method, scan, net, out]


def measure(method: str, folder: Path, cap_bytes: int) -> Watched:
    for path in (folder / f"{method}.zarr", folder / f"{method}.zarr.volflow"):
        shutil.rmtree(path, ignore_errors=True)
    watched = watch(command(method, folder), cap_bytes)
    print(f"{method}: {watched.ended}, {watched.seconds:.0f} s, {format_bytes(watched.peak_bytes)}")
    print(watched.output, file=sys.stderr)
    if watched.ended == "failed":
        raise SystemExit(f"{method} failed")
    return watched


def row(method: str, cap_bytes: int, watched: Watched) -> str:
    phases = [line.split(" s  ") for line in watched.output.splitlines() if " s  " in line[:12]]
    ends = [float(seconds) for seconds, _ in phases[1:]] + [watched.seconds]
    spent = [
        f"{name} {end - float(start):.0f}"
        for (start, name), end in zip(phases, ends[: len(phases)], strict=True)
    ]
    over = watched.ended == "over"
    if over and phases:
        spent[-1] = f"killed while it did: {phases[-1][1]}"
    return (
        f"| {method} | {format_bytes(cap_bytes)} | {'**killed**' if over else 'done'} |"
        f" {watched.seconds:.0f} | {format_bytes(watched.peak_bytes)} | {', '.join(spent)} |"
    )


def agreement(folder: Path, methods: list[str]) -> str:
    """How many voxels of the peers' classes differ from volflow's, where all are done."""
    import numpy as np
    import zarr

    ours = zarr.open_array(f"{folder}/volflow.zarr/0", mode="r")
    lines = []
    for method in methods:
        if not (folder / f"{method}.zarr").exists() or method == "volflow":
            continue
        theirs = zarr.open_array(f"{folder}/{method}.zarr", mode="r")
        differ = sum(
            int(np.count_nonzero(ours[z : z + 64] != theirs[z : z + 64]))
            for z in range(0, SHAPE[0], 64)
        )
        lines.append(f"{method}: {differ:,} of {math.prod(SHAPE):,} voxels differ from volflow's.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="for the CT, the network and the results")
    parser.add_argument("--cap", default="768MiB")
    parser.add_argument("--free", default="14GiB", help="cap of the second run of what was killed")
    parser.add_argument("--method", choices=METHODS, action="append")
    parser.add_argument("--picture", type=Path, help="draw the curves of memory there")
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    if options.child:
        method, *paths = options.child
        globals()[f"run_{method}"](*paths)
        return
    if options.folder is None:
        parser.error("--folder is needed: it takes some 1.5 GiB")
    folder, cap, free = options.folder, parse_bytes(options.cap), options.free
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "volflow.demo.scan", folder / "ct.zarr"], check=True)
    if not (folder / "ct_net").exists():
        subprocess.run([sys.executable, "-m", "volflow.demo.tissue", folder / "ct_net"], check=True)
    methods = options.method or list(METHODS)
    lines, seen = [], []
    for method in methods:
        watched = measure(method, folder, cap)
        lines.append(row(method, cap, watched))
        if watched.ended == "over" and free != "0B":
            watched = measure(method, folder, parse_bytes(free))
            lines.append(row(method, parse_bytes(free), watched))
        seen.append((method, 0.0, watched))
    voxels = " × ".join(map(str, SHAPE))
    text = "\n".join([
        describe(["torch", "zarr", "dask", "monai", "torchio"]),
        "",
        f"### {voxels} float32 ({format_bytes(4 * math.prod(SHAPE))}), 1 → 8 → 8 → 5 channels,"
        f" patch 32 × 96 × 96, overlap 1/4, one run each",
        "",
        "| method | cap | ended | s | peak resident | seconds of each phase |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        agreement(folder, methods) if "volflow" in methods else "",
    ])  # fmt: skip
    print(text)
    if options.picture:
        figure = draw_memory(
            seen, COLORS, cap, 4 * math.prod(SHAPE), "The same CT, the same network",
            f"{voxels} voxels, float32   ·   resident memory, Python and torch included",
        )  # fmt: skip
        figure.savefig(options.picture, dpi=150)
    if not options.no_file:
        file_result("huge", text)


if __name__ == "__main__":
    main()
