"""Train a network on patches of a Dask array: a filtered scan of any size, which is never stored.

    python pipelines/train_from_dask.py scan.zarr label.zarr my_bundle --cluster processes

`vf.map_overlap` filters the scan lazily; `vf.PatchStream` has workers evaluate only what patches
are cut from, and shuffles these; the loop is plain PyTorch. Copy this file and change `prepared`
and the loss. To use the network: ``vf.map_model(prepared(scan, sigma), "my_bundle", like=scan)``.
It needs the extra "demo".
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import dask.array as da
import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

import volflow as vf


def standard_and_smooth(block: np.ndarray, mean: float, std: float, sigma: float) -> np.ndarray:
    """Grey values of mean 0 and deviation 1, smoothed; a pure function of its block."""
    return ndimage.gaussian_filter((block.astype("float32") - mean) / std, sigma)


def prepared(scan: vf.Volume, sigma: float, **options: object) -> da.Array:
    """The scan as the network is to see it, lazily; each block reads itself and its halo."""
    known = vf.statistics(scan, **options)
    return vf.map_overlap(
        standard_and_smooth, scan, mean=known.mean[0], std=known.std[0] or 1, sigma=sigma,
        depth=int(4 * sigma + 0.5),  # where SciPy cuts its Gaussian off
        boundary="nearest", dtype="float32",
    )  # fmt: skip


def train(net: torch.nn.Module, stream: vf.PatchStream, args: argparse.Namespace) -> Iterator[str]:
    """One epoch of the stream; yields the mean loss of each tenth of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net.to(device).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.rate)
    losses, tenth = [], max(1, args.steps // 10)
    for batch in stream.loader(batch_size=args.batch_size, device=device):
        loss = functional.cross_entropy(net(batch["image"]), batch["label"][:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % tenth == 0:
            yield f"step {len(losses)}/{args.steps}  loss {np.mean(losses[-tenth:]):.4f}"


def run(args: argparse.Namespace) -> None:
    """The whole journey."""
    if Path(args.bundle).exists() and not args.overwrite:  # known before the training, not after it
        raise vf.errors.InvalidInput(f"{args.bundle} exists; add --overwrite, or name another")
    torch.manual_seed(args.seed)
    net = vf.UNet(1, len(args.classes), features=(8, 16, 32))
    sampler = vf.LabelSampler(args.patch, probabilities=dict.fromkeys(range(len(args.classes)), 1))
    with vf.connect(args.cluster) as client:
        options = {"cluster": client, "memory": args.memory}
        image = prepared(vf.open(args.scan), args.sigma, **options)
        stream = vf.PatchStream(
            {"image": image, "label": vf.open(args.label)},
            sampler, args.steps * args.batch_size, seed=args.seed, **options,
        )  # fmt: skip
        for line in train(net, stream, args):
            sys.stdout.write(f"{line}\n")
    vf.save_model(
        net.eval(), args.bundle, overwrite=args.overwrite, classes=args.classes, patch=args.patch,
        normalize="none", output="classes",
    )  # fmt: skip
    sys.stdout.write(f"wrote {args.bundle}\n")


def main() -> None:
    """Read the command line; a mistake is one line and an exit code, as with ``volflow``."""
    parser = argparse.ArgumentParser(
        description="Train a network on patches of a filtered scan, which is never stored.",
        epilog="Example: train_from_dask.py scan.zarr label.zarr my_bundle --classes other tumour",
    )
    add = parser.add_argument
    add("scan", help="a volume of one channel")
    add("label", help="a volume of classes on the same grid")
    add("bundle", help="the directory to write the network to")
    add("--classes", nargs="+", default=["other", "tissue"], help="their names, from 0 on")
    add("--sigma", type=float, default=0.5, help="of the Gaussian, in voxels")
    add("--patch", type=int, default=32, help="voxels per side")
    add("--steps", type=int, default=500, help="batches to train on")
    add("--batch-size", type=int, default=2, help="patches per batch")
    add("--rate", type=float, default=3e-3, help="of learning")
    add("--seed", type=int, default=0, help="of weights and patches")
    add("--cluster", help="threads (default), processes, how many processes, tcp://host:port")
    add("--memory", help="what one worker, and the stream here, may use, such as 4GiB")
    add("--overwrite", action="store_true", help="replace the bundle if it exists")
    args = parser.parse_args()
    try:
        run(args)
    except vf.errors.VolflowError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
