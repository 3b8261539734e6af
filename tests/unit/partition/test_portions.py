"""Portions of a share tile it, and are as small as was asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from training_oracle import segmented

from volflow.geometry.roi import Roi
from volflow.partition.exchange.portions import portions_of

NET = nn.Sequential(
    nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(4), nn.Conv3d(4, 8, 3, padding=1),
    nn.ReLU(), nn.ConvTranspose3d(8, 2, 4, stride=4),
)  # fmt: skip


@pytest.mark.parametrize("most_bytes", [1, 5_000, 100_000, 10**9])
@pytest.mark.parametrize("box", [Roi((0, 0, 0), (8, 16, 32)), Roi((3, 8, 0), (8, 16, 7))])
def test_portions_tile_a_share_along_its_longest_axis(most_bytes, box):
    net = segmented(NET, torch.empty(1, 1, 8, 16, 32), (8, 16, 32))
    for number in range(len(net.segments)):
        found = portions_of(net, number, box, most_bytes)
        axis = box.shape.index(max(box.shape))
        assert found[0].start == box.start
        assert found[-1].stop == box.stop
        assert sum(one.size for one in found) == box.size
        others = [a for a in range(3) if a != axis]
        assert {tuple(one.shape[a] for a in others) for one in found} == {
            tuple(box.shape[a] for a in others)
        }


def test_the_thinnest_portion_is_a_voxel_of_the_coarsest_node():
    net = segmented(NET, torch.empty(1, 1, 8, 16, 32), (8, 16, 32))
    box = Roi.full((8, 16, 32))
    assert [len(portions_of(net, n, box, 1)) for n in range(3)] == [32, 8, 8]
    assert len(portions_of(net, 0, box, 2**30)) == 1


def test_an_empty_share_has_no_portions():
    net = segmented(NET, torch.empty(1, 1, 8, 16, 32), (8, 16, 32))
    assert portions_of(net, 0, Roi((8, 0, 0), (8, 16, 32)), 1) == ()
