"""Outputs of one's own loop against sums over the whole volume at once, in plain NumPy."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

import volflow as vf
from tests.nets import Named, Paired, random_net
from volflow.engine.observing.run_facts import run_facts
from volflow.errors import InvalidInput, StoreFull
from volflow.geometry.grid import PatchGrid, stride_of
from volflow.geometry.windows import weights
from volflow.infer.aggregate.grid_aggregator import GridAggregator
from volflow.store.meta import Meta

BLENDS = ("crop", "average", "hann", "gaussian")
META = Meta(spacing=(2.5, 0.5, 0.5), unit="millimeter", orientation="SAR")


@dataclass(frozen=True)
class Grid:
    """A sampler over a grid, as the stream has one."""

    patch: tuple[int, int, int]
    overlap: float = 0.5
    padding: tuple[int, int, int] = (0, 0, 0)

    def grid(self, case) -> PatchGrid:
        return PatchGrid(
            case.shape, self.patch, stride_of(self.patch, self.overlap), padding=self.padding
        )


@dataclass(frozen=True)
class Case:
    name: str
    shape: tuple[int, int, int]
    meta: Meta = META


@dataclass
class Stream:
    cases: tuple[Case, ...]
    sampler: Grid = field(default_factory=lambda: Grid((6, 5, 4)))
    world_size: int | None = 1


ONE = Stream((Case("a", (13, 11, 9)),))


def patches(stream, channels=2, dtype=torch.float64):
    """Outputs of every patch of every case, in order: (case, location, scores)."""
    found = []
    for case in stream.cases:
        rng = np.random.default_rng([len(case.name), *case.name.encode()])
        for roi in stream.sampler.grid(case):
            scores = torch.from_numpy(rng.standard_normal((channels, *roi.shape))).to(dtype)
            found.append((case.name, (*roi.start, *roi.stop), scores))
    return found


def add(aggregator, given, batch_size=4):
    for low in range(0, len(given), batch_size):
        names, locations, scores = zip(*given[low : low + batch_size], strict=True)
        batch = {"case": list(names), "location": torch.tensor(locations)}
        aggregator.add_batch(torch.stack(scores), batch)


def oracle(stream, given, blend, name="a"):
    """Weighted sums over the whole volume in float64, and what is covered."""
    case = next(case for case in stream.cases if case.name == name)
    grid = stream.sampler.grid(case)
    weight = weights(blend, grid.patch).astype("f8")
    far = 64  # more than any patch reaches out
    sums, norm = None, np.zeros([n + 2 * far for n in case.shape])
    owned = {
        tuple(int(s[i]) for s, i in zip(grid.starts, index, strict=True)): [
            grid.owned[axis][i] for axis, i in enumerate(index)
        ]
        for index in np.ndindex(*grid.counts)
    }
    for one, location, scores in given:
        if one != name:
            continue
        start, w = location[:3], weight
        if blend == "crop":
            for axis, (low, high) in enumerate(owned[start]):
                at = np.arange(grid.patch[axis]) + start[axis]
                mine = ((at >= low) & (at < high)).reshape(
                    [-1 if a == axis else 1 for a in range(3)]
                )
                w = w * mine
        box = tuple(slice(a + far, b + far) for a, b in zip(start, location[3:], strict=True))
        sums = np.zeros((len(scores), *norm.shape)) if sums is None else sums
        sums[(slice(None), *box)] += w * scores.double().numpy()
        norm[box] += w
    inside = (slice(far, -far),) * 3
    total, norm = sums[(slice(None), *inside)], norm[inside]
    return total / np.where(norm > 0, norm, 1), norm > 0


def moved(outputs, batch, change):
    return outputs, {**batch, "location": change(batch["location"])}


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{}, {"chunk": (2, 4, 8), "shard": (4, 8, 8)}])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("frame", ["RAS", "LPI", "IPR", "SAR"])
def test_patches_of_a_frame_lie_along_the_stored_axes(client, tmp_path, frame, scale, layout):
    net = random_net() if scale == 1 else Coarse(Named(random_net(), random_net(channels_out=3)))
    scan = np.random.default_rng(0).random((20, 36, 28) if scale == 2 else (19, 13, 25), "f4")
    meta = replace(META, orientation="SAR", translation=(5.0, 3.0, -2.0), affine=None)
    scan = vf.write(
        scan, tmp_path / "scan.zarr", meta=meta, chunk=8, shard=16, cluster=client, progress=False
    )
    options = {"frame": frame, "normalize": "zscore"}
    expected = vf.predict(
        scan, net, tmp_path / "out.zarr", patch=(8, 12, 8), overlap=4, cluster=client,
        progress=False, **options,
    )  # fmt: skip
    sampler = vf.GridSampler((8, 12, 8), overlap=4)
    stream = vf.PatchStream({"a": {"image": scan}}, sampler, **options)
    with (
        torch.inference_mode(),
        GridAggregator(tmp_path / "own.zarr", stream, like=scan, **layout) as aggregator,
    ):
        for batch in stream.loader(batch_size=3):
            aggregator.add_batch(net(batch["image"]), batch)
    found = aggregator.close()["a"]
    named = found if scale == 2 else {"": found}
    for name, volume in named.items():
        same = expected[name] if name else expected
        assert replace(volume.meta, source=None) == replace(same.meta, made="", source=None)
        np.testing.assert_allclose(volume[:], same[:], atol=1e-5)
        if layout:
            assert volume.chunks[-3:] == (2, 4, 8)
    assert vf.verify(tmp_path / "own.zarr").ok


class TestSeveralOutputs:
    """As `predict` stores them, of the same network on the same grid."""

    @pytest.mark.slow
    @pytest.mark.parametrize("output", ["scores", "classes"])
    @pytest.mark.parametrize(("kind", "scale"), [(Named, 1), (Paired, 1), (Named, 2)])
    def test_equal_those_of_predict(self, client, tmp_path, kind, output, scale):
        net = kind(random_net(), random_net(channels_out=3)).eval()
        if scale > 1:
            net = Coarse(net)
        scan = np.random.default_rng(0).random((20, 28, 28), "f4")
        scan = vf.write(
            scan, tmp_path / "scan.zarr", meta=META, chunk=8, shard=16, cluster=client,
            progress=False,
        )  # fmt: skip
        options = {"output": output, "activation": "softmax"}
        expected = vf.predict(
            scan, net, tmp_path / "out.zarr", patch=(8, 12, 8), overlap=4, cluster=client,
            progress=False, **options,
        )  # fmt: skip
        stream = vf.PatchStream(scan, vf.GridSampler((8, 12, 8), overlap=4))
        with (
            torch.inference_mode(),
            GridAggregator(
                tmp_path / "own.zarr", stream, chunk=4, shard=8, **options
            ) as aggregator,
        ):
            for batch in stream.loader(batch_size=3):
                aggregator.add_batch(net(batch["image"]), batch)
        (found,) = aggregator.close().values()
        assert list(found) == list(expected)
        for name, volume in found.items():
            assert volume.dtype == expected[name].dtype
            assert volume.meta.spacing == expected[name].meta.spacing
            assert volume.meta.translation == expected[name].meta.translation
            np.testing.assert_allclose(volume[:], expected[name][:], atol=1e-5)
            assert vf.open(tmp_path / "own.zarr" / name).shape == volume.shape
        assert vf.verify(tmp_path / "own.zarr").ok

    def test_one_coarser_output_is_a_volume(self, tmp_path):
        stream = Stream((Case("a", (12, 10, 8)),), Grid((6, 4, 4)))
        given = [(name, at, one[:, 1::3, ::2, ::2]) for name, at, one in patches(stream)]
        with GridAggregator(tmp_path / "a.zarr", stream, "average") as aggregator:
            add(aggregator, given)
        volume = aggregator.close()["a"]
        coarse = Stream((Case("a", (4, 5, 4)),), Grid((2, 2, 2)))
        given = [
            (name, tuple(n // s for n, s in zip(at, (3, 2, 2) * 2, strict=True)), one)
            for name, at, one in given
        ]
        np.testing.assert_allclose(volume[:], oracle(coarse, given, "average")[0], rtol=1e-12)
        assert volume.meta.spacing == (7.5, 1, 1)

    def test_replace_what_was_there(self, tmp_path):
        for again in (False, True):
            aggregator = GridAggregator(tmp_path / "a.zarr", ONE, overwrite=again)
            for case, at, one in patches(ONE):
                batch = {"case": [case], "location": torch.tensor([at])}
                aggregator.add_batch({"x": one[None], "y": one[None, :1]}, batch)
            found = aggregator.close()["a"]
        assert {name: volume.shape[0] for name, volume in found.items()} == {"x": 2, "y": 1}


class Coarse(torch.nn.Module):
    """Outputs of half the resolution."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, batch):
        return {name: one[..., ::2, ::2, ::2] for name, one in self.net(batch).items()}


class TestValues:
    @pytest.mark.slow
    @pytest.mark.parametrize("blend", BLENDS)
    @pytest.mark.parametrize(
        ("shape", "sampler"),
        [
            ((13, 11, 9), Grid((6, 5, 4), 0.5)),
            ((13, 11, 9), Grid((6, 5, 4), 0.3, (3, 4, 1))),
            ((5, 11, 3), Grid((8, 6, 6), 0.25)),  # the patch is larger than the volume
            ((7, 11, 1), Grid((1, 5, 1), 0, (0, 2, 0))),
        ],
    )
    def test_are_those_of_the_oracle(self, tmp_path, blend, shape, sampler):
        stream = Stream((Case("a", shape),), sampler)
        given = patches(stream)
        with GridAggregator(
            tmp_path / "{case}.zarr", stream, blend, chunk=2, shard=4
        ) as aggregator:
            add(aggregator, given)
        volume = aggregator.close()["a"]
        expected, _ = oracle(stream, given, blend)
        assert volume.dtype == np.float64
        np.testing.assert_allclose(volume[:], expected, rtol=1e-12, atol=1e-12)
        assert aggregator.close().coverage == {"a": 1.0}

    def test_activation_acts_on_blended_scores(self, tmp_path):
        given = patches(ONE)
        with GridAggregator(tmp_path / "a.zarr", ONE, "hann", activation="softmax") as aggregator:
            add(aggregator, given)
        expected = np.exp(oracle(ONE, given, "hann")[0])
        np.testing.assert_allclose(
            aggregator.close()["a"][:], expected / expected.sum(0), rtol=1e-12
        )

    @pytest.mark.slow
    def test_classes_are_the_argmax(self, tmp_path):
        given = patches(ONE, channels=4)
        with GridAggregator(
            tmp_path / "a.zarr", ONE, activation="softmax", output="classes", chunk=2, shard=4
        ) as aggregator:
            add(aggregator, given)
        volume = aggregator.close()["a"]
        assert (volume.axes, volume.dtype) == (("z", "y", "x"), np.uint8)
        assert volume.meta.kind == "classes"
        np.testing.assert_array_equal(volume[:], oracle(ONE, given, "gaussian")[0].argmax(0))
        assert vf.verify(volume).ok

    def test_one_channel_is_a_class_above_half(self, tmp_path):
        given = patches(ONE, channels=1)
        with GridAggregator(tmp_path / "a.zarr", ONE, output="classes") as aggregator:
            add(aggregator, given[3:])
            coverage = aggregator.close(partial=True).coverage["a"]
        assert 0 < coverage < 1
        expected, covered = oracle(ONE, given[3:], "gaussian")
        np.testing.assert_array_equal(
            vf.open(tmp_path / "a.zarr")[:], (expected[0] > 0.5) & covered
        )

    def test_more_classes_than_the_dtype_holds_are_refused(self, tmp_path):
        stream = Stream((Case("a", (1, 1, 1)),), Grid((1, 1, 1), 0))
        given = patches(stream, channels=257)
        aggregator = GridAggregator(tmp_path / "a.zarr", stream, output="classes")
        with pytest.raises(
            InvalidInput, match=r"uint8 holds no class 256, and .* 257 classes; use"
        ):
            add(aggregator, given)
        wide = GridAggregator(tmp_path / "b.zarr", stream, output="classes", dtype="uint16")
        add(wide, given)
        assert wide.close()["a"][:].item() == int(given[0][2].argmax())

    def test_metadata_are_the_cases(self, tmp_path):
        with GridAggregator(tmp_path / "a.zarr", ONE) as aggregator:
            add(aggregator, patches(ONE, channels=1, dtype=torch.float32))
        volume = vf.open(tmp_path / "a.zarr")
        assert volume.axes == ("c", "z", "y", "x")
        assert volume.shape == (1, 13, 11, 9)
        assert (volume.spacing, volume.unit, volume.orientation) == (
            META.spacing, META.unit, META.orientation,
        )  # fmt: skip
        assert volume.shards is not None
        assert volume.dtype == np.float32

    @pytest.mark.slow
    def test_done_means_verified(self, tmp_path):
        with GridAggregator(tmp_path / "a.zarr", ONE, chunk=2, shard=4) as aggregator:
            add(aggregator, patches(ONE))
        coverage = vf.verify(aggregator.close()["a"])
        assert coverage.ok
        assert coverage.total == 4
        facts = run_facts(tmp_path / "a.zarr")
        assert (facts["operation"], facts["done"]) == ("aggregate", 4)
        assert facts["settings"]["coverage"] == 1.0


class TestWithAStream:
    @pytest.mark.slow
    @pytest.mark.parametrize("blend", BLENDS)
    @pytest.mark.parametrize("sampler", [vf.GridSampler((9, 12, 8), 0.4, 3), vf.GridSampler(16, 4)])
    def test_an_identity_gives_the_images_back(self, tmp_path, stored, blend, sampler):
        rng = np.random.default_rng(7)
        scans = {name: rng.integers(-999, 999, (12, 21, 30)).astype("i2") for name in ("a", "b")}
        cases = {
            name: {"image": stored(scan, f"{name}.zarr", spacing=(3, 1, 1), orientation="SAR")}
            for name, scan in scans.items()
        }
        stream = vf.PatchStream(cases, sampler, memory="1GiB")
        with GridAggregator(tmp_path / "{case}-out.zarr", stream, blend) as aggregator:
            for batch in stream.loader(batch_size=5):
                aggregator.add_batch(batch["image"], batch)
        result = aggregator.close()
        for name, scan in scans.items():
            np.testing.assert_allclose(result[name][0], scan, rtol=1e-6)
            assert (result[name].spacing, result[name].orientation) == ((3, 1, 1), "SAR")
            assert blend != "crop" or np.array_equal(result[name][0], scan)

    def test_classes_are_those_of_predict(self, tmp_path):
        torch.manual_seed(0)
        net = torch.nn.Conv3d(1, 3, 3, padding=1).requires_grad_(False)
        scan = np.random.default_rng(0).random((20, 30, 25), "f4")
        stream = vf.PatchStream(scan, vf.GridSampler(12, overlap=4), memory="1GiB")
        with GridAggregator(tmp_path / "own.zarr", stream, output="classes") as aggregator:
            for batch in stream.loader(batch_size=1):
                aggregator.add_batch(net(batch["image"]), batch)
        expected = vf.predict(
            scan, net, tmp_path / "p.zarr", patch=12, overlap=4, output="classes", batch_size=1,
            progress=False,
        )  # fmt: skip
        own = vf.open(tmp_path / "own.zarr")
        assert (own.axes, own.dtype, own.meta.kind) == (
            expected.axes, expected.dtype, expected.meta.kind,
        )  # fmt: skip
        assert np.mean(own[:] == expected[:]) > 0.9999  # equal but for what rounding decides

    @pytest.mark.parametrize("patch", [(1, 12, 10), (6, 1, 10), (6, 12, 1)])
    def test_slices_reach_a_network_as_those_of_predict(self, tmp_path, patch):
        torch.manual_seed(0)
        net = torch.nn.Conv2d(1, 2, 3, padding=1).requires_grad_(False)
        scan = np.random.default_rng(0).random((8, 20, 15), "f4")
        overlap = tuple(side // 2 for side in patch)
        stream = vf.PatchStream(scan, vf.GridSampler(patch, overlap), memory="1GiB")
        flat = GridAggregator(tmp_path / "flat.zarr", stream)
        kept = GridAggregator(tmp_path / "kept.zarr", stream)  # a loop that handles the axis itself
        axis = 2 + patch.index(1)
        for batch in stream.loader(batch_size=4):
            outputs = net(batch["image"])
            flat.add_batch(outputs, batch)
            kept.add_batch(outputs.unsqueeze(axis), batch)
        (own,), (other,) = (aggregator.close().values() for aggregator in (flat, kept))
        expected = vf.predict(
            scan, net, tmp_path / "p.zarr", patch=patch, overlap=overlap, progress=False
        )
        np.testing.assert_allclose(own[:], expected[:], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(own[:], other[:])

    def test_drawn_patches_are_refused(self, tmp_path):
        stream = vf.PatchStream(np.zeros((20, 20, 20), "f4"), vf.UniformSampler(8), 4)
        with pytest.raises(InvalidInput, match=r"UniformSampler draws them at random; make .*Grid"):
            GridAggregator(tmp_path / "a.zarr", stream)


class TestOrder:
    @pytest.mark.slow
    @pytest.mark.parametrize("blend", BLENDS)
    def test_any_order_gives_the_same_bits_in_memory_and_in_files(self, tmp_path, blend):
        given = patches(ONE, dtype=torch.float32)
        layout = {"chunk": 4, "shard": 8}
        with GridAggregator(tmp_path / "a.zarr", ONE, blend, **layout) as aggregator:
            add(aggregator, given, 16)
        expected = aggregator.close()["a"][:]
        shuffled = [given[i] for i in np.random.default_rng(3).permutation(len(given))]
        for memory in (2**30, 20_000, 1):
            folder = tmp_path / str(memory)
            folder.mkdir()
            most = 0
            with GridAggregator(
                folder / "a.zarr", ONE, blend, memory=memory, **layout
            ) as aggregator:
                for low in range(0, len(shuffled), 5):
                    add(aggregator, shuffled[low : low + 5], 5)
                    most = max(most, aggregator.scratch.held_bytes)
            assert np.array_equal(aggregator.close()["a"][:], expected)
            # Where memory is short patches wait in slots of a file, and nothing of it is left.
            assert (aggregator.pending.slots > 0) == (memory < 2**30)
            assert most <= memory
            assert leftovers(folder) == ["a.zarr", "a.zarr.volflow"]

    def test_cases_may_mix_and_are_finished_with_their_last_patch(self, tmp_path):
        stream = Stream((Case("a", (13, 11, 9)), Case("bb", (5, 6, 7))))
        given = patches(stream)
        first, second = ([p for p in given if p[0] == name] for name in ("a", "bb"))
        mixed = [p for pair in zip(first, second, strict=False) for p in pair]
        rest = first[len(second) :]
        with GridAggregator(tmp_path / "{case}.zarr", stream, "average") as aggregator:
            add(aggregator, mixed)
            assert (tmp_path / "bb.zarr").exists()
            assert not (tmp_path / "a.zarr").exists()
            assert list(aggregator.open) == ["a"]
            add(aggregator, rest[:-1])
            assert not (tmp_path / "a.zarr").exists()
            add(aggregator, rest[-1:])
            assert not aggregator.open
            assert aggregator.scratch.held_bytes == 0
        for name in ("a", "bb"):
            expected, _ = oracle(stream, given, "average", name)
            np.testing.assert_allclose(aggregator.close()[name][:], expected, rtol=1e-12)


class TestMemory:
    def test_only_open_rows_and_two_layers_of_shards_are_held(self, tmp_path):
        stream = Stream((Case("a", (64, 10, 10)),), Grid((4, 5, 5), 0.5))
        plane = 10 * 10 * 4
        with GridAggregator(tmp_path / "a.zarr", stream, chunk=4, shard=8) as aggregator:
            most = 0
            for one in patches(stream, channels=1, dtype=torch.float32):
                add(aggregator, [one])
                most = max(most, aggregator.scratch.held_bytes)
        # Sums and weights of the rows of a patch; shards of 8 planes, 16 voxels wide at the border.
        assert 0 < most <= 2 * 4 * plane + 2 * 8 * plane

    def test_shards_get_thinner_before_anything_goes_to_files(self, tmp_path):
        stream = Stream((Case("a", (64, 40, 40)),), Grid((4, 40, 40), 0))
        given = patches(stream, channels=1, dtype=torch.float32)
        depths = {}
        for memory in ("1GiB", "150kB"):
            with GridAggregator(
                tmp_path / f"{memory}.zarr", stream, chunk=(2, 40, 40), memory=memory
            ) as aggregator:
                for one in given:
                    add(aggregator, [one])
                    assert aggregator.scratch.filed_bytes == 0
            depths[memory] = aggregator.close()["a"].shards[1]
        assert depths == {"1GiB": 16, "150kB": 4}

    def test_rows_beyond_the_budget_lie_in_files(self, tmp_path):
        with GridAggregator(tmp_path / "a.zarr", ONE, memory=1) as aggregator:
            add(aggregator, patches(ONE)[:1])
            assert aggregator.scratch.held_bytes == 0
            assert aggregator.scratch.filed_bytes > 0
            aggregator.close(partial=True)

    def test_a_full_disk_is_told_and_leaves_nothing(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "posix_fallocate", full)
        aggregator = GridAggregator(tmp_path / "a.zarr", ONE, memory=1)
        with pytest.raises(StoreFull, match=r"beside the output in .* cannot be had .*No space"):
            add(aggregator, patches(ONE))
        assert leftovers(tmp_path) == []
        with pytest.raises(InvalidInput, match="no more patches: an error ended it; make a new"):
            aggregator.close()


class TestDtypes:
    @pytest.mark.parametrize("blend", ["average", "hann", "gaussian"])
    @pytest.mark.parametrize(
        ("dtype", "value", "stored"),
        [
            (torch.uint8, 200, "float32"),
            (torch.int16, 20_000, "float32"),
            (torch.bool, 1, "float32"),
            (torch.int32, 2**31 - 1, "float64"),
            (torch.int64, -(2**40) - 1, "float64"),
            (torch.float16, 60_000, "float32"),
            (torch.bfloat16, 3.0, "float32"),
        ],
    )
    def test_nothing_wraps(self, tmp_path, blend, dtype, value, stored):
        given = [(n, at, torch.full_like(s, value, dtype=dtype)) for n, at, s in patches(ONE, 1)]
        with GridAggregator(tmp_path / "a.zarr", ONE, blend) as aggregator:
            add(aggregator, given, 16)
        volume = aggregator.close()["a"]
        assert volume.dtype == stored
        np.testing.assert_allclose(volume[:], value, rtol=1e-6 if stored == "float32" else 1e-14)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int16, torch.int64])
    def test_crop_keeps_integers(self, tmp_path, dtype):
        given = [(n, at, (100 * s).to(dtype)) for n, at, s in patches(ONE, 1)]
        with GridAggregator(tmp_path / "a.zarr", ONE, "crop") as aggregator:
            add(aggregator, given, 16)
        volume = aggregator.close()["a"]
        assert f"torch.{volume.dtype}" == str(dtype)
        expected, _ = oracle(ONE, given, "crop")
        assert np.array_equal(volume[:], expected)

    def test_integers_asked_for_round_and_clip(self, tmp_path):
        given = [(n, at, 100 * s) for n, at, s in patches(ONE)]
        with GridAggregator(tmp_path / "a.zarr", ONE, "average", dtype="uint8") as aggregator:
            add(aggregator, given)
        expected, _ = oracle(ONE, given, "average")
        assert np.array_equal(
            aggregator.close()["a"][:], np.clip(np.rint(expected), 0, 255).astype("u1")
        )

    def test_outputs_of_a_graph_are_taken(self, tmp_path):
        given = [(n, at, s.requires_grad_()) for n, at, s in patches(ONE)]
        with GridAggregator(tmp_path / "a.zarr", ONE) as aggregator:
            add(aggregator, given)
        assert aggregator.close().coverage["a"] == 1


class TestClosing:
    def test_missing_patches_are_named_and_may_still_be_added(self, tmp_path):
        stream = Stream((Case("a", (13, 11, 9)), Case("bb", (5, 6, 4))))
        given = patches(stream)
        count = len(stream.sampler.grid(stream.cases[0]))
        aggregator = GridAggregator(tmp_path / "{case}.zarr", stream)
        missing = {2, 7, count}  # of a two, of bb the first
        add(aggregator, [p for n, p in enumerate(given) if n not in missing])
        with pytest.raises(InvalidInput) as caught:
            aggregator.close()
        assert str(caught.value) == (
            f'case "a": 2 of {count} patches were never added, first at {given[2][1][:3]};'
            ' case "bb": 1 of 2 patches were never added, first at (0, 0, 0);'
            " add them, or keep what there is with close(partial=True)"
        )
        add(aggregator, [given[n] for n in sorted(missing)])
        assert sorted(aggregator.close()) == ["a", "bb"]
        assert aggregator.close() is aggregator.close()
        with pytest.raises(InvalidInput, match="takes no more patches: it is closed"):
            add(aggregator, given[:1])

    @pytest.mark.slow
    @pytest.mark.parametrize("blend", BLENDS)
    def test_partial_results_are_zero_where_nothing_came(self, tmp_path, blend):
        stream = Stream((Case("a", (13, 11, 9)), Case("bb", (5, 6, 4))))
        given = [p for p in patches(stream) if p[0] == "a"]
        some = [given[i] for i in np.random.default_rng(5).permutation(len(given))[::6]]
        with GridAggregator(
            tmp_path / "{case}.zarr", stream, blend, shard=4, chunk=2
        ) as aggregator:
            add(aggregator, some)
            result = aggregator.close(partial=True)
        expected, covered = oracle(stream, some, blend)
        np.testing.assert_allclose(result["a"][:], np.where(covered, expected, 0), atol=1e-12)
        assert result.coverage == {"a": covered.mean(), "bb": 0.0}
        assert list(result) == ["a"]
        assert vf.verify(result["a"]).ok
        assert run_facts(result["a"].path)["settings"]["coverage"] == pytest.approx(covered.mean())

    def test_an_error_in_the_loop_leaves_nothing(self, tmp_path):
        given = patches(ONE)

        def loop():
            with GridAggregator(tmp_path / "a.zarr", ONE, chunk=2, shard=4, memory=1) as aggregator:
                add(aggregator, given[:-20] + given[-10:])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            loop()
        assert leftovers(tmp_path) == []

    def test_leaving_the_loop_too_early_is_refused_and_leaves_nothing(self, tmp_path):
        def loop():
            with GridAggregator(tmp_path / "a.zarr", ONE) as aggregator:
                add(aggregator, patches(ONE)[:-1])

        with pytest.raises(InvalidInput, match=r"1 of \d+ patches were never added, first at"):
            loop()
        assert leftovers(tmp_path) == []

    def test_what_a_killed_process_left_goes_when_the_output_is_whole(self, tmp_path):
        (tmp_path / ".a.zarr.part-0123abcd").mkdir()
        with GridAggregator(tmp_path / "a.zarr", ONE) as aggregator:
            add(aggregator, patches(ONE))
        assert leftovers(tmp_path) == ["a.zarr", "a.zarr.volflow"]


class TestOverwriting:
    @pytest.fixture
    def old(self, tmp_path):
        return vf.convert(np.ones((4, 4, 4), "u1"), tmp_path / "a.zarr", progress=False)

    @pytest.mark.usefixtures("old")
    def test_an_output_that_is_there_is_refused(self, tmp_path):
        with pytest.raises(InvalidInput, match="exists; choose another name or overwrite=True"):
            GridAggregator(tmp_path / "{case}.zarr", ONE)

    def test_the_old_one_stays_until_the_new_one_is_whole(self, tmp_path, old):
        given = patches(ONE)
        aggregator = GridAggregator(tmp_path / "a.zarr", ONE, overwrite=True)
        add(aggregator, given[:-1])
        with pytest.raises(InvalidInput, match="never added"):
            aggregator.__exit__(None, None, None)
        assert (old[:] == 1).all()
        assert vf.verify(old).ok
        with GridAggregator(tmp_path / "a.zarr", ONE, overwrite=True) as aggregator:
            add(aggregator, given)
        assert vf.open(tmp_path / "a.zarr").shape == (2, 13, 11, 9)
        assert run_facts(tmp_path / "a.zarr")["operation"] == "aggregate"
        assert vf.verify(tmp_path / "a.zarr").ok
        assert leftovers(tmp_path) == ["a.zarr", "a.zarr.volflow"]

    @pytest.mark.usefixtures("old")
    def test_an_input_is_never_replaced(self, tmp_path):
        @dataclass(frozen=True)
        class Opened(Case):
            sources: dict = field(default_factory=dict)

        @dataclass
        class Source:
            path: str

        case = Opened("a", (13, 11, 9), META, {"image": Source(str(tmp_path / "a.zarr"))})
        with pytest.raises(InvalidInput, match="would replace its own input"):
            GridAggregator(tmp_path / "{case}.zarr", Stream((case,)), overwrite=True)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"blend": "exact"}, "blend 'exact' is a property of the whole network"),
            ({"blend": "mean"}, "unknown blend 'mean'; use one of crop, average"),
            ({"activation": "relu"}, "unknown activation 'relu'"),
            ({"dtype": "complex64"}, "dtype of scores must be a floating or integer type"),
            ({"shard": 6, "chunk": 4}, "shard .* is not a multiple of chunk"),
            ({"memory": "much"}, "memory must be a positive amount"),
        ],
    )
    def test_options(self, tmp_path, options, message):
        with pytest.raises(InvalidInput, match=message):
            GridAggregator(tmp_path / "a.zarr", ONE, **options)
        assert leftovers(tmp_path) == []

    def test_patches_that_reach_several_processes(self, tmp_path):
        with pytest.raises(InvalidInput, match=r"shares them among 4; gather outputs, location"):
            GridAggregator(tmp_path / "a.zarr", Stream(ONE.cases, world_size=4))

    def test_one_path_for_several_cases(self, tmp_path):
        two = Stream((Case("a", (4, 4, 4)), Case("b", (4, 4, 4))))
        with pytest.raises(InvalidInput, match=r'must contain \{case\}, .*"out/\{case\}.zarr"'):
            GridAggregator(tmp_path / "a.zarr", two)

    @pytest.mark.parametrize("name", ["..", ".", "", "a/b", "/etc", "../a", "a\\b", "a\0"])
    def test_names_that_leave_the_folder(self, tmp_path, name):
        with pytest.raises(InvalidInput, match="cannot be part of a path, as it would leave"):
            GridAggregator(tmp_path / "{case}", Stream((Case(name, (4, 4, 4)),)))

    def test_places_that_cannot_be_written(self, tmp_path):
        with pytest.raises(InvalidInput, match="does not exist; make it first"):
            GridAggregator(tmp_path / "none" / "a.zarr", ONE)
        with pytest.raises(InvalidInput, match="this needs a local file system"):
            GridAggregator("s3://bucket/{case}.zarr", ONE)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda o, b: (o[:, :, :5], b), r"\(B, C, \*patch\) = \(4, C, 6, 5, 4\); got \(4, 2,"),
            (lambda o, b: (o[:3], b), r"= \(4, C, 6, 5, 4\); got \(3, 2, 6, 5, 4\)"),
            (lambda o, b: (o[:, :0], b), r"got \(4, 0, 6, 5, 4\); hand over the outputs"),
            (lambda o, b: (o.numpy(), b), "a dict or tuple of tensors, got ndarray; make a tensor"),
            (lambda o, b: ({"a": o, "b": [o]}, b), "a dict or tuple of tensors, got dict"),
            (lambda o, b: ({"a/..": o}, b), "'a/..' cannot name a folder"),
            (lambda o, b: ({"a": o, "b": o.int()}, b), "one resolution and one dtype; got"),
            (
                lambda o, b: ((o, o[:, :, ::6, ::5]), b),
                r"one dtype; got scales \[\(1, 1, 1\), \(6, ",
            ),
            (lambda o, b: (o[:, :, ::2], b), r"\(2, 1, 1\) times coarser .* resample outputs to"),
            (lambda o, b: (o.to(torch.complex64), b), "must be real numbers; got 2 channels of c"),
            (lambda o, b: (o / 0, b), r"outputs of the patch at \(0, 0, 0\) hold NaN or infinity"),
            (lambda o, b: (o, {"case": b["case"]}), 'batch must have "location" and "case"'),
            (lambda o, b: moved(o, b, lambda at: at[:3]), r"\(4, 6\), .*; got \(3, 6\)"),
            (lambda o, b: moved(o, b, lambda at: at + 1), "is no patch of its grid of 64 patches"),
            (lambda o, b: moved(o, b, lambda at: at + 99), "is no patch of its grid of 64 patches"),
            (lambda o, b: moved(o, b, lambda at: at[[0, 1, 2, 1]]), "was added before; add each"),
            (lambda o, b: (o, {**b, "case": list("aaxa")}), "unknown case 'x': the stream has a;"),
        ],
    )
    def test_batches_that_do_not_fit_change_nothing(self, tmp_path, change, message):
        given = patches(ONE)
        names, locations, scores = zip(*given[:4], strict=True)
        batch = {"case": list(names), "location": torch.tensor(locations)}
        aggregator = GridAggregator(tmp_path / "a.zarr", ONE)
        with pytest.raises(InvalidInput, match=message):
            aggregator.add_batch(*change(torch.stack(scores), batch))
        assert leftovers(tmp_path) == []
        add(aggregator, given)
        np.testing.assert_allclose(
            aggregator.close()["a"][:], oracle(ONE, given, "gaussian")[0], rtol=1e-12
        )

    def test_patches_that_came_before(self, tmp_path):
        stream = Stream((Case("a", (13, 11, 9)), Case("bb", (5, 6, 4))))
        given = patches(stream)
        aggregator = GridAggregator(tmp_path / "{case}.zarr", stream)
        add(aggregator, [given[0], given[5], *given[-2:]])
        for again in (0, 5, -1):  # summed, waiting, of a case that is finished
            with pytest.raises(InvalidInput, match="was added before; add each patch of the grid"):
                add(aggregator, [given[again]])
        aggregator.close(partial=True)

    def test_outputs_of_another_kind(self, tmp_path):
        given = patches(ONE)
        with GridAggregator(tmp_path / "a.zarr", ONE) as aggregator:
            add(aggregator, given[:3])
            with pytest.raises(InvalidInput, match="were 2 channels of float64, now 1 channels"):
                add(aggregator, [(n, at, s[:1]) for n, at, s in given[3:4]])
            with pytest.raises(InvalidInput, match=r"now 2 channels of float32; they must stay"):
                add(aggregator, [(n, at, s.float()) for n, at, s in given[3:4]])
            add(aggregator, given[3:])
