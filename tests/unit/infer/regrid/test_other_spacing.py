"""Volumes of another spacing are seen resampled, and their scores come back: as done by hand."""

from __future__ import annotations

import json
import re

import dask.array as da
import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

import volflow as vf
from tests.exact_oracle import EXACT, error
from tests.nets import Named, Tiring, random_net
from tests.oracle import sliding_window
from tests.stores import files
from volflow.cli import run
from volflow.errors import InvalidInput, MemoryRefused, ResumeRefused, RunFailed
from volflow.infer.predict import plan_predict
from volflow.infer.regrid.brought_back import BroughtBack
from volflow.store.journal.journal import journal_dir

SHAPE, SPACING = (22, 17, 19), (2.0, 1.0, 1.25)
MODEL = (1.5, 1.5, 1.5)
PLACED = {"spacing": SPACING, "unit": "millimeter", "orientation": "SAR"}
OPTIONS = {"patch": 8, "overlap": 0.5, "spacing": MODEL, "batch_size": 2}


@pytest.fixture
def scan():
    return ndimage.gaussian_filter(np.random.default_rng(0).random(SHAPE), 1)


def double(net):
    return net.double()


def centres(n, step):
    """Where voxels ``step`` times as long lie along an axis, within the outermost centres."""
    m = max(1, round(n / step))
    return (np.arange(m) + 0.5) * step - 0.5


def between(voxels, places, order):
    """Values of a float64 array at places along its last three axes, by scipy."""
    clipped = [np.clip(x, 0, n - 1) for x, n in zip(places, voxels.shape[-3:], strict=True)]
    grid = np.meshgrid(*clipped, indexing="ij")
    flat = voxels.reshape(-1, *voxels.shape[-3:])
    made = [ndimage.map_coordinates(x, grid, order=order, mode="mirror") for x in flat]
    return np.stack(made).reshape(*voxels.shape[:-3], *made[0].shape)


def seen_by_hand(scan, spacing=SPACING, model=MODEL, order=3):
    steps = [t / s for s, t in zip(spacing, model, strict=True)]
    return between(scan, [centres(n, r) for n, r in zip(scan.shape, steps, strict=True)], order)


def back_by_hand(scores, shape=SHAPE, spacing=SPACING, model=MODEL):
    places = [
        ((np.arange(n) + 0.5) * s / t - 0.5) for n, s, t in zip(shape, spacing, model, strict=True)
    ]
    return between(scores, places, 1)


def by_hand(scan, net, **options):
    seen = seen_by_hand(scan)
    return back_by_hand(sliding_window(seen[None], net, (8, 8, 8), 0.5, **options))


class TestResult:
    @pytest.mark.parametrize("blend", ["gaussian", "crop"])
    def test_of_patches(self, predict, stored, scan, blend):
        net = double(random_net(channels_out=3))
        volume = stored(scan, **PLACED)
        result = predict(volume, net, blend=blend, **OPTIONS)
        # The weights of blends are float32.
        assert error(result[:], by_hand(scan, net, blend=blend)) < 1e-6
        assert (result.shape, result.spacing) == ((3, *SHAPE), SPACING)
        assert result.meta.orientation == "SAR"

    def test_of_the_exact_method(self, exact, stored, scan):
        net = double(random_net())
        result = exact(stored(scan, **PLACED), net, spacing=MODEL)
        with torch.inference_mode():
            scores = net(torch.from_numpy(seen_by_hand(scan))[None, None])[0].numpy()
        assert error(result[:], back_by_hand(scores)) < EXACT

    @pytest.mark.slow
    @pytest.mark.parametrize("activation", [None, "softmax"])
    def test_classes_are_those_of_the_scores_that_came_back(
        self, predict, stored, scan, activation
    ):
        volume, options = stored(scan, **PLACED), OPTIONS | {"activation": activation}
        net = random_net(channels_out=4)
        scores = predict(volume, net, "scores.zarr", **options)
        classes = predict(volume, net, "classes.zarr", output="classes", **options)
        assert np.array_equal(classes[:], scores[:].argmax(0))
        assert classes.meta.kind == "classes"

    def test_what_comes_back_is_activated(self, predict, stored, scan):
        net = double(random_net(channels_out=3))
        result = predict(stored(scan, **PLACED), net, activation="softmax", **OPTIONS)
        seen = seen_by_hand(scan)
        scores = torch.from_numpy(sliding_window(seen[None], net, (8, 8, 8), 0.5)).softmax(0)
        assert error(result[:], back_by_hand(scores.numpy())) < 1e-6
        assert np.allclose(result[:].sum(0), 1)

    def test_a_single_channel_is_a_class_above_a_half(self, predict, stored, scan):
        volume, options = stored(scan, **PLACED), OPTIONS | {"activation": "sigmoid"}
        net = random_net(channels_out=1)
        scores = predict(volume, net, "scores.zarr", **options)
        classes = predict(volume, net, "classes.zarr", output="classes", **options)
        assert np.array_equal(classes[:], scores[0] > 0.5)

    @pytest.mark.parametrize("shard", [8, 16, 24])
    def test_it_does_not_depend_on_the_cut(self, predict, stored, scan, shard):
        volume, net = stored(scan, **PLACED), random_net()
        whole = predict(volume, net, "whole.zarr", shard=32, **OPTIONS)
        parts = predict(volume, net, "parts.zarr", shard=shard, **OPTIONS)
        assert np.array_equal(whole[:], parts[:])

    @pytest.mark.slow
    def test_a_flipped_copy_is_seen_on_the_same_grid(self, predict, stored, scan):
        net, options = random_net(), OPTIONS | {"frame": "RAS", "spacing": (1.5, 1.4, 1.3)}
        turned = stored(
            scan[::-1, :, ::-1].copy(), "turned.zarr", **PLACED | {"orientation": "IAL"}
        )
        there = predict(stored(scan, **PLACED), net, "there.zarr", **options)[:]
        back = predict(turned, net, "back.zarr", **options)[:]
        assert np.allclose(there, back[:, ::-1, :, ::-1], rtol=0, atol=1e-6)

    @pytest.mark.slow
    def test_several_outputs(self, predict, stored, scan):
        net = Named(random_net(), random_net(channels_out=1, seed=3))
        volume = stored(scan, **PLACED)
        found = predict(volume, net, **OPTIONS)
        for name, alone in (("seg", net.first), ("edge", net.second)):
            one = predict(volume, alone, f"{name}.zarr", **OPTIONS)
            assert np.array_equal(found[name][:], one[:])

    @pytest.mark.parametrize("frame", [None, "LPS"])
    def test_a_coarser_output_comes_back_in_full(self, predict, stored, frame):
        """A mean of neighbours, and what is linear between them, leaves a ramp as it is."""
        z, y, x = np.indices(SHAPE, dtype="f4")
        ramp = z + 3 * y - 2 * x
        net, options = torch.nn.AvgPool3d(2), OPTIONS | {"frame": frame, "overlap": 0}
        result = predict(stored(ramp, **PLACED), net, **options)
        assert result.shape == (1, *SHAPE)
        inner = (slice(3, -3),) * 3
        assert abs(result[0] - ramp)[inner].max() < 0.1  # the spline ends at the borders

    def test_thick_slices_are_not_interpolated_between(self, predict, stored, scan):
        spacing, model = (5.0, 1.0, 1.0), (2.5, 1.5, 1.5)
        volume = stored(scan, **PLACED | {"spacing": spacing})
        options = OPTIONS | {"spacing": model}
        result = predict(volume, torch.nn.Identity().double(), **options)[:]
        # Each slice was seen twice, and comes back as it was across.
        flat = [seen_by_hand(s[None], (1, 1, 1), (1, 1.5, 1.5))[0] for s in scan]
        wide = [back_by_hand(s[None], (1, *SHAPE[1:]), (1, 1, 1), (1, 1.5, 1.5))[0] for s in flat]
        assert error(result[0], np.stack(wide)) < 1e-6

    @pytest.mark.slow
    def test_a_phantom_stays_where_it_is(self, predict, stored):
        places = np.indices((24, 24, 24)) - np.array([11.3, 12.2, 10.9])[:, None, None, None]
        ball = np.exp(-(places**2).sum(0) / 18).astype("f4")
        for model in (1.5, 0.8, 2.0):
            volume = stored(ball, f"ball{model}.zarr", spacing=(1, 1, 1), unit="millimeter")
            result = predict(
                volume, torch.nn.Identity(), f"out{model}.zarr", **OPTIONS | {"spacing": model}
            )
            for own, made in zip(*map(ndimage.center_of_mass, (ball, result[0])), strict=True):
                assert abs(own - made) < 2e-3

    @pytest.mark.slow
    def test_only_patches_in_the_mask(self, predict, stored, scan):
        mask = np.zeros(SHAPE, "u1")
        mask[2, 3, 4] = 1
        volume, net = stored(scan, **PLACED), random_net()
        options = OPTIONS | {"overlap": 0, "fill": -9}
        whole = predict(volume, net, "whole.zarr", **options)[:]
        some = predict(volume, net, "some.zarr", mask=stored(mask, "mask.zarr"), **options)[:]
        covered = (some != -9).all(axis=0)
        assert 0 < covered.sum() < covered.size / 2
        assert np.allclose(some[:, 2, 3, 4], whole[:, 2, 3, 4], rtol=0, atol=1e-6)
        assert (some[:, ~covered] == -9).all()

    @pytest.mark.slow
    def test_a_bundle_says_its_spacing(self, predict, stored, scan, tmp_path):
        net = vf.UNet(1, 2, features=(4, 8))
        bundle = {"patch": 8, "spacing": list(MODEL), "unit": "millimeter", "normalize": "zscore"}
        vf.save_model(net, tmp_path / "b", **bundle)
        millimetres = stored(scan, **PLACED)
        thousandths = stored(
            scan, "um.zarr", **PLACED | {"unit": "um", "spacing": tuple(1000 * s for s in SPACING)}
        )
        one = predict(millimetres, tmp_path / "b", "one.zarr", patch=None)
        two = predict(thousandths, tmp_path / "b", "two.zarr", patch=None)
        assert np.allclose(one[:], two[:], rtol=0, atol=1e-6)
        plain = predict(millimetres, tmp_path / "b", "as.zarr", patch=None, spacing="stored")
        assert not np.allclose(plain[:], one[:], rtol=0, atol=1e-3)
        assert json.loads(one.meta.made)["spacing"] == list(MODEL)

    def test_voxels_that_are_small_in_their_unit(self, stored, scan, client, tmp_path):
        volume = stored(scan, spacing=(8e-9, 8e-9, 8e-9), unit="meter")
        for spacing in (1.6e-8, "16 nm"):
            asked = OPTIONS | {"spacing": spacing, "cluster": client}
            plan = plan_predict(volume, random_net(), tmp_path / "out.zarr", **asked)
            assert "to (11, 8, 10) of 1.6e-08×" in dict(plan.facts)["resampled"]


class TestLazily:
    def test_it_is_what_is_stored(self, predict, stored, scan):
        volume, net = stored(scan, **PLACED), random_net()
        lazy = vf.map_model(volume, net, block=12, **OPTIONS)
        assert np.array_equal(lazy.compute(), predict(volume, net, **OPTIONS)[:])
        assert np.array_equal(lazy[1, 3:5, 7:9].compute(), lazy.compute()[1, 3:5, 7:9])

    def test_of_an_array_that_is_computed(self, stored, scan):
        volume, net = stored(scan, **PLACED), random_net()
        array = da.from_array(scan, chunks=(11, 17, 10))
        lazy = vf.map_model(array, net, like=volume, **OPTIONS)
        assert np.allclose(lazy, vf.map_model(volume, net, **OPTIONS), rtol=0, atol=1e-6)


class TestRun:
    def test_scores_are_gone_when_it_is_done(self, predict, stored, scan, tmp_path):
        predict(stored(scan, **PLACED), random_net(), **OPTIONS)
        assert not (journal_dir(tmp_path / "out.zarr") / "passes").exists()

    @pytest.mark.slow
    def test_it_goes_on_where_its_scores_stopped(
        self, predict, stored, scan, calls, monkeypatch, tmp_path
    ):
        volume, options = stored(scan, **PLACED), OPTIONS | {"shard": 8}
        predict(volume, Tiring(random_net()), "whole.zarr", **options)
        whole = len(calls)
        calls.clear()
        monkeypatch.setattr(Tiring, "most", [whole - 2])
        with pytest.raises(RunFailed, match="too tired"):
            predict(volume, Tiring(random_net()), **options)
        with pytest.raises(InvalidInput, match="0 of"):
            vf.open(tmp_path / "out.zarr")
        first = len(calls)
        monkeypatch.setattr(Tiring, "most", [float("inf")])
        predict(volume, Tiring(random_net()), **options)
        assert len(calls) - first < whole
        assert files(tmp_path / "out.zarr") == files(tmp_path / "whole.zarr")

    @pytest.mark.slow
    def test_scores_whose_record_is_damaged_are_computed_again(
        self, predict, stored, scan, monkeypatch, tmp_path
    ):
        def fails(*_):
            raise ValueError("no way back")

        volume, net = stored(scan, **PLACED), random_net()
        whole = predict(volume, net, "whole.zarr", **OPTIONS)
        with monkeypatch.context() as patched:
            patched.setattr(BroughtBack, "rows", fails)
            with pytest.raises(RunFailed, match="no way back"):
                predict(volume, net, **OPTIONS)
        (record,) = journal_dir(tmp_path / "out.zarr").glob("passes/*/plan.json")
        record.write_text("{")
        assert np.array_equal(predict(volume, net, **OPTIONS)[:], whole[:])

    def test_another_spacing_is_another_result(self, predict, stored, scan):
        volume, net = stored(scan, **PLACED), random_net()
        predict(volume, net, **OPTIONS)
        with pytest.raises(ResumeRefused, match=r"spacing: \[1.5, 1.5, 1.5\] → \[2.0, 2.0, 2.0\]"):
            predict(volume, net, **OPTIONS | {"spacing": 2})
        with pytest.raises(ResumeRefused, match=r"spacing: \[1.5, 1.5, 1.5\] → absent"):
            predict(volume, net, **OPTIONS | {"spacing": "stored"})
        predict(volume, net, "stored.zarr", **OPTIONS | {"spacing": "stored"})
        with pytest.raises(ResumeRefused, match=r"or on another grid \(spacing\)"):
            predict(volume, net, "stored.zarr", **OPTIONS)

    @pytest.mark.slow
    def test_the_same_spacing_is_the_same_result_however_it_is_said(
        self, predict, stored, scan, calls
    ):
        volume, net = stored(scan, **PLACED), Tiring(random_net())
        predict(volume, net, **OPTIONS)
        known = len(calls)
        for spacing in (1.5, "1.5 mm", (1500 * 1e-3, "0.15cm", 1.5)):
            predict(volume, net, **OPTIONS | {"spacing": spacing})
        assert len(calls) == known
        predict(volume, net, "stored.zarr", **OPTIONS | {"spacing": "stored"})
        predict(volume, net, "stored.zarr", **OPTIONS | {"spacing": SPACING})

    @pytest.mark.slow
    def test_a_damaged_block_is_made_again(self, predict, stored, scan, tmp_path):
        volume, net = stored(scan, **PLACED), random_net()
        predict(volume, net, **OPTIONS)
        good = files(tmp_path / "out.zarr")
        shard = next(p for p in sorted((tmp_path / "out.zarr/0/c").rglob("*")) if p.is_file())
        shard.write_bytes(shard.read_bytes()[:-9] + b"nine byte")
        assert not vf.verify(tmp_path / "out.zarr").ok
        predict(volume, net, **OPTIONS)
        assert files(tmp_path / "out.zarr") == good

    @pytest.mark.slow
    def test_blocks_are_computed_anew_and_compared(self, predict, stored, scan, tmp_path):
        net = random_net()
        predict(stored(scan, **PLACED), net, **OPTIONS)
        found = vf.verify(tmp_path / "out.zarr", recompute=3, model=net, progress=False)
        assert (found.ok, found.recomputed.compared) == (True, "bit for bit")
        assert not (journal_dir(tmp_path / "out.zarr") / "passes").exists()

    @pytest.mark.slow
    @pytest.mark.parametrize("spacing", [None, "stored"])
    def test_what_a_bundle_made_is_computed_anew_as_it_was(
        self, predict, stored, scan, tmp_path, spacing
    ):
        net = vf.UNet(1, 2, features=(4, 8))
        vf.save_model(net, tmp_path / "b", patch=8, spacing=list(MODEL), unit="millimeter")
        volume = stored(scan, **PLACED)
        predict(volume, tmp_path / "b", patch=None, spacing=spacing)
        found = vf.verify(tmp_path / "out.zarr", recompute=1, progress=False)
        assert (found.ok, found.recomputed.compared) == (True, "bit for bit")

    def test_the_plan_says_what_it_does(self, stored, scan, client, tmp_path):
        volume = stored(scan, **PLACED)
        plan = plan_predict(volume, random_net(), tmp_path / "out.zarr", cluster=client, **OPTIONS)
        facts = dict(plan.facts)
        assert facts["resampled"] == (
            "(22, 17, 19) of 2×1×1.25 mm to (29, 11, 16) of 1.5×1.5×1.5 mm, cubic;"
            " scores back, linear"
        )
        assert facts["scores"].startswith("up to 39.9 KiB beside the output")
        assert "patches" in facts
        assert len(facts) == len(plan.facts)  # none is said of both runs
        assert list(tmp_path.iterdir()) == [tmp_path / "scan.zarr"]


class TestRefused:
    def refusal(self, predict, volume, error=InvalidInput, model=None, **options):
        with pytest.raises(error) as caught:
            predict(volume, model or random_net(), **OPTIONS | options)
        return str(caught.value)

    def test_a_volume_that_does_not_say_its_spacing(self, predict, scan, tmp_path):
        assert "needs to know how large" in self.refusal(predict, scan)
        vf.save_model(vf.UNet(1, 2, features=(4, 8)), tmp_path / "b", patch=8, spacing=[2, 2, 2])
        message = self.refusal(predict, scan, model=tmp_path / "b", spacing=None)
        assert message.startswith("the network expects voxels of (2.0, 2.0, 2.0), and the volume")
        assert 'spacing="stored"' in message

        as_it_is = {"patch": 8, "spacing": "stored"}
        assert predict(scan, tmp_path / "b", **as_it_is).shape == (2, *SHAPE)

    def test_a_bare_array_is_taken_for_one_of_a_network_of_one_millimetre(
        self, predict, scan, tmp_path
    ):
        net = vf.UNet(1, 2, features=(4, 8))
        vf.save_model(net, tmp_path / "b", patch=8, spacing=[1, 1, 1], unit="millimeter")
        assert predict(scan, tmp_path / "b", patch=8).shape == (2, *SHAPE)

    @pytest.mark.parametrize("spacing", [0, -1, (1, 1), "1 parsec of it", float("nan"), ()])
    def test_what_is_no_spacing(self, predict, stored, scan, spacing, tmp_path):
        assert "spacing" in self.refusal(predict, stored(scan, **PLACED), spacing=spacing)
        assert not (tmp_path / "out.zarr").exists()

    def test_a_unit_that_nobody_can_convert(self, predict, stored, scan, tmp_path):
        vf.save_model(
            vf.UNet(1, 2, features=(4, 8)),
            tmp_path / "b",
            patch=8,
            spacing=[2, 2, 2],
            unit="millimeter",
        )
        volume = stored(scan, **PLACED | {"unit": "cubit"})
        message = self.refusal(predict, volume, model=tmp_path / "b", spacing=None)
        assert "in millimeter, and those of the volume in cubit" in message

    @pytest.mark.parametrize("layout", [{}, {"chunk": 32, "shard": 64}])
    def test_what_is_said_to_fit_in_memory_fits(self, stored, client, tmp_path, layout):
        volume, net = stored(np.zeros((64, 64, 64), "f4"), **PLACED), random_net(channels_out=8)
        asked, memory, refusals = OPTIONS | layout | {"cluster": client}, "49MiB", []
        while True:
            try:
                plan = plan_predict(volume, net, tmp_path / "out.zarr", memory=memory, **asked)
                break
            except MemoryRefused as refused:
                message = str(refused)
                memory = re.search(r'memory="(\d+MiB)"', message)[1]
                refusals.append(message)
        assert len(refusals) == 2  # one of the way there, one of the way back
        assert "memory is 49 MiB" in refusals[0]
        assert ("smaller shards" if layout else "smaller chunks") in refusals[1]
        assert plan.peak_bytes <= plan.memory_bytes

    def test_scores_come_back_to_smaller_shards_where_memory_is_short(
        self, stored, client, tmp_path
    ):
        volume, net = stored(np.zeros((20, 128, 128), "u2"), **PLACED), random_net(channels_out=9)
        asked = OPTIONS | {"cluster": client, "chunk": 16, "memory": "140MiB"}
        plan = plan_predict(volume, net, tmp_path / "out.zarr", **asked)
        assert (plan.blocks > 1, plan.peak_bytes <= plan.memory_bytes) == (True, True)

    def test_seams_of_another_grid(self, stored, scan, tmp_path):
        vf.save_model(vf.UNet(1, 2, features=(4, 8)), tmp_path / "b", patch=8, spacing=[2, 2, 2])
        with pytest.raises(InvalidInput, match=r"resample it first"):
            vf.certify_seams(
                stored(scan, **PLACED), tmp_path / "b", patch=8, progress=lambda text: None
            )


@pytest.mark.slow
def test_from_file_to_file_by_the_command_line(tmp_path, scan, capsys):
    vf.save_model(
        vf.UNet(1, 2, features=(4, 8)),
        tmp_path / "b",
        patch=8,
        spacing=[2, 1.5, 1.5],
        output="classes",
    )
    vf.write(scan.astype("f4"), tmp_path / "in.zarr", progress=False, **PLACED)
    vf.export(tmp_path / "in.zarr", tmp_path / "in.nii.gz")
    words = ["predict", tmp_path / "in.nii.gz", tmp_path / "seg.nii.gz", "-m", tmp_path / "b"]
    assert run([*map(str, words), "--plan"]) == 0
    assert "resampled" in capsys.readouterr().out
    assert run([*map(str, words), "-q"]) == 0
    made = nibabel.load(tmp_path / "seg.nii.gz")
    assert made.shape == SHAPE[::-1]
    assert np.allclose(made.affine, nibabel.load(tmp_path / "in.nii.gz").affine)
