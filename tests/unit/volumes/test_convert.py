"""Files and arrays become sharded volumes, a few shards at a time."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import contextmanager
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import zarr

import volflow as vf
from volflow.errors import InvalidInput, MemoryRefused, ResumeRefused, RunFailed
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Meta
from volflow.store.unfinished.root import WITHHELD
from volflow.store.volume import Volume
from volflow.volumes import copying
from volflow.volumes.convert import plan_convert

RNG = np.random.default_rng(3)


@pytest.fixture
def scan():
    return RNG.integers(0, 4000, (37, 22, 19), "uint16")


@pytest.fixture
def convert(client, tmp_path):
    def run(source, out="out.zarr", **options):
        options = {"cluster": client, "chunk": 8, "shard": 16, "progress": False} | options
        return vf.convert(source, tmp_path / out, **options)

    return run


@pytest.fixture
def nifti(tmp_path):
    def write(scan, name):
        image = nibabel.Nifti1Image(scan.transpose(*range(scan.ndim)[::-1]), np.diag([2, 2, 3, 1]))
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    return write


class TestVoxels:
    @pytest.mark.slow
    def test_of_every_kind_of_source(self, convert, nifti, tmp_path, scan):
        np.save(tmp_path / "a.npy", scan)
        zarr.create_array(tmp_path / "plain.zarr", data=scan, chunks=(5, 6, 7))
        zarr.create_array(tmp_path / "old.zarr", data=scan, chunks=(9, 9, 9), zarr_format=2)
        sources = {
            "array": scan, "npy": tmp_path / "a.npy", "nii": nifti(scan, "a.nii"),
            "gz": nifti(scan, "a.nii.gz"), "v3": str(tmp_path / "plain.zarr"),
            "v2": tmp_path / "old.zarr", "volume": vf.open(tmp_path / "plain.zarr"),
        }  # fmt: skip
        for kind, source in sources.items():
            volume = convert(source, f"{kind}.zarr")
            assert np.array_equal(volume[:], scan), kind
            assert volume.chunks == (8, 8, 8)
            assert volume.shards == (16, 16, 16)
            assert vf.verify(volume.path).ok

    @pytest.mark.slow
    def test_with_channels(self, convert, nifti, tmp_path):
        scan = RNG.random((3, 20, 18, 17), "float32")
        for kind, source in {"array": scan, "gz": nifti(scan, "c.nii.gz")}.items():
            volume = convert(source, f"{kind}.zarr")
            assert volume.axes == ("c", "z", "y", "x")
            assert volume.shards == (1, 16, 16, 16)
            assert np.array_equal(volume[:], scan)

    @pytest.mark.slow
    @pytest.mark.parametrize("compressed", [False, True])
    def test_are_never_held_whole(self, convert, nifti, tmp_path, compressed):
        scan = np.zeros((256, 128, 128), "float32")  # 16 MiB
        source = nifti(scan, "big.nii.gz" if compressed else "big.nii")
        del scan
        convert(np.zeros((8, 8, 8)), "warm.zarr")
        tracemalloc.start()
        try:
            convert(source, chunk=16, shard=(16, 128, 128), memory="36MiB")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 10 * 2**20

    def test_a_slice_is_a_volume(self, convert):
        flat = RNG.random((20, 30), "float32")
        assert np.array_equal(convert(flat)[:], flat[None])


class TestLayout:
    def test_shards_shrink_where_memory_is_short(self, client, tmp_path):
        scan = np.zeros((256, 256, 256), "uint8")
        wide = plan_convert(scan, tmp_path / "a.zarr", cluster=client, memory="1GiB")
        thin = plan_convert(scan, tmp_path / "a.zarr", cluster=client, memory="50MiB")
        assert dict(wide.facts)["layout"] == "chunks (64, 64, 64), shards (256, 256, 256)"
        assert dict(thin.facts)["layout"] == "chunks (64, 64, 64), shards (64, 256, 256)"
        assert thin.peak_bytes <= 50 * 2**20 < wide.peak_bytes
        assert list(tmp_path.iterdir()) == []

    def test_memory_that_cannot_do_is_refused_with_what_would(
        self, convert, client, tmp_path, scan
    ):
        with pytest.raises(MemoryRefused, match=r"convert needs 32.* but memory is 1 MiB; use mem"):
            convert(scan, memory="1MiB")
        assert list(tmp_path.iterdir()) == []
        assert convert(scan, memory="33MiB").shape == scan.shape

    def test_shards_that_chunks_do_not_fill_are_refused(self, convert, tmp_path, scan):
        with pytest.raises(InvalidInput, match=r"shard \(20, 20, 20\) is not a multiple of chunk"):
            convert(scan, shard=20)
        assert list(tmp_path.iterdir()) == []


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "message"),
        [("absent.nii", "absent.nii does not exist"), ("notes.txt", "is of a format that cannot")],
    )
    def test_sources(self, convert, tmp_path, name, message):
        (tmp_path / "notes.txt").write_text("no image")
        with pytest.raises(InvalidInput, match=message):
            convert(tmp_path / name)

    def test_an_output_in_no_folder(self, convert, scan):
        with pytest.raises(InvalidInput, match=r"folder .*absent does not exist; make it first"):
            convert(scan, "absent/out.zarr")

    def test_an_output_that_is_there(self, convert, tmp_path, scan):
        zarr.create_array(tmp_path / "out.zarr", data=scan)
        with pytest.raises(InvalidInput, match=r"out.zarr exists; choose another name or overwr"):
            convert(scan)
        assert not (tmp_path / "out.zarr.volflow").exists()
        assert np.array_equal(convert(scan + 1, overwrite=True)[:], scan + 1)

    def test_what_is_no_volume_is_not_overwritten(self, convert, tmp_path, scan):
        (tmp_path / "out.zarr").mkdir()
        (tmp_path / "out.zarr" / "thesis.tex").write_text("years of work")
        with pytest.raises(InvalidInput, match="is not a Zarr image, so it is not overwritten"):
            convert(scan, overwrite=True)
        assert (tmp_path / "out.zarr" / "thesis.tex").read_text() == "years of work"

    def test_an_output_that_is_the_source(self, convert, scan):
        volume = convert(scan)
        for source in (volume, volume.path, f"{volume.path}/0"):
            with pytest.raises(InvalidInput, match="would replace its own input"):
                convert(source, overwrite=True)
        assert np.array_equal(volume[:], scan)


def mtimes(folder):
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != WITHHELD)
    return {p: p.stat().st_mtime_ns for p in found}


def kill(*args, **options):
    raise KeyboardInterrupt


class TestResume:
    @pytest.fixture
    def killed_in(self, monkeypatch):
        """Dies where a name is called."""

        @contextmanager
        def dying(name, deadly=kill):
            with monkeypatch.context() as patch:
                patch.setattr(name, deadly)
                with pytest.raises(KeyboardInterrupt):
                    yield

        return dying

    @pytest.fixture
    def broken(self, monkeypatch):
        """Writing fails after so many blocks; returns a switch to mend it."""
        write, left = Volume.write, [3]

        def failing(volume, roi, data, *array):
            if left[0] == 0:
                raise OSError(28, "No space left on device")
            left[0] -= 1
            return write(volume, roi, data, *array)

        monkeypatch.setattr(Volume, "write", failing)
        return lambda: monkeypatch.setattr(Volume, "write", write)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
    def test_only_what_is_left_is_done(self, convert, nifti, tmp_path, scan, broken, name):
        tall = np.concatenate([scan, scan + 1])
        source = nifti(tall, name)
        with pytest.raises(RunFailed, match=r"No space left on device"):
            convert(source, shard=8)
        done = Journal(journal_dir(tmp_path / "out.zarr")).done()
        assert len(done) == 3
        before = mtimes(tmp_path / "out.zarr")
        broken()
        volume = convert(source, shard=8)
        after = mtimes(tmp_path / "out.zarr")
        assert np.array_equal(volume[:], tall)
        assert {p: after[p] for p in before} == before
        assert vf.verify(volume.path).ok

    def test_a_done_one_is_returned_as_it_is(self, convert, tmp_path, scan):
        convert(scan)
        before = mtimes(tmp_path / "out.zarr")
        assert np.array_equal(convert(scan)[:], scan)
        assert mtimes(tmp_path / "out.zarr") == before

    @pytest.mark.slow
    def test_the_layout_of_the_first_run_is_kept_whatever_memory_says(self, client, tmp_path):
        scan = np.zeros((40, 20, 20), "u1")
        first = vf.convert(scan, tmp_path / "a.zarr", shard=8, chunk=8, progress=False)
        again = vf.convert(scan, tmp_path / "a.zarr", memory="3GiB", progress=False)
        assert again.shards == first.shards == (8, 8, 8)

    def test_another_layout_is_refused(self, convert, scan):
        convert(scan)
        with pytest.raises(ResumeRefused, match=r"settings.*shard.*16, 16, 16.* → .*8, 8, 8"):
            convert(scan, shard=8)

    def test_another_source_is_refused_and_replaced_on_request(self, convert, scan):
        convert(scan)
        with pytest.raises(ResumeRefused, match=r"different inputs or settings: input: "):
            convert(scan + 1)
        assert np.array_equal(convert(scan + 1, overwrite=True)[:], scan + 1)

    def test_a_run_killed_before_its_volume_was_there(self, convert, killed_in, scan):
        with killed_in("volflow.volumes.copying.create"):
            convert(scan)
        assert np.array_equal(convert(scan)[:], scan)

    @pytest.mark.slow
    def test_a_run_killed_before_its_first_block(self, convert, killed_in, scan):
        with killed_in("volflow.volumes.copying.run"):
            convert(scan)
        assert np.array_equal(convert(scan)[:], scan)

    @pytest.mark.slow
    def test_a_run_killed_while_it_deleted_what_it_replaces(self, convert, killed_in, scan):
        convert(scan)
        with killed_in("volflow.store.journal.outputs.shutil", SimpleNamespace(rmtree=kill)):
            convert(scan + 1, overwrite=True)
        assert np.array_equal(convert(scan + 1, overwrite=True)[:], scan + 1)

    def test_a_damaged_record_is_one_line(self, convert, tmp_path, scan):
        convert(scan)
        (tmp_path / "out.zarr.volflow" / "plan.json").write_text("{")
        with pytest.raises(InvalidInput, match=r"plan.json cannot be used: it is damaged"):
            convert(scan)


class TestPlan:
    def test_a_compressed_file_is_one_task(self, client, nifti, tmp_path, scan):
        options = {"cluster": client, "chunk": 8, "shard": 8}
        packed = plan_convert(nifti(scan, "a.nii.gz"), tmp_path / "a.zarr", **options)
        plain = plan_convert(nifti(scan, "a.nii"), tmp_path / "b.zarr", **options)
        assert (len(packed.runs), packed.blocks, packed.exclusive) == (1, 5, True)
        assert (len(plain.runs), plain.blocks, plain.exclusive) == (45, 45, False)
        assert packed.units == plain.units == scan.size
        assert json.loads(json.dumps(plain.to_dict()))["operation"] == "convert"

    def test_a_resumed_one_holds_what_is_left(self, convert, client, tmp_path, scan):
        np.save(tmp_path / "a.npy", scan)
        convert(tmp_path / "a.npy")
        Journal(journal_dir(tmp_path / "out.zarr")).forget([2])
        plan = plan_convert(tmp_path / "a.npy", tmp_path / "out.zarr", cluster=client)
        assert plan.runs == ((2,),)


class TestSequential:
    @pytest.mark.slow
    def test_one_pass_whatever_fails(self, convert, nifti, scan, monkeypatch):
        """A block that fails at first is done in the next pass, the others are not repeated."""
        written, store, failing = [], copying.CopyJob.store, [True]

        def once(job, number, voxels, context):
            if number == 2 and failing.pop():
                failing.append(False)
                raise OSError("hiccup")
            written.append(number)
            store(job, number, voxels, context)

        monkeypatch.setattr(copying.CopyJob, "store", once)
        source = nifti(scan, "a.nii.gz")
        assert np.array_equal(convert(source, shard=8)[:], scan)
        assert written == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_processes_share_the_work(tmp_path, scan):
    np.save(tmp_path / "a.npy", scan)
    meta_free = vf.convert(
        tmp_path / "a.npy", tmp_path / "out.zarr", chunk=8, shard=8, cluster=2, progress=False
    )  # fmt: skip
    assert np.array_equal(meta_free[:], scan)
    assert meta_free.meta.axes == Meta().axes


def zarr_group(path, scales=None):
    group = zarr.open_group(path, mode="w", zarr_format=2)
    if scales is not None:
        group.create_array("0", data=np.ones((1, 1, 4, 5, 6), "uint8"))
        group.attrs["multiscales"] = [{"version": "0.3", "datasets": [{"path": "0"}]}]


REMEDIES = {  # what is no volume, and what its refusal advises
    "text": (lambda path: path.write_text("hello"), "cannot be read; NIfTI, .* can$"),
    "empty": (lambda path: path.mkdir(), "a file in it, or a folder of DICOM or TIFF slices"),
    "group": (zarr_group, "give the path of an array or image"),
    "old": (
        lambda path: zarr_group(path, ["0"]),
        "open its array '0' in it, which is read as t, c",
    ),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_what_cannot_be_converted_is_not_to_be_converted(tmp_path, name):
    make, message = REMEDIES[name]
    make(tmp_path / name)
    with pytest.raises(InvalidInput, match=message) as refused:
        vf.convert(tmp_path / name, tmp_path / "a.zarr", progress=False)
    assert "convert it" not in str(refused.value)
    if name == "old":  # it does what it says
        assert vf.open(tmp_path / "old/0").shape == (1, 4, 5, 6)


def test_an_array_in_the_memory_of_zarr_is_converted_whatever_the_cluster(tmp_path):
    array = zarr.array(np.arange(120, dtype="uint8").reshape(4, 5, 6))
    volume = vf.convert(array, tmp_path / "a.zarr", cluster=2, progress=False)
    np.testing.assert_array_equal(volume[:], array[:])
