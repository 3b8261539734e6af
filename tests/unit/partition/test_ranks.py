"""A step of training divided over real processes, against plain autograd on the whole volume."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from partition_oracle import UNDONE, Apply
from partition_ranks import check_ranks, kept_and_sent, step_of, take_step, work_of
from process_group import processes
from torch import nn
from training_oracle import Step, assert_same_step, blocked_step, plain_step, segmented

from volflow.model.unet import UNet
from volflow.partition.exchange.division import Division
from volflow.partition.exchange.projection import exchanged_bytes, kept_bytes
from volflow.partition.reach import alignment_of

PLAIN = nn.Sequential(
    nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1, stride=2), nn.GELU(),
    nn.ConvTranspose3d(4, 2, 2, stride=2),
)  # fmt: skip

# Bounds of 2, 3 and 4 boxes: along one, two and three axes, uneven, misaligned, empty.
DIVISIONS = {
    "two along z": ((0, 8, 16), (0, 12), (0, 12)),
    "two along x, misaligned": ((0, 16), (0, 12), (0, 5, 12)),
    "three, one of them thin": ((0, 16), (0, 7, 8, 12), (0, 12)),
    "two by two, uneven": ((0, 3, 16), (0, 9, 12), (0, 12)),
    "one of two empty": ((0, 16, 16), (0, 12), (0, 12)),
    "four slabs": ((0, 1, 2, 7, 16), (0, 12), (0, 12)),
}


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with processes(4, tmp_path_factory.mktemp("group")) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("division", DIVISIONS)
def test_ranks_take_the_step_of_the_whole(group, division):
    check_ranks(group, PLAIN, DIVISIONS[division])


def spread(names: Iterable[str]) -> list[Any]:
    """Each name in two divisions daily, other ones for each; in all of them in CI."""
    found, count = [], len(DIVISIONS)
    for n, name in enumerate(names):
        for m, division in enumerate(DIVISIONS):
            marks = () if (m - n) % (count // 2) == 0 else pytest.mark.slow
            found.append(pytest.param(name, division, marks=marks))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "division"), spread(["none", "batch", "instance", "group"]))
def test_unets(group, norm, division):
    check_ranks(group, UNet(1, 2, features=(4, 4, 8), norm=norm), DIVISIONS[division])


def gated(self, x):
    x = self.first(x)
    y = F.max_pool3d(self.norm(x).relu(), 3, 2, 1)
    y = F.interpolate(self.second(y), scale_factor=2, mode="trilinear")
    gate = self.gate(y.mean((2, 3, 4), keepdim=True)).sigmoid() * y.amax((2, 3, 4), keepdim=True)
    return {"fine": self.last(y * gate + self.beside(x)), "coarse": self.second(y)}


class Standardised(nn.Conv3d):
    """Its weights are computed from its parameters."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        scale = weight.flatten(1).std(1).reshape(-1, 1, 1, 1, 1)
        return F.conv3d(x, weight / scale, self.bias, padding=1)


def conv(kernel: int = 3, **options) -> nn.Conv3d:
    return nn.Conv3d(2, 2, kernel, padding=kernel // 2, **options)


NETS = {
    "running statistics": (UNet(1, 2, features=(4, 4, 8), norm="batch"), {"training": False}),
    "a batch of two": (UNet(1, 2, features=(4, 8), norm="batch"), {"batch": 2}),
    "linear": (UNet(1, 2, features=(4, 8), norm="group", up="linear"), {}),
    "gated": (
        Apply(
            gated, first=nn.Conv3d(1, 2, 5, padding=2), norm=nn.BatchNorm3d(2), second=conv(),
            gate=conv(1), beside=conv(1),
            last=Standardised(2, 2, 3, padding=1),
        ),
        {},
    ),
    "strided": (
        nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1, stride=2), nn.InstanceNorm3d(4), nn.ELU(),
            nn.Conv3d(4, 4, 2, stride=2), nn.BatchNorm3d(4), nn.SiLU(),
            nn.ConvTranspose3d(4, 4, 4, 2, 1), nn.GroupNorm(2, 4), nn.ConvTranspose3d(4, 2, 2, 2),
        ),
        {},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "division"), spread(NETS))
def test_nets(group, name, division):
    net, options = NETS[name]
    check_ranks(group, net, DIVISIONS[division], (16, 11, 12), **options)


@pytest.mark.slow
@pytest.mark.parametrize("division", DIVISIONS)
def test_masks_of_dropout_are_those_of_the_whole(group, division):
    layers = nn.Conv3d(1, 4, 3, padding=1), nn.Dropout3d(0.3), nn.Conv3d(4, 2, 3), nn.Dropout(0.4)
    work = work_of(nn.Sequential(*layers), DIVISIONS[division])
    one = blocked_step(work.module, work.x, work.sizes, work.loss)
    assert_same_step(one, step_of(group, work))


@pytest.mark.slow
@pytest.mark.parametrize("portion_bytes", [1, 3000, 10000])
def test_a_share_is_computed_in_portions(group, portion_bytes):
    net = UNet(1, 2, features=(4, 4, 8), norm="instance")
    work = replace(work_of(net, DIVISIONS["two by two, uneven"]), portion_bytes=portion_bytes)
    one = plain_step(work.module, work.x, work.sizes, work.loss)
    assert_same_step(one, step_of(group, work))


@pytest.mark.slow
@pytest.mark.parametrize("bounds", [((0, 5, 32), (0, 16)), ((0, 16), (0, 3, 9, 16))])
def test_planes(group, bounds):
    check_ranks(group, UNet(1, 2, features=(4, 8), norm="group", dims=2), bounds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm", ["batch", *(pytest.param(n, marks=pytest.mark.slow) for n in ("none", "instance"))]
)
def test_deep_levels_are_empty_on_some_processes(group, norm):
    """A node of two voxels is owned by two of four processes; the others read it."""
    net = UNet(1, 2, features=(2, 2, 2, 4, 4), norm=norm)
    bounds, size = ((0, 3, 32), (0, 16), (0, 13, 16)), (31, 15, 16)
    check_ranks(group, net, bounds, size, undone=UNDONE)  # of five levels


@pytest.mark.slow
def test_three_axes_are_divided_at_once(tmp_path):
    with processes(8, tmp_path) as group:
        for norm in ("batch", "instance"):
            net = UNet(1, 2, features=(4, 4, 8), norm=norm)
            check_ranks(group, net, ((0, 8, 16), (0, 5, 12), (0, 4, 12)))


def rounding_error(one: Step, truth: Step) -> float:
    """The largest error of a gradient, relative to the largest gradient."""
    largest = max(float(g.abs().max()) for g in truth.weights.values())
    errors = (float((one.weights[n].double() - g).abs().max()) for n, g in truth.weights.items())
    return max(errors) / largest


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_single_precision_is_as_good_as_that_of_the_whole(group, norm):
    torch.manual_seed(0)
    work = work_of(UNet(1, 2, features=(8, 16), norm=norm), DIVISIONS["two by two, uneven"])
    module = copy.deepcopy(work.module).float()
    truth = plain_step(module.double(), work.x.float().double(), work.sizes, work.loss)
    single = replace(work, module=module.float(), x=work.x.float())
    plain = plain_step(single.module, single.x, single.sizes, single.loss)
    found = step_of(group, single)
    assert rounding_error(found, truth) <= 2 * rounding_error(plain, truth)


@pytest.mark.slow
def test_a_volume_smaller_than_its_padding(group):
    """The second process owns nothing but padding, which counts in statistics alone."""
    net = UNet(1, 2, features=(4, 8), norm="instance")
    check_ranks(group, net, ((0, 8, 16), (0, 8), (0, 8)), (7, 8, 6))


@pytest.mark.slow
@pytest.mark.parametrize("division", DIVISIONS)
def test_what_is_kept_and_sent_is_what_was_projected(group, division):
    net = UNet(1, 2, features=(4, 4, 8), norm="none")
    work = work_of(net, DIVISIONS[division], (15, 12, 11))
    boxes = Division(work.bounds).boxes
    found = group.run(len(boxes), kept_and_sent, work)
    net = segmented(work.module, work.x, work.sizes)
    assert tuple(kept for kept, _ in found) == kept_bytes(net, boxes)
    assert 2 * sum(sent for _, sent in found) == exchanged_bytes(net, boxes)
    *_, sent = zip(*group.run(len(boxes), take_step, work), strict=True)
    assert sum(sent) == exchanged_bytes(net, boxes, wants_image=True)


def test_two_slabs_exchange_a_plane_on_each_side_of_each_convolution():
    layers = nn.Conv3d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv3d(5, 2, 3, padding=1)
    net = segmented(nn.Sequential(*layers).double(), torch.empty(1, 1, 8, 6, 7), (8, 6, 7))
    boxes = Division.even((8, 6, 7), (2, 1, 1), (1, 1, 1)).boxes
    plane, both_ways, both_sides = 5 * 6 * 7 * 8, 2, 2
    assert exchanged_bytes(net, boxes) == plane * both_ways * both_sides
    image = plane // 5
    assert exchanged_bytes(net, boxes, wants_image=True) == plane * 4 + image * both_sides


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("partition", [(1, 1, 2), (1, 1, 3), (1, 2, 2)])
def test_less_is_kept_than_a_plain_division_would_keep(norm, partition):
    """At most 0.6 of what autograd saves, divided by the number of processes."""
    layers = UNet(1, 2, features=(16, 32, 64), norm=norm), nn.Dropout(0.5)
    net = segmented(nn.Sequential(*layers), torch.empty(1, 1, 96, 96, 96), (96, 96, 96))
    module = nn.Sequential(*layers).to("meta")
    saved: dict[int, torch.Tensor] = {}
    own = {id(p) for p in (*module.parameters(), *module.buffers())}

    def pack(tensor):
        if id(tensor) not in own:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.empty(1, 1, 96, 96, 96, device="meta"))
    total = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    boxes = Division.even((96, 96, 96), partition, alignment_of(net.graph)).boxes
    assert max(kept_bytes(net, boxes)) <= 0.6 * total / len(boxes)
