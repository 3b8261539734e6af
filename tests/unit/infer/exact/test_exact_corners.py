"""Exact inference where networks, sizes and states are unusual."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.exact_oracle import EXACT, error, lively, whole
from volflow.errors import InvalidInput, ResumeRefused
from volflow.infer.halo import halo
from volflow.infer.predict import plan_predict, predict
from volflow.partition.reach import padded_sizes
from volflow.partition.trace import trace


def conv(before, after, stride=1):
    return nn.Conv3d(before, after, 3, stride, 1)


def small(*, seed=0):
    torch.manual_seed(seed)
    return lively(nn.Sequential(conv(1, 4), nn.InstanceNorm3d(4), nn.ReLU(), conv(4, 2)))


def noise(shape=(20, 17, 22)):
    return np.random.default_rng(0).random(shape)


class TestScale:
    @pytest.mark.parametrize("side", [16, 48, 256])
    def test_of_nearest_neighbours_in_few_voxels(self, side):
        down = [conv(1, 1, 2) for _ in range(4)]
        up = [layer for _ in range(4) for layer in (nn.Upsample(scale_factor=2), conv(1, 1))]
        found = halo(nn.Sequential(*down, *up), shape=(side,) * 3)
        assert (found.alignment, found.scale) == ((16,) * 3, (1,) * 3)

    @pytest.mark.parametrize("factor", [32, 64])
    @pytest.mark.parametrize("shape", [None, (64, 64, 128)])
    def test_of_many_neighbours_at_once(self, factor, shape):
        net = nn.Sequential(conv(1, 1, factor), nn.Upsample(scale_factor=factor))
        assert halo(net, shape=shape).alignment == (factor,) * 3

    @pytest.mark.parametrize("side", [5, 20, 64])
    def test_of_a_replicated_border(self, side):
        net = nn.Conv3d(1, 1, 5, padding=2, padding_mode="replicate")
        assert halo(net, shape=(side,) * 3).alignment == (1, 1, 1)

    def test_of_every_third_voxel(self):
        class Thinned(nn.Module):
            def forward(self, image):
                return image[..., ::3, ::3, ::3]

        assert halo(Thinned(), shape=(6, 9, 12)).scale == (3, 3, 3)


class TestPyramidOfBins:
    class Net(nn.Module):
        """As many bins of any volume."""

        def __init__(self):
            super().__init__()
            self.first, self.last = conv(1, 3), conv(6, 2)

        def forward(self, image):
            x = self.first(image)
            bins = F.interpolate(F.adaptive_avg_pool3d(x, 2), size=x.shape[2:], mode="trilinear")
            return self.last(torch.cat([x, bins], 1))

    def test_is_not_padded_to_bins_of_a_large_volume(self):
        assert padded_sizes(self.Net().eval(), 1, (24, 20, 16)) == (24, 20, 16)

    def test_is_exact(self, exact):
        net, scan = lively(self.Net()), noise((24, 20, 16))
        assert error(exact(scan, net, memory="2GiB")[:], whole(scan, net)) < EXACT


def in_place(net):
    net.compile()
    return net


def inside(net):
    net[0] = torch.compile(net[0])
    return net


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, on import
class TestCompiled:
    @pytest.mark.slow
    @pytest.mark.parametrize("compiled", [torch.compile, in_place, inside])
    def test_is_traced_as_the_network_that_it_is(self, compiled):
        net = compiled(small())
        names = [node.name for node in trace(net, 1, (8, 8, 8)).nodes]
        assert names == [node.name for node in trace(small(), 1, (8, 8, 8)).nodes]
        if compiled is in_place:
            assert net._compiled_call_impl is not None
        if compiled is inside:
            assert hasattr(net[0], "_orig_mod")


class TestStateOfTheModel:
    class Net(nn.Module):
        """Keeps outputs on the way, as nets with deep supervision do."""

        def __init__(self):
            super().__init__()
            self.body, self.heads, self.last = small(), [torch.rand(1)], None

        def forward(self, image):
            self.new = self.last = self.body(image)
            self.heads[0] = self.last
            return self.last

    def test_is_as_before_when_it_was_traced(self):
        net = self.Net()
        before = net.heads[0]
        halo(net)
        assert net.heads[0] is before
        assert net.last is None
        assert not hasattr(net, "new")

    def test_is_as_before_when_it_was_refused(self):
        net = self.Net()
        with pytest.raises(InvalidInput):
            halo(net, shape=(1, 1, 1))  # which has no variance
        assert net.last is None


def test_half_weights_are_refused_before_a_worker_is_asked(exact):
    with pytest.raises(InvalidInput, match="should be the same"):
        exact(noise(), small().half())


def test_a_plan_where_patches_were_begun_is_refused(predict, client, tmp_path):
    predict(noise(), small())
    with pytest.raises(ResumeRefused, match="another blend than 'exact'"):
        plan_predict(noise(), small(), tmp_path / "out.zarr", blend="exact", cluster=client)


def test_a_network_that_hands_its_image_on(tmp_path):
    assert halo(nn.Identity()).overhead(64) == 1
    assert "1.00×" in halo(nn.Identity()).describe()
    scan = np.random.default_rng(0).random((9, 7, 8))
    found = predict(scan, nn.Identity(), tmp_path / "a.zarr", blend="exact", progress=False)
    assert np.array_equal(found[0], scan.astype("float32"))
