"""HDF5 files that `export` writes: as others read them, and as we read them back."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import random_zyx
from volflow.errors import Damaged
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.formats.sources import open_source
from volflow.store.meta import Meta, VolumeSpec
from volflow.volumes.convert import convert
from volflow.volumes.export import export

h5py = pytest.importorskip("h5py", reason="extra hdf5")

OBLIQUE = [[-0.7, 0.1, 0.05, 90], [0.1, 0.02, 2.4, -126], [0.06, -0.8, 0.1, 72], [0, 0, 0, 1]]
METAS = (
    Meta(spacing=(0.3, 0.0915, 1 / 3), unit="nanometer", kind="classes", colors=("00FF00",)),
    Meta(spacing=(2.4, 0.8, 0.7), unit="millimeter", affine=OBLIQUE, orientation="ASL"),
    Meta(translation=(1, 2, 3)),
)


def stored(folder, voxels, meta, name="a.zarr"):
    meta = replace(meta, axes=("c", "z", "y", "x")[-voxels.ndim :])
    volume = create(folder / name, VolumeSpec.of(voxels.shape, voxels.dtype, meta, chunk=4))
    volume.write(Roi.full(voxels.shape), voxels)
    return volume


@pytest.mark.parametrize("name", ["a.h5", "a.hdf5"])
@pytest.mark.parametrize("meta", METAS)
def test_voxels_and_grid_come_back(tmp_path, name, meta):
    voxels = random_zyx()
    path = export(stored(tmp_path, voxels, meta), tmp_path / name)
    volume = convert(path, tmp_path / "b.zarr", progress=False)
    np.testing.assert_array_equal(volume[:], voxels)
    assert replace(volume.meta, source=None) == meta


@pytest.mark.parametrize(
    ("dtype", "written"),
    [("bool", "uint8"), ("int64", "int64"), ("float16", "float16"), (">f8", "float64")],
)
def test_dtypes_come_back(tmp_path, dtype, written):
    voxels = random_zyx((2, 11, 6, 7), dtype)
    named = replace(METAS[0], kind="image", channels=("dapi", "gfp"))
    source = open_source(export(stored(tmp_path, voxels, named), tmp_path / "a.h5"))
    assert (source.dtype, source.meta.channels) == (written, ("dapi", "gfp"))
    np.testing.assert_array_equal(source[:], voxels)


def test_what_others_read(tmp_path):
    voxels = random_zyx((2, 11, 6, 7))
    with h5py.File(export(stored(tmp_path, voxels, METAS[1]), tmp_path / "a.h5")) as file:
        data = file["data"]
        np.testing.assert_array_equal(data[()], voxels)
        np.testing.assert_allclose(data.attrs["element_size_um"], [2400, 800, 700])
        tags = json.loads(data.attrs["axistags"])["axes"]
        assert [tag["key"] for tag in tags] == list("czyx")
        assert (data.compression, data.compression_opts, data.shuffle) == ("gzip", 1, True)
    plain = stored(tmp_path, voxels, METAS[2], "b.zarr")
    with h5py.File(export(plain, tmp_path / "b.h5")) as file:
        assert "element_size_um" not in file["data"].attrs  # the unit is not known


def test_little_memory_makes_thin_chunks(tmp_path):
    voxels = random_zyx((11, 20, 30), "uint8")
    volume = stored(tmp_path, voxels, METAS[0])
    path = export(volume, tmp_path / "a.h5", memory=5 * 600)
    source = open_source(path)
    assert source.decoded == (2, 20, 30)
    np.testing.assert_array_equal(source[:], voxels)


def test_the_same_volume_gives_the_same_bytes(tmp_path):
    volume = stored(tmp_path, random_zyx(), METAS[1])
    first = export(volume, tmp_path / "a.h5").read_bytes()
    assert export(volume, tmp_path / "a.h5", overwrite=True).read_bytes() == first


def test_a_damaged_note_is_refused(tmp_path):
    path = export(stored(tmp_path, random_zyx(), METAS[1]), tmp_path / "a.h5")
    for note in ("{", '{"spacing": 3}', '{"spacing": [1, 1, -1]}'):
        with h5py.File(path, "a") as file:
            file["data"].attrs["volflow"] = note
        with pytest.raises(Damaged, match=r"has a damaged attribute volflow .*; delete it"):
            open_source(path)
