"""Seams are measured on a device as on the CPU, in the memory that it has."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests import nets
from volflow.errors import InvalidInput, MemoryRefused


@pytest.fixture
def scan():
    return np.random.default_rng(0).random((16, 16, 16), "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_they_are_those_of_the_cpu(gpu, scan, name):
    options = {"patch": 8, "overlaps": [0], "regions": 1}
    found = vf.certify_seams(scan, nets.random_net(), device=name, **options).regions[0]
    expected = vf.certify_seams(scan, nets.random_net(), device="cpu", **options).regions[0]
    assert found.blends[0].largest == pytest.approx(expected.blends[0].largest, rel=1e-4)
    assert found.exact.largest <= 1e-6


@pytest.mark.slow
def test_a_region_fits_in_what_the_device_may_give(gpu, scan):
    net, options = nets.random_net(), {"patch": 8, "overlaps": [0], "device": "cuda"}
    whole = vf.certify_seams(scan, net, regions=1, **options)
    assert whole.regions[0].padded == (16, 16, 16)
    with pytest.raises(MemoryRefused, match=r"run whole takes .*, and memory leaves 9\.77 KiB;"):
        vf.certify_seams(scan, net, device_memory=10_000, **options)
    with pytest.raises(InvalidInput, match="device_memory 9 is that of a GPU, and the device is c"):
        vf.certify_seams(scan, net, patch=8, device="cpu", device_memory=9)
