"""New volumes: refused before anything is touched, complete once they are there."""

import numpy as np
import pytest
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store import create as create_module
from volflow.store.create import check_target, create
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.volume import open_volume

CZYX = Meta(("c", "z", "y", "x"))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_volume_is_empty_and_takes_no_space(tmp_path):
    volume = create(tmp_path / "a.zarr", VolumeSpec.of((100, 100, 100), "uint8", Meta()))
    assert not volume[::50, ::50, ::50].any()
    names = sorted(path.name for path in (tmp_path / "a.zarr").rglob("*"))
    assert names == ["0", "zarr.json", "zarr.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_the_array_is_as_ordered(tmp_path):
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((3, 50, 60, 70), "float32", CZYX, chunk=16, shard=32)
    )
    array = zarr.open_array(tmp_path / "a.zarr" / "0", mode="r")
    assert volume.chunks == array.chunks == (1, 16, 16, 16)
    assert volume.shards == array.shards == (1, 32, 32, 32)
    assert array.metadata.dimension_names == ("c", "z", "y", "x")
    (codec,) = array.compressors
    assert codec.to_dict() == {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float16", "float64"])
def test_every_dtype_comes_back(tmp_path, dtype):
    volume = create(tmp_path / "a.zarr", VolumeSpec.of((5, 6, 7), dtype, Meta()))
    voxels = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(dtype)
    volume.write(Roi.full(volume.shape), voxels)
    np.testing.assert_array_equal(open_volume(volume.path)[...], voxels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": (5, 6)}, "shape must have one positive size for each of z, y, x"),
        ({"shape": (5, 6, 0)}, "shape must have"),
        ({"meta": CZYX}, "shape must have"),
        ({"meta": Meta(("t", "z", "y", "x")), "shape": (1, 5, 6, 7)}, "stored as zyx or czyx"),
        ({"dtype": "complex64"}, "bool, integers or floats"),
        ({"dtype": "U8"}, "bool, integers or floats"),
        ({"dtype": "nonsense"}, "must be a NumPy dtype"),
        ({"chunk": 64, "shard": 100}, "use shard 64 or 128"),
    ],
)
def test_what_is_refused_leaves_the_old_volume_alone(tmp_path, change, message):
    old = create(tmp_path / "a.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta()))
    old.write(Roi.full(old.shape), np.ones(old.shape, "uint8"))
    before = content(tmp_path)
    arguments = {"shape": (5, 6, 7), "dtype": "uint8", "meta": Meta()} | change
    with pytest.raises(InvalidInput, match=message):
        create(tmp_path / "a.zarr", VolumeSpec.of(**arguments), overwrite=True)
    assert content(tmp_path) == before


def test_an_existing_volume_is_replaced_only_on_demand(tmp_path):
    old = create(tmp_path / "a.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta()))
    old.write(Roi.full(old.shape), np.ones(old.shape, "uint8"))
    with pytest.raises(InvalidInput, match="exists; choose another name or overwrite=True"):
        create(tmp_path / "a.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta()))
    assert open_volume(old.path)[...].all()
    new = create(tmp_path / "a.zarr", VolumeSpec.of((8, 8, 8), "int16", Meta()), overwrite=True)
    assert new.shape == (8, 8, 8)
    assert not new[...].any()
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_what_is_no_image_is_never_deleted(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("years of work")
    zarr.create_group(tmp_path / "plate.zarr", attributes={"ome": {"plate": {}}})
    (tmp_path / "file.zarr").write_text("a file")
    create(tmp_path / "a.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta()))
    (tmp_path / "link.zarr").symlink_to(tmp_path / "a.zarr")
    before = content(tmp_path)
    for name in ("folder", "plate.zarr", "file.zarr", "link.zarr"):
        with pytest.raises(InvalidInput, match="exists and is not a Zarr image"):
            create(tmp_path / name, VolumeSpec.of((5, 6, 7), "uint8", Meta()), overwrite=True)
    assert content(tmp_path) == before


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "a.zarr").mkdir()
    assert create(tmp_path / "a.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta())).shape == (5, 6, 7)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InvalidInput, match="nowhere does not exist; make it first"):
        create(tmp_path / "nowhere" / "a.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta()))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("seg.nii.gz", ".gz"), ("seg.NII", ".NII"), ("seg.npy", ".npy"), ("seg.nrrd", ".nrrd"),
        ("seg.tif", ".tif"), ("seg.ome.tiff", ".tiff"), ("seg.h5", ".h5"), ("seg.zarr.zip", ".zip"),
    ],
)  # fmt: skip
def test_the_name_of_another_format_is_refused(tmp_path, name, suffix):
    with pytest.raises(InvalidInput) as refused:
        check_target(tmp_path / name)
    stem = "seg.zarr" if "zip" in name else "seg"
    assert str(refused.value) == (
        f'{name} cannot name a Zarr volume: "{suffix}" is the suffix of another format; write to'
        f' "{stem}.zarr", and export the result for .nii.gz, .tif, .h5 and others'
        " (vf.export, volflow export)"
    )


def test_a_url_of_another_format_is_refused():
    with pytest.raises(InvalidInput, match=r'^seg.tif cannot name .* write to "seg.zarr"'):
        check_target("s3://bucket/seg.tif")


@pytest.mark.parametrize("name", ["seg", "seg.zarr", "SEG.ZARR", "seg.ome.zarr", "thin_1.5mm"])
def test_names_of_volumes(tmp_path, name):
    assert check_target(tmp_path / name) == str(tmp_path / name)


def test_arrays_in_a_store_have_whatever_names(tmp_path):
    zarr.create_group(tmp_path / "a.zarr")
    assert create(
        tmp_path / "a.zarr" / "x.tif", VolumeSpec.of((5, 6, 7), "uint8", Meta())
    ).shape == (5, 6, 7)


def test_a_failure_on_the_way_leaves_the_old_volume(tmp_path, monkeypatch):
    old = create(tmp_path / "a.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta()))
    before = content(tmp_path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(create_module, "write_group", full_disk)
    with pytest.raises(InvalidInput, match="No space left on device"):
        create(old.path, VolumeSpec.of((8, 8, 8), "uint8", Meta()), overwrite=True)
    assert content(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
