"""Cases on which other ways of dividing a step are silently wrong.

JAX 0.10.2 (Shardy) returns weight gradients that are wrong by 40 to 100 % where a convolution of
stride 2 follows another and the inner level is not divided evenly by the devices. Here: strides,
padded pools, norms, and levels that do not divide, over two to four shares.
"""

from __future__ import annotations

import pytest
import torch
from partition_oracle import boxes, enlarged, image
from torch import nn
from training_oracle import (
    DiceEntropy,
    Step,
    assert_same_step,
    gradients_of,
    plain_step,
    segmented,
    target_of,
)

from volflow.geometry.roi import Roi
from volflow.partition.in_memory import step_in_memory


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


def shares(module: nn.Module, side: int, count: int) -> None:
    """As many shares as devices, as even as they can be, along the first axis of a plane."""
    size = (side, 6)
    net, x = enlarged(module, 1.5).train(), image(size, 1)
    loss = DiceEntropy(target_of(size))
    expected = plain_step(net, x, size, loss)
    cuts = [side * n // count for n in range(1, count)]
    grid = [*boxes(size, (cuts, ()))]
    assert len(grid) == count
    graph = segmented(net, x, size)
    value, board = step_in_memory(graph, x, [grid] * len(graph.segments), loss, wants_image=True)
    for update in graph.graph.updates:
        update.apply(board.statistics)
    gradient = board.taken(0, Roi.full(size))
    weights = gradients_of(net, graph, board.weights)
    assert_same_step(expected, Step(value, weights, gradient, dict(net.named_buffers())))


def conv(inputs=2, outputs=2, kernel=3, stride=1, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **options)


class Enlarged(nn.Module):
    """Layers whose result is brought to the size of the image, where the loss is."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return nn.functional.interpolate(self.layers(x), size=x.shape[2:])


SIDES = [(20, 4), (28, 4), (36, 4), (44, 4), (100, 4), (18, 3), (10, 4), (21, 2)]


@pytest.mark.parametrize(("side", "count"), SIDES)
def test_an_inner_level_that_does_not_divide(side, count):
    shares(Enlarged(conv(1, stride=2), nn.ReLU(), conv()), side, count)


@pytest.mark.parametrize(("side", "count"), SIDES)
def test_two_strides_and_back(side, count):
    layers = conv(1, stride=2), nn.Tanh(), conv(stride=2), nn.ConvTranspose2d(2, 2, 4, 2, 1), conv()
    shares(Enlarged(*layers), side, count)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1),
                                  nn.MaxPool2d(2, 2, ceil_mode=True)], ids=str)  # fmt: skip
@pytest.mark.parametrize(("side", "count"), SIDES[::3])
def test_pools_that_are_padded(pool, side, count):
    shares(Enlarged(conv(1), pool, conv()), side, count)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(2), nn.InstanceNorm2d(2, affine=True),
                                  nn.GroupNorm(1, 2)], ids=str)  # fmt: skip
@pytest.mark.parametrize(("side", "count"), SIDES[::3])
def test_norms_of_uneven_shares(norm, side, count):
    shares(Enlarged(conv(1, stride=2), norm, nn.ReLU(), conv()), side, count)


@pytest.mark.parametrize(("side", "count"), SIDES[:3])
def test_halos_wider_than_a_share(side, count):
    shares(Enlarged(conv(1, kernel=9, stride=2), nn.ReLU(), conv(kernel=7)), side, count)


@pytest.mark.parametrize(("side", "count"), SIDES[:3])
def test_linear_resizing_of_uneven_shares(side, count):
    layers = conv(1, stride=2), nn.Upsample(scale_factor=2, mode="bilinear"), conv()
    shares(Enlarged(*layers), side, count)
