"""An exported file is what was exported, or somebody is told: by verify, and by the next run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import zarr

import volflow as vf
from tests.nets import Named, Tiring, random_net
from volflow.cli import run
from volflow.errors import InvalidInput, RunFailed, SourceChanged
from volflow.store.formats.exported import read_receipt
from volflow.store.journal.journal import Journal, journal_dir

SCAN = np.random.default_rng(0).random((20, 17, 18), "float32") + 0.1
NAMES = ["seg.nii.gz", "seg.nii", "seg.npy"]


def flip(path):
    """Another voxel, in place: of the same size, and of the same time."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 0x10
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def edit(path):
    """As people do it, in another program."""
    if path.suffix == ".npy":
        np.save(path, np.load(path) + 1)
    else:
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), path)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def looks(path):
    return path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino


@pytest.fixture
def segment(client, stored, tmp_path):
    """Predicts into a file; returns its path."""
    volume, quiet = stored(SCAN), {"cluster": client, "progress": False}
    options = {"patch": 8, "chunk": 8, "shard": 8, "output": "classes", **quiet}

    def into(name="seg.nii.gz", seed=0, **more):
        vf.predict(volume, Tiring(random_net(seed=seed)), tmp_path / name, **{**options, **more})
        return tmp_path / name

    return into


class TestPredicted:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_rerun_touches_nothing(self, segment, calls, name):
        out = segment(name)
        left = out.with_name(f".{name}.0123abcd.tmp")
        left.touch()  # by a process that was killed
        before = looks(out)
        calls.clear()
        assert looks(segment(name)) == before
        assert calls == []
        assert not left.exists()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("change", "fault", "name"),
        [
            (flip, "its checksum differs", "seg.npy"),
            (flip, "its checksum differs", "seg.nii.gz"),
            (edit, "it", "seg.nii.gz"),
            (truncate, r"it has \d+ bytes, expected \d+", "seg.nii"),
        ],
    )
    def test_a_changed_one_is_refused_and_kept(self, segment, calls, change, fault, name):
        out = segment(name)
        change(out)
        before = looks(out)
        calls.clear()
        with pytest.raises(
            InvalidInput, match=rf"{name} is not what was exported, {fault}.*; move"
        ):
            segment(name)
        assert looks(out) == before
        assert calls == []
        coverage = vf.verify(out)
        assert not coverage.ok
        assert coverage.damaged
        assert coverage.done == coverage.total  # the volume behind it is right
        out.rename(out.with_name("mine"))
        segment(name)
        assert calls == []
        assert vf.verify(out).ok

    @pytest.mark.slow
    def test_overwriting_replaces_a_changed_one(self, segment):
        out = segment("seg.npy")
        whole = out.read_bytes()
        edit(out)
        segment("seg.npy", overwrite=True)
        assert out.read_bytes() == whole

    def test_a_deleted_one_is_written_from_the_volume(self, segment, calls, capsys):
        out = segment()
        whole = out.read_bytes()
        out.unlink()
        assert vf.verify(out).damaged
        calls.clear()
        segment(progress=None)
        assert "predict: seg.nii.gz is not there; it is written from" in capsys.readouterr().err
        assert calls == []
        assert out.read_bytes() == whole
        assert vf.verify(out).ok

    @pytest.mark.slow
    def test_a_damaged_volume_behind_it_is_found_and_repaired(self, segment):
        out = segment()
        before = looks(out)
        truncate(journal_dir(out) / "output.zarr" / "0" / "c" / "1" / "0" / "0")
        coverage = vf.verify(out)
        assert coverage.damaged
        assert coverage.file.ok
        assert [block for block, _ in coverage.bad] == [1]
        segment()
        assert vf.verify(out).ok
        assert looks(out) == before  # the same bytes

    @pytest.mark.slow
    def test_one_of_an_earlier_result_is_found_and_renewed(self, segment, monkeypatch):
        out = segment()
        before = out.read_bytes()

        def killed(*args, **options):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("volflow.infer.prediction.write_file", killed)
            with pytest.raises(KeyboardInterrupt):
                segment(seed=1, overwrite=True)
        coverage = vf.verify(out)
        assert not coverage.ok
        assert not coverage.damaged  # the same command goes on
        assert "it holds an earlier result than the volume; run the same command" in str(coverage)
        segment(seed=1)
        assert out.read_bytes() != before
        assert vf.verify(out).ok

    def test_an_unfinished_one_is_not_written_yet(self, segment, monkeypatch, tmp_path, calls):
        monkeypatch.setattr(Tiring, "most", [5])
        with pytest.raises(RunFailed):
            segment()
        coverage = vf.verify(tmp_path / "seg.nii.gz")
        assert not coverage.ok
        assert not coverage.damaged
        assert "seg.nii.gz: it is not written yet" in str(coverage)


class TestOfTheVersionBefore:
    """It kept no receipt: the file is compared with the volume behind it."""

    @pytest.fixture(params=["seg.nii.gz", "seg.npy"])
    def old(self, segment, request):
        out = segment(request.param)
        (journal_dir(out) / "export.json").unlink()
        return out

    @pytest.mark.slow
    def test_a_good_one_is_good(self, segment, old):
        coverage = vf.verify(old)
        assert coverage.ok
        assert "no checksum was recorded at its export: its voxels equal" in str(coverage)
        before = looks(old)
        segment(old.name)
        assert looks(old) == before
        assert "seg.n" in str(vf.verify(old))
        assert vf.verify(old).file.note == ""  # now it has one

    @pytest.mark.parametrize("change", [edit, truncate])
    def test_a_changed_one_is_found(self, segment, old, change):
        change(old)
        coverage = vf.verify(old)
        assert coverage.damaged
        assert coverage.done == coverage.total
        before = looks(old)
        with pytest.raises(InvalidInput, match=rf"{old.name} is not what was exported, "):
            segment(old.name)
        assert looks(old) == before

    def test_a_deleted_one_is_found(self, old):
        old.unlink()
        assert vf.verify(old).damaged


class TestExported:
    @pytest.fixture
    def scan(self, client, tmp_path):
        return vf.convert(
            SCAN, tmp_path / "scan.zarr", chunk=8, shard=8, cluster=client, progress=False
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("name", NAMES)
    def test_twice_is_once(self, scan, tmp_path, name):
        out = tmp_path / name
        before = vf.export(scan, out), looks(out)
        assert (vf.export(scan, out, memory="64KiB"), looks(out)) == before
        edit(out)
        with pytest.raises(InvalidInput, match=rf"{name} is not what was exported.*overwrite=True"):
            vf.export(scan, out)
        vf.export(scan, out, overwrite=True)
        assert out.read_bytes() == before[1][0]

    @pytest.mark.slow
    def test_another_volume_does_not_replace_it(self, scan, tmp_path, client):
        out = vf.export(scan, tmp_path / "a.npy")
        other = vf.convert(SCAN + 1, tmp_path / "b.zarr", cluster=client, progress=False)
        before = looks(out)
        with pytest.raises(InvalidInput, match=r"a.npy holds what .*scan.zarr was before; keep it"):
            vf.export(other, out)
        assert looks(out) == before
        assert vf.verify(out).ok
        vf.export(other, out, overwrite=True)
        assert np.array_equal(np.load(out), SCAN + 1)
        assert vf.verify(out).ok

    def test_a_copy_of_the_volume_is_the_same(self, scan, tmp_path):
        out = vf.export(scan, tmp_path / "a.nii.gz")
        before = looks(out)
        shutil.copytree(scan.path, tmp_path / "copy.zarr")
        vf.export(tmp_path / "copy.zarr", out)
        assert looks(out) == before

    def test_voxels_in_memory_are_compared(self, tmp_path):
        array = zarr.array(SCAN)
        out = vf.export(array, tmp_path / "a.npy")
        before = looks(out)
        vf.export(array, out)
        assert looks(out) == before
        coverage = vf.verify(out)
        assert coverage.ok
        note = "the volume it was exported from has no journal on this machine"
        assert coverage.file.note == note
        assert coverage.map() == ""
        array[0, 0, 0] = 7
        with pytest.raises(InvalidInput, match=r"a.npy holds what a volume was before"):
            vf.export(array, out)
        assert looks(out) == before

    @pytest.mark.slow
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_kill_at_the_last_moment_leaves_the_old_one_or_the_new(
        self, scan, tmp_path, client, monkeypatch, moment
    ):
        out = vf.export(scan, tmp_path / "a.npy")
        other = vf.convert(SCAN + 1, tmp_path / "b.zarr", cluster=client, progress=False)
        real = Path.replace

        def killed(path, target):
            if Path(target) == out:
                if moment == "after":
                    real(path, target)
                raise KeyboardInterrupt
            return real(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                vf.export(other, out, overwrite=True)
        assert np.array_equal(np.load(out), SCAN + (moment == "after"))
        assert vf.verify(out).file.ok
        assert len(read_receipt(out).files) == 2
        vf.export(other, out, overwrite=True)
        assert vf.verify(out).ok


class TestVerifyOfExported:
    @pytest.fixture
    def out(self, client, tmp_path):
        scan = vf.convert(
            SCAN, tmp_path / "scan.zarr", chunk=8, shard=8, cluster=client, progress=False
        )
        return vf.export(scan, tmp_path / "a.nii.gz")

    @pytest.mark.slow
    def test_the_file_and_the_volume_are_read(self, out, tmp_path):
        assert str(vf.verify(out)) == (
            f"{out}: verified\n{tmp_path / 'scan.zarr'}: 27 of 27 blocks verified"
        )
        truncate(tmp_path / "scan.zarr" / "0" / "c" / "1" / "0" / "0")
        coverage = vf.verify(out)
        assert coverage.file.ok
        assert coverage.damaged

    @pytest.mark.slow
    @pytest.mark.parametrize("change", [flip, truncate, Path.unlink])
    def test_a_changed_file_is_found(self, out, change):
        change(out)
        coverage = vf.verify(out)
        assert coverage.file.damaged
        assert "export it again from" in str(coverage)

    def test_a_volume_that_is_gone_is_said(self, out, tmp_path):
        shutil.rmtree(tmp_path / "scan.zarr")
        coverage = vf.verify(out)
        assert coverage.ok
        assert "the volume it was exported from was not verified: " in str(coverage)

    @pytest.mark.slow
    def test_a_volume_that_is_not_whole_any_more_is_said(self, out, tmp_path):
        Journal(journal_dir(tmp_path / "scan.zarr")).forget([3])
        coverage = vf.verify(out)
        assert coverage.ok
        assert "is no longer complete: 26 of 27 blocks" in str(coverage)

    def test_a_damaged_receipt_is_none(self, out):
        (journal_dir(out) / "export.json").write_text('{"format": 1, "files": 3}')
        with pytest.raises(InvalidInput, match=r"a.nii.gz has no receipt in .*a.nii.gz.volflow"):
            vf.verify(out)
        with pytest.raises(InvalidInput, match=r"a.nii.gz exists; choose another name"):
            vf.export(vf.open(out.with_name("scan.zarr")), out)


@pytest.mark.slow
def test_in_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", SCAN)
    words = ["predict", "scan.npy", "seg.nii.gz", "-m", "torch.nn:Identity", "--patch", "8", "-q"]
    assert run(words) == 0
    assert run(["verify", "seg.nii.gz"]) == 0
    assert "seg.nii.gz: verified\n" in capsys.readouterr().out
    truncate(Path("seg.nii.gz"))
    assert run(["verify", "seg.nii.gz", "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["file"]["damaged"] is True
    assert told["done"] == told["total"]
    assert run(words) == 2
    assert "seg.nii.gz is not what was exported, it has" in capsys.readouterr().err
    assert run([*words, "--plan"]) == 2
    Path("seg.nii.gz").unlink()
    assert run(["verify", "seg.nii.gz"]) == 3
    assert "seg.nii.gz: it is missing; run the same command again" in capsys.readouterr().out
    assert run(words) == 0
    assert run(["verify", "seg.nii.gz"]) == 0
    assert run(["export", "seg.nii.gz.volflow/output.zarr", "b.npy"]) == 0
    assert run(["verify", "b.npy"]) == 0
    edit(Path("b.npy"))
    assert run(["verify", "b.npy"]) == 3
    assert run(["export", "seg.nii.gz.volflow/output.zarr", "b.npy", "--plan"]) == 2
    Path("foreign.nii").write_bytes(b"")
    assert run(["verify", "foreign.nii"]) == 2
    assert "foreign.nii has no receipt" in capsys.readouterr().err
    assert run(["verify", "{case}.nii.gz"]) == 2
    assert "names the results of many cases, and one is verified at a time" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_volume_that_is_changed_meanwhile_is_no_file(tmp_path, client, monkeypatch):
    quiet = {"cluster": client, "progress": False}
    scan = vf.convert(SCAN, tmp_path / "scan.zarr", chunk=8, shard=8, **quiet)
    read, calls = vf.Volume.read, []

    def meanwhile(volume, roi):
        calls.append(roi)
        if len(calls) == 2:
            vf.convert(SCAN + 1, tmp_path / "scan.zarr", overwrite=True, **quiet)
        return read(volume, roi)

    monkeypatch.setattr(vf.Volume, "read", meanwhile)
    with pytest.raises(SourceChanged, match=r"scan.zarr was changed while a.npy was written"):
        vf.export(scan, tmp_path / "a.npy")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scan.zarr", "scan.zarr.volflow"]


@pytest.mark.slow
def test_one_of_several_outputs_is_verified_too(tmp_path, client, stored):
    net = Named(random_net(), random_net(channels_out=1))
    options = {"patch": 8, "chunk": 8, "shard": 8, "cluster": client, "progress": False}
    results = vf.predict(stored(SCAN), net, tmp_path / "many.zarr", **options)
    out = vf.export(results["seg"], tmp_path / "seg.nii")
    coverage = vf.verify(out)
    assert (coverage.ok, coverage.total, coverage.file.note) == (True, 3, "")
