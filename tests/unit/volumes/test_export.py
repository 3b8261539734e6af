"""Export: voxels and affine survive the way through a store and back into one file."""

import gzip
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr

from volflow.errors import Damaged, InvalidInput, MemoryRefused, RunFailed
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.formats.sources import open_source
from volflow.store.meta import Level, Meta, VolumeSpec
from volflow.store.ngff import write_group
from volflow.store.volume import open_volume
from volflow.volumes.export import export

nib = pytest.importorskip("nibabel")


OBLIQUE = np.array(
    [[-0.7, 0.1, 0.05, 90], [0.1, 0.02, 2.4, -126], [0.06, -0.8, 0.1, 72], [0, 0, 0, 1]]
)


def to_store(source, path, **more):
    """The shortest way of a source into a volume."""
    volume = create(path, VolumeSpec.of(source.shape, source.dtype, source.meta, **more))
    voxels = np.empty(source.shape, source.dtype)
    for roi, slab in source.slabs(8):
        voxels[roi.slices()] = slab
    volume.write(Roi.full(volume.shape), voxels)
    return volume


def stored(path, voxels, meta=None):
    meta = meta or Meta(("c", "z", "y", "x")[-voxels.ndim :])
    volume = create(path, VolumeSpec.of(voxels.shape, voxels.dtype, meta, chunk=4, shard=8))
    volume.write(Roi.full(voxels.shape), voxels)
    return volume


def random_voxels(shape=(9, 10, 11), dtype="int16"):
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def make_image(kind, shape=(11, 10, 9)):
    image = kind(random_voxels(shape), OBLIQUE)
    image.set_sform(OBLIQUE, 4)
    image.set_qform(OBLIQUE, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"scanned on a Tuesday"
    image.header["pixdim"][4] = 2.5
    return image


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("shape", [(11, 10, 9), (11, 10, 9, 3), (11, 10, 9, 1), (11, 10)])
def test_a_nifti_file_comes_back(tmp_path, suffix, kind, shape):
    image = make_image(kind, shape)
    image.to_filename(tmp_path / f"in{suffix}")
    before = nib.load(tmp_path / f"in{suffix}")
    volume = to_store(open_source(tmp_path / f"in{suffix}"), tmp_path / "a.zarr")
    path = export(volume.path, tmp_path / f"out{suffix}")
    after = nib.load(path)
    assert type(after) is kind
    assert after.shape == shape
    assert after.get_data_dtype() == before.get_data_dtype()
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-6)
    for key in ("qform_code", "sform_code", "xyzt_units", "descrip"):
        assert after.header[key] == before.header[key]
    np.testing.assert_array_equal(after.get_qform(), before.get_qform())
    np.testing.assert_array_equal(after.header["pixdim"][:4], before.header["pixdim"][:4])


@pytest.mark.parametrize("letters", ["RAS", "LPS", "AIL", "SPR", "ILP"])
def test_every_orientation_comes_back(tmp_path, letters):
    flip = nib.orientations.axcodes2ornt(letters)
    image = nib.Nifti1Image(random_voxels((11, 10, 9)), np.diag([0.5, 1, 2, 1]))
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), flip)
    )
    turned.to_filename(tmp_path / "in.nii")
    volume = to_store(open_source(tmp_path / "in.nii"), tmp_path / "a.zarr")
    assert volume.orientation == letters[::-1]
    after = nib.load(export(volume, tmp_path / "out.nii"))
    np.testing.assert_allclose(after.affine, turned.affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(turned.dataobj))


def test_a_result_takes_the_grid_of_its_source(tmp_path):
    make_image(nib.Nifti1Image).to_filename(tmp_path / "in.nii")
    source = open_source(tmp_path / "in.nii")
    classes = random_voxels(source.shape, "uint8")
    meta = Meta(
        **{name: getattr(source.meta, name) for name in ("axes", "spacing", "affine", "source")},
        kind="classes",
    )
    after = nib.load(export(stored(tmp_path / "a.zarr", classes, meta), tmp_path / "seg.nii.gz"))
    np.testing.assert_array_equal(np.asarray(after.dataobj).T, classes)
    np.testing.assert_allclose(after.affine, OBLIQUE, atol=1e-6)
    assert after.get_data_dtype() == "uint8"
    assert after.header.get_intent()[0] == "label"


def test_scores_of_a_scan_become_a_fourth_axis(tmp_path):
    make_image(nib.Nifti1Image).to_filename(tmp_path / "in.nii")
    source = open_source(tmp_path / "in.nii")
    meta = Meta(("c", "z", "y", "x"), source.meta.spacing, affine=source.meta.affine)
    scores = random_voxels((3, *source.shape), "float32")
    after = nib.load(export(stored(tmp_path / "a.zarr", scores, meta), tmp_path / "out.nii"))
    assert after.shape == (11, 10, 9, 3)
    np.testing.assert_array_equal(np.asarray(after.dataobj).T, scores)
    np.testing.assert_allclose(after.affine, OBLIQUE, atol=1e-5)


def test_scaled_values_come_back_as_they_are(tmp_path):
    image = nib.Nifti1Image(random_voxels((11, 10, 9)).astype("f4") * 0.125 - 3, np.eye(4))
    image.header.set_data_dtype("int16")
    image.to_filename(tmp_path / "in.nii.gz")
    before = nib.load(tmp_path / "in.nii.gz")
    assert before.dataobj.slope != 1
    volume = to_store(open_source(tmp_path / "in.nii.gz"), tmp_path / "a.zarr")
    after = nib.load(export(volume, tmp_path / "out.nii"))
    assert (after.dataobj.slope, after.dataobj.inter) == (1, 0)
    np.testing.assert_allclose(after.get_fdata(), before.get_fdata(), rtol=1e-6, atol=1e-6)


def test_a_coarser_level_lies_in_the_same_place(tmp_path):
    make_image(nib.Nifti1Image, (12, 10, 8)).to_filename(tmp_path / "in.nii")
    volume = to_store(open_source(tmp_path / "in.nii"), tmp_path / "a.zarr")
    group = zarr.open_group(volume.path, mode="r+")
    coarse = volume.meta.regrid((2, 2, 2))
    group.create_array("1", shape=(4, 5, 6), dtype="int16")
    write_group(
        group,
        volume.meta,
        [Level("0", volume.spacing), Level("1", coarse.spacing, coarse.translation)],
    )
    after = nib.load(export(open_volume(volume.path, level=1), tmp_path / "out.nii"))
    corner = OBLIQUE @ [0.5, 0.5, 0.5, 1]
    np.testing.assert_allclose(after.affine @ [0, 0, 0, 1], corner, atol=1e-4)
    np.testing.assert_allclose(after.affine[:3, :3], OBLIQUE[:3, :3] * 2, atol=1e-5)
    np.testing.assert_allclose(after.header.get_zooms(), coarse.spacing[::-1], rtol=1e-5)
    assert after.header["sform_code"] == 4


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("bool", "uint8"),
        ("float16", "float32"),
        ("int8", "int8"),
        ("uint16", "uint16"),
        ("int64", "int64"),
        ("float64", "float64"),
    ],
)
def test_dtypes(tmp_path, dtype, given):
    voxels = random_voxels(dtype=dtype)
    volume = stored(tmp_path / "a.zarr", voxels)
    after = nib.load(export(volume, tmp_path / "a.nii"))
    assert after.get_data_dtype() == given
    np.testing.assert_array_equal(np.asarray(after.dataobj).T, voxels)
    array = np.load(export(volume, tmp_path / "a.npy"))
    assert array.dtype == dtype
    np.testing.assert_array_equal(array, voxels)


def test_a_volume_without_a_header_claims_only_what_is_known(tmp_path):
    volume = stored(tmp_path / "a.zarr", random_voxels(), Meta(spacing=(3, 2, 1)))
    header = nib.load(export(volume, tmp_path / "a.nii")).header
    assert header.get_zooms() == (1, 2, 3)
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    assert header.get_xyzt_units()[0] == "unknown"


@pytest.mark.parametrize(
    ("unit", "written", "size"),
    [("micrometer", "micron", 0.5), ("nanometer", "mm", 5e-7), ("centimeter", "mm", 5)],
)
def test_units_that_nifti_lacks_become_millimetres(tmp_path, unit, written, size):
    meta = Meta(spacing=(0.5, 0.5, 0.5), unit=unit, orientation="SPL")
    after = nib.load(export(stored(tmp_path / "a.zarr", random_voxels(), meta), tmp_path / "a.nii"))
    assert after.header.get_xyzt_units()[0] == written
    assert after.header.get_zooms() == pytest.approx((size,) * 3)
    np.testing.assert_allclose(np.diag(after.affine)[:3], (-size, -size, size))
    assert nib.aff2axcodes(after.affine) == ("L", "P", "S")


@pytest.mark.slow
def test_a_long_side_needs_nifti_2(tmp_path):
    meta = Meta(affine=np.diag([1.0, 2, 3, 1]), source=None)
    voxels = random_voxels((1, 2, 33000), "uint8")
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of(voxels.shape, "uint8", meta, chunk=(1, 2, 1024))
    )
    volume.write(Roi.full(voxels.shape), voxels)
    after = nib.load(export(volume, tmp_path / "a.nii"))
    assert isinstance(after, nib.Nifti2Image)
    np.testing.assert_array_equal(np.asarray(after.dataobj).T, voxels)
    np.testing.assert_array_equal(after.affine, np.diag([1.0, 2, 3, 1]))


def test_a_long_side_keeps_the_header_of_a_nifti_1_source(tmp_path):
    make_image(nib.Nifti1Image).to_filename(tmp_path / "in.nii")
    meta = open_source(tmp_path / "in.nii").meta
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((1, 2, 33000), "uint8", meta, chunk=(1, 2, 1024))
    )
    after = nib.load(export(volume, tmp_path / "a.nii"))
    assert isinstance(after, nib.Nifti2Image)
    np.testing.assert_allclose(after.affine, OBLIQUE, atol=1e-6)
    assert after.header["descrip"] == b"scanned on a Tuesday"


def test_the_same_voxels_give_the_same_bytes(tmp_path):
    volume = stored(tmp_path / "a.zarr", random_voxels())
    one = export(volume, tmp_path / "one.nii.gz", memory="1GiB").read_bytes()
    two = export(volume, tmp_path / "two.nii.gz", memory="1KiB").read_bytes()
    assert gzip.decompress(one) == gzip.decompress(two)
    assert one == two


def test_memory_is_bounded_by_a_slab(tmp_path):
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((256, 64, 64), "uint8", Meta(), chunk=16, shard=32)
    )
    export(volume, tmp_path / "warm.nii.gz")
    tracemalloc.start()
    export(volume, tmp_path / "a.nii.gz", memory="64KiB")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["b.nii", "b.mha", "b.ome.tif", "b.h5"])
def test_memory_is_bounded_where_it_holds_no_layer_of_chunks(tmp_path, name):
    voxels = np.random.default_rng(0).integers(0, 999, (32, 256, 256), "uint16")
    spec = VolumeSpec.of(voxels.shape, voxels.dtype, Meta(), chunk=32, shard=64)
    volume = create(tmp_path / "a.zarr", spec)
    volume.write(Roi.full(voxels.shape), voxels)
    export(volume, tmp_path / f"warm.{name}")
    tracemalloc.start()
    path = export(volume, tmp_path / name, memory="2MiB")  # 64 chunks of 64 KiB, each in a layer
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(open_source(path)[:], voxels)
    assert peak < 2.5 * 2**20


def test_memory_that_cannot_hold_a_plane_is_refused(tmp_path):
    volume = stored(tmp_path / "a.zarr", random_voxels())
    with pytest.raises(MemoryRefused, match="needs memory of 660 B, given 100 B"):
        export(volume, tmp_path / "a.nii", memory=100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("seg.xyz", r"names no format that can be written; use \.nii, \.nii\.gz, "),
        ("seg.zarr", "names a Zarr volume"),
        ("nowhere/seg.nii", "does not exist; make it first"),
        ("there.nii", "exists; choose another name or overwrite=True"),
    ],
)
def test_refusals_leave_everything_alone(tmp_path, name, message):
    volume = stored(tmp_path / "a.zarr", random_voxels())
    (tmp_path / "there.nii").write_text("precious")
    with pytest.raises(InvalidInput, match=message):
        export(volume, tmp_path / name)
    assert (tmp_path / "there.nii").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "there.nii"]


def test_overwrite_replaces_a_file_but_no_folder(tmp_path):
    volume = stored(tmp_path / "a.zarr", random_voxels())
    (tmp_path / "there.npy").write_text("old")
    np.testing.assert_array_equal(
        np.load(export(volume, tmp_path / "there.npy", overwrite=True)), random_voxels()
    )
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InvalidInput, match="exists"):
        export(volume, tmp_path / "folder.npy", overwrite=True)


def test_a_damaged_volume_leaves_no_file(tmp_path):
    volume = stored(tmp_path / "a.zarr", random_voxels())
    (tmp_path / "a.zarr" / "0" / "c" / "1" / "0" / "0").write_bytes(b"junk")
    (tmp_path / "there.nii").write_text("precious")
    with pytest.raises(Damaged, match="cannot be read at"):
        export(volume, tmp_path / "there.nii", overwrite=True)
    assert (tmp_path / "there.nii").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "there.nii"]


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch, suffix):
    volume = stored(tmp_path / "a.zarr", random_voxels((64, 64, 64)))
    real = Path.open

    def full(self, *rest, **options):
        file = real(self, *rest, **options)
        if self.name.endswith(".tmp"):
            with real(Path("/dev/full"), "wb") as device:
                os.dup2(device.fileno(), file.fileno())
        return file

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunFailed, match="No space left on device; nothing is left of it"):
        export(volume, tmp_path / f"a{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mni152/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        "hippocampus_msd/images/hippocampus_190.nii.gz",
        "formats_neuroglancer/nifti/standard.nii",
        "formats_neuroglancer/nifti/example_nifti2.nii.gz",
        pytest.param("t1_brainchop/t1_crop.nii.gz", marks=pytest.mark.slow),
    ],
)
def test_real_files_come_back(tmp_path, name, shared_data):
    folder, file = name.split("/", 1)
    path = shared_data(folder) / file
    before = nib.load(path)
    volume = to_store(open_source(path), tmp_path / "a.zarr")
    after = nib.load(export(volume, tmp_path / "out.nii.gz"))
    assert (type(after), after.shape) == (type(before), before.shape)
    np.testing.assert_array_equal(np.asarray(after.dataobj), np.asarray(before.dataobj))
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-6)
