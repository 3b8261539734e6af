"""Label maps: told by their file or by who converts them, kept as such, changed without copying."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import torch
import zarr

import volflow as vf
from tests.stores import store
from volflow.cli import run
from volflow.errors import InvalidInput, Locked, ResumeRefused
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Meta
from volflow.volumes.kind import set_kind

nib = pytest.importorskip("nibabel")

LABEL, NONE = 1002, 0
CLASSES = (0, 3, 40, 41, 115)


@pytest.fixture(scope="module")
def voxels():
    """Boxes of classes that lie apart, x, y, z; cut so that coarser voxels mix them."""
    voxels = np.zeros((70, 41, 39), "u1")
    for n, value in enumerate(CLASSES[1:]):
        voxels[5 + 13 * n : 20 + 13 * n, 3 + 5 * n : 29 + 3 * n, 7:30] = value
    return voxels


@pytest.fixture
def nifti(tmp_path):
    """Writes a file with this intent, x, y, z."""

    def write(array, intent=NONE, name="seg.nii.gz"):
        image = nib.Nifti1Image(array, np.eye(4))
        image.header["intent_code"] = intent
        image.to_filename(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def convert(tmp_path, client):
    def run(source, name="seg.zarr", **options):
        options = {"cluster": client, "progress": False, "chunk": 16, "shard": 32} | options
        return vf.convert(source, tmp_path / name, **options)

    return run


def written(volume) -> dict[str, int]:
    """When each file of the voxels was written."""
    found = (Path(volume.path) / "0").rglob("*")
    return {str(path): path.stat().st_mtime_ns for path in found if path.is_file()}


class TestOfNifti:
    @pytest.mark.slow
    def test_the_intent_decides(self, nifti, convert, voxels):
        assert convert(nifti(voxels, LABEL)).meta.kind == "classes"
        assert convert(nifti(voxels, NONE), "image.zarr").meta.kind == "image"
        assert convert(nifti(voxels, NONE), "asked.zarr", labels=True).meta.kind == "classes"
        assert convert(nifti(voxels, LABEL), "not.zarr", labels=False).meta.kind == "image"

    def test_levels_invent_no_class_and_move_none(self, nifti, convert, voxels, client):
        volume = vf.pyramid(convert(nifti(voxels, LABEL)), cluster=client, progress=False)
        assert len(volume.levels) > 1
        fine = voxels.T
        coarse = vf.open(volume.path, level=1)[:]
        assert set(np.unique(coarse)) <= set(CLASSES)
        for place in np.argwhere(coarse):
            parents = fine[tuple(slice(2 * p, 2 * p + 2) for p in place)]
            assert coarse[tuple(place)] in parents

    def test_pictures_take_it_for_classes(self, nifti, voxels):
        pytest.importorskip("matplotlib", reason="extra report")
        many = (np.arange(voxels.size).reshape(voxels.shape) // 900).astype("i2")
        file, other = nifti(many, LABEL), nifti(many + (many == 60), LABEL, "other.nii.gz")
        said = [text.get_text() for text in vf.preview(file).texts]
        assert any(text.startswith("class ") for text in said)
        assert any(text.startswith("and ") for text in said)
        told = vf.compare(file, other).facts["difference"]
        assert {one["class"] for one in told["classes"]} >= {60, 61}
        assert "mean_abs" not in told

    def test_back_and_forth(self, nifti, convert, voxels, tmp_path):
        volume = convert(nifti(voxels, NONE), labels=True)
        file = vf.export(volume, tmp_path / "out.nii.gz")
        assert int(nib.load(file).header["intent_code"]) == LABEL
        again = convert(file, "again.zarr")
        assert again.meta.kind == "classes"
        assert again.dtype == volume.dtype
        assert np.array_equal(again[:], voxels.T)

    @pytest.mark.slow
    def test_an_image_made_of_labels_does_not_claim_to_be_some(
        self, nifti, convert, voxels, tmp_path, client
    ):
        labels = convert(nifti(voxels, LABEL))
        far = vf.write(
            labels.dask() * 0.3, tmp_path / "far.zarr", like=labels, cluster=client, progress=False
        )
        assert far.meta.kind == "image"
        file = vf.export(far, tmp_path / "far.nii.gz")
        assert int(nib.load(file).header["intent_code"]) == NONE
        assert convert(file, "again.zarr").dtype.kind == "f"


class TestFloats:
    @pytest.mark.parametrize(("dtype", "integer"), [("float32", "int32"), ("float64", "int64")])
    def test_whole_numbers_become_integers(self, nifti, convert, voxels, dtype, integer):
        volume = convert(nifti(voxels.astype(dtype)), labels=True)
        assert (volume.dtype.name, volume.meta.kind) == (integer, "classes")
        assert np.array_equal(volume[:], voxels.T)
        assert vf.verify(volume.path).ok

    def test_a_file_that_says_so_needs_no_flag(self, nifti, convert, voxels):
        file = nifti(voxels.astype("f4"), LABEL)
        assert convert(file).dtype == "int32"
        image = convert(file, "image.zarr", labels=False)
        assert (image.dtype, image.meta.kind) == ("float32", "image")

    @pytest.mark.slow
    def test_arrays_files_and_volumes_alike(self, convert, voxels, tmp_path):
        floats = voxels.T.astype("f4")
        np.save(tmp_path / "a.npy", floats)
        for n, source in enumerate((floats, tmp_path / "a.npy", convert(floats, "image.zarr"))):
            volume = convert(source, f"{n}.zarr", labels=True)
            assert (volume.dtype, volume.meta.kind) == ("int32", "classes")
            assert np.array_equal(volume[:], voxels.T)
        assert np.array_equal(floats, voxels.T)  # not cast in its place

    @pytest.mark.parametrize("value", [2.5, np.nan, np.inf, 3e9])
    def test_other_numbers_are_refused_and_no_volume_is_left(
        self, nifti, convert, voxels, value, tmp_path
    ):
        floats = voxels.astype("f4")
        floats[69, 5, 33] = value
        file = nifti(floats)
        with pytest.raises(InvalidInput) as refused:
            convert(file, labels=True)
        assert str(refused.value) == (
            f"{file}: voxel (33, 5, 69) is {np.float32(value)}, and a label map holds whole"
            " numbers that int32 can hold; convert it as an image (labels=False, --image), or"
            " correct its values first"
        )
        assert not (tmp_path / "seg.zarr").exists()
        assert convert(file).meta.kind == "image"

    def test_the_same_output_is_not_both(self, nifti, convert, voxels):
        file = nifti(voxels.astype("f4"))
        convert(file)
        with pytest.raises(ResumeRefused, match="labels: absent → true"):
            convert(file, labels=True)

    def test_of_the_decathlon(self, shared_data, convert):
        file = shared_data("hippocampus_msd") / "labels" / "hippocampus_003.nii.gz"
        image = nib.load(file)
        assert image.get_data_dtype() == "float32"  # real label files are
        volume = convert(file, labels=True)
        assert np.array_equal(volume[:], np.asarray(image.dataobj).T)
        assert set(np.unique(volume[:])) == {0, 1, 2}


class TestChangedLater:
    def test_by_converting_again_no_voxel_is_written(self, nifti, convert, voxels):
        file = nifti(voxels)
        before = written(convert(file))
        volume = convert(file, labels=True)
        assert volume.meta.kind == "classes"
        assert written(volume) == before
        assert convert(file).meta.kind == "classes"  # stays what it was made
        assert convert(file, labels=False).meta.kind == "image"

    def test_of_what_dask_computes(self, convert, voxels):
        array = da.from_array(voxels.T, chunks=20)
        before = written(convert(array))
        volume = convert(array, labels=True)
        assert (volume.meta.kind, written(volume)) == ("classes", before)
        with pytest.raises(InvalidInput, match=r'holds whole numbers, .*\.astype\("int32"\)'):
            convert(array / 2, "half.zarr", labels=True)

    def test_levels_of_the_image_go_and_the_next_are_of_classes(
        self, nifti, convert, voxels, client
    ):
        volume = vf.pyramid(convert(nifti(voxels)), cluster=client, progress=False)
        invented = set(np.unique(vf.open(volume.path, level=1)[:])) - set(CLASSES)
        assert invented
        before = written(volume)
        labels = set_kind(volume, "classes")
        assert labels.meta.kind == "classes"
        assert len(labels.levels) == 1
        assert not (Path(volume.path) / "1").exists()
        assert written(labels) == before
        assert vf.verify(volume.path).ok
        assert vf.verify(volume.path).levels == ()
        assert np.array_equal(labels[:], volume[:])
        again = vf.pyramid(labels, cluster=client, progress=False)
        assert len(again.levels) == len(volume.levels)
        assert set(np.unique(vf.open(volume.path, level=1)[:])) <= set(CLASSES)

    def test_others_read_it_as_ome_zarr_has_it(self, nifti, convert, voxels):
        volume = convert(nifti(voxels))
        for kind, listed in (("classes", True), ("image", False)):
            set_kind(volume, kind)
            ome = zarr.open_group(volume.path, mode="r").attrs["ome"]
            assert ("image-label" in ome) is listed
            assert vf.open(volume.path).meta == replace(volume.meta, kind=kind)

    def test_is_refused_where_it_cannot_be(self, convert, voxels, tmp_path):
        floats = convert(voxels.T.astype("f4"))
        with pytest.raises(InvalidInput, match=r"holds float32, and a label map holds integers;"):
            set_kind(floats, "classes")
        with pytest.raises(InvalidInput, match="kind must be"):
            set_kind(floats, "labels")
        zarr.create_array(tmp_path / "others.zarr", data=voxels)
        with pytest.raises(InvalidInput, match="was not written by volflow"):
            set_kind(tmp_path / "others.zarr", "classes")

    @pytest.mark.slow
    def test_killed_on_the_way_no_mean_is_taken_for_a_class(
        self, convert, voxels, client, monkeypatch
    ):
        volume = vf.pyramid(convert(voxels.T), cluster=client, progress=False)

        def killed(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("volflow.volumes.kind.discard_levels", killed)
        with pytest.raises(KeyboardInterrupt):
            set_kind(volume, "classes")
        assert (Path(volume.path) / "1").exists()
        found = vf.open(volume.path)
        assert (found.meta.kind, len(found.levels)) == ("classes", 1)
        vf.pyramid(volume.path, cluster=client, progress=False)
        assert set(np.unique(vf.open(volume.path, level=1)[:])) <= set(CLASSES)
        assert vf.verify(volume.path).ok

    def test_one_of_several_outputs(self, convert, voxels, client, tmp_path):
        """Their journals and levels lie with those of the whole store."""

        class Two(torch.nn.Module):
            def forward(self, batch):
                return {"seg": batch, "scan": batch + 0.5}

        vf.predict(
            voxels.T, Two(), tmp_path / "out.zarr", patch=16, dtype="uint8", levels=True,
            cluster=client, progress=False,
        )  # fmt: skip
        volume = set_kind(tmp_path / "out.zarr" / "seg", "classes")
        assert (volume.meta.kind, len(volume.levels)) == ("classes", 1)
        other = vf.open(tmp_path / "out.zarr" / "scan")
        assert (other.meta.kind, len(other.levels)) == ("image", 2)
        assert vf.verify(tmp_path / "out.zarr").ok

    def test_waits_for_nobody(self, convert, voxels):
        volume = convert(voxels.T)
        with Journal(journal_dir(volume.path)).lock(), pytest.raises(Locked):
            set_kind(volume, "classes")
        assert vf.open(volume.path).meta.kind == "image"


class TestOfOthers:
    def test_image_label_makes_a_label_map(self, convert, voxels, tmp_path):
        made = Path(store(tmp_path / "a.zarr", voxels.T, kind="classes"))
        group = zarr.open_group(made, mode="r+")
        del group.attrs["volflow"]
        assert "image-label" in group.attrs["ome"]
        volume = convert(made)
        assert volume.meta.kind == "classes"
        assert np.array_equal(volume[:], voxels.T)

    @pytest.mark.parametrize(
        ("folder", "inside", "options"),
        [
            ("omezarr_v05_idr0062", "6001240_labels_v0.5.zarr/labels/0", {}),
            ("omezarr_v04_tubhiswt", "tubhiswt4D_sub.zarr/labels/embryo", {"timepoint": 0}),
        ],
    )
    def test_of_real_stores(self, shared_data, convert, client, folder, inside, options):
        source = vf.open(shared_data(folder) / inside, level=1 if not options else 0, **options)
        volume = convert(source, chunk=64, shard=256)
        assert volume.meta.kind == "classes"
        assert np.array_equal(volume[:], source[:])


class TestCommands:
    def test_info_says_what_an_image_looks_like_and_changes_it(
        self, nifti, convert, voxels, capsys, tmp_path
    ):
        file = nifti(voxels)
        assert run(["info", str(file)]) == 0
        hint = "kind         image, though it holds only 5 different whole numbers"
        assert f"{hint}; if these are classes: volflow convert --labels {file} OUT" in (
            capsys.readouterr().out
        )
        volume = convert(file)
        assert run(["info", volume.path]) == 0
        assert f"{hint}; if these are classes: volflow info --labels {volume.path}" in (
            capsys.readouterr().out
        )
        assert run(["info", "--labels", volume.path]) == 0
        assert "kind         label map\n" in capsys.readouterr().out
        assert run(["info", "--image", volume.path]) == 0
        assert "kind         image, though" in capsys.readouterr().out
        again = ["convert", "--labels", "--chunk", "16", "--shard", "32"]
        assert run([*again, str(file), volume.path]) == 0
        assert "kind         label map\n" in capsys.readouterr().out

    def test_info_does_not_change_files(self, nifti, voxels, capsys):
        file = nifti(voxels)
        assert run(["info", "--labels", str(file)]) == 2
        assert capsys.readouterr().err == (
            f"volflow: {file} is a file and is not changed; convert it:"
            f" volflow convert --labels {file} OUT\n"
        )


def test_masks_and_scans_of_predict(nifti, voxels, tmp_path, client):
    """A network reads the values of its inputs, also of a file that says it holds labels."""
    halves = nifti((voxels / 2).astype("f4"), LABEL)
    result = vf.predict(
        halves, torch.nn.Identity(), tmp_path / "out.zarr", patch=16, cluster=client,
        progress=False, mask=nifti(np.ones_like(voxels), LABEL, "mask.nii.gz"),
    )  # fmt: skip
    np.testing.assert_allclose(result[0], voxels.T / 2, rtol=1e-6)
    assert result.meta.kind == "image"
    kept = journal_dir(result.path)
    assert vf.open(kept / "mask.zarr").meta.kind == "classes"
    shutil.rmtree(kept)


def test_a_label_map_may_have_channels(convert):
    """Of several label maps in one file, the first is shown, not the highest class."""
    pytest.importorskip("matplotlib", reason="extra report")
    two = np.zeros((2, 12, 12, 12), "u1")
    two[0, 4:8, 4:8, 4:8], two[1] = 3, 9
    volume = convert(two, labels=True)
    assert volume.meta == Meta(("c", "z", "y", "x"), kind="classes", source=volume.meta.source)
    said = [text.get_text() for text in vf.preview(volume, over=two[0] * 1.0).texts]
    assert "class 3" in said
