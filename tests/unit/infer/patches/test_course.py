"""Runs along the second axis: the bits of runs along the first, and hardly a patch twice."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import volflow as vf
from tests.nets import random_net, slice_net
from volflow.geometry.grid import PatchGrid
from volflow.infer.patches import method as patches
from volflow.infer.patches.course import exchanged_grid, goes_along_second
from volflow.infer.predict import plan_predict
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec

BLENDS = ("crop", "average", "hann", "gaussian")


class Half(nn.Module):
    """Halves the resolution."""

    def __init__(self):
        super().__init__()
        self.net = random_net(1, 2)

    def forward(self, batch):
        return nn.functional.avg_pool3d(self.net(batch), 2)


def scan_of(shape):
    return np.random.default_rng(0).random(shape, "float32")


@pytest.fixture
def both_ways(client, tmp_path, monkeypatch):
    """Predicts along the second axis and along the first, and returns both."""

    def predict(scan, net, **options):
        results = []
        for second in (True, False):
            seen = []

            def goes(grid, second=second, seen=seen):
                seen.append(goes_along_second(grid))
                return second and seen[-1]

            monkeypatch.setattr(patches, "goes_along_second", goes)
            out = tmp_path / f"{second}.zarr"
            given = {"chunk": 8, "shard": 8, "batch_size": 2, **options}
            result = vf.predict(scan, net, out, cluster=client, progress=False, **given)
            assert seen
            assert all(seen)
            results.append(result[:])
        return results

    return predict


@pytest.mark.slow
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("skip", [False, True])
def test_same_bits_as_along_the_first(both_ways, blend, skip):
    scan = scan_of((9, 30, 26))
    scan[:, :14, 8:] = 0
    skipping = {"skip_below": 0.1} if skip else {}
    ours, first = both_ways(
        scan, random_net(1, 3), patch=(12, 10, 8), overlap=0.4, blend=blend, **skipping
    )
    assert np.array_equal(ours, first)


@pytest.mark.slow
def test_same_bits_of_slices(both_ways):
    ours, first = both_ways(
        scan_of((1, 40, 26)), slice_net(1), patch=(1, 12, 8), overlap=(0, 4, 2), output="classes"
    )
    assert np.array_equal(ours, first)


@pytest.mark.slow
def test_same_bits_at_half_the_resolution(both_ways):
    ours, first = both_ways(scan_of((9, 30, 26)), Half(), patch=(12, 8, 8), overlap=0.5)
    assert ours.shape == (2, 5, 15, 13)
    assert np.array_equal(ours, first)


@pytest.mark.slow
@pytest.mark.parametrize("frame", ["RIA", "LPS"])
def test_same_bits_in_a_frame(both_ways, tmp_path, frame):
    shape = (30, 26, 9) if frame == "LPS" else (26, 30, 9)
    volume = create(
        tmp_path / "scan.zarr",
        VolumeSpec.of(shape, "float32", Meta(orientation="SAR"), chunk=8, shard=8),
    )
    volume.write(vf.Roi.full(shape), scan_of(shape))
    patch = (12, 10, 8)
    ours, first = both_ways(volume, random_net(1, 2), patch=patch, overlap=0.4, frame=frame)
    assert np.array_equal(ours, first)


@given(
    shape=st.tuples(*[st.integers(1, 40)] * 3),
    patch=st.tuples(*[st.integers(1, 12)] * 3),
)
def test_it_is_the_lexicographic_order_all_the_same(shape, patch):
    grid = PatchGrid(shape, patch, patch)
    again = exchanged_grid(grid)
    assert exchanged_grid(again) == grid
    if goes_along_second(grid):
        exchanged = [(z, y, x) for y, z, x in np.ndindex(*again.counts)]
        assert exchanged == list(np.ndindex(*grid.counts))


def test_a_thin_plane_is_computed_hardly_twice(client, tmp_path):
    plane = create(
        tmp_path / "plane.zarr", VolumeSpec.of((1, 30_000, 30_000), "uint8", Meta(), chunk=512)
    )
    plan = plan_predict(
        plane, slice_net(1), tmp_path / "out.zarr", patch=(1, 512, 512), batch_size=1,
        overlap=(0, 128, 128), memory="1GiB", cluster=client,
    )  # fmt: skip
    found = re.match(r"([\d,]+) forwards for ([\d,]+) patches", dict(plan.facts)["patches"])
    forwards, needed = (int(text.replace(",", "")) for text in found.groups())
    assert forwards <= 1.05 * needed
