"""Done means that the source was whole, and the same all the time that it was read."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import zarr

import volflow as vf
from volflow.cli import run
from volflow.errors import InvalidInput, ResumeRefused, SourceChanged
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.volume import Volume
from volflow.volumes.convert import plan_convert

SCAN = np.random.default_rng(3).integers(0, 4000, (40, 12, 11), "uint16")
QUIET = {"chunk": 8, "shard": 8, "progress": False}


@pytest.fixture
def nifti(tmp_path):
    def save(name, scan=SCAN):
        nibabel.save(nibabel.Nifti1Image(scan.T, np.diag([2, 2, 3, 1])), tmp_path / name)
        return tmp_path / name

    return save


def entries(out):
    return Journal(journal_dir(out)).done()


def damaged(path, how):
    whole = path.read_bytes()
    data = {
        "without its last 8 bytes": whole[:-8],
        "without its last byte": whole[:-1],
        "at half": whole[: len(whole) // 2],
        "with a wrong checksum": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],
        "with something behind it": whole + b"not a gzip member",
    }[how]
    path.write_bytes(data)
    return whole


class TestDamaged:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("how", "why"),
        [
            ("without its last 8 bytes", "cut short; copy it again"),
            ("without its last byte", "cut short; copy it again"),
            ("at half", "cut short; copy it again"),
            ("with a wrong checksum", "damaged .CRC check failed"),
            ("with something behind it", "damaged .Not a gzipped file"),
        ],
    )
    def test_a_gzip_is_refused_as_often_as_it_is_called(self, nifti, tmp_path, client, how, why):
        source, out = nifti("a.nii.gz"), tmp_path / "out.zarr"
        whole = damaged(source, how)
        for _ in range(2):
            with pytest.raises(InvalidInput, match=rf"a\.nii\.gz is {why}"):
                vf.convert(source, out, cluster=client, **QUIET)
            # What came of it may be wrong.
            assert [path.name for path in tmp_path.glob("out*")] == []
        source.write_bytes(whole)
        assert np.array_equal(vf.convert(source, out, cluster=client, **QUIET)[:], SCAN)
        assert vf.verify(out).ok

    def test_nor_does_a_prediction_accept_it(self, nifti, tmp_path, client):
        torch = pytest.importorskip("torch")
        source, out = nifti("a.nii.gz", SCAN.astype("float32")), tmp_path / "out.nii"
        whole = damaged(source, "without its last 8 bytes")
        options = {"patch": 8, "cluster": client, "progress": False}
        for _ in range(2):
            with pytest.raises(InvalidInput, match=r"a\.nii\.gz is cut short; copy it again"):
                vf.predict(source, torch.nn.Identity(), out, **options)
            assert [path.name for path in tmp_path.glob("out*")] == []
        source.write_bytes(whole)
        result = vf.predict(source, torch.nn.Identity(), out, **options)
        assert np.allclose(result[0], SCAN)

    @pytest.mark.parametrize("name", ["a.nii", "a.npy"])
    def test_a_plain_file_that_is_too_short_is_refused_before_work(self, nifti, tmp_path, name):
        np.save(tmp_path / "a.npy", SCAN)
        source = tmp_path / name if name == "a.npy" else nifti(name)
        os.truncate(source, source.stat().st_size - 1)
        for _ in range(2):
            with pytest.raises(InvalidInput, match=r"is cut short"):
                vf.convert(source, tmp_path / "out.zarr", **QUIET)
            assert [path.name for path in tmp_path.glob("out*")] == []


@pytest.fixture
def interrupted(monkeypatch, client):
    """Begins conversions that end when two blocks are written."""

    def convert(source, out):
        write, left = Volume.write, [2]

        def failing(volume, roi, data, *array):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return write(volume, roi, data, *array)

        with monkeypatch.context() as patch:
            patch.setattr(Volume, "write", failing)
            with pytest.raises(vf.errors.RunFailed):
                vf.convert(source, out, cluster=client, **QUIET)
        assert len(entries(out)) == 2

    return convert


class TestChangedSince:
    @pytest.mark.slow
    def test_an_upload_that_was_not_finished_leaves_nothing(self, nifti, tmp_path, capsys):
        """As people do it: the scan is read too early, then again with the same command."""
        source = nifti("a.nii.gz")
        whole = damaged(source, "at half")
        words = ["convert", str(source), str(tmp_path / "out.zarr"), "--chunk=8", "--shard=8"]
        code = "import sys; from volflow.cli import run; sys.exit(run(sys.argv[1:]))"
        early = subprocess.run(
            [sys.executable, "-c", code, *words], text=True, capture_output=True, check=False
        )
        assert early.returncode in (2, 3), early.stderr
        assert "is cut short; copy it again" in early.stderr
        assert [path.name for path in tmp_path.glob("out*")] == []
        source.write_bytes(whole)
        assert run([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["run"]["done"] == 5
        assert np.array_equal(vf.open(tmp_path / "out.zarr")[:], SCAN)

    @pytest.mark.slow
    def test_what_was_begun_of_another_state_is_begun_anew(
        self, nifti, tmp_path, capsys, interrupted
    ):
        source = nifti("a.nii.gz", SCAN + 1)
        words = ["convert", str(source), str(tmp_path / "out.zarr"), "--chunk=8", "--shard=8"]
        interrupted(source, tmp_path / "out.zarr")
        nifti("a.nii.gz")
        assert run([*words, "--plan"]) == 0
        assert "a.nii.gz has changed since its conversion was started" in capsys.readouterr().out
        assert run([*words, "--json"]) == 0
        told = capsys.readouterr()
        assert (
            "convert: a.nii.gz has changed since its conversion was started (2 of 5 blocks were"
            " done); it starts over\n"
        ) in told.err
        assert json.loads(told.out)["run"]["done"] == 5
        assert np.array_equal(vf.open(tmp_path / "out.zarr")[:], SCAN)

    @pytest.mark.slow
    def test_its_shape_too(self, nifti, tmp_path, client, interrupted):
        source, out = nifti("a.nii"), tmp_path / "out.zarr"
        interrupted(source, out)
        other = nifti("other.nii", SCAN[:20])
        with pytest.raises(ResumeRefused):  # another file is another source
            vf.convert(other, out, cluster=client, **QUIET)
        nifti("a.nii", SCAN[:20])
        plan = plan_convert(source, out, chunk=8, shard=8, cluster=client)
        assert plan.blocks == 3 * 2 * 2
        assert np.array_equal(vf.convert(source, out, cluster=client, **QUIET)[:], SCAN[:20])

    @pytest.mark.parametrize(
        "place", ["volflow.volumes.copying.discard", "volflow.store.journal.journal.Journal.begin"]
    )
    def test_even_if_killed_while_it_is_begun_anew(
        self, nifti, tmp_path, client, monkeypatch, interrupted, place
    ):  # fmt: skip
        def killed(*args, **options):
            raise KeyboardInterrupt

        source, out = nifti("a.nii.gz"), tmp_path / "out.zarr"
        interrupted(source, out)
        nifti("a.nii.gz", SCAN + 1)
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            with pytest.raises(KeyboardInterrupt):
                vf.convert(source, out, cluster=client, **QUIET)
        assert np.array_equal(vf.convert(source, out, cluster=client, **QUIET)[:], SCAN + 1)

    def test_what_is_finished_is_not_replaced_unasked(self, nifti, tmp_path, client):
        source, out = nifti("a.nii.gz"), tmp_path / "out.zarr"
        vf.convert(source, out, cluster=client, **QUIET)
        nifti("a.nii.gz", SCAN + 1)
        with pytest.raises(ResumeRefused):
            vf.convert(source, out, cluster=client, **QUIET)
        assert np.array_equal(vf.open(out)[:], SCAN)


class TestChangedMeanwhile:
    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.npy", "a.zarr"])
    def test_is_not_done(self, nifti, tmp_path, client, monkeypatch, name):
        source, out = tmp_path / name, tmp_path / "out.zarr"

        def save(scan):
            if name.startswith("a.nii"):
                nifti(name, scan)
            elif name == "a.npy":
                np.save(source, scan)
            else:
                shape, kind = scan.shape, scan.dtype
                store = zarr.open_array(source, mode="a", shape=shape, dtype=kind, chunks=16)
                store[:] = scan

        save(SCAN)
        write, calls = Volume.write, []

        def meanwhile(volume, roi, data, *array):
            calls.append(roi)
            if len(calls) == 2:
                save(SCAN + 1)
            return write(volume, roi, data, *array)

        with monkeypatch.context() as patch:
            patch.setattr(Volume, "write", meanwhile)
            with pytest.raises(SourceChanged) as refused:
                vf.convert(source, out, cluster=client, **QUIET)
        assert str(refused.value).startswith(f"{source} was changed while it was read, as a file")
        assert refused.value.exit_code == 1  # the same command goes on
        assert len(entries(out)) <= 1
        assert np.array_equal(vf.convert(source, out, cluster=client, **QUIET)[:], SCAN + 1)
