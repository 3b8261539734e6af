"""``vf.halo``: any model that predict takes, told what exact inference of it needs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import volflow as vf
from tests import nets
from volflow.errors import InvalidInput, NoExactRule
from volflow.model.unet import UNet


def test_positional_as_designed():
    found = vf.halo(nets.random_net(2), 2, (20, 30, 40))
    assert found.margin == ((2, 2), (2, 2), (2, 2))
    assert found.graph.sizes(0) == (20, 30, 40)
    assert (found.alignment, found.scale, found.statistics) == ((1, 1, 1), (1, 1, 1), 0)


def test_a_bundle_says_its_channels(tmp_path):
    net = UNet(2, 3, features=(4, 8))
    vf.save_model(net, tmp_path / "net", channels=["t1", "flair"], patch=16)
    found = vf.halo(tmp_path / "net")
    assert found.graph.nodes[0].shape[1] == 2
    assert found.alignment == (2, 2, 2)
    assert found == vf.halo(net, 2)


@pytest.mark.parametrize("shape", [None, (7, 32, 48), [32, 48]])
def test_a_bundle_of_slices_sees_two_axes(tmp_path, shape):
    vf.save_model(UNet(1, 2, features=(4, 8), dims=2), tmp_path / "net", patch=[1, 16, 16])
    found = vf.halo(str(tmp_path / "net"), shape=shape)
    assert found.alignment == (2, 2)
    assert found.describe().startswith("margin ")
    if shape is not None:
        assert found.graph.sizes(0) == (32, 48)


def test_an_import_path_with_weights(tmp_path):
    torch.save(nets.random_net().state_dict(), tmp_path / "net.pt")
    named = vf.halo("tests.nets:random_net", weights=tmp_path / "net.pt")
    assert named.margin == ((2, 2), (2, 2), (2, 2))


def test_modes_are_left_as_they_are():
    net = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.BatchNorm3d(2)).train()
    assert vf.halo(net).statistics == 0  # in eval mode its statistics are constants
    assert net.training


@pytest.mark.parametrize("channels", [0, 1.0, True, "2"])
def test_channels_are_a_whole_number(channels):
    with pytest.raises(InvalidInput, match="channels must be a whole number from 1, given"):
        vf.halo(nets.random_net(), channels)


@pytest.mark.parametrize("shape", [64, (64,), (1, 1, 64, 64), (64, 64, 0), "zyx", (6.5, 8, 8)])
def test_a_shape_is_that_of_a_volume(shape):
    with pytest.raises(InvalidInput, match=r"shape must be the sides of a volume \(z, y, x\)"):
        vf.halo(nets.random_net(), shape=shape)


def test_channels_that_do_not_fit():
    with pytest.raises(InvalidInput, match=r"does not take an image of shape \(1, 3, "):
        vf.halo(nets.random_net(), 3)


def test_no_exact_rule_names_the_op():
    net = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), Sorting())
    with pytest.raises(NoExactRule, match="sort"):
        vf.halo(net)


class Sorting(nn.Module):
    """Sorts the voxels of each line, so that each depends on all others."""

    def forward(self, image):
        return image.sort(-1).values
