"""What goes into a prediction, what comes out, and how often the model is asked."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array as da
import nibabel
import numpy as np
import pytest
import torch
import zarr
from distributed import LocalCluster

import volflow as vf
from tests import nets
from tests.nets import Counted, Greedy, Named, Paired, random_net, slice_net
from tests.oracle import sliding_window
from volflow.errors import InvalidInput, RunFailed
from volflow.infer.method import SLACK_BYTES
from volflow.infer.predict import plan_predict
from volflow.model.unet import UNet
from volflow.store.journal.journal import Journal, journal_dir


def close(found, expected, share=1e-5):
    """Whether two results agree within a share of the value range."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() <= share * np.ptp(expected)


class TestInputs:
    @pytest.fixture
    def handed_over(self, stored, tmp_path, scan):
        """The scan in every form that a user may hand over."""
        volume = stored(scan)

        def give(kind):
            if kind == "volume":
                return volume
            if kind == "path":
                return volume.path
            if kind == "zarr":
                return zarr.open_array(f"{volume.path}/0", mode="r")
            if kind == "numpy":
                return scan
            if kind == "dask":
                return da.from_array(scan, chunks=(7, 9, 25))
            if kind == "npy":
                np.save(tmp_path / "scan.npy", scan)
                return tmp_path / "scan.npy"
            image = nibabel.Nifti1Image(scan.transpose(2, 1, 0), np.eye(4))
            nibabel.save(image, tmp_path / f"scan.{kind}")
            return str(tmp_path / f"scan.{kind}")

        return give

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "kind", ["volume", "path", "zarr", "numpy", "dask", "npy", "nii", "nii.gz"]
    )
    def test_may_have_any_form(self, predict, handed_over, scan, kind):
        net = random_net()
        result = predict(handed_over(kind), net, batch_size=1)
        assert close(result[:], sliding_window(scan[None], net, (8, 8, 8)))
        assert vf.verify(result.path).ok

    def test_a_nifti_file_brings_its_spacing_and_orientation(self, predict, tmp_path, scan):
        image = nibabel.Nifti1Image(scan.transpose(2, 1, 0), np.diag([-0.5, 0.5, 2.0, 1]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, tmp_path / "scan.nii.gz")
        result = predict(tmp_path / "scan.nii.gz", torch.nn.Identity())
        assert result.spacing == (2.0, 0.5, 0.5)
        assert result.unit == "millimeter"
        assert result.orientation == "SAL"

    def test_several_volumes_become_channels_in_their_order(self, predict, stored, scan):
        net = random_net(channels_in=3)
        two = np.stack([scan[::-1], scan[:, ::-1]])
        named = {"t1": stored(scan, "t1.zarr"), "flair": stored(two, "flair.zarr")}
        expected = sliding_window(np.concatenate([scan[None], two]), net, (8, 8, 8))
        assert close(predict(named, net)[:], expected)

    @pytest.mark.slow
    def test_what_the_first_does_not_know_of_the_grid_is_the_others(self, predict, stored, scan):
        known = {"spacing": (2.0, 1.0, 1.0), "unit": "millimeter", "orientation": "SAR"}
        volume, net = stored(scan, **known), random_net(channels_in=2)
        result = predict({"bare": scan, "stored": volume}, net, frame="RAS")
        assert {name: getattr(result, name) for name in known} == known
        same = {"first": stored(scan, "first.zarr", **known), "stored": volume}
        assert np.array_equal(result[:], predict(same, net, "same.zarr", frame="RAS")[:])

    @pytest.mark.slow
    def test_the_model_decides_the_order_where_it_has_names(self, predict, tmp_path, scan):
        torch.manual_seed(4)  # by chance its scores may lie too close together to be told apart
        net = UNet(2, 1, features=(4, 8))
        model = vf.save_model(net, tmp_path / "bundle", channels=["t1", "flair"], patch=8)
        other = scan[:, :, ::-1].copy()
        result = predict({"flair": other, "t1": scan}, tmp_path / "bundle", patch=None)
        expected = sliding_window(np.stack([scan, other]), model.module, (8, 8, 8))
        assert close(result[:], expected)

    def test_integers_are_taken_as_they_are(self, predict, stored, scan):
        net = random_net()
        counts = (200 * scan).astype("uint16")
        result = predict(stored(counts), net)
        assert close(result[:], sliding_window(counts[None].astype("f4"), net, (8, 8, 8)))

    def test_unsharded_volumes_of_others_will_do(self, predict, tmp_path, scan):
        zarr.create_array(tmp_path / "plain.zarr", data=scan, chunks=(5, 6, 7))
        zarr.create_array(tmp_path / "old.zarr", data=scan, chunks=(9, 9, 9), zarr_format=2)
        net = random_net()
        expected = sliding_window(scan[None], net, (8, 8, 8))
        assert close(predict(tmp_path / "plain.zarr", net, "1.zarr")[:], expected)
        assert close(predict(tmp_path / "old.zarr", net, "2.zarr")[:], expected)

    def test_what_is_converted_lies_beside_the_output(self, predict, tmp_path, scan):
        predict(scan, torch.nn.Identity())
        kept = vf.open(tmp_path / "out.zarr.volflow" / "input.zarr")
        assert np.array_equal(kept[:], scan)
        assert {p.name for p in tmp_path.iterdir()} == {"out.zarr", "out.zarr.volflow"}

    @pytest.mark.slow
    def test_other_voxels_are_converted_anew_on_overwrite(self, predict, scan):
        predict(scan, torch.nn.Identity())
        result = predict(2 * scan, torch.nn.Identity(), overwrite=True)
        np.testing.assert_allclose(result[0], 2 * scan, rtol=1e-5)


class TestSmallVolumes:
    @pytest.mark.slow
    @pytest.mark.parametrize("shape", [(3, 20, 20), (20, 5, 9), (1, 1, 1), (7, 8, 9), (2, 3, 1)])
    @pytest.mark.parametrize("blend", ["crop", "gaussian"])
    def test_are_padded_half_before_half_after(self, predict, shape, blend):
        scan = np.random.default_rng(0).random(shape, "float32")
        net = random_net()
        result = predict(scan, net, patch=(8, 9, 10), blend=blend)
        assert result.shape == (2, *shape)
        assert close(result[:], sliding_window(scan[None], net, (8, 9, 10), blend=blend))


class TestSlices:
    @pytest.mark.slow
    @pytest.mark.parametrize("patch", [(1, 8, 9), (8, 1, 9), (8, 9, 1)])
    def test_a_patch_of_one_reaches_the_model_in_two_dimensions(self, predict, scan, patch):
        net = slice_net()
        axis = patch.index(1)
        shown = Wrapped2d(net, axis)
        result = predict(scan, net, patch=patch, overlap=(0, 0.5, 0.5))
        overlap = (0, 0.5, 0.5)
        assert close(result[:], sliding_window(scan[None], shown, patch, overlap))

    def test_in_a_frame(self, predict, stored, scan):
        net = slice_net()
        shown = scan.transpose(2, 1, 0)[::-1].copy()
        result = predict(stored(scan, orientation="SAL"), net, patch=(8, 9, 1), frame="RAS")
        expected = sliding_window(shown[None], Wrapped2d(net, 2), (8, 9, 1))
        assert close(result[:], expected[:, ::-1].transpose(0, 3, 2, 1))

    def test_flips_of_slices(self, predict, scan):
        net = slice_net()

        def mean(batch):
            flat = batch[:, :, 0]
            return ((net(flat) + net(flat.flip(3)).flip(3)) / 2)[:, :, None]

        result = predict(scan, net, patch=(1, 8, 9), flips="zx", overlap=0)
        assert close(result[:], sliding_window(scan[None], mean, (1, 8, 9), 0))


class Wrapped2d(torch.nn.Module):
    """A 2-D net that is shown 3-D patches."""

    def __init__(self, net, axis):
        super().__init__()
        self.net, self.axis = net, axis

    def forward(self, batch):
        return self.net(batch.squeeze(2 + self.axis)).unsqueeze(2 + self.axis)


class TestOutputs:
    def test_scores_are_float32_with_channels(self, predict, scan):
        result = predict(scan, random_net(channels_out=1))
        assert (result.dtype, result.axes) == (np.float32, ("c", "z", "y", "x"))
        assert result.shape == (1, *scan.shape)

    @pytest.mark.slow
    def test_a_net_of_float64_computes_and_stores_float64(self, predict, scan):
        net = random_net().double()
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.mul_(3)
        scan = scan.astype("float64")
        for blend in ("crop", "average", "hann", "gaussian"):
            result = predict(scan, net, f"{blend}.zarr", blend=blend, overlap=0.5)
            assert result.dtype == np.float64
            expected = sliding_window(scan[None], net, (8, 8, 8), 0.5, blend)
            assert close(result[:], expected, 1e-12), blend

    def test_classes_are_the_argmax(self, predict, scan):
        net = random_net(channels_out=4)
        result = predict(scan, net, output="classes")
        expected = sliding_window(scan[None], net, (8, 8, 8))
        assert (result.dtype, result.axes) == (np.uint8, ("z", "y", "x"))
        margin = np.sort(expected, axis=0)
        clear = margin[-1] - margin[-2] > 1e-5 * np.ptp(expected)
        assert clear.mean() > 0.99
        assert np.array_equal(result[:][clear], expected.argmax(0)[clear])

    def test_classes_of_one_channel_are_where_it_exceeds_half(self, predict, scan):
        result = predict(scan, torch.nn.Identity(), output="classes")
        assert np.array_equal(result[:], (scan > 0.5).astype("u1"))

    def test_a_score_that_is_activated_decides_the_class_of_one_channel(self, predict, scan):
        signed = 10 * (scan - scan.mean())
        result = predict(signed, torch.nn.Identity(), output="classes", activation="sigmoid")
        assert np.array_equal(result[:], (signed > 0).astype("u1"))

    @pytest.mark.parametrize("dtype", ["uint16", "int32"])
    def test_classes_may_be_wider(self, predict, scan, dtype):
        result = predict(scan, random_net(), output="classes", dtype=dtype)
        assert result.dtype == dtype
        assert set(np.unique(result[:])) == {0, 1}

    @pytest.mark.slow
    def test_more_classes_than_a_byte_holds(self, predict, scan, tmp_path):
        many = torch.nn.Conv3d(1, 300, 1)
        with torch.no_grad():
            many.bias.zero_()
            many.weight.copy_(torch.linspace(-1, 1, 300).reshape(300, 1, 1, 1, 1))
        refusal = r"uint8 holds no class 299, and the model has 300 classes; use dtype=\"uint16\""
        with pytest.raises(InvalidInput, match=refusal):
            predict(scan, many, output="classes")
        assert not (tmp_path / "out.zarr").exists()
        result = predict(scan, many, output="classes", dtype="uint16")
        assert np.array_equal(result[:], np.full(scan.shape, 299))

    @pytest.mark.slow
    def test_float16_scores_are_rounded_once(self, predict, scan):
        full = predict(scan, random_net(), "full.zarr")
        half = predict(scan, random_net(), "half.zarr", dtype="float16")
        assert half.dtype == np.float16
        assert np.array_equal(half[:], full[:].astype("f2"))

    def test_small_integers_round_and_clip(self, predict, scan):
        wide = 600 * scan - 100  # -40 … 560
        full = predict(wide, torch.nn.Identity(), "full.zarr")
        small = predict(wide, torch.nn.Identity(), "small.zarr", dtype="uint8")
        assert small.dtype == np.uint8
        assert np.array_equal(small[:], np.clip(np.rint(full[:]), 0, 255).astype("u1"))
        assert {0, 255} <= set(np.unique(small[:]))

    def test_a_numpy_dtype_is_as_good_as_its_name(self, predict, scan):
        assert predict(scan, torch.nn.Identity(), dtype=np.float16).dtype == np.float16
        assert predict(scan, torch.nn.Identity(), dtype="f2").dtype == np.float16  # resumes

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", [Named, Paired])
    def test_several_outputs_are_several_arrays(self, predict, tmp_path, scan, kind):
        first, second = random_net(channels_out=3), random_net(channels_out=1, seed=9)
        results = predict(scan, kind(first, second), "many.zarr")
        names = ["seg", "edge"] if kind is Named else ["output0", "output1"]
        assert list(results) == names
        for name, net in zip(names, (first, second), strict=True):
            expected = sliding_window(scan[None], net, (8, 8, 8))
            assert close(results[name][:], expected)
            assert close(vf.open(tmp_path / "many.zarr" / name)[:], expected)
        assert vf.verify(tmp_path / "many.zarr").ok
        again = predict(scan, kind(first, second), "many.zarr")
        assert [v.path for v in again.values()] == [v.path for v in results.values()]

    @pytest.mark.parametrize("name", ["seg.nii.gz", "seg.nii", "seg.npy", "SEG.NII.GZ"])
    def test_a_foreign_name_is_exported(self, predict, tmp_path, scan, name):
        affine = np.diag([-0.5, 0.5, 2.0, 1])
        image = nibabel.Nifti1Image(scan.transpose(2, 1, 0), affine)
        nibabel.save(image, tmp_path / "scan.nii.gz")
        net = random_net(channels_out=3)
        result = predict(tmp_path / "scan.nii.gz", net, name, output="classes")
        if name.endswith("npy"):
            assert np.array_equal(np.load(tmp_path / name), result[:])
        else:
            written = nibabel.load(tmp_path / name)
            assert written.get_data_dtype() == np.uint8
            assert np.array_equal(np.asarray(written.dataobj).T, result[:])
            np.testing.assert_allclose(written.affine, affine)
        assert vf.verify(result.path).ok

    @pytest.mark.slow
    def test_the_bundle_says_what_is_put_out(self, predict, tmp_path, scan):
        net = UNet(1, 3, features=(4, 8))
        vf.save_model(
            net, tmp_path / "bundle", classes=["air", "bone", "liver"], patch=[8, 8, 16],
            overlap=0.5, blend="hann", normalize="zscore", output="classes",
        )  # fmt: skip
        result = predict(scan, str(tmp_path / "bundle"), patch=None)
        scaled = (scan - scan.mean()) / scan.std()
        expected = sliding_window(scaled[None], net.eval(), (8, 8, 16), 0.5, "hann").argmax(0)
        assert result.axes == ("z", "y", "x")
        assert (result[:] == expected).mean() > 0.999

    @pytest.mark.slow
    def test_what_the_caller_says_goes_before_what_the_bundle_says(self, predict, tmp_path, scan):
        net = UNet(1, 3, features=(4, 8))
        vf.save_model(net, tmp_path / "bundle", patch=16, overlap=0.5, output="classes")
        result = predict(scan, tmp_path / "bundle", patch=8, overlap=0, output="scores")
        assert close(result[:], sliding_window(scan[None], net.eval(), (8, 8, 8), 0))


class TestActivation:
    def test_softmax_comes_after_blending(self, predict, scan):
        net = random_net(channels_out=3)
        scores = torch.from_numpy(sliding_window(scan[None], net, (8, 8, 8)))
        result = predict(scan, net, activation="softmax")
        assert close(result[:], scores.softmax(0))

    def test_sigmoid(self, predict, scan):
        net = random_net()
        scores = torch.from_numpy(sliding_window(scan[None], net, (8, 8, 8)))
        assert close(predict(scan, net, activation="sigmoid")[:], scores.sigmoid())

    def test_a_function_of_all_channels(self, predict, scan):
        net = random_net()
        scores = sliding_window(scan[None], net, (8, 8, 8))
        result = predict(scan, net, activation=lambda s_CZYX: s_CZYX.flip(0) ** 2)
        assert close(result[:], scores[::-1] ** 2)

    @pytest.mark.slow
    def test_a_function_may_reorder_the_classes(self, predict, scan):
        net = random_net()
        plain = predict(scan, net, "a.zarr", output="classes")
        other = predict(scan, net, "b.zarr", output="classes", activation=lambda s: -s)
        assert np.array_equal(other[:], 1 - plain[:])


class TestNormalization:
    def expected(self, scan, choice):
        if choice == "minmax":
            return (scan - scan.min()) / np.ptp(scan)
        if choice == "zscore":
            return (scan - scan.mean(dtype="f8")) / scan.std(dtype="f8")
        low, high = (0.5, 99.5) if ":" in choice else (2, 98)
        a, b = np.percentile(scan, [low, high])
        return np.clip((scan - a) / (b - a), 0, 1)

    @pytest.mark.slow
    @pytest.mark.parametrize("choice", ["minmax", "zscore", "percentile", "percentile:0.5,99.5"])
    @pytest.mark.parametrize("dtype", ["uint16", "int16"])
    def test_is_that_of_the_whole_volume(self, predict, scan, choice, dtype):
        counts = (900 * scan).astype(dtype)
        net = random_net()
        shown = self.expected(counts, choice).astype("f4")
        result = predict(counts, net, normalize=choice)
        assert close(result[:], sliding_window(shown[None], net, (8, 8, 8)))

    @pytest.mark.parametrize("blend", ["crop", "exact"])
    def test_values_of_60_000_lose_nothing(self, predict, scan, blend):
        far = (60_000 + 9 * scan).astype("f4")
        options = {"normalize": "zscore", "patch": 8 if blend == "crop" else None}
        result = predict(far, torch.nn.Identity(), blend=blend, **options)
        expected = self.expected(far.astype("f8"), "zscore")
        assert np.abs(result[0] - expected).max() < 1e-5

    def test_each_channel_has_its_own(self, predict, scan):
        both = np.stack([scan, 50 * scan[::-1] - 7])
        net = random_net(channels_in=2)
        shown = np.stack([self.expected(c, "zscore") for c in both]).astype("f4")
        result = predict(both, net, normalize="zscore")
        assert close(result[:], sliding_window(shown, net, (8, 8, 8)))

    def test_each_volume_has_its_own(self, predict, scan):
        other = 50 * scan[::-1] - 7
        net = random_net(channels_in=2)
        shown = np.stack([self.expected(c, "minmax") for c in (scan, other)]).astype("f4")
        result = predict({"a": scan, "b": other}, net, normalize="minmax")
        assert close(result[:], sliding_window(shown, net, (8, 8, 8)))

    @pytest.mark.slow
    def test_a_function_is_applied_to_blocks_of_floats(self, predict, scan):
        counts = (900 * scan).astype("uint16")
        net = random_net()
        result = predict(counts, net, normalize=lambda block_CZYX: np.sqrt(block_CZYX))
        shown = np.sqrt(counts.astype("f4"))
        assert close(result[:], sliding_window(shown[None], net, (8, 8, 8)))

    def test_padding_is_zero_after_normalisation(self, predict):
        scan = np.full((4, 20, 20), 100, "uint8")
        scan[0] = 50
        result = predict(scan, random_net(), patch=8, normalize="minmax")
        shown = self.expected(scan.astype("f4"), "minmax")
        assert close(result[:], sliding_window(shown[None], random_net(), (8, 8, 8)))


class TestFlips:
    @pytest.mark.parametrize("flips", ["x", "zy", "zyx"])
    def test_scores_are_the_mean_over_mirrored_copies(self, predict, scan, flips):
        net = random_net()
        axes = ["zyx".index(letter) for letter in flips]
        chosen = [
            [a for n, a in enumerate(axes) if bits >> n & 1] for bits in range(2 ** len(axes))
        ]

        def mean(batch):
            return sum(nets.mirrored(net, batch, some) for some in chosen) / len(chosen)

        result = predict(scan, net, flips=flips)
        assert close(result[:], sliding_window(scan[None], mean, (8, 8, 8)))
        plain = sliding_window(scan[None], net, (8, 8, 8))
        assert not close(result[:], plain)

    def test_count_in_the_frame_of_the_model(self, predict, stored, scan):
        net = random_net()
        result = predict(stored(scan, orientation="SAR"), net, frame="RAS", flips="z")
        shown = scan.transpose(2, 1, 0).copy()

        def mean(batch):
            return (net(batch) + nets.mirrored(net, batch, [0])) / 2

        expected = sliding_window(shown[None], mean, (8, 8, 8)).transpose(0, 3, 2, 1)
        assert close(result[:], expected)


def skipped_oracle(scan, net, active, patch, overlap, fill):
    """The sliding window of a net whose patches without an active voxel are left out."""

    class Choosing(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, batch):
            on = batch[:, 1:].flatten(1).any(1)[:, None, None, None, None]
            values = self.inner(batch[:, :1]) * on
            return torch.cat([values, on * torch.ones_like(values[:, :1])], 1)

    both = np.stack([scan, active.astype("f4")])
    found = sliding_window(both, Choosing(net), patch, overlap)
    covered = found[-1] > 1e-9
    scores = np.where(covered, found[:-1] / np.where(covered, found[-1], 1), fill)
    return scores, covered


def centred(block):
    """A user's normalisation after which hardly a voxel reaches the stored threshold."""
    return (block - 900) / 500


class TestSkipping:
    @pytest.fixture
    def scan(self):
        """Wide enough for patches that lie in the dark."""
        return np.random.default_rng(1).random((22, 19, 25), "float32") + 0.1

    @pytest.fixture
    def half_dark(self, scan):
        scan[:, :, 10:] = 0
        scan[:5] = 0
        return scan

    @pytest.mark.slow
    def test_patches_below_the_threshold_are_left_out(self, predict, half_dark, calls):
        net = random_net(channels_out=2)
        result = predict(half_dark, Counted(net), skip_below=0.05, batch_size=1)
        expected, covered = skipped_oracle(
            half_dark, net, half_dark >= 0.05, (8, 8, 8), 0.25, 0
        )  # fmt: skip
        assert 0.2 < covered.mean() < 0.8
        assert close(result[:], expected)
        assert np.array_equal(result[:][:, ~covered], np.zeros((2, (~covered).sum())))
        assert 0 < len(calls) < 36

    @pytest.mark.parametrize("normalize", ["minmax", centred])
    def test_the_threshold_is_of_stored_values(self, predict, half_dark, normalize):
        counts = (1000 * half_dark).astype("uint16")
        net = torch.nn.Identity()
        result = predict(counts, net, skip_below=1, normalize=normalize, fill=-9)
        scaled = counts / counts.max() if normalize == "minmax" else centred(counts.astype("f4"))
        expected, covered = skipped_oracle(scaled, net, counts >= 1, (8, 8, 8), 0.25, -9)
        np.testing.assert_allclose(result[:], expected, atol=1e-6)
        assert 0.2 < covered.mean() < 0.8

    @pytest.mark.slow
    def test_a_mask_in_memory_lies_on_the_grid_of_its_volume(self, predict, stored, scan):
        """It has no spacing or orientation of its own."""
        known = {"spacing": (2.0, 1.0, 1.0), "unit": "millimeter", "orientation": "SAR"}
        net = random_net()
        mask = np.zeros(scan.shape, "uint8")
        mask[12:15, 3:6, 20:] = 7
        volume = stored(scan, **known)
        result = predict(volume, net, mask=mask)
        beside = predict(volume, net, "beside.zarr", mask=stored(mask, "mask.zarr", **known))
        assert np.array_equal(result[:], beside[:])

    @pytest.mark.slow
    def test_a_mask_decides(self, predict, scan, calls):
        mask = np.zeros(scan.shape, "uint8")
        mask[12:15, 3:6, 20:] = 7
        net = random_net()
        result = predict(scan, Counted(net), mask=mask, fill=-3, batch_size=1)
        expected, covered = skipped_oracle(scan, net, mask > 0, (8, 8, 8), 0.25, -3)
        assert close(result[:], expected)
        assert (result[:][:, ~covered] == -3).all()
        assert 0 < len(calls) <= 8

    @pytest.mark.slow
    def test_mask_and_threshold_both_decide(self, predict, half_dark):
        mask = np.zeros(half_dark.shape, bool)
        mask[:, :9] = True
        net = random_net()
        result = predict(half_dark, net, mask=mask.astype("u1"), skip_below=0.05)
        expected, _ = skipped_oracle(
            half_dark, net, mask & (half_dark >= 0.05), (8, 8, 8), 0.25, 0
        )  # fmt: skip
        assert close(result[:], expected)

    @pytest.mark.slow
    def test_what_no_patch_covers_is_background(self, predict, tmp_path, half_dark):
        net = UNet(1, 3, features=(4, 8))
        vf.save_model(
            net, tmp_path / "bundle", classes=["a", "b", "none"], background=2, patch=8,
            output="classes",
        )  # fmt: skip
        result = predict(half_dark, tmp_path / "bundle", patch=None, skip_below=0.05)
        _, covered = skipped_oracle(
            half_dark, torch.nn.Identity(), half_dark >= 0.05, (8, 8, 8), 0.25, 0
        )  # fmt: skip
        assert (result[:][~covered] == 2).all()

    @pytest.mark.slow
    def test_an_empty_scan_is_all_fill_without_any_forward(self, predict, calls):
        empty = np.zeros((20, 20, 20), "uint8")
        result = predict(empty, Counted(random_net()), skip_below=1, fill=5)
        assert (result[:] == 5).all()
        assert calls == []
        assert vf.verify(result.path).ok

    @pytest.mark.slow
    @pytest.mark.parametrize("blend", ["crop", "average", "hann"])
    def test_skipping_nothing_changes_nothing(self, predict, scan, blend):
        plain = predict(scan, random_net(), "a.zarr", blend=blend)
        other = predict(scan, random_net(), "b.zarr", blend=blend, skip_below=-1)
        assert np.array_equal(plain[:], other[:])


class TestForwards:
    @pytest.mark.slow
    def test_each_patch_is_computed_once_where_a_slab_fits(self, predict, calls):
        scan = np.random.default_rng(0).random((40, 30, 33), "float32") + 1
        for blend in ("gaussian", "crop"):
            calls.clear()
            plan = plan_predict(scan, random_net(), "never.zarr", patch=8, overlap=0.5, blend=blend)
            predict(scan, Counted(random_net()), f"{blend}.zarr", overlap=0.5, blend=blend)
            grid = 9 * 7 * 8
            assert grid <= sum(calls) <= 1.02 * grid
            assert f"{grid:,} forwards for {grid:,} patches" in dict(plan.facts)["patches"]

    @pytest.mark.slow
    def test_a_narrow_budget_costs_forwards_and_says_so(
        self, predict, stored, client, calls, monkeypatch
    ):
        scan = np.random.default_rng(0).random((16, 40, 40), "float32") + 1
        scan = stored(scan)
        monkeypatch.setattr("volflow.model.trial.read_peak", lambda device: 0)
        options = {"patch": 8, "overlap": 0.5, "chunk": 8, "shard": 8, "batch_size": 1}
        full = predict(scan, random_net(), "full.zarr", **options)
        options["memory"] = SLACK_BYTES + 200 * 2**10
        plan = plan_predict(scan, random_net(), "never.zarr", cluster=client, **options)
        narrow = predict(scan, Counted(random_net()), "narrow.zarr", **options)
        grid = 3 * 9 * 9
        assert len(calls) > 1.02 * grid
        assert (
            dict(plan.facts)["patches"] == f"{len(calls):,} forwards for {grid} patches of the grid"
        )
        assert np.array_equal(narrow[:], full[:])

    @pytest.mark.slow
    def test_a_resumed_plan_counts_what_is_left(self, predict, client, scan, tmp_path):
        predict(scan, random_net())
        plan = plan_predict(scan, random_net(), tmp_path / "out.zarr", patch=8, cluster=client)
        assert plan.blocks == 0
        assert plan.units == 0

    def test_the_plan_writes_nothing(self, client, tmp_path, scan):
        plan = plan_predict(scan, random_net(), tmp_path / "out.zarr", patch=8, cluster=client)
        assert plan.units == scan.size
        assert plan.peak_bytes <= plan.memory_bytes
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_the_batch_does_not_change_the_result(self, predict, scan):
        one = predict(scan, random_net(), "1.zarr", batch_size=1)
        for batch in (2, 5, 64, "auto"):
            other = predict(scan, random_net(), f"{batch}.zarr", batch_size=batch)
            assert close(other[:], one[:], 1e-6)

    @pytest.mark.slow
    @pytest.mark.parametrize("most", [1, 3])
    @pytest.mark.parametrize("always", [False, True])
    def test_out_of_memory_halves_the_batch_and_the_run_goes_on(
        self, predict, scan, calls, most, always
    ):
        plain = predict(scan, random_net(), "plain.zarr", overlap=0.5, batch_size=1)
        calls.clear()
        greedy = Greedy(random_net(), most, always=always)
        result = predict(scan, greedy, "greedy.zarr", overlap=0.5, batch_size=6)
        assert close(result[:], plain[:], 1e-6)
        assert max(calls) == most
        assert sum(calls) == 3 * 2 * 4

    def test_a_patch_that_never_fits_is_refused(self, predict, scan):
        with pytest.raises(InvalidInput, match=r"one patch of \(8, 8, 8\) does not fit in the m"):
            predict(scan, Greedy(random_net(), 0), batch_size=4)

    @pytest.mark.slow
    def test_eight_threads_of_dask_make_no_eight_forwards(self, tmp_path, scan):
        now, most = [], [0]

        class Watched(torch.nn.Module):
            def forward(self, batch):
                now.append(1)
                most[0] = max(most[0], len(now))
                threading.Event().wait(0.001)
                now.pop()
                return batch

        net = Watched()
        with LocalCluster(
            n_workers=1, threads_per_worker=8, processes=False, memory_limit=None,
            dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as eight:  # fmt: skip
            run = functools.partial(
                vf.predict, scan, net, patch=8, cluster=eight, progress=False, chunk=8, shard=8
            )
            with ThreadPoolExecutor(2) as pool:  # two predictions at once, with one model
                results = list(pool.map(run, [tmp_path / "a.zarr", tmp_path / "b.zarr"]))
        for result in results:
            np.testing.assert_allclose(result[0], scan, rtol=2e-6)
        assert most[0] == 1

    def test_progress_adds_up_and_names_the_stage_that_limits(
        self, predict, client, scan, tmp_path
    ):
        states = []
        vf.predict(
            scan, random_net(), tmp_path / "out.zarr", patch=8, chunk=8, shard=8, cluster=client,
            progress=lambda s: states.append((s.operation, s.units, s.blocks, s.total_blocks)),
        )  # fmt: skip
        ours = [state for state in states if state[0] == "predict"]
        assert ours[-1] == ("predict", scan.size, 2, 2)
        assert [units for _, units, _, _ in ours] == sorted(units for _, units, _, _ in ours)

    def test_torch_keeps_its_threads(self, predict, scan):
        before = torch.get_num_threads()
        predict(scan, random_net())
        assert torch.get_num_threads() == before

    def test_torch_keeps_to_the_quota_of_a_container(self, predict, scan, tmp_path, monkeypatch):
        monkeypatch.setattr("volflow.infer.method.cores", lambda: 1)
        predict(scan, random_net())
        record = Journal(journal_dir(tmp_path / "out.zarr")).recorded()
        assert record.settings["threads"] == 1

    def test_the_model_keeps_its_mode(self, predict, scan):
        net = torch.nn.Sequential(torch.nn.Dropout3d(0.9), torch.nn.Identity()).train()
        result = predict(scan, net)
        np.testing.assert_allclose(result[0], scan, rtol=2e-6)
        assert net.training
        assert net[0].training


class TestFailure:
    @pytest.mark.slow
    def test_a_model_that_fails_on_some_data_loses_only_these_blocks(self, predict, scan, tmp_path):
        scan[10:, :8, :8] = 99.0
        options = {"overlap": 0, "patch": (2, 8, 8), "chunk": 2, "shard": 2}
        with pytest.raises(RunFailed, match=r"^2 of 7 .* block 5 \[.*bright; block 6 \["):
            predict(scan, nets.Breaking(50), **options)
        coverage = vf.verify(tmp_path / "out.zarr")
        assert coverage.cells == 5 * "#" + ".."
        with pytest.raises(InvalidInput, match="is not complete: 5 of 7 blocks are done;"):
            vf.open(tmp_path / "out.zarr")
        kept = zarr.open_array(tmp_path / "out.zarr" / "0", mode="r")[0, :10]
        np.testing.assert_allclose(kept, scan[:10], rtol=2e-6)

    @pytest.mark.slow
    def test_output_that_changes_its_shape_is_named(self, predict, scan):
        class Fickle(torch.nn.Module):
            def forward(self, batch):
                return batch if not batch.any() else batch[:, :, :4]

        with pytest.raises(InvalidInput, match="in the trial forward; it must depend on the p"):
            predict(scan, Fickle())


def test_links_lead_to_one_output(predict, scan, tmp_path):
    predict(scan, torch.nn.Identity())
    (tmp_path / "link.zarr").symlink_to(tmp_path / "out.zarr")
    again = predict(scan, torch.nn.Identity(), "link.zarr")
    assert Path(again.path).resolve() == tmp_path / "out.zarr"
    assert not (tmp_path / "link.zarr.volflow").exists()
