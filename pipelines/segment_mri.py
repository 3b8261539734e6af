"""Segment one tissue of an MRI: Dask prepares the scan, a network scores it, a threshold decides.

    python pipelines/segment_mri.py scan.nii.gz white.zarr --tissue "white matter"

Nothing is computed until `vf.write` stores it, one block after the other, each from its own piece
of the scan. Run again after an interruption, the same command does what is left; ``--cluster``
takes it to processes or to a Dask cluster. Copy this file and change `prepared` and `segmented`.
It needs the extra "demo".
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import dask
import dask.array as da
import numpy as np
from scipy import ndimage

import volflow as vf


def scaled_and_smooth(block: np.ndarray, low: float, high: float, sigma: float) -> np.ndarray:
    """Grey values between the limits as 0 … 1, smoothed; a pure function of its block."""
    scaled = (np.clip(block.astype("float32"), low, high) - low) / (high - low)
    return ndimage.gaussian_filter(scaled, sigma)


def prepared(scan: vf.Volume, limits: tuple[float, float], sigma: float) -> da.Array:
    """The scan as the network expects it; each block reads itself and its halo."""
    depth = int(4 * sigma + 0.5)  # where SciPy cuts its Gaussian off
    return vf.map_overlap(
        scaled_and_smooth, scan, low=limits[0], high=limits[1], sigma=sigma,
        depth=depth, boundary="nearest", dtype="float32",
    )  # fmt: skip


def segmented(image: da.Array, scan: vf.Volume, model: str, tissue: str, least: float) -> da.Array:
    """Where the score of a tissue exceeds a threshold."""
    classes = vf.load_model(model).spec.classes
    if tissue not in classes:
        known = ", ".join(classes) or "none by name"
        raise vf.errors.InvalidInput(f"the model knows no {tissue!r}; its classes: {known}")
    scores = vf.map_model(
        image, model, like=scan, normalize="none", output="scores", activation="softmax"
    )
    return (scores[classes.index(tissue)] > least).astype("uint8")


def run(args: argparse.Namespace) -> None:
    """The whole journey, or with ``--plan`` only its graph."""
    with vf.connect(args.cluster) as client:
        options = {"cluster": client, "memory": args.memory}
        if Path(args.scan).is_file() and not args.plan:
            # Smaller shards than by default, or a scan would be a single block.
            converted = Path(args.out).with_suffix(".scan.zarr")
            scan = vf.convert(args.scan, converted, chunk=64, shard=128, **options)
        else:
            scan = vf.open(args.scan)
        limits = (0.0, 1.0)  # a plan reads no voxel, and its graph is the same whatever they are
        if not args.plan:
            statistics = vf.statistics(scan, **options)
            limits = tuple(statistics.percentile(q)[0] for q in args.percentiles)
        if not limits[0] < limits[1]:
            raise vf.errors.InvalidInput(
                f"percentiles {args.percentiles} of {args.scan} are {limits}: no contrast is left;"
                " choose others"
            )
        image = prepared(scan, limits, args.sigma)
        mask = segmented(image, scan, args.model, args.tissue, args.threshold)
        if args.plan:
            tasks = len(dask.optimize(mask)[0].__dask_graph__())
            sys.stdout.write(f"{scan}\n{mask.npartitions} blocks in {tasks} tasks\n")
            return
        meta = replace(scan.meta, kind="classes", channels=("other", args.tissue))
        vf.write(mask, args.out, like=scan, meta=meta, overwrite=args.overwrite, **options)
        sys.stdout.write(f"{vf.verify(args.out)}\n")


def number(text: str) -> float:
    """A number from 0, for argparse."""
    if not 0 <= float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def main() -> None:
    """Read the command line; a mistake is one line and an exit code, as with ``volflow``."""
    parser = argparse.ArgumentParser(
        description="Segment one tissue of an MRI; run again to resume.",
        epilog="Example: segment_mri.py scan.nii.gz white.zarr --cluster processes",
    )
    add = parser.add_argument
    add("scan", help="a volume, or a NIfTI file, which is converted first")
    add("out", help="the OME-Zarr volume to write: 1 where the tissue is")
    add("--model", default=str(vf.demo.BUNDLE), help="a bundle; default: the demo's")
    add("--tissue", default="white matter", help="a class of the model")
    add("--threshold", type=number, default=0.5, help="a score, 0 to 1")
    add("--percentiles", type=number, nargs=2, default=[0, 100], help="scaled to 0 and 1")
    add("--sigma", type=number, default=0.5, help="of the Gaussian, in voxels")
    add("--cluster", help="threads (default), processes, how many processes, tcp://host:port")
    add("--memory", help="what one worker may use, such as 4GiB")
    add("--overwrite", action="store_true", help="replace the output if it exists")
    add("--plan", action="store_true", help="print the size of the graph and run nothing")
    args = parser.parse_args()
    try:
        run(args)
    except vf.errors.VolflowError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(1, f"{parser.prog}: stopped; run the same command again to do the rest\n")


if __name__ == "__main__":
    main()
