"""Laws of augmentation: keyed by sample, aligned, exact where it can be."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from volflow.errors import InvalidInput
from volflow.sampling.augment.augment import Augment

MOTIONS = {
    "turn": 0.5,
    "rotate": 20,
    "scale": 0.2,
    "shear": 0.1,
    "translate": 3,
    "elastic": 3,
    "elastic_spacing": 8,
}
VALUES = {"gamma": 0.3, "contrast": 0.3, "brightness": 0.3, "bias": 0.5, "blur": 1, "noise": 0.2}
ALL = {**MOTIONS, **VALUES}


def batch_of(patch=(15, 17, 17), keys=(1, 2, 3, 4), channels=2, dtype=torch.float32):
    source = torch.Generator().manual_seed(0)
    return {
        "image": torch.randn((len(keys), channels, *patch), generator=source).to(dtype),
        "label": torch.randint(1, 4, (len(keys), 1, *patch), generator=source),
        "key": torch.tensor(keys),
        "case": [f"case {key}" for key in keys],
    }


def picked(batch, order):
    return {
        name: [value[i] for i in order] if isinstance(value, list) else value[list(order)]
        for name, value in batch.items()
    }


class TestKeys:
    @pytest.mark.slow
    @settings(max_examples=15)
    @given(
        families=st.sets(st.sampled_from(sorted(ALL))),
        patch=st.tuples(*[st.integers(1, 12)] * 3),
        order=st.permutations(range(4)),
        count=st.integers(1, 4),
        probability=st.sampled_from([0.5, 1.0]),
    )
    def test_a_sample_does_not_depend_on_its_neighbours(
        self, families, patch, order, count, probability
    ):
        chosen = {name: ALL[name] for name in families - {"turn", "elastic_spacing"}}
        augment = Augment(**chosen, elastic_spacing=8, probability=probability)
        whole = batch_of(patch)
        expected, part = augment(whole), augment(picked(whole, order[:count]))
        for name in ("image", "label"):
            assert torch.equal(part[name], expected[name][list(order[:count])])

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_nor_where_threads_share_the_work(self, dtype):
        augment = Augment(**ALL)
        whole = batch_of((33, 35, 35), dtype=dtype)
        expected = augment(whole)
        alone = augment(picked(whole, [2]))
        assert torch.equal(alone["image"][0], expected["image"][2])
        assert torch.equal(alone["label"][0], expected["label"][2])
        assert not torch.equal(expected["label"][2], whole["label"][2])

    def test_other_keys_other_samples(self):
        same = batch_of(keys=(5, 6))
        same["image"][1] = same["image"][0]
        one, other = Augment(**ALL)(same)["image"]
        assert not torch.equal(one, other)

    def test_any_64_bits_are_a_key(self):
        batch = batch_of(keys=(2**63 - 1, -1, 0, 2**62))
        assert Augment(**ALL)(batch)["image"].isfinite().all()

    def test_global_random_states_are_left_alone(self):
        before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
        Augment(**ALL)(batch_of())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        assert random.getstate() == before[2]

    @pytest.mark.parametrize("family", sorted(set(MOTIONS) - {"turn", "elastic_spacing"}))
    def test_switching_a_motion_on_changes_no_other(self, family):
        alone = Augment(flip=0, elastic_spacing=8, **{family: MOTIONS[family]})
        rest = {name: 1e-12 if name != "elastic_spacing" else 8 for name in MOTIONS}
        beside = Augment(**{**rest, "flip": 0, "turn": 0, family: MOTIONS[family]}, **VALUES)
        for key in range(5):
            one, both = (a._motion(key, (9, 9, 9)) for a in (alone, beside))
            assert np.allclose(one.matrix, both.matrix, rtol=0, atol=1e-9)
            assert np.allclose(one.shift, both.shift, rtol=0, atol=1e-9)
            wanted, found = (0 if m.displacement is None else m.displacement for m in (one, both))
            assert np.allclose(wanted, found, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("family", sorted(VALUES))
    def test_switching_a_change_of_values_on_changes_no_other(self, family):
        batch = batch_of(dtype=torch.float64)
        alone = Augment(**{family: VALUES[family]})(batch)
        beside = Augment(**{**dict.fromkeys(VALUES, 1e-12), family: VALUES[family]})(batch)
        assert torch.allclose(alone["image"], beside["image"], rtol=0, atol=1e-9)

    @pytest.mark.slow
    def test_a_probability_decides_whether_not_how(self):
        batch = batch_of((9, 9, 9), keys=range(60))
        always = Augment(flip=0, rotate=20, noise=1)
        never, sometimes = (
            Augment(flip=0, rotate=20, noise=1, probability=p)(batch)
            for p in (0, {"rotate": 0.4, "noise": 0})
        )
        assert torch.equal(never["image"], batch["image"])
        rotated = Augment(flip=0, rotate=20)(batch)["image"]
        acted = [
            torch.equal(a, b)
            for a, b in zip(sometimes["image"], rotated, strict=True)
        ]  # fmt: skip
        left = [torch.equal(a, b) for a, b in zip(sometimes["image"], batch["image"], strict=True)]
        assert all(a != b for a, b in zip(acted, left, strict=True))
        assert 12 <= sum(acted) <= 36
        assert not torch.equal(always(batch)["image"], rotated)


class TestTurns:
    def test_only_flipped_and_turned_keeps_every_voxel(self):
        batch = batch_of((6, 6, 6), keys=range(40))
        batch["place"] = torch.arange(6**3, dtype=torch.float64).view(1, 1, 6, 6, 6).repeat(
            40, 1, 1, 1, 1
        )  # fmt: skip
        moved = Augment(turn=0.5)(batch)
        for i in range(40):
            place = moved["place"][i].flatten().long()
            assert (place.sort().values == torch.arange(6**3)).all()
            for name in ("image", "label"):
                assert torch.equal(
                    moved[name][i].flatten(1), batch[name][i].flatten(1)[:, place]
                )  # fmt: skip
        assert len({tuple(p.flatten().tolist()) for p in moved["place"]}) > 20

    def test_flips_by_axis(self):
        batch = batch_of((4, 5, 6), keys=range(200))
        moved = Augment(flip=(1, 0, 0.3))(batch)["image"]
        mirrored = batch["image"].flip(2)
        flipped = sum(
            torch.equal(a, b.flip(3)) for a, b in zip(moved, mirrored, strict=True)
        )  # fmt: skip
        kept = sum(torch.equal(a, b) for a, b in zip(moved, mirrored, strict=True))
        assert flipped + kept == 200
        assert 40 <= flipped <= 80

    def test_planes_of_unequal_sides_are_not_turned(self):
        batch = batch_of((5, 8, 8), keys=range(30))
        moved = Augment(flip=0, turn=1)(batch)["image"]
        for one, still in zip(moved, batch["image"], strict=True):
            assert any(torch.equal(one, still.rot90(k, (2, 3))) for k in (1, 2, 3))

    def test_turned_and_then_warped_as_warped_after_turning(self):
        batch = batch_of((9, 9, 9), dtype=torch.float64)
        turned = Augment(turn=1)(batch)
        twice = Augment(**{**MOTIONS, "turn": 0, "flip": 0})(turned)
        once = Augment(**{**MOTIONS, "turn": 1})(batch)
        assert torch.allclose(once["image"], twice["image"], rtol=0, atol=1e-12)
        assert torch.equal(once["label"], twice["label"])

    def test_nothing_asked_nothing_changed(self):
        batch = batch_of()
        moved = Augment(flip=None)(batch)
        assert torch.equal(moved["image"], batch["image"])


class TestArrays:
    def test_given_batch_stays_as_it_is(self):
        batch = batch_of()
        kept = {name: pickle.dumps(value) for name, value in batch.items()}
        moved = Augment(**ALL)(batch)
        assert {name: pickle.dumps(value) for name, value in batch.items()} == kept
        assert list(moved) == list(batch)
        assert moved["key"] is batch["key"]
        assert moved["case"] is batch["case"]

    @pytest.mark.parametrize("outside", ["zeros", "edge"])
    def test_classes_stay_classes_where_the_image_is(self, outside):
        blobs = (torch.arange(20) // 5 % 2 == 0).long()
        label = (blobs[:, None, None] ^ blobs[:, None] ^ blobs).expand(8, 1, -1, -1, -1) + 0
        batch = {"label": label, "image": label.float(), "key": torch.arange(8)}
        moved = Augment(**MOTIONS, outside=outside)(batch)
        assert moved["label"].unique().tolist() == [0, 1]
        for value in (0, 1):
            sure = (moved["image"] - value).abs() < 1e-6
            assert sure.float().mean() > 0.1
            assert (moved["label"][sure] == value).all()

    @pytest.mark.parametrize(
        "dtype", ["bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
    )
    def test_classes_of_every_type(self, dtype):
        dtype = getattr(torch, dtype)
        batch = batch_of((8, 9, 9))
        reference = Augment(**MOTIONS)(batch)["label"]
        typed = Augment(**MOTIONS)({**batch, "label": batch["label"].to(dtype)})["label"]
        assert typed.dtype == dtype
        assert torch.equal(typed.long(), reference.to(dtype).long())

    def test_large_class_numbers_are_kept_to_the_bit(self):
        batch = batch_of((8, 8, 8))
        batch["label"] = batch["label"] + 2**53
        moved = Augment(rotate=20)(batch)["label"].unique().tolist()
        assert set(moved) == {0, *batch["label"].unique().tolist()}

    def test_edge_brings_in_no_zeros(self):
        batch = batch_of((8, 8, 8))
        moved = Augment(**MOTIONS, outside="edge")(batch)["label"]
        assert set(moved.unique().tolist()) == {1, 2, 3}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_floating_types_are_computed_in_float32_at_least(self, dtype):
        batch = batch_of(dtype=dtype)
        moved = Augment(**ALL)(batch)["image"]
        wide = Augment(**ALL)({**batch, "image": batch["image"].float()})["image"]
        assert moved.dtype == dtype
        if dtype != torch.float64:
            assert torch.equal(moved, wide.to(dtype))

    def test_memory_format_is_kept(self):
        batch = batch_of()
        last = batch["image"].to(memory_format=torch.channels_last_3d)
        moved = Augment(**ALL)({**batch, "image": last})["image"]
        assert moved.is_contiguous(memory_format=torch.channels_last_3d)
        assert torch.equal(moved, Augment(**ALL)(batch)["image"])

    def test_only_images_change_their_values(self):
        batch = batch_of()
        batch["other"] = batch["image"].clone()
        moved = Augment(flip=0, **VALUES)(batch)
        assert torch.equal(moved["other"], batch["other"])
        assert not torch.equal(moved["image"], batch["image"])

    def test_several_images_are_drawn_apart(self):
        batch = batch_of()
        batch["t2"] = batch["image"].clone()
        moved = Augment(flip=0, brightness=1, images=["image", "t2"])(batch)
        shifts = (moved["image"] - batch["image"]).mean((2, 3, 4))
        others = (moved["t2"] - batch["t2"]).mean((2, 3, 4))
        assert len({round(float(s), 4) for s in [*shifts.flatten(), *others.flatten()]}) == 16

    def test_neither_autocast_nor_gradients_reach_it(self):
        batch = batch_of()
        expected = Augment(**ALL)(batch)["image"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            moved = Augment(**ALL)({**batch, "image": batch["image"].requires_grad_()})["image"]
        assert torch.equal(moved, expected)
        assert not moved.requires_grad

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_gpu_gives_the_same_up_to_rounding(self):
        batch = batch_of((32, 32, 32), dtype=torch.float64)
        augment = Augment(**{**ALL, "noise": 0})
        here = augment(batch)
        there = augment({**batch, **{n: batch[n].cuda() for n in ("image", "label")}})
        assert torch.allclose(there["image"].cpu(), here["image"], rtol=0, atol=1e-9)
        assert torch.equal(there["label"].cpu(), here["label"])


class TestAsked:
    def test_lists_none_and_one_name_are_taken(self):
        one = Augment(flip=[0.5, 0.5, 0.5], rotate=None, images="image", scale=[0, 0, 0.1])
        assert one == Augment(rotate=0, scale=(0, 0, 0.1))
        assert hash(one) == hash(Augment(scale=(0, 0, 0.1)))
        assert pickle.loads(pickle.dumps(one)) == one

    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"flip": 1.5}, "flip must be a probability from 0 to 1; one number or three"),
            ({"turn": (0.5, 0.5)}, r"turn must be a probability .* got \(0.5, 0.5\)"),
            ({"rotate": -5}, "rotate must be degrees from 0 to 180; .* got -5"),
            ({"rotate": 200}, "rotate must be degrees from 0 to 180"),
            ({"scale": 1}, "scale must be a fraction from 0 to 0.9; .* got 1"),
            ({"shear": 2}, "shear must be a slope from 0 to 1"),
            ({"translate": float("nan")}, "translate must be a finite number from 0; .* got nan"),
            ({"blur": float("inf")}, "blur must be a finite number from 0"),
            ({"noise": (0.1, 0.1, 0.1)}, r"noise must be a finite number from 0, got \(0.1"),
            ({"gamma": "much"}, "gamma must be the logarithm of a power, from 0 to 3, got 'much'"),
            ({"contrast": 1.1}, "contrast must be a fraction from 0 to 1, got 1.1"),
            ({"bias": 4}, "bias must be the logarithm of a factor"),
            ({"spacing": (1, 0, 1)}, "spacing must be a voxel size above 0"),
            ({"elastic_spacing": 1}, "elastic_spacing must be voxels, at least 2"),
            ({"elastic": 7}, r"at most 0.4 of elastic_spacing, or tissue could fold: got \[7.0"),
            ({"probability": 2}, "probability must be from 0 to 1, got 2"),
            ({"probability": {"flip": 0.1}}, "names 'flip'; it may name rotate, scale"),
            ({"probability": {"blur": -1}}, "probability must be from 0 to 1, got -1"),
            ({"outside": "wrap"}, "outside must be one of zeros, edge; got 'wrap'"),
        ],
    )
    def test_nonsense_is_refused(self, asked, message):
        with pytest.raises(InvalidInput, match=message):
            Augment(**asked)

    @pytest.mark.parametrize(
        ("asked", "change", "message"),
        [
            ({}, {"key": torch.zeros(3, dtype=torch.int64)}, "'key' must hold 4 whole numbers"),
            ({}, {"key": torch.zeros(4)}, r"got torch.float32 of shape \(4,\)"),
            ({}, {"label": torch.zeros(4, 1, 2, 2, 2)}, r"must be real and agree .* label \(4, 1,"),
            ({}, {"label": torch.zeros(4, 1, 15, 17, 17).cfloat()}, "torch.complex64"),
            ({"turn": (1, 0, 1)}, {}, r"turn needs planes of equal sides .* patch is \(15, 17, 17"),
            ({"turn": 1, "spacing": (3, 2, 1)}, {}, r"the spacing \(3.0, 2.0, 1.0\)"),
            ({"noise": 1, "images": "t1"}, {}, "images names 't1', and .* are image, label"),
            ({"noise": 1, "images": "label"}, {}, r"'label', whose values are classes \(torch.int"),
        ],
    )
    def test_batches_that_do_not_fit_are_refused(self, asked, change, message):
        with pytest.raises(InvalidInput, match=message):
            Augment(**asked)({**batch_of(), **change})

    def test_a_batch_without_keys_or_volumes_is_refused(self):
        batch = batch_of()
        with pytest.raises(InvalidInput, match="has no 'key': give a whole number for each"):
            Augment()({"image": batch["image"]})
        with pytest.raises(InvalidInput, match="no 5-D tensor"):
            Augment()({"key": batch["key"]})
