"""Which of the networks that people use have an exact rule, and what exact inference takes.

    python benchmarks/halo_table.py             # MONAI's and nnU-Net's; some seconds; result filed
    python benchmarks/halo_table.py --no-file

Sizes are those of the networks' papers and configurations, on one channel and two classes. The
margin is what `vf.halo` derives: voxels before and behind an aligned block that its result depends
on, each side of every axis. ``computed`` is the computation of an interior block, relative to its
share of the whole run's, once the statistics are known and where nothing is kept between passes; a
plan of `vf.predict` that keeps nodes computes less. Time is the median of three derivations, with
memory and computation left out. Needs the extra ``peers``; nnU-Net's networks, which are left out
without it, dynamic-network-architectures.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import describe  # noqa: E402
from torch import nn  # noqa: E402

import volflow as vf  # noqa: E402
from volflow.errors import InvalidInput  # noqa: E402

BLOCKS = (128, 256)
FEATURES = (16, 32, 64, 128, 256)
# Of networks that take one shape alone, or none as large as those that `vf.halo` tries.
SHAPES = {"SwinUNETR": (96, 96, 96), "UNETR": (96, 96, 96)}

Made = dict[str, tuple[str, Callable[[], nn.Module]]]


def monai_nets() -> Made:
    """By name: sizes in words, and how to make it."""
    from monai.networks import nets

    halving = (2, 2, 2, 2)
    unet = "16…256, strides 2, 2 residual units"
    return {
        "UNet": (
            f"{unet}, instance norm",
            lambda: nets.UNet(3, 1, 2, FEATURES, halving, num_res_units=2),
        ),
        "UNet, batch norm": (
            f"{unet}, batch norm",
            lambda: nets.UNet(3, 1, 2, FEATURES, halving, num_res_units=2, norm="batch"),
        ),
        "BasicUNet": ("32…256", lambda: nets.BasicUNet(3, 1, 2)),
        "SegResNet": ("16 filters, as for BraTS", lambda: nets.SegResNet(3, 16, 1, 2)),
        "DynUNet": (
            "6 stages, 32…320",
            lambda: nets.DynUNet(3, 1, 2, [3] * 6, [1, *[2] * 5], [2] * 5),
        ),
        "AttentionUnet": ("16…256", lambda: nets.AttentionUnet(3, 1, 2, FEATURES, halving)),
        "VNet": ("as published", lambda: nets.VNet(3, 1, 2)),
        "HighResNet": ("as published", lambda: nets.HighResNet(3, 1, 2)),
        "SwinUNETR": ("48 features", lambda: nets.SwinUNETR(1, 2, feature_size=48)),
        "UNETR": ("image of 96³", lambda: nets.UNETR(1, 2, (96, 96, 96))),
    }


def nnunet_nets() -> Made:
    """Those of nnU-Net's plans; none where the package is absent."""
    if importlib.util.find_spec("dynamic_network_architectures") is None:
        print("dynamic-network-architectures is absent: nnU-Net's networks are left out")
        return {}
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    stages = 6
    sizes = {
        "input_channels": 1, "num_classes": 2, "n_stages": stages,
        "features_per_stage": [32, 64, 128, 256, 320, 320], "conv_op": nn.Conv3d,
        "kernel_sizes": 3, "strides": [1, *[2] * (stages - 1)], "conv_bias": True,
        "norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    blocks = [1, 3, 4, 6, 6, 6]
    return {
        "nnU-Net PlainConvUNet": (
            "6 stages, 32…320",
            lambda: PlainConvUNet(
                n_conv_per_stage=[2] * stages, n_conv_per_stage_decoder=[2] * (stages - 1), **sizes
            ),
        ),
        "nnU-Net ResidualEncoderUNet": (
            "6 stages, 32…320, blocks 1 3 4 6 6 6",
            lambda: ResidualEncoderUNet(
                n_blocks_per_stage=blocks, n_conv_per_stage_decoder=[1] * (stages - 1), **sizes
            ),
        ),
    }


def row(name: str, sizes: str, make: Callable[[], nn.Module]) -> str:
    """A line of the table; of a network that is refused, why."""
    model, took = make().eval(), []
    shape = SHAPES.get(name)
    try:
        for _ in range(3):
            began = time.perf_counter()
            halo = vf.halo(model, shape=shape)
            took.append(time.perf_counter() - began)
    except InvalidInput as error:
        why = str(error).split(";")[0]
        return f"| {name} | {sizes} | refused: {why} | | | | | |"
    sides = dict.fromkeys(f"{low}/{high}" for low, high in halo.margin)
    computed = " | ".join(f"{halo.overhead(block):.2f}×" for block in BLOCKS)
    alignment = " ".join(map(str, dict.fromkeys(halo.alignment)))
    return (
        f"| {name} | {sizes} | {' '.join(sides)} | {alignment} | {halo.statistics} | {computed} |"
        f" {1000 * statistics.median(took):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-file", action="store_true", help="print only")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    heads = [f"computed at {block}³" for block in BLOCKS]
    lines = [
        f"| network | sizes | margin | alignment | statistics | {' | '.join(heads)} | ms |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, *made) for name, made in {**monai_nets(), **nnunet_nets()}.items()),
    ]
    text = "\n".join([describe(["torch", "monai", "dynamic-network-architectures"]), "", *lines])
    print(text)
    if not options.no_file:
        today = datetime.datetime.now(tz=datetime.UTC).date()
        path = HERE / "results" / f"halo_{today}.md"
        path.write_text(f"# halo\n\n{text}\n")


if __name__ == "__main__":
    main()
