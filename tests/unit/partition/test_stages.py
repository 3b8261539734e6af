"""Segments that end behind every convolution."""

from __future__ import annotations

import pytest
import torch
from partition_oracle import Apply
from torch import nn

from volflow.model.unet import UNet
from volflow.partition.segments import known_before
from volflow.partition.stages import segments_for_ranks
from volflow.partition.trace import trace


def gated(self, x):
    x = self.first(x)
    gate = torch.sigmoid(self.gate(x.relu().mean((2, 3), keepdim=True)))
    return self.last(x * gate + self.beside(x))


def two_outputs(self, x):
    x = self.first(x)
    return {"fine": x, "coarse": self.last(torch.relu(x)), "mean": x.mean((2, 3))}


def conv(kernel=3):
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2)


NETS = {
    "none": UNet(4, 2, features=(4, 8, 8), norm="none", dims=2),
    "batch": UNet(4, 2, features=(4, 8, 8), norm="batch", dims=2),
    "instance": UNet(4, 2, features=(4, 8, 8), norm="instance", dims=2),
    "linear": UNet(4, 2, features=(4, 8), norm="group", up="linear", dims=2),
    "gated": Apply(gated, first=conv(), gate=conv(1), beside=conv(), last=conv()),
    "two outputs": Apply(two_outputs, first=conv(), last=conv()),
    "of the image": nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU()),
    "nothing": nn.Identity(),
}


@pytest.mark.parametrize("name", NETS)
def test_every_convolution_is_computed_once_and_all_is_there_when_it_is_read(name):
    graph = trace(NETS[name].eval(), 4, (16, 16))
    segments = segments_for_ranks(graph)
    convolutions = {n for n, node in enumerate(graph.nodes) if node.flops and node.has_axes}
    stored: set[int] = {0}
    for number, segment in enumerate(segments):
        assert set(segment.given) <= stored
        targets = {*segment.stores, *(graph.nodes[s].inputs[0] for s in segment.statistics)}
        known = {*segment.given, *known_before(segments, number)}
        computed = set(graph.above(targets, known))
        assert computed & convolutions <= set(segment.stores)
        assert not any(graph.nodes[n].statistic for n in computed)
        stored |= set(segment.stores)
    everything = [n for segment in segments for n in segment.stores]
    assert convolutions <= set(everything)
    assert sorted(n for s in segments for n in s.statistics) == list(graph.statistics)
    assert segments[-1].stores == graph.ends
    assert len(everything) - len(set(everything)) == sum(
        n in earlier.stores for n in graph.ends for earlier in segments[:-1]
    )


def test_parallel_branches_are_one_segment():
    graph = trace(NETS["gated"].eval(), 4, (16, 16))
    assert [len(segment.stores) for segment in segments_for_ranks(graph)] == [1, 1, 1]
