"""What a box needs of the input is what its values depend on, to the voxel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.partition_oracle import image
from volflow.geometry.roi import Roi
from volflow.model.unet import UNet
from volflow.partition.graph import needed
from volflow.partition.trace import trace


def smooth(module: nn.Module) -> nn.Module:
    """The module with pooling and activations whose gradients vanish nowhere, in float64."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, nn.Softplus())
        elif isinstance(child, nn.MaxPool2d | nn.MaxPool3d):
            pool = nn.AvgPool2d if isinstance(child, nn.MaxPool2d) else nn.AvgPool3d
            setattr(module, name, pool(child.kernel_size, child.stride, child.padding))
        else:
            smooth(child)
    return module.double().eval()


def depended_on(y: Tensor, x: Tensor, box: Roi) -> Roi:
    """The hull of the input voxels with a gradient."""
    part = y[(..., *box.slices())]
    (gradient,) = torch.autograd.grad((part * torch.randn_like(part)).sum(), x, retain_graph=True)
    found = gradient[0].abs().sum(0).nonzero()
    return Roi(tuple(found.amin(0).tolist()), tuple((found.amax(0) + 1).tolist()))


def check(module: nn.Module, sizes, boxes) -> None:
    module = smooth(module)
    x = image(sizes, 1).requires_grad_()
    y = module(x)
    graph = trace(module, 1, sizes)
    for start, stop in boxes:
        box = Roi(start, stop)
        assert needed(graph, {graph.outputs[""]: box}, {0})[0] == depended_on(y, x, box)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


LINES = {
    "conv": nn.Conv1d(1, 1, 3, padding=1),
    "shifted": nn.Conv1d(1, 1, 4, padding=3),
    "strided": nn.Conv1d(1, 1, 3, 2, padding=1),
    "two": nn.Sequential(nn.Conv1d(1, 2, 5, 2, 2), nn.Softplus(), nn.Conv1d(2, 1, 2, padding=1)),
    "up": nn.ConvTranspose1d(1, 1, 2, 2),
    "overlapping up": nn.ConvTranspose1d(1, 1, 4, 2, 1),
    "down and up": nn.Sequential(nn.Conv1d(1, 1, 2, 2), nn.ConvTranspose1d(1, 1, 3, 2, 1, 1)),
    "averages": nn.Sequential(nn.AvgPool1d(3, 2, 1), nn.Conv1d(1, 1, 3, padding=1)),
    "nearest": nn.Sequential(nn.AvgPool1d(2), nn.Upsample(scale_factor=2)),
    "reflected": nn.Conv1d(1, 1, 5, padding=2, padding_mode="reflect"),
}


def check_line(module: nn.Module, size: int, inside: int = 0) -> None:
    """Every range of a line's output, or those so far from its ends."""
    module = smooth(module)
    x = image((size,), 1)
    touched = torch.autograd.functional.jacobian(module, x)[0, 0, :, 0, 0] != 0
    graph = trace(module, 1, (size,))
    for low in range(inside, len(touched) - inside):
        for high in range(low + 1, len(touched) - inside + 1):
            found = touched[low:high].any(0).nonzero().flatten()
            box = needed(graph, {graph.outputs[""]: Roi((low,), (high,))}, {0})[0]
            assert (*box.start, *box.stop) == (int(found[0]), int(found[-1]) + 1)


@pytest.mark.parametrize("net", LINES)
def test_every_range_of_a_line(net):
    check_line(LINES[net], 14)


def test_inside_a_dilated_convolution():
    net = nn.Sequential(nn.Conv1d(1, 1, 3, padding=4, dilation=4), nn.Conv1d(1, 1, 3, 1, 2, 2))
    check_line(net, 30, inside=6)


INNER = [((8, 12), (12, 16)), ((9, 11), (10, 16))]
BORDER = [((0, 0), (4, 4)), ((0, 23), (1, 24)), ((21, 2), (24, 9)), ((0, 0), (24, 24))]


@pytest.mark.parametrize("up", ["transposed", "linear"])
def test_a_unet_of_planes(up):
    check(UNet(1, 1, (2, 3), norm="none", up=up, dims=2), (24, 24), INNER + BORDER)


@pytest.mark.parametrize("up", ["transposed", "linear"])
def test_a_unet_of_volumes(up):
    boxes = [((4, 6, 8), (8, 8, 12)), ((0, 7, 3), (1, 8, 5)), ((13, 0, 0), (16, 2, 16))]
    check(UNet(1, 1, (1, 2), norm="none", up=up), (16, 16, 24), boxes)


@pytest.mark.parametrize(("levels", "margin"), [(2, 8), (3, 22), (4, 46), (5, 94)])
def test_the_margin_of_a_unet(levels, margin):
    """An aligned block needs 3 · 2^L - 2 voxels on each side, from three levels on."""
    assert levels == 2 or margin == 3 * 2**levels - 2
    net = UNet(1, 1, (1,) * levels, norm="none", dims=2)
    step = net.alignment
    start = -(-margin // step) * step
    graph = trace(net, 1, (2 * start + 4 * step,) * 2)
    for sides in ((step, 2 * step), (2 * step, 4 * step)):
        box = Roi((start, start), tuple(start + side for side in sides))
        assert needed(graph, {graph.outputs[""]: box}, {0})[0] == box.grow((margin, margin))


def test_the_margin_is_what_the_gradient_says():
    net = UNet(1, 1, (1, 1, 1), norm="none", dims=2)
    check(net, (60, 64), [((24, 24), (32, 36)), ((24, 28), (28, 32))])


def test_what_is_at_hand_ends_the_search():
    graph = trace(nn.Sequential(nn.Conv1d(1, 1, 3), nn.Conv1d(1, 1, 3), nn.ReLU()), 1, (20,))
    found = needed(graph, {3: Roi((4,), (6,))}, {1})
    assert found == {3: Roi((4,), (6,)), 2: Roi((4,), (6,)), 1: Roi((4,), (8,))}
    assert needed(graph, {3: Roi((4,), (6,)), 1: Roi((0,), (1,))}, {1})[1] == Roi((0,), (8,))
