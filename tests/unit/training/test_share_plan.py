"""What a step over processes takes is known before any of them is started."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import volflow as vf
from volflow.errors import InvalidInput, MemoryRefused
from volflow.infer.exact.choose import ALLOCATED, KEPT_CODE_BYTES
from volflow.training import share_plan

VOLUME = torch.empty(1, 64, 64, 64)


def planned(partition, memory=None):
    return vf.WholeVolume(vf.UNet(1, 2), memory=memory, partition=partition).plan(VOLUME)


def test_memory_divides_by_the_number_of_processes():
    one, four = planned((1, 1, 1)), planned((1, 2, 2))
    assert one.sent_bytes == 0 < four.sent_bytes
    assert one.kept_bytes / 4 < four.kept_bytes < 1.15 * one.kept_bytes / 4
    tensors, quarter = (tensor_bytes(plan) for plan in (one, four))
    assert one.kept_bytes < tensors < 2 * one.kept_bytes
    assert quarter < 0.35 * tensors


def tensor_bytes(plan):
    """The most bytes of tensors at a time, without what allocators and libraries take."""
    return (plan.peak_bytes - KEPT_CODE_BYTES - share_plan.GROUP_BYTES) / ALLOCATED


def test_gradients_of_weights_count():
    """Where weights are most of all, they are held in float64, summed, and given to parameters."""
    net = nn.Sequential(nn.Conv3d(1, 256, 3, padding=1), nn.Conv3d(256, 256, 3, padding=1))
    plan = vf.WholeVolume(net, partition=(1, 1, 2)).plan(torch.empty(1, 8, 8, 8))
    count = sum(p.numel() for p in net.parameters())
    assert 16 * count < tensor_bytes(plan) < 26 * count


def test_a_volume_of_few_voxels_is_refused_by_its_memory():
    net = nn.Conv1d(1, 1, 3, padding=1)
    with pytest.raises(MemoryRefused, match="give more"):
        vf.WholeVolume(net, memory="1KiB", partition=(2,)).plan(torch.empty(1, 5))


def test_a_plan_is_for_people_and_for_machines():
    plan = planned((1, 2, 2))
    assert str(plan).splitlines()[:2] == [
        "step of 4 processes, 1×2×2",
        "  boxes  64×32×32 voxels",
    ]
    assert json.loads(json.dumps(plan.to_dict()))["partition"] == [1, 2, 2]


@pytest.mark.slow
def test_too_little_memory_is_refused_with_a_partition_that_would_do(monkeypatch):
    monkeypatch.setattr(share_plan, "MOST_PROCESSES", 16)  # each of more would be looked at
    with pytest.raises(MemoryRefused, match=r"140 MiB; start 4 processes .*=\(2, 2, 1\), or"):
        planned((2, 1, 1), "140MiB")
    assert planned((2, 2, 1), "140MiB").peak_bytes <= 140 * 2**20
    with pytest.raises(MemoryRefused, match="memory is 1 MiB; give more, or leave partition out"):
        planned((1, 1, 1), "1MiB")


def test_a_partition_has_a_number_per_axis():
    with pytest.raises(InvalidInput, match="one positive number per axis"):
        planned((2, 2))
