"""Blocks of segments forward and backward, against plain autograd on the whole volume."""

from __future__ import annotations

import pytest
from torch import nn
from training_oracle import check_step

from volflow.model.unet import UNet

PLAIN = nn.Sequential(
    nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1, stride=2), nn.GELU(),
    nn.ConvTranspose3d(4, 2, 2, stride=2),
)  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_any_blocks_take_the_step_of_the_whole(seed):
    check_step(PLAIN, seed=seed)


def test_scores_are_cropped_before_the_loss():
    check_step(PLAIN, size=(11, 15, 20), sizes=(12, 16, 20))


@pytest.mark.slow
def test_running_statistics_are_constants():
    check_step(UNet(1, 2, features=(4, 8), norm="batch"), training=False)
