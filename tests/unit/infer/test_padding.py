"""What a network sees where a patch reaches outside of the volume."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch

import volflow as vf
from tests.nets import random_net
from tests.oracle import sliding_window
from volflow.errors import InvalidInput, ResumeRefused
from volflow.infer.merge import merge_options, settings_of
from volflow.infer.predict_options import PredictOptions
from volflow.model.spec import Spec, make_spec

PADDINGS = [-2.5, "edge", "reflect"]
SMALL = np.random.default_rng(0).random((3, 1, 20), "f4") + 1
# Patches of 8 without overlap: the last begins at 16, and lacks 7 voxels, 4 or none.
ROUND = np.random.default_rng(0).random((17, 20, 24), "f4") + 1


class Halving(torch.nn.Module):
    """Returns scores of half the resolution, for which a volume is padded behind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv3d(1, 2, 3, stride=2, padding=1)

    def forward(self, batch):
        return self.conv(batch)


def close(found, expected):
    return found.shape == expected.shape and np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("padding", PADDINGS)
class TestIsThatOfTheWholeVolume:
    def test_where_it_is_smaller_than_the_patch(self, predict, padding):
        net = random_net()
        result = predict(SMALL, net, padding=padding)
        assert close(result[:], sliding_window(SMALL[None], net, (8, 8, 8), padding=padding))

    @pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
    def test_where_a_network_of_scale_two_needs_more(self, predict, padding, axes):
        scan = np.ascontiguousarray(ROUND.transpose(axes))
        result = predict(scan, Halving().eval(), padding=padding, overlap=0)
        expected = sliding_window(
            scan[None], Halving().eval(), (8, 8, 8), 0, scale=(2, 2, 2), padding=padding
        )
        assert close(result[:], expected)

    def test_in_the_frame_and_as_the_network_sees_the_values(self, predict, stored, padding):
        scan, net = (900 * SMALL).astype("uint16"), random_net()
        result = predict(
            stored(scan, orientation="SAR"), net, padding=padding, frame="LPI",
            normalize="window:1000,1500",
        )  # fmt: skip
        shown = np.clip((np.flip(scan.T) - 1000.0) / 500, 0, 1).astype("f4")
        expected = sliding_window(shown[None], net, (8, 8, 8), padding=padding)
        assert close(result[:], np.flip(expected, (1, 2, 3)).transpose(0, 3, 2, 1))

    def test_lazily_too(self, predict, stored, padding):
        net = Halving().eval()
        options = {"patch": 8, "overlap": 0, "padding": padding, "batch_size": 1}
        volume = stored(ROUND)
        batch = predict(volume, net, **options)[:]
        lazy = vf.map_model(volume, net, block=4, **options)
        computed = vf.map_model(da.from_array(ROUND, chunks=(9, 1, 7)) + 0, net, **options)
        assert np.array_equal(lazy.compute(), batch)
        assert np.array_equal(computed.compute(), batch)


class TestOfABundle:
    @pytest.fixture
    def bundle(self, tmp_path):
        net = vf.UNet(1, 2, features=(2, 4))
        vf.save_model(net, tmp_path / "bundle", patch=8, padding="reflect")
        return tmp_path / "bundle", net.eval()

    def test_it_counts(self, predict, bundle):
        result = predict(SMALL, bundle[0], patch=None)
        assert close(result[:], sliding_window(SMALL[None], bundle[1], (8,) * 3, padding="reflect"))

    def test_the_caller_goes_before_it(self, predict, bundle):
        result = predict(SMALL, bundle[0], patch=None, padding=0)
        assert close(result[:], sliding_window(SMALL[None], bundle[1], (8,) * 3))

    @pytest.mark.parametrize("wrong", ["mirror", "0", float("nan"), [0, 1]])
    def test_nonsense_is_refused(self, wrong):
        with pytest.raises(
            InvalidInput, match=r"padding is .*; expected a finite number, edge or r"
        ):
            make_spec({"padding": wrong})


class TestFingerprint:
    def test_zeros_are_what_outputs_were_made_with_before(self):
        for padding in (None, 0, 0.0, -0.0):
            merged = merge_options(PredictOptions(patch=8, padding=padding), Spec())
            assert "padding" not in settings_of(merged)

    def test_another_one_is_part_of_it(self, predict):
        predict(SMALL, random_net(), padding="edge")
        with pytest.raises(ResumeRefused, match=r"options.padding: edge → "):
            predict(SMALL, random_net())

    @pytest.mark.slow
    def test_it_is_recomputed_with_what_was_recorded(self, predict, stored, tmp_path):
        vf.save_model(vf.UNet(1, 2, features=(2, 4)), tmp_path / "b", patch=8, padding="edge")
        volume = stored(SMALL)
        for out, options in {
            "a.zarr": {},
            "b.zarr": {"padding": 0},
            "c.zarr": {"padding": 3},
        }.items():
            result = predict(volume, tmp_path / "b", out, patch=None, **options)
            assert vf.verify(result.path, recompute=1).ok


class TestExact:
    def test_has_padding_of_its_own(self, predict):
        with pytest.raises(
            InvalidInput, match="padding 'edge' is that of patches, and blend 'exac"
        ):
            predict(SMALL, random_net(), blend="exact", patch=None, padding="edge")

    def test_that_of_a_bundle_is_one_of_its_patches(self):
        from volflow.infer.methods import checked_options

        options = checked_options(PredictOptions(blend="exact"), make_spec({"padding": "edge"}))
        assert options.padding == 0


def test_nonsense_is_refused_in_one_line(predict):
    with pytest.raises(InvalidInput, match=r"^padding must be a finite number, "):
        predict(SMALL, random_net(), padding="mirror")
