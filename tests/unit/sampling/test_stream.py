"""PatchStream: the right voxels, exact numbers, one order whatever carries it out."""

from __future__ import annotations

import hashlib
import itertools
import pickle

import dask.array as da
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import volflow as vf
from tests.stores import store
from volflow.errors import InvalidInput, MemoryRefused, ResumeRefused
from volflow.sampling.stream_options import StreamOptions

SAMPLERS = {
    "uniform": vf.UniformSampler(9),
    "padded": vf.UniformSampler((5, 12, 24), border="pad"),
    "slices": vf.UniformSampler((1, 16, 16)),
    "label": vf.LabelSampler(9, probabilities={0: 1, 2: 3}),
    "label-padded": vf.LabelSampler((8, 7, 6), border="pad"),
    "weighted": vf.WeightedSampler(9, weight="label"),
    "grid": vf.GridSampler(9, overlap=0.25, padding=2),
}


def fingerprint(samples, count=None):
    """A hash of everything in some samples, in their order."""
    digest = hashlib.sha256()
    for sample in itertools.islice(samples, count):
        for name, value in sorted(sample.items()):
            content = value.numpy().tobytes() if hasattr(value, "numpy") else str(value).encode()
            digest.update(name.encode() + content)
    return digest.hexdigest()


def stream_of(cases, sampler, patches=600, **options):
    if isinstance(sampler, vf.GridSampler):
        return vf.PatchStream(cases, sampler, **options)
    return vf.PatchStream(cases, sampler, patches, **options)


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return SAMPLERS[request.param]


@pytest.mark.usefixtures("small_superchunks")
class TestSamples:
    @pytest.mark.slow
    def test_hold_the_voxels_of_their_location(self, cases, sampler):
        arrays = {
            name: {key: np.pad(vf.open(path)[:], 40) for key, path in case.items()}
            for name, case in cases.items()
        }
        stream = stream_of(cases, sampler, 200)
        for number, sample in enumerate(stream):
            low, high = sample["location"].numpy().reshape(2, 3)
            assert tuple(high - low) == sampler.patch
            box = tuple(slice(a + 40, b + 40) for a, b in zip(low, high, strict=True))
            for key in ("image", "label"):
                assert sample[key].dtype == (torch.uint16 if key == "image" else torch.uint8)
                np.testing.assert_array_equal(sample[key][0], arrays[sample["case"]][key][box])
            assert sample["index"] == number
        assert number + 1 == len(stream)

    @pytest.mark.slow
    def test_have_centres_where_the_sampler_says(self, cases):
        for sampler, allowed in (
            (vf.LabelSampler(9, probabilities={0: 1, 2: 3}), {0, 2}),
            (vf.LabelSampler(9), {1, 2, 3}),
            (vf.WeightedSampler(9, weight="label"), {1, 2, 3}),
            (vf.LabelSampler((4, 5, 1), border="pad"), {1, 2, 3}),
        ):
            middle = tuple(p // 2 for p in sampler.patch)
            found = {int(s["label"][(0, *middle)]) for s in vf.PatchStream(cases, sampler, 300)}
            assert found == allowed

    def test_lie_inside_or_have_their_centre_inside(self, cases):
        shapes = {name: vf.open(case["image"]).shape for name, case in cases.items()}
        for border in ("inside", "pad"):
            sampler = vf.UniformSampler((6, 9, 12), border=border)
            for sample in vf.PatchStream(cases, sampler, 400):
                low, high = sample["location"].numpy().reshape(2, 3)
                shape = shapes[sample["case"]]
                if border == "pad":
                    low, high = low + np.array(sampler.patch) // 2, low + 1
                    high = low + 1
                assert (low >= 0).all()
                assert (high <= shape).all()

    def test_grid_covers_all_cases_once_in_order(self, cases):
        sampler = vf.GridSampler(9, overlap=2)
        stream = vf.PatchStream(cases, sampler)
        found = [(s["case"], tuple(s["location"].tolist())) for s in stream]
        expected = [
            (case.name, (*roi.start, *roi.stop))
            for case in stream.cases
            for roi in sampler.grid(case)
        ]
        assert sorted(found) == sorted(expected)
        assert len(set(found)) == len(stream)

    def test_grid_is_lexicographic_where_a_layer_fits(self, cases, small_superchunks):
        small_superchunks(10**6)
        sampler = vf.GridSampler(9, overlap=2)
        stream = vf.PatchStream(cases, sampler)
        found = [tuple(s["location"].tolist())[:3] for s in stream if s["case"] == "a"]
        assert found == sorted(found)


@pytest.mark.usefixtures("small_superchunks")
class TestOrder:
    """SHA-256 of whole epochs."""

    @pytest.mark.slow
    def test_does_not_depend_on_threads_memory_or_feed(self, cases, sampler):
        expected = fingerprint(stream_of(cases, sampler, seed=5))
        for options in ({"threads": 1}, {"threads": 2, "memory": "300MiB"}, {"cluster": "threads"}):
            assert fingerprint(stream_of(cases, sampler, seed=5, **options)) == expected

    @pytest.mark.slow
    def test_does_not_depend_on_worker_processes_of_dask(self, cases):
        sampler = SAMPLERS["label"]
        expected = fingerprint(stream_of(cases, sampler, seed=5))
        assert fingerprint(stream_of(cases, sampler, seed=5, cluster=2)) == expected

    @pytest.mark.slow
    def test_of_computed_arrays_is_that_of_stored_ones(self, cases, sampler):
        lazy = {
            name: {key: vf.open(path).dask(vf.open(path).chunks) for key, path in case.items()}
            for name, case in cases.items()
        }
        for case in lazy.values():
            case["image"] = case["image"] + 0  # no longer the stored array itself
        assert fingerprint(stream_of(lazy, sampler)) == fingerprint(stream_of(cases, sampler))

    @pytest.mark.slow
    def test_is_shared_by_ranks(self, cases, sampler):
        options = {"lanes": 8} if isinstance(sampler, vf.GridSampler) else {}
        whole = list(stream_of(cases, sampler, **options))
        for world_size, rank in [(n, rank) for n in (2, 4, 8) for rank in range(n)]:
            share = stream_of(cases, sampler, rank=rank, world_size=world_size, **options)
            mine = whole[rank::world_size]
            assert fingerprint(share) == fingerprint(mine)
            assert len(share) == len(mine)

    @pytest.mark.slow
    @pytest.mark.parametrize("given", [1, 7, 100, 377, 599])
    def test_resumes_bit_for_bit(self, cases, given):
        sampler = SAMPLERS["label"]
        whole = list(stream_of(cases, sampler))
        stream = stream_of(cases, sampler)
        for _ in itertools.islice(stream, given):
            state = stream.state_dict()
        assert len(pickle.dumps(state)) < 300
        again = stream_of(cases, sampler, threads=1)
        again.load_state_dict(state)
        assert fingerprint(again) == fingerprint(whole[given:])
        assert again.state_dict() == {**state, "epoch": 1, "index": 0}

    @pytest.mark.slow
    def test_resumes_on_another_number_of_ranks(self, cases):
        sampler = SAMPLERS["uniform"]
        whole = list(stream_of(cases, sampler))
        two = [stream_of(cases, sampler, rank=r, world_size=2) for r in (0, 1)]
        for stream in two:
            for _ in itertools.islice(stream, 100):
                pass
        assert two[0].state_dict() == two[1].state_dict()
        for world_size in (1, 4):
            for rank in range(world_size):
                again = stream_of(cases, sampler, rank=rank, world_size=world_size)
                again.load_state_dict(two[0].state_dict())
                assert fingerprint(again) == fingerprint(whole[200 + rank :: world_size])

    @pytest.mark.slow
    def test_differs_between_epochs_and_seeds(self, cases, sampler):
        if isinstance(sampler, vf.GridSampler):
            return
        stream = stream_of(cases, sampler)
        first, second = fingerprint(stream), fingerprint(stream)
        assert first != second
        assert stream.epoch == 2
        stream.set_epoch(0)
        assert fingerprint(stream) == first
        assert fingerprint(stream_of(cases, sampler, seed=1)) not in (first, second)

    @pytest.mark.slow
    def test_batches_of_a_cluster_may_be_left(self, cases):
        stream = vf.PatchStream(cases, vf.UniformSampler(4), 96, cluster="threads")
        batches = iter(stream.loader(batch_size=4))
        next(batches)
        batches.close()
        assert stream.state_dict()["index"] == 4

    def test_a_loop_that_was_left_begins_anew(self, cases):
        stream = stream_of(cases, SAMPLERS["uniform"])
        next(iter(stream))
        assert fingerprint(stream) == fingerprint(
            itertools.islice(stream_after(cases, SAMPLERS["uniform"], epoch=1), 600)
        )

    @pytest.mark.slow
    def test_goes_on_with_any_number_of_workers(self, cases, sampler):
        """Where they stand need not be where the first of them would take the next sample."""
        stream = stream_of(cases, sampler, lanes=8)
        keys = [sample["key"] for sample in stream]
        for begin in (1, 7, 100, len(keys) - 1):
            parts = [stream.take(0, begin, stream.share.part(worker, 4)) for worker in range(4)]
            found = [one["key"] for turn in itertools.zip_longest(*parts) for one in turn if one]
            assert found == keys[begin:]

    def test_does_not_depend_on_the_type_of_numbers(self, cases):
        plain = stream_of(cases, vf.LabelSampler(9, probabilities={0: 1, 2: 3}), seed=5)
        typed = vf.PatchStream(
            cases,
            vf.LabelSampler(np.int64(9), probabilities={np.uint8(2): np.float32(3), 0: 1.0}),
            np.int64(600),
            seed=np.uint16(5),
            reuse=np.float32(4),
            lanes=np.int8(8),
        )
        assert fingerprint(typed) == fingerprint(plain)
        typed.load_state_dict(plain.state_dict())

    def test_differs_between_the_largest_seeds(self, cases):
        one, two = (
            fingerprint(stream_of(cases, SAMPLERS["uniform"], 8, seed=2**64 - n)) for n in (1, 2)
        )
        assert one != two

    def test_keys_are_all_different(self, cases):
        keys = [sample["key"] for sample in stream_of(cases, SAMPLERS["uniform"])]
        assert len(set(keys)) == 600
        assert min(keys) >= 0


def stream_after(cases, sampler, epoch):
    stream = stream_of(cases, sampler)
    stream.set_epoch(epoch)
    return stream


@pytest.mark.usefixtures("small_superchunks")
class TestNumbers:
    @pytest.mark.slow
    @pytest.mark.parametrize("patches", [1, 5, 8, 599, 600])
    @pytest.mark.parametrize("lanes", [1, 3, 8])
    @pytest.mark.parametrize("reuse", [0.5, 4, 1000])
    def test_of_an_epoch_are_exact(self, cases, patches, lanes, reuse):
        stream = vf.PatchStream(cases, vf.UniformSampler(9), patches, lanes=lanes, reuse=reuse)
        indices = [sample["index"] for sample in stream]
        assert indices == list(range(patches))
        assert len(stream) == patches

    @pytest.mark.slow
    def test_of_cases_are_exact(self, cases):
        for sampler in (vf.UniformSampler(9), vf.LabelSampler(9, probabilities={0: 1, 3: 1})):
            for wanted in ({"a": 10, "b": 90}, {"b": 7}, 25):
                stream = vf.PatchStream(cases, sampler, patches_per_case=wanted)
                counts = {name: 0 for name in cases}
                for sample in stream:
                    counts[sample["case"]] += 1
                asked = wanted if isinstance(wanted, dict) else dict.fromkeys(cases, wanted)
                assert counts == {"a": 0, "b": 0} | asked
                assert stream.case_counts(0) == counts

    def test_follow_the_size_of_cases(self, cases):
        stream = vf.PatchStream(cases, vf.UniformSampler(1), 10000, reuse=0.001)
        sizes = np.array([40 * 30 * 20, 17 * 50 * 33])
        counts = np.array(list(stream.case_counts().values()))
        assert np.abs(counts - sizes / sizes.sum() * 10000).max() < 10

    def test_metrics_are_of_what_was_given(self, cases):
        stream = vf.PatchStream(cases, vf.UniformSampler(8), 500, reuse=2)
        for _ in stream:
            pass
        metrics = stream.metrics
        assert metrics.patches == 500
        assert metrics.emitted_voxels == 500 * 512
        assert metrics.reuse == pytest.approx(1 / metrics.amplification)
        assert metrics.live_bytes == 0
        assert 0 < metrics.stall_s <= metrics.elapsed_s
        assert "500 patches in" in str(metrics)

    @pytest.mark.slow
    def test_reuse_is_as_planned(self, tmp_path, small_superchunks):
        small_superchunks(24**3)
        path = store(tmp_path / "a.zarr", np.zeros((96, 96, 96), "u1"))
        for reuse in (1, 4):
            stream = vf.PatchStream(path, vf.UniformSampler(8), 8000, reuse=reuse, lanes=2)
            assert stream.plan.reuse == pytest.approx(reuse)
            for _ in stream:
                pass
            # Superchunks that two lanes need at a time are decoded once.
            assert reuse * 0.8 < stream.metrics.reuse < reuse * 1.5


@pytest.mark.usefixtures("small_superchunks")
class TestLoader:
    def test_gives_the_samples_in_batches(self, cases):
        sampler = SAMPLERS["label"]
        samples = list(stream_of(cases, sampler, 100))
        batches = list(stream_of(cases, sampler, 100).loader(32))
        assert [len(batch["case"]) for batch in batches] == [32, 32, 32, 4]
        for name, dtype in (("image", torch.float32), ("label", torch.int64)):
            whole = torch.cat([batch[name] for batch in batches])
            assert whole.dtype == dtype
            expected = np.stack([sample[name].numpy() for sample in samples])
            np.testing.assert_array_equal(whole.numpy(), expected)
        assert [c for batch in batches for c in batch["case"]] == [s["case"] for s in samples]
        assert torch.cat([b["location"] for b in batches]).tolist() == [
            s["location"].tolist() for s in samples
        ]
        assert torch.cat([b["key"] for b in batches]).tolist() == [s["key"] for s in samples]

    def test_values_of_cases_come_along(self):
        scan = np.zeros((8, 8, 8), "i2")
        ages = {"a": 45, "b": np.float32(61.5)}
        cases = {
            name: {"image": torch.from_numpy(scan), "age": age, "site": name.upper(), "visit": 3}
            for name, age in ages.items()
        }
        stream = vf.PatchStream(cases, vf.UniformSampler(4), 64, augment=vf.Augment())
        assert {s["case"]: s["age"] for s in stream} == ages
        (batch,) = stream.loader(64)
        assert (batch["age"].dtype, batch["visit"].dtype) == (torch.float32, torch.int64)
        assert batch["age"].tolist() == [ages[name] for name in batch["case"]]
        assert batch["site"] == [name.upper() for name in batch["case"]]
        assert batch["visit"].tolist() == [3] * 64
        without = vf.PatchStream({name: {"image": scan} for name in ages}, vf.UniformSampler(4), 64)
        without.load_state_dict(stream.state_dict())  # the order does not depend on values

    def test_counts_only_what_the_trainer_took(self, cases):
        stream = stream_of(cases, SAMPLERS["uniform"], 100)
        for number, _ in enumerate(stream.loader(8)):
            assert stream.state_dict()["index"] == 8 * (number + 1)
            if number == 4:
                break
        again = stream_of(cases, SAMPLERS["uniform"], 100)
        again.load_state_dict(stream.state_dict())
        rest = torch.cat([batch["index"] for batch in again.loader(8)])
        assert rest.tolist() == list(range(40, 100))

    def test_drops_a_last_batch_that_is_smaller(self, cases):
        loader = stream_of(cases, SAMPLERS["uniform"], 100).loader(32, drop_last=True)
        assert len(loader) == len(list(loader)) == 3

    def test_augments_batch_by_batch(self, cases):
        seen = []

        def negative(batch):
            seen.append(batch["image"].dtype)
            return {**batch, "image": -batch["image"]}

        plain = next(iter(stream_of(cases, SAMPLERS["uniform"]).loader(4)))
        stream = stream_of(cases, SAMPLERS["uniform"], augment=[negative])
        assert torch.equal(next(iter(stream.loader(4)))["image"], -plain["image"])
        assert seen[0] == torch.float32

    def test_goes_to_the_device_that_is_chosen_where_it_is_made(self, cases, monkeypatch):
        """A thread begins with the first device, whatever its parent has chosen."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
        stream = stream_of(cases, SAMPLERS["uniform"])
        assert stream.loader(4, "cuda").device == torch.device("cuda:3")
        assert stream.loader(4, "cuda:1").device == torch.device("cuda:1")

    @pytest.mark.parametrize(
        ("patch", "shape"),
        [((1, 8, 9), (8, 9)), ((8, 1, 9), (8, 9)), ((8, 9, 1), (8, 9)), ((1, 1, 9), (1, 9))],
    )
    def test_slices_lose_their_axis_once_they_are_augmented(self, cases, patch, shape):
        seen = []
        stream = stream_of(
            cases, vf.UniformSampler(patch), 8, augment=lambda b: seen.append(b["image"]) or b
        )
        samples = torch.stack([sample["image"] for sample in stream])
        stream.set_epoch(0)
        (batch,) = stream.loader(8)
        assert batch["image"].shape == batch["label"].shape == (8, 1, *shape)
        assert seen[0].shape == samples.shape == (8, 1, *patch)
        assert torch.equal(batch["image"].reshape(samples.shape), samples.float())

    def test_says_when_an_augmentation_gives_no_batch(self, cases):
        stream = stream_of(cases, SAMPLERS["uniform"], augment=lambda batch: batch["image"])
        with pytest.raises(InvalidInput, match="augment must return the batch as a dict"):
            list(stream.loader(4))

    def test_refuses_transforms_of_libraries_that_take_no_batch(self, cases):
        resize = type("Resize", (), {"__module__": "torchvision.transforms", "__call__": print})
        with pytest.raises(InvalidInput, match="got Resize of torchvision: call it in a function"):
            stream_of(cases, SAMPLERS["uniform"], augment=[vf.Augment(), resize()])

    def test_an_augmentation_may_drop_what_it_likes(self, cases):
        stream = stream_of(
            cases, SAMPLERS["uniform"], 100, augment=lambda batch: {"image": batch["image"]}
        )
        assert [list(batch) for batch in stream.loader(50)] == [["image"]] * 2

    def test_refuses_classes_that_are_no_whole_numbers(self):
        image = np.zeros((8, 8, 8), "f4")
        for wrong in (0.5, np.nan):
            case = {"image": image, "label": image + np.float32(wrong)}
            with pytest.raises(InvalidInput, match='array "label" holds classes, but values that'):
                list(vf.PatchStream(case, vf.UniformSampler(4), 8).loader(4))

    def test_a_state_behind_the_last_batch_is_the_next_epoch(self, cases):
        stream = stream_of(cases, SAMPLERS["uniform"], 64)
        for _ in stream.loader(32):
            state = stream.state_dict()
        again = stream_of(cases, SAMPLERS["uniform"], 64)
        again.load_state_dict(state)
        assert again.epoch == 1
        assert fingerprint(again) == fingerprint(stream)

    def test_passes_on_what_fails_in_its_thread(self, cases):
        def broken(batch):
            raise ZeroDivisionError("in augment")

        with pytest.raises(ZeroDivisionError, match="in augment"):
            list(stream_of(cases, SAMPLERS["uniform"], augment=broken).loader(4))

    @pytest.mark.slow
    def test_workers_give_the_same(self, cases, monkeypatch):
        monkeypatch.undo()  # spawned processes have superchunks of the usual size
        sampler = SAMPLERS["label"]
        expected = fingerprint(stream_of(cases, sampler, 100))
        workers = DataLoader(
            stream_of(cases, sampler, 100), batch_size=None, num_workers=2,
            multiprocessing_context="spawn",
        )  # fmt: skip
        assert fingerprint(workers) == expected
        one, two = (
            stream_of(cases, sampler, 100, augment=lambda batch: {**batch, "seen": True})
            for _ in range(2)
        )
        two.load_state_dict({**two.state_dict(), "index": 7})
        found = [b for b in two.loader(16, num_workers=2) if b["seen"]]
        keys = torch.cat([b["key"] for b in one.loader(16)])
        assert torch.equal(torch.cat([b["key"] for b in found]), keys[7:])

    def test_refuses_forked_workers(self, cases):
        stream = stream_of(cases, SAMPLERS["uniform"], 100)
        forked = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="fork")
        with pytest.raises(InvalidInput, match='multiprocessing_context="spawn"'):
            next(iter(forked))


class TestRefusals:
    @pytest.mark.parametrize(
        ("sampler", "options", "message"),
        [
            (vf.LabelSampler(4, probabilities={0: 1, 7: 1}), {}, "has no voxel of class 7"),
            (
                vf.LabelSampler(4, label="lesion"),
                {},
                'needs an array "lesion", but case a has image',
            ),
            (64, {}, r"the sampler must be one like UniformSampler\(64\); got 64"),
            (vf.UniformSampler(4), {"lanes": 0}, "lanes must be positive"),
            (vf.UniformSampler(4), {"lanes": "8"}, "lanes must be positive and whole; got '8'"),
            (vf.UniformSampler(4), {"threads": 1.5}, "threads must be positive and whole; got 1.5"),
            (vf.UniformSampler(4), {"reuse": 0}, "reuse must be positive"),
            (vf.UniformSampler(4), {"reuse": "a"}, "reuse must be positive; got 'a'"),
            (vf.UniformSampler(4), {"seed": "a"}, "seed must be a whole number from 0 on"),
            (vf.UniformSampler(4), {"patches_per_epoch": np.nan}, "positive whole numbers"),
            (vf.UniformSampler(4), {"augment": "flip"}, "augment must be a callable .* got 'flip'"),
            (vf.UniformSampler(4), {"seed": -1}, "seed must be a whole number from 0 on"),
            (vf.UniformSampler(4), {"rank": 1}, "give rank and world_size together"),
            (vf.UniformSampler(4), {"rank": 2, "world_size": 2}, "rank must be 0 to 1 of 2; got 2"),
            (
                vf.UniformSampler(4),
                {"rank": 0, "world_size": 3},
                "3 ranks and workers cannot share 8 lanes evenly; use lanes=9",
            ),
            (
                vf.UniformSampler(4),
                {"patches_per_epoch": 99, "rank": 0, "world_size": 4},
                "99 patches cannot be shared evenly by 4 ranks.* use 96 or 100",
            ),
            (
                vf.UniformSampler(4),
                {"patches_per_case": 4},
                "either patches_per_epoch or .* got both",
            ),
            (vf.UniformSampler(4), {"patches_per_epoch": None}, "got neither"),
            (vf.UniformSampler(4), {"patches_per_epoch": -2}, "positive whole numbers"),
            (vf.GridSampler(4), {}, "a GridSampler gives all its patches"),
        ],
    )
    def test_of_what_does_not_fit_together(self, cases, sampler, options, message):
        with pytest.raises(InvalidInput, match=message):
            vf.PatchStream(cases, sampler, **{"patches_per_epoch": 96, **options})

    def test_of_arrays_named_as_what_a_sample_says(self):
        image = np.zeros((8, 8, 8), "u1")
        with pytest.raises(InvalidInput, match="gives to arrays or values: key; rename them"):
            vf.PatchStream({"image": image, "key": image}, vf.UniformSampler(4), 8)

    def test_of_an_epoch(self, cases):
        with pytest.raises(InvalidInput, match="an epoch must be a whole number from 0 on; got -1"):
            vf.PatchStream(cases, vf.UniformSampler(4), 96).set_epoch(-1)

    def test_of_unknown_cases(self, cases):
        with pytest.raises(InvalidInput, match="patches_per_case names c, but the cases are a, b"):
            vf.PatchStream(cases, vf.UniformSampler(4), patches_per_case={"c": 1})

    @pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
    def test_of_weights_that_are_none(self, value):
        image = np.zeros((8, 8, 8), "f4")
        prob = np.zeros((8, 8, 8), "f4")
        prob[4, 4, 4] = value
        with pytest.raises(InvalidInput, match=r"zero everywhere|negative|nan"):
            vf.PatchStream({"image": image, "prob": prob}, vf.WeightedSampler(4), 8)

    def test_of_weights_out_of_reach(self):
        prob = np.zeros((8, 8, 8), "f4")
        prob[0, 0, 0] = 1
        case = {"image": prob, "prob": prob}
        with pytest.raises(InvalidInput, match='use border="pad"'):
            vf.PatchStream(case, vf.WeightedSampler(4), 8)
        padded = vf.PatchStream(case, vf.WeightedSampler(4, border="pad"), 8)
        assert {tuple(s["location"][:3].tolist()) for s in padded} == {(-2, -2, -2)}

    def test_of_a_case_without_a_class_only_if_it_must_give_some(self, capsys):
        image = np.zeros((8, 8, 8), "u1")
        cases = {"a": {"image": image, "label": image}, "b": {"image": image, "label": image + 1}}
        stream = vf.PatchStream(cases, vf.LabelSampler(4), 8)
        assert stream.case_counts() == {"a": 0, "b": 8}
        for _ in range(2):  # it is said once
            assert len(list(stream.loader(4))) == 2
        told = "stream: 1 of 2 cases have no patch in this epoch of 8; patches_per_case="
        assert capsys.readouterr().err == f"{told} (--patches-per-case) takes as many of each\n"
        assert len(list(vf.PatchStream(cases, vf.LabelSampler(4), 8, progress=False))) == 8
        assert capsys.readouterr().err == ""
        with pytest.raises(InvalidInput, match="case a has no voxels of the classes"):
            vf.PatchStream(cases, vf.LabelSampler(4), patches_per_case=4)
        with pytest.raises(InvalidInput, match="case a has no weights"):
            vf.PatchStream(cases, vf.WeightedSampler(4, weight="label"), patches_per_case=4)
        for sampler in (vf.LabelSampler(4), vf.WeightedSampler(4, weight="label")):
            stream = vf.PatchStream(cases, sampler, patches_per_case={"b": 5})
            assert [sample["case"] for sample in stream] == ["b"] * 5
        with pytest.raises(InvalidInput, match="no voxel of class 1"):
            vf.PatchStream(
                cases, vf.LabelSampler(4, probabilities={1: 1}), patches_per_case={"a": 5}
            )

    def test_of_too_little_memory_says_what_would_do(self, cases):
        image = da.zeros((900, 900, 900), chunks=64, dtype="f4")
        with pytest.raises(MemoryRefused, match=r"memory='.*iB', or use lanes=2$") as e:
            vf.PatchStream(image, vf.UniformSampler(64), 1000, memory="600MiB")
        text = str(e.value)
        enough = text.split("memory='")[1].split("'")[0]
        plan = vf.PatchStream(image, vf.UniformSampler(64), 1000, memory=enough).plan
        assert plan.peak_bytes <= plan.memory_bytes
        assert vf.PatchStream(image, vf.UniformSampler(64), 1000, memory="600MiB", lanes=2).plan

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("shape", "chunk", "memory", "remedies"),
        [
            ((40, 40, 40), 40, "8MiB", []),
            ((200, 200, 800), 64, "340MiB", ["threads=1"]),
            ((400, 400, 800), 400, "1GiB", ["convert"]),
        ],
        ids=["a tiny volume", "threads", "chunks"],
    )
    def test_of_too_little_memory_names_what_helps(self, shape, chunk, memory, remedies):
        """Neither fewer lanes nor other chunks are a remedy for a volume that is one superchunk."""

        def stream(memory, threads, chunk=chunk):
            image, sampler = da.zeros(shape, chunks=chunk, dtype="f4"), vf.UniformSampler(32)
            return vf.PatchStream(image, sampler, 100, memory=memory, threads=threads, lanes=2)

        with pytest.raises(MemoryRefused) as e:
            stream(memory, 4)
        text = str(e.value)
        assert [word for word in ("threads=1", "lanes=", "convert") if word in text] == remedies
        assert stream(text.split("memory='")[1].split("'")[0], 4).plan
        if "threads=1" in remedies:
            assert stream(memory, 1).plan
        if "convert" in remedies:
            assert stream(memory, 4, chunk=16).plan

    def test_of_a_state_of_another_stream(self, cases):
        state = vf.PatchStream(cases, vf.UniformSampler(4), 96).state_dict()
        for other in (
            vf.PatchStream(cases, vf.UniformSampler(5), 96),
            vf.PatchStream(cases, vf.UniformSampler(4), 96, seed=1),
            vf.PatchStream(cases, vf.UniformSampler(4), 96, lanes=4),
            vf.PatchStream(cases, vf.UniformSampler(4), 96, reuse=1),
            vf.PatchStream({"a": cases["a"]}, vf.UniformSampler(4), 96),
        ):
            with pytest.raises(ResumeRefused, match="the state was taken from a stream of other"):
                other.load_state_dict(state)

    def test_of_a_state_amid_a_step_of_all_ranks(self, cases):
        stream = vf.PatchStream(cases, vf.UniformSampler(4), 96)
        next(iter(stream))
        other = vf.PatchStream(cases, vf.UniformSampler(4), 96, rank=0, world_size=2)
        with pytest.raises(
            ResumeRefused, match="1 patches were given, which do not divide among 2"
        ):
            other.load_state_dict(stream.state_dict())

    @pytest.mark.parametrize("size", [0, -1, 1.5, "4"])
    def test_of_a_batch_size(self, cases, size):
        with pytest.raises(InvalidInput, match="batch_size must be a positive number"):
            vf.PatchStream(cases, vf.UniformSampler(4), 96).loader(size)

    def test_of_worker_processes(self, cases):
        stream = vf.PatchStream(cases, vf.UniformSampler(4), 96, cluster="threads")
        with pytest.raises(InvalidInput, match="workers of a cluster read for this stream"):
            stream.loader(4, num_workers=2)
        with pytest.raises(InvalidInput, match="num_workers must be a number of processes from 0"):
            stream.loader(4, num_workers=-1)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_of_a_device_that_is_not_there(self, cases):
        with pytest.raises(InvalidInput, match='no device "cuda" here; use device="cpu"'):
            vf.PatchStream(cases, vf.UniformSampler(4), 96).loader(4, "cuda")

    def test_of_probabilities(self):
        for wrong in ({0: -1, 1: 1}, {0: 0}, {}, {0: np.inf}, {0.5: 1}, {"a": 1}, [1, 3]):
            with pytest.raises(InvalidInput, match="probabilities must be finite, not negative"):
                vf.LabelSampler(4, probabilities=wrong)


class TestOptions:
    def test_are_one_object_from_which_the_stream_is_made(self, cases):
        """Whoever reads options from a file or a command line gets the stream of the flat call."""
        sampler = vf.LabelSampler(9)
        options = StreamOptions(sampler, 60, seed=3, reuse=2, lanes=4, threads=1, memory="1GiB")
        made = vf.PatchStream(cases, **vars(options))
        flat = vf.PatchStream(
            cases, sampler, 60, seed=3, reuse=2, lanes=4, threads=1, memory="1GiB"
        )
        assert made.options == flat.options == options
        assert fingerprint(made) == fingerprint(flat)
        assert made.state_dict() == flat.state_dict()

    def test_do_not_depend_on_the_type_of_numbers(self):
        sampler = vf.UniformSampler(4)
        typed = StreamOptions(sampler, 8, seed=np.uint8(3), reuse=np.float32(2), lanes=np.int8(4))
        assert repr(typed) == repr(StreamOptions(sampler, 8, seed=3, reuse=2.0, lanes=4))

    def test_are_refused_before_anything_is_opened(self):
        with pytest.raises(InvalidInput, match="lanes must be positive and whole; got 0"):
            vf.PatchStream("nowhere.zarr", vf.UniformSampler(4), 8, lanes=0)


def test_the_plan_is_printed(cases):
    plan = vf.PatchStream(cases, vf.UniformSampler(8), 100, memory="1GiB").plan
    assert plan.to_dict()["peak_bytes"] == plan.peak_bytes < plan.memory_bytes
    text = str(plan)
    assert "100 patches in 8 lanes" in text
    assert "limited by" in text
    assert "of 1 GiB" in text
