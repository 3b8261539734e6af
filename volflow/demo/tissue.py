"""A small network that tells tissues apart in CT; its weights are written down, not trained.

It is our U-Net with one level: three convolutions, 1 → 8 → 8 → 5 channels. The first smooths the
voxels and compares them with seven thresholds; the second computes from these, smoothed again, how
much of the neighbourhood is of each tissue; the third lets the tissues vote.

``python -m volflow.demo.tissue net`` saves it as a bundle.
"""

from __future__ import annotations

import os
import sys
from itertools import pairwise

import torch
from torch import Tensor

from volflow.model.bundle import Model, save_model
from volflow.model.unet import UNet

__all__ = ["CLASSES", "save_tissue_net", "tissue_net"]

CLASSES = ("air", "soft tissue", "lung", "fat", "bone")

# Where a tissue fades into the next, in units of 100 HU: air, lung, fat, soft tissue, bone.
UNIT = 100.0
FADES = ((-9.6, -8.9), (-8.9, -4.0), (-0.6, 0.1), (1.2, 2.2))
THRESHOLDS = tuple(sorted({threshold for fade in FADES for threshold in fade}))
CHANNELS = len(THRESHOLDS) + 1

# Thin along z, along which the blend keeps the rows of a patch open.
PATCH = (32, 96, 96)

# An edge between air and tissue passes through the values of lung, and both it and an edge between
# lung and tissue through those of fat: these votes count less where the other is near.
LUNG_BESIDE_AIR, FAT_BESIDE_LUNG, FAT_BESIDE_AIR = -30.0, -16.0, -8.0

_BELL = torch.tensor([0.25, 0.5, 0.25])
SMOOTH = _BELL[:, None, None] * _BELL[:, None] * _BELL
AROUND = torch.full((3, 3, 3), 1 / 27)


def tissue_net() -> UNet:
    """Return the network in eval mode; it takes HU and gives five scores in the order of `CLASSES`.

    Examples
    --------
    >>> net = tissue_net()
    >>> values = torch.tensor([-1000.0, 45, -850, -100, 700])
    >>> scores = [net(value.expand(1, 1, 8, 8, 8))[0, :, 4, 4, 4] for value in values]
    >>> [CLASSES[int(score.argmax())] for score in scores] == list(CLASSES)
    True
    """
    # The last channel is 1 everywhere in the patch and, like all channels, 0 in the padding around
    # it, which thus is of no tissue.
    inside = torch.eye(CHANNELS)[-1]
    rises = [inside, *(_rise(low, high) for low, high in FADES), torch.zeros(CHANNELS)]
    air, lung, fat, soft, bone = (below - above for below, above in pairwise(rises))
    unless_air = (LUNG_BESIDE_AIR, air, AROUND)
    votes = [
        _sum((1.0, air, SMOOTH)),
        _sum((1.0, soft, SMOOTH)),
        _sum((1.0, lung, SMOOTH), unless_air),
        _sum((1.0, fat, SMOOTH)),
        _sum((1.0, bone, SMOOTH)),
        _sum((1.0, lung, AROUND), unless_air),
        _sum((1.0, air, AROUND)),
    ]
    head = torch.eye(len(CLASSES), CHANNELS)
    head[CLASSES.index("fat"), 5:7] = torch.tensor([FAT_BESIDE_LUNG, FAT_BESIDE_AIR])

    net = UNet(1, len(CLASSES), features=(CHANNELS,), norm="none").eval()
    state = {name: torch.zeros_like(values) for name, values in net.state_dict().items()}
    state["encode.0.0.weight"][:-1] = SMOOTH / UNIT
    state["encode.0.0.bias"][:] = torch.tensor([*(-t for t in THRESHOLDS), 1.0])
    state["encode.0.2.weight"][: len(votes)] = torch.stack(votes)
    state["head.weight"][:] = head[:, :, None, None, None]
    net.load_state_dict(state)
    return net


def save_tissue_net(path: str | os.PathLike[str]) -> Model:
    """Save the network as a bundle, together with the settings of its prediction."""
    return save_model(
        tissue_net(),
        path,
        classes=CLASSES,
        channels=["ct"],
        patch=PATCH,
        overlap=0.25,
        blend="gaussian",
        output="classes",
        description="Air, soft tissue, lung, fat and bone by thresholds in HU; a demonstration.",
    )


def _rise(low: float, high: float) -> Tensor:
    """Return a factor for each channel; their sum rises from 0 to 1 between two thresholds."""
    factors = torch.zeros(CHANNELS)
    factors[THRESHOLDS.index(low)] = 1 / (high - low)
    factors[THRESHOLDS.index(high)] = -1 / (high - low)
    return factors


def _sum(*terms: tuple[float, Tensor, Tensor]) -> Tensor:
    """Return factors of the second convolution: weighted shares of tissues, each over a kernel."""
    factors = torch.zeros(CHANNELS, 3, 3, 3)
    for weight, share, kernel in terms:
        factors += weight * share[:, None, None, None] * kernel
    return factors


if __name__ == "__main__":
    save_tissue_net(sys.argv[1])
