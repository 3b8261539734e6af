"""Coarser levels: equal to a plain loop, whatever the cut; resumed, repaired, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

import volflow as vf
import volflow.volumes.pyramid.plan as plan_module
import volflow.volumes.pyramid.pyramid as pyramid_module
from tests.merged import commonest, exact_mean, merged
from tests.stores import files
from volflow.errors import InvalidInput, Locked, MemoryRefused, RunFailed, StoreFull
from volflow.geometry.roi import Roi
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.journal.levels import place_of
from volflow.store.meta import Meta, VolumeSpec
from volflow.volumes.pyramid.plan import PIECE_BYTES, lay_out
from volflow.volumes.pyramid.pyramid import plan_pyramid

SHAPE = (21, 38, 27)


def random(dtype, shape=SHAPE, kind="image"):
    rng = np.random.default_rng(0)
    if kind == "classes":
        return rng.integers(0, 4, shape).astype(dtype)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    return (rng.integers(0, 2**62, shape) >> 3).astype(dtype)


@pytest.fixture
def pyramid(client):
    """`vf.pyramid` on the module's client, silent."""

    def run(volume, **options):
        return vf.pyramid(volume, **{"cluster": client, "progress": False} | options)

    return run


@pytest.fixture
def scan(stored):
    return stored(random("u2"), spacing=(1, 1, 1), unit="millimeter")


def level(volume, number):
    return vf.open(volume.path, level=number)


def mtimes(folder) -> dict[str, int]:
    found = (p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


def listed(volume) -> list[str]:
    return [one.path for one in vf.open(volume.path).levels]


class TestEqualsAPlainLoop:
    """Level by level: each from the stored one before it."""

    def check(self, volume, voxels, steps, of_cell):
        for number, factors in enumerate(steps, start=1):
            parts = voxels if voxels.ndim == 4 else voxels[None]
            voxels = np.stack([merged(part, factors, of_cell) for part in parts])
            found = level(volume, number)[:]
            assert found.dtype == voxels.dtype
            assert np.array_equal(found.reshape(voxels.shape), voxels)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "i8", "u8", "?", "f2", "f4", "f8"])
    def test_mean(self, stored, pyramid, dtype):
        voxels = random(dtype)
        volume = stored(voxels)
        pyramid(volume, levels=2)
        for number in (1, 2):
            before, found = level(volume, number - 1)[:], level(volume, number)[:]
            exact = merged(before, (2, 2, 2), exact_mean)
            if voxels.dtype.kind == "f":
                eps = np.finfo(dtype).eps
                np.testing.assert_allclose(found, exact, rtol=4 * eps, atol=100 * eps)
            else:
                assert np.array_equal(found, exact)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u8"])
    def test_mode(self, stored, pyramid, dtype):
        voxels = random(dtype, kind="classes")
        volume = stored(voxels, kind="classes")
        pyramid(volume, levels=3)
        self.check(volume, voxels, [(2, 2, 2)] * 3, commonest)

    @pytest.mark.slow
    def test_no_class_is_invented(self, stored, pyramid):
        voxels = np.where(random("u1") % 2, 3, 200).astype("u2")
        volume = stored(voxels, kind="classes")
        pyramid(volume, levels=5)
        for number in range(6):
            assert set(np.unique(level(volume, number)[:])) <= {3, 200}

    @pytest.mark.slow
    def test_each_channel_by_itself(self, stored, pyramid):
        voxels = random("u1", (3, *SHAPE))
        volume = stored(voxels)
        pyramid(volume, levels=2)
        assert level(volume, 1).shape == (3, 11, 19, 14)
        self.check(volume, voxels, [(2, 2, 2)] * 2, exact_mean)

    @pytest.mark.slow
    def test_thick_slices_stay(self, stored, pyramid):
        voxels = random("i2")
        volume = stored(voxels, spacing=(5, 1, 1))
        result = pyramid(volume, levels=4)
        steps = [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]
        self.check(volume, voxels, steps, exact_mean)
        assert [one.scale for one in result.levels] == [
            (5, 1, 1), (5, 2, 2), (5, 4, 4), (10, 8, 8), (20, 16, 16),
        ]  # fmt: skip


class TestAnyCut:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["image", "classes"])
    def test_blocks_and_chunks_and_workers_do_not_matter(self, stored, pyramid, kind):
        voxels = random("u1", (40, 33, 50), kind)
        found = []
        for number, (chunk, shard) in enumerate([(8, 16), (5, 10), ((4, 16, 8), (4, 32, 16))]):
            volume = stored(voxels, f"{number}.zarr", chunk=chunk, shard=shard, kind=kind)
            pyramid(volume, levels=3)
            found.append([level(volume, n)[:].tobytes() for n in (1, 2, 3)])
            assert level(volume, 3).chunks == volume.chunks
            assert level(volume, 3).shards == volume.shards
        assert found[0] == found[1] == found[2]

    def test_nor_does_the_order_of_tasks(self, stored, pyramid, monkeypatch):
        volume = stored(random("f4"))
        pyramid(volume, levels=2)
        before = files(volume.path)
        split = plan_module.split_runs

        def backwards(blocks, pieces):
            return tuple(reversed(split(blocks, len(blocks))))

        monkeypatch.setattr(plan_module, "split_runs", backwards)
        pyramid(volume, levels=2, overwrite=True)
        assert files(volume.path) == before

    @pytest.mark.slow
    def test_nor_do_processes(self, stored):
        volume = stored(random("f4"))
        vf.pyramid(volume, levels=2, progress=False)
        before = files(volume.path)
        vf.pyramid(volume, levels=2, overwrite=True, cluster=2, progress=False)
        assert files(volume.path) == before

    @pytest.mark.slow
    def test_little_memory_makes_thinner_shards_of_the_same_voxels(self, stored, pyramid):
        volume = stored(random("f8", (100, 90, 110)), chunk=16, shard=64)
        usual = pyramid(volume)
        first = level(volume, 1)
        voxels = first[:]
        plan = plan_pyramid(volume, overwrite=True)
        less = pyramid(usual, memory=plan.peak_bytes - 1, overwrite=True)
        assert level(less, 1).shards == (32, 64, 64)
        assert first.shards == (64, 64, 64)
        assert np.array_equal(level(less, 1)[:], voxels)


class TestMetadata:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["image", "classes"])
    @pytest.mark.parametrize("shape", [SHAPE, (2, *SHAPE)], ids=str)
    def test_is_valid(self, stored, pyramid, kind, shape):
        yaozarrs = pytest.importorskip("yaozarrs")
        models = pytest.importorskip("ome_zarr_models.v05")
        meta = {"unit": "millimeter", "orientation": "SAR", "kind": kind}
        meta |= {"channels": ("a", "b")} if len(shape) == 4 else {}
        volume = stored(random("u1", shape, "classes"), spacing=(3, 1, 1.5), **meta)
        before = volume.meta
        result = pyramid(volume, levels=3)
        assert result.meta == before
        yaozarrs.validate_zarr_store(volume.path)
        group = zarr.open_group(volume.path, mode="r")
        image = models.Image.from_zarr(group)
        assert len(image.ome_attributes.multiscales[0].datasets) == 4
        assert image.ome_attributes.multiscales[0].type == ("mode", "mean")[kind == "image"]
        if kind == "classes":
            models.ImageLabel.from_zarr(group)
        for array in ("0", "1", "2", "3"):
            assert group[array].metadata.dimension_names == volume.array.metadata.dimension_names

    def test_each_level_lies_where_its_voxels_merge(self, stored, pyramid):
        affine = [[-0.7, 0, 0, 90], [0, 0.7, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]]
        volume = stored(
            random("u1"), spacing=(3, 0.7, 0.7), translation=(10, 20, 30), affine=affine
        )
        result = pyramid(volume, levels=3)
        for number, one in enumerate(result.levels):
            factors = np.array((2 ** max(0, number - 2), 2**number, 2**number))
            assert one.scale == tuple(np.array((3, 0.7, 0.7)) * factors)
            centre = np.array((10, 20, 30)) + (factors - 1) / 2 * (3, 0.7, 0.7)
            assert np.allclose(one.translation, centre, rtol=1e-15)
            # The corner of the volume stays where it is in the world.
            opened = level(volume, number)
            corner = np.array(opened.affine) @ [-0.5, -0.5, -0.5, 1]
            assert np.allclose(corner, np.array(affine) @ [-0.5, -0.5, -0.5, 1])

    def test_what_else_the_group_says_stays(self, scan, pyramid):
        group = zarr.open_group(scan.path, mode="r+")
        ome = dict(group.attrs["ome"]) | {"omero": {"channels": [{"color": "FF0000"}]}}
        group.update_attributes({"ome": ome, "mine": 1})
        pyramid(scan, levels=1)
        attributes = zarr.open_group(scan.path, mode="r").attrs
        assert attributes["mine"] == 1
        assert attributes["ome"]["omero"] == ome["omero"]
        assert attributes["ome"]["multiscales"][0]["name"] == "image"

    def test_level_0_is_as_it_was(self, scan, pyramid):
        identity, before = scan.identity(), files(Path(scan.path) / "0")
        result = pyramid(scan, levels=2)
        assert result.identity() == identity
        assert files(Path(scan.path) / "0") == before

    def test_a_small_volume_needs_none(self, scan, pyramid):
        assert len(pyramid(scan).levels) == 1

    def test_empty_blocks_take_no_space(self, stored, pyramid):
        volume = stored(np.zeros((40, 40, 40), "u1"))
        pyramid(volume, levels=1)
        assert list(files(Path(volume.path) / "1")) == ["zarr.json"]
        assert vf.open(volume.path, level=1)[:].max() == 0


class TestAgain:
    def test_is_done_at_once(self, scan, pyramid, monkeypatch):
        pyramid(scan, levels=2)
        before = mtimes(scan.path)

        def never(*args, **options):
            raise AssertionError

        monkeypatch.setattr(pyramid_module, "run", never)
        result = pyramid(scan, levels=2)
        assert mtimes(scan.path) == before
        assert len(result.levels) == 3
        assert plan_pyramid(scan, levels=2).blocks == 0

    def test_more_levels_are_added(self, scan, pyramid):
        pyramid(scan, levels=1)
        before = mtimes(Path(scan.path) / "1")
        assert len(pyramid(scan, levels=3).levels) == 4
        assert mtimes(Path(scan.path) / "1") == before

    @pytest.mark.slow
    def test_fewer_remove_the_others(self, scan, pyramid):
        pyramid(scan, levels=4)
        result = pyramid(scan, levels=1)
        assert [one.path for one in result.levels] == ["0", "1"]
        assert not (Path(scan.path) / "2").exists()
        assert not place_of(result).journal(2).directory.exists()

    def test_without_a_number_those_there_stay(self, scan, pyramid):
        pyramid(scan, levels=4)
        assert len(pyramid(scan).levels) == 5

    @pytest.mark.slow
    def test_a_changed_volume_gets_new_ones(self, stored, scan, pyramid):
        pyramid(scan, levels=2)
        scan.write(Roi.full(scan.shape), np.full(scan.shape, 7, "u2"))
        assert plan_pyramid(scan).blocks > 0
        pyramid(scan)
        assert listed(scan) == ["0", "1", "2"]
        assert (level(scan, 2)[:] == 7).all()

    @pytest.mark.parametrize("victim", ["1", "2/zarr.json"])
    def test_a_deleted_level_is_made_again(self, scan, pyramid, victim):
        pyramid(scan, levels=2)
        before = files(scan.path)
        path = Path(scan.path) / victim
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        pyramid(scan)
        assert files(scan.path) == before

    @pytest.mark.slow
    def test_overwrite_makes_all_anew(self, scan, pyramid):
        pyramid(scan, levels=3)
        before = mtimes(scan.path)
        assert listed(pyramid(scan, levels=2, overwrite=True)) == ["0", "1", "2"]
        after = mtimes(scan.path)
        assert all(after[name] != before[name] for name in after if name.startswith(("1", "2")))

    def test_an_array_of_others_is_kept_unless_overwritten(self, scan, pyramid):
        other = zarr.create_array(f"{scan.path}/1", shape=(3,), dtype="f4")
        other[:] = 5
        with pytest.raises(InvalidInput, match=r"1 has no journal, so .*overwrite=True"):
            pyramid(scan, levels=1)
        assert (zarr.open_array(f"{scan.path}/1")[:] == 5).all()
        pyramid(scan, levels=1, overwrite=True)
        assert level(scan, 1).shape == (11, 19, 14)

    @pytest.mark.slow
    def test_an_output_made_anew_has_no_old_journals(self, tmp_path, client, pyramid):
        options = {"cluster": client, "progress": False, "overwrite": True}
        path = tmp_path / "a.zarr"
        volume = vf.convert(random("u1"), path, chunk=8, shard=16, **options)
        pyramid(volume, levels=2)
        assert (journal_dir(path) / "levels").exists()
        volume = vf.convert(random("u1") + 1, path, chunk=8, shard=16, **options)
        assert not (journal_dir(path) / "levels").exists()
        assert len(volume.levels) == 1
        assert vf.verify(path).levels == ()


class Stopped(BaseException):
    """As Ctrl-C."""


class TestResumes:
    def interrupted(self, monkeypatch, run, target, name, after):
        calls, real = [], getattr(target, name)

        def stop(*args, **options):
            calls.append(args)
            if len(calls) > after:
                raise Stopped
            return real(*args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(target, name, stop)
            with pytest.raises(Stopped):
                run()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["begin_anew", "add_array", "run", "list_levels"])
    @pytest.mark.parametrize("after", [0, 1])
    def test_between_any_two_steps(self, scan, pyramid, monkeypatch, name, after):
        if name == "list_levels" and after:
            pyramid(scan, levels=2)
            scan.write(Roi.full(scan.shape), scan[:])  # as new: the list shrinks, then grows
        self.interrupted(monkeypatch, lambda: pyramid(scan, levels=2), pyramid_module, name, after)
        assert listed(scan) == ["0"]
        pyramid(scan, levels=2)
        self.check_whole(scan, pyramid)

    def test_amid_the_removal_of_levels(self, scan, pyramid, monkeypatch):
        pyramid(scan, levels=3)
        before = files(scan.path)
        rmtree = shutil.rmtree

        def stop(path, **options):
            if ".old-" not in Path(path).name:
                return rmtree(path, **options)
            next(p for p in Path(path).rglob("*") if p.is_file() and p.name != "zarr.json").unlink()
            raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", stop)
            with pytest.raises(Stopped):
                pyramid(scan, levels=1)
        assert listed(scan) == ["0", "1"]
        pyramid(scan, levels=3)
        assert files(scan.path) == before

    @pytest.mark.slow
    def test_after_a_failed_block(self, stored, pyramid, monkeypatch):
        scan = stored(random("u2"), shard=8)
        calls, real = [], vf.Volume.read

        def fail(self, roi):
            if self.level == 0:
                calls.append(roi)
                if len(calls) > 5:
                    raise RunFailed("the disk is gone")
            return real(self, roi)

        with monkeypatch.context() as patch:
            patch.setattr(vf.Volume, "read", fail)
            with pytest.raises(RunFailed, match="the disk is gone"):
                pyramid(scan, levels=2)
        assert listed(scan) == ["0"]
        journal = place_of(scan).journal(1)
        done = {p.name: p.stat().st_mtime_ns for p in (journal.directory / "done").iterdir()}
        assert 1 <= len(done) < 12
        assert plan_pyramid(scan, levels=2).blocks == 12 - len(done) + 2
        pyramid(scan, levels=2)
        after = {p.name: p.stat().st_mtime_ns for p in (journal.directory / "done").iterdir()}
        assert {name: after[name] for name in done} == done
        self.check_whole(scan, pyramid)

    @pytest.mark.slow
    def test_a_resume_keeps_its_shards_whatever_memory_is(self, stored, pyramid, monkeypatch):
        volume = stored(random("f8", (100, 90, 110)), chunk=16, shard=64)
        most = plan_pyramid(volume).peak_bytes
        self.interrupted(monkeypatch, lambda: pyramid(volume), pyramid_module, "run", 0)
        with pytest.raises(MemoryRefused, match="level 1 needs"):
            pyramid(volume, memory=most - 1)
        pyramid(volume, memory=most)
        assert level(volume, 1).shards == (64, 64, 64)

    def check_whole(self, volume, pyramid):
        assert listed(volume) == ["0", "1", "2"]
        resumed = files(volume.path)
        pyramid(volume, levels=2, overwrite=True)
        assert files(volume.path) == resumed
        assert not list(Path(volume.path).glob(".*"))


@pytest.fixture(scope="module")
def whole(client, tmp_path_factory):
    """A folder with a volume of three levels and its journals."""
    folder, options = tmp_path_factory.mktemp("whole"), {"cluster": client, "progress": False}
    volume = vf.convert(random("u2"), folder / "a.zarr", chunk=8, shard=8, **options)
    vf.pyramid(volume, levels=2, **options)
    return folder


class TestVerify:
    @pytest.fixture
    def made(self, whole, tmp_path):
        """A copy of it, to be damaged."""
        shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
        return vf.open(tmp_path / "a.zarr")

    @pytest.mark.slow
    def test_reads_levels_too(self, made):
        seen = []
        coverage = vf.verify(made.path, progress=lambda done, total: seen.append((done, total)))
        assert coverage.ok
        assert [one.grid for one in coverage.levels] == [(2, 3, 2), (1, 2, 1)]
        assert seen[-1] == (60 + 12 + 2, 60 + 12 + 2)
        assert str(coverage).splitlines() == [
            f"{made.path}: 60 of 60 blocks verified",
            f"{made.path}/1: 12 of 12 blocks verified",
            f"{made.path}/2: 2 of 2 blocks verified",
        ]

    @pytest.mark.slow
    @pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
    def test_a_bad_block_is_named_and_only_it_repaired(self, made, pyramid, damage):
        shard = Path(made.path) / "1" / "c" / "1" / "2" / "0"
        good = shard.read_bytes()
        if damage == "delete":
            shard.unlink()
        else:
            bad = bytearray(good)
            bad[len(bad) // 3] ^= 0x10
            shard.write_bytes(bad if damage == "flip" else good[: len(good) // 2])
        before = mtimes(made.path)
        coverage = vf.verify(made.path)
        assert not coverage.ok
        assert coverage.done == coverage.total
        assert [block for block, _ in coverage.levels[0].bad] == [10]
        assert "a.zarr/1: 11 of 12 blocks verified, 1 bad, 0 missing; block 10 (1, 2, 0)" in str(
            coverage
        )
        pyramid(made)
        assert shard.read_bytes() == good
        after = mtimes(made.path)
        changed = {name for name in after if after[name] != before.get(name)}
        assert changed == {"1/c/1/2/0", "zarr.json"}
        assert vf.verify(made.path).ok

    def test_it_is_no_level_while_it_is_repaired(self, made, pyramid, monkeypatch):
        place_of(made).journal(1).forget([10])
        seen, run = [], pyramid_module.run

        def watched(*args, **options):
            seen.append([level.path for level in vf.open(made.path).levels])
            if len(seen) == 1:
                raise Stopped
            return run(*args, **options)

        monkeypatch.setattr(pyramid_module, "run", watched)
        with pytest.raises(Stopped):
            pyramid(made)
        assert len(pyramid(made).levels) == 3  # as many as there were
        assert seen == [["0"], ["0"]]

    def test_says_what_is_missing_of_an_interrupted_one(self, made, pyramid):
        place_of(made).journal(2).forget([1])
        coverage = vf.verify(made.path)
        assert coverage.levels[1].cells == "#."
        assert not coverage.ok

    def test_leaves_the_journal_of_level_0_alone(self, made):
        place = place_of(made)
        assert place.run.recorded().operation == "convert"
        assert len(place.run.done()) == 60


class TestRefused:
    def test_what_volflow_did_not_write(self, tmp_path, pyramid):
        group = zarr.create_group(tmp_path / "other.zarr")
        array = group.create_array("0", shape=(8, 8, 8), dtype="u1")
        steps = [{"type": "scale", "scale": [1, 1, 1]}]
        axes = [{"name": name, "type": "space"} for name in "zyx"]
        datasets = [{"path": "0", "coordinateTransformations": steps}]
        image = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
        group.update_attributes({"ome": image})
        with pytest.raises(InvalidInput, match=r"was not written by volflow.*vf\.convert"):
            pyramid(tmp_path / "other.zarr")
        for given in (array, tmp_path / "other.zarr" / "0"):
            with pytest.raises(InvalidInput, match=r"an array of the volume .*give that one"):
                pyramid(given)
        assert [p.name for p in tmp_path.iterdir()] == ["other.zarr"]

    def test_a_volume_in_memory_and_what_is_no_volume(self, pyramid, tmp_path):
        with pytest.raises(InvalidInput, match="levels cannot be added to a volume in memory"):
            pyramid(zarr.ones(shape=(8, 8, 8), dtype="u1"))
        with pytest.raises(InvalidInput, match="does not exist"):
            pyramid(tmp_path / "absent.zarr")
        (tmp_path / "a.nii").touch()
        with pytest.raises(InvalidInput, match="convert it first"):
            pyramid(tmp_path / "a.nii")

    @pytest.mark.slow
    def test_a_volume_that_is_not_complete(self, client, tmp_path, pyramid):
        volume = vf.convert(
            random("u2"), tmp_path / "a.zarr", chunk=8, shard=8, cluster=client, progress=False
        )
        Journal(journal_dir(volume.path)).forget([3, 5])
        for use in (pyramid, plan_pyramid):
            with pytest.raises(InvalidInput, match="58 of 60 blocks are done, and the others"):
                use(volume, levels=1)

    def test_levels_that_cannot_be(self, scan, pyramid):
        with pytest.raises(InvalidInput, match=r"from 1 to 6 for \(21, 38, 27\) voxels, given 9"):
            pyramid(scan, levels=9)

    def test_memory_too_small_before_anything_is_written(self, scan, pyramid):
        before = mtimes(scan.path)
        with pytest.raises(MemoryRefused, match=r'level 1 needs .*use memory="\d+MiB" or more'):
            pyramid(scan, levels=1, memory="1MiB")
        assert mtimes(scan.path) == before
        assert not (journal_dir(scan.path) / "levels").exists()

    def test_the_memory_it_names_does(self, scan, pyramid):
        with pytest.raises(MemoryRefused) as refusal:
            pyramid(scan, levels=1, memory=1)
        pyramid(scan, levels=1, memory=str(refusal.value).split('"')[1])

    def test_while_another_driver_writes_the_volume(self, scan, pyramid):
        with place_of(scan).run.lock(), pytest.raises(Locked, match="is being written by process"):
            pyramid(scan, levels=1)

    def test_a_full_disk_is_told_in_one_line(self, scan, pyramid, monkeypatch):
        def full(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pyramid_module, "add_array", full)
        with pytest.raises(StoreFull, match="cannot be written: No space left on device; what is"):
            pyramid(scan, levels=1)


class TestPlan:
    def test_is_printed_without_writing(self, stored):
        volume = stored(random("u1"), spacing=(2, 1, 1), unit="micrometer")
        before = mtimes(Path(volume.path).parent)
        text = plan_pyramid(volume, levels=2, memory="1GiB").describe()
        assert mtimes(Path(volume.path).parent) == before
        assert "level 1      21 × 19 × 14, spacing 2 × 2 × 2 micrometer" in text
        assert "level 2      11 × 10 × 7, spacing 4 × 4 × 4 micrometer" in text
        assert "values       mean" in text
        assert "5 blocks in 5 tasks" in text

    def test_a_piece_is_bounded_and_made_of_whole_chunks(self):
        for dtype in ("u1", "f8"):
            spec = VolumeSpec.of((2000, 2000, 2000), dtype, Meta(), 64, 512)
            for layout in lay_out(spec, 3, 2**31):
                assert all(s % p == 0 for s, p in zip(layout.shard, layout.piece, strict=True))
                inside = np.minimum(layout.piece, layout.shape)
                read = np.prod(inside) * 8 * layout.spec.dtype.itemsize
                least = 8 * 64**3 * layout.spec.dtype.itemsize
                assert PIECE_BYTES / 3 < read <= max(PIECE_BYTES, least)

    def test_peak_follows_the_shard_and_not_the_volume(self):
        def peaks(side):
            found = lay_out(VolumeSpec.of((side,) * 3, "u2", Meta(), 64, 256), None, 2**40)
            return [layout.peak_bytes for layout in found]

        assert peaks(4096)[0] == peaks(2**20)[0] == max(peaks(2**20))

    def test_is_plain_values_for_machines(self, scan):
        json.dumps(plan_pyramid(scan, levels=2).to_dict())
