"""Train the network of ``volflow demo`` on the back of the MNI152 brain, test it on the front.

    python pipelines/train_demo.py --out volflow/demo/bundle

takes some minutes on two cores and writes a bundle. The seed is fixed: the same machine,
PyTorch and number of threads give the same weights.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from nibabel.nifti1 import Nifti1Image
from torch import Tensor, nn
from torch.nn import functional

import volflow as vf
from volflow import demo

PATCH = 48  # in training; more different ones for the same work than of the 64 in use
DESCRIPTION = (
    "Grey and white matter on skull-stripped T1 brain scans of 1 mm; a demonstration, not a medical"
    " device. Trained by pipelines/train_demo.py on the voxels"
    f" y < {demo.TRAINED_Y} of the ICBM 2009a"
    " nonlinear symmetric template (as in nilearn), to be tested on"
    f" y >= {demo.HELD_OUT_Y}. Template:"
    " Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological"
    " Institute, McGill University."
)


def read_template(directory: Path | None) -> tuple[Tensor, Tensor]:
    """Image in 0..1 and classes, both in the file's own axes (x, y, z), which are RAS."""
    mni = demo.load_mni(directory)
    image = np.asarray(Nifti1Image.from_filename(mni.t1).dataobj).astype(np.float32)
    image = (image - image.min()) / (image.max() - image.min())  # normalize="minmax"
    classes = demo.true_classes(mni).transpose(2, 1, 0).astype(np.int64)
    return torch.from_numpy(image), torch.from_numpy(classes)


def draw_patch(image: Tensor, classes: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Cut a random patch around a voxel of the brain, mirrored, slightly changed in brightness."""
    brain = np.flatnonzero(image.numpy())
    centre = np.unravel_index(rng.choice(brain), image.shape)
    start = [
        int(np.clip(c - PATCH // 2, 0, n - PATCH)) for c, n in zip(centre, image.shape, strict=True)
    ]
    box = tuple(slice(s, s + PATCH) for s in start)
    axes = [axis for axis in range(3) if rng.random() < 0.5]
    patch, target = image[box].flip(axes), classes[box].flip(axes)
    # Only slightly: minmax fixes the intensities, and grey and white matter lie close together.
    patch = patch ** float(rng.uniform(0.97, 1.03))
    noise = rng.standard_normal(patch.shape, np.float32) * rng.uniform(0, 0.01)
    return patch + torch.from_numpy(noise.astype(np.float32)), target


def whole(net: vf.UNet, image: Tensor) -> Tensor:
    """Classes of the whole image in one forward, padded at the far end to the net's alignment."""
    pad = [side for n in reversed(image.shape) for side in (0, -n % net.alignment)]
    with torch.inference_mode():
        classes: Tensor = net(functional.pad(image, pad)[None, None]).argmax(1)[0]
    return classes[tuple(slice(n) for n in image.shape)]


def main(
    out: Annotated[Path, typer.Option(help="The bundle directory to write; replaced if there.")],
    data: Annotated[
        Path | None, typer.Option(help="Folder of the template, instead of nilearn's.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of two patches.", min=1)] = 800,
    seed: Annotated[int, typer.Option(help="Of weights and patches.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads of PyTorch.", min=1)] = 2,
) -> None:
    """Train the demo's U-Net on the back of the MNI152 brain and test it on the front.

    Example: python pipelines/train_demo.py --out volflow/demo/bundle
    """
    if out.exists() and not (out / "bundle.json").is_file():
        raise typer.BadParameter(f"{out} exists and is not a bundle")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    image, classes = read_template(data)
    seen = image[:, : demo.TRAINED_Y], classes[:, : demo.TRAINED_Y]
    # No normalisation inside: statistics of small batches would blur the absolute intensities
    # that minmax provides, and those tell the tissues apart.
    net = vf.UNet(1, len(demo.CLASSES), features=(8, 16, 32), norm="none")
    for layer in net.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-4)
    warmup = min(20, steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda n: min((n + 1) / warmup, 0.5 * (1 + math.cos(math.pi * n / steps))),
    )
    began = time.monotonic()
    for step in range(1, steps + 1):
        patches, targets = zip(*(draw_patch(*seen, rng) for _ in range(2)), strict=True)
        loss = functional.cross_entropy(net(torch.stack(patches)[:, None]), torch.stack(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            elapsed_s = time.monotonic() - began
            typer.echo(f"step {step}/{steps}  loss {loss.item():.4f}  {elapsed_s:.0f} s")
    net.eval()
    dice = demo.held_out_dice(whole(net, image).numpy(), classes.numpy())
    typer.echo(f"Dice on the held-out front (y >= {demo.HELD_OUT_Y}):")
    for name, score in dice.items():
        typer.echo(f"  {name}: {score:.3f}")
    saved = vf.save_model(
        net,
        out,
        overwrite=True,
        channels=["t1"],
        classes=demo.CLASSES,
        patch=64,
        overlap=0.25,
        blend="gaussian",
        frame="RAS",
        spacing=(1.0, 1.0, 1.0),
        unit="millimeter",
        normalize="minmax",
        output="classes",
        description=DESCRIPTION,
    )
    typer.echo(f"wrote {out}, digest {saved.digest[:12]}")


if __name__ == "__main__":
    typer.run(main)
