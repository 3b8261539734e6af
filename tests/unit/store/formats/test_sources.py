"""Sources: one contract that each of them keeps, and the lies that real files tell."""

import gzip
import pickle

import numpy as np
import pytest
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.formats.sources import open_source
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.volume import described

nib = pytest.importorskip("nibabel")


def random_zyx(shape=(11, 6, 7), dtype="int16"):
    return np.random.default_rng(0).integers(-90, 90, shape).astype(dtype)


def save_nifti(path, zyx, affine=None, make=nib.Nifti1Image, header=None):
    image = make(zyx.T, np.diag([2.0, 3, 4, 1]) if affine is None else affine, header)
    image.to_filename(path)
    return path


def read_in_slabs(path):
    """All voxels of a file that may be packed as a whole."""
    source = open_source(path)
    voxels = np.empty(source.shape, source.dtype)
    for roi, slab in source.slabs(3):
        voxels[roi.slices()] = slab
    return voxels


def assert_refused_in_one_line(path, error, message, longest=400):
    """A file cannot be opened, with this error, whose short line begins with its path."""
    with pytest.raises(InvalidInput, match=message) as caught:
        open_source(path)
    assert type(caught.value) is error
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < longest


class SourceContract:
    """What `convert` relies on; each source inherits these tests."""

    sequential = False

    def make(self, folder, voxels):
        """Store zyx or czyx voxels; return what `open_source` opens."""
        raise NotImplementedError

    def voxels(self):
        return random_zyx()

    def opened(self, folder):
        voxels = self.voxels()
        return open_source(self.make(folder, voxels)), voxels

    def test_it_says_what_it_gives(self, tmp_path):
        source, voxels = self.opened(tmp_path)
        assert source.shape == voxels.shape
        assert source.dtype == voxels.dtype.newbyteorder("=")
        assert source.dtype.isnative
        assert len(source.meta.axes) == len(source.shape)
        assert described(source).source is not None
        assert source.sequential is self.sequential

    def test_it_is_unpacked_once(self, tmp_path):
        source, voxels = self.opened(tmp_path)
        found, count = np.zeros_like(voxels), 0
        for roi, slab in source.once(4):
            assert slab.shape == roi.shape
            assert roi.shape[:-3] in ((), (source.together,))
            found[roi.slices()] = slab
            count += slab.size
        np.testing.assert_array_equal(found, voxels)
        assert count == voxels.size

    @pytest.mark.parametrize("depth", [1, 4, 11, 100])
    def test_slabs_cover_it_once_in_order(self, tmp_path, depth):
        source, voxels = self.opened(tmp_path)
        found = np.zeros_like(voxels)
        starts = []
        for roi, slab in source.slabs(depth):
            assert slab.shape == roi.shape
            assert slab.dtype == source.dtype
            assert roi.shape[-2:] == voxels.shape[-2:]
            assert roi.shape[-3] <= depth
            assert all(n == 1 for n in roi.shape[:-3])
            found[roi.slices()] = slab
            starts.append(roi.start)
        np.testing.assert_array_equal(found, voxels)
        assert starts == sorted(set(starts))

    def test_slabs_can_be_had_again(self, tmp_path):
        source, _ = self.opened(tmp_path)
        next(iter(source.slabs(2)))
        sums = [sum(int(slab.sum()) for _, slab in source.slabs(3)) for _ in range(2)]
        assert sums[0] == sums[1]

    def test_a_box_is_read_or_refused(self, tmp_path):
        source, voxels = self.opened(tmp_path)
        roi = Roi((0,) * (voxels.ndim - 3) + (3, 1, 2), (*voxels.shape[:-3], 9, 5, 6))
        if self.sequential:
            with pytest.raises(InvalidInput, match=r"slabs\(\)"):
                source.read(roi)
        else:
            part = source.read(roi)
            assert part.dtype == source.dtype
            np.testing.assert_array_equal(part, voxels[roi.slices()])

    def test_workers_can_have_it(self, tmp_path):
        source, voxels = self.opened(tmp_path)
        again = pickle.loads(pickle.dumps(source))
        total = sum(int(slab.sum(dtype="i8")) for _, slab in again.slabs(5))
        assert total == voxels.sum(dtype="i8")
        assert again.identity() == source.identity()

    def test_identity_follows_the_voxels(self, tmp_path):
        (tmp_path / "other").mkdir()
        source, voxels = self.opened(tmp_path)
        other = open_source(self.make(tmp_path / "other", voxels[..., ::-1].copy()))
        assert source.identity() != other.identity()


class TestNpy(SourceContract):
    def make(self, folder, voxels):
        np.save(folder / "a.npy", voxels)
        return folder / "a.npy"


class TestNpyOfOtherByteOrder(TestNpy):
    def voxels(self):
        return random_zyx(dtype=">f4")


class TestFortranNpy(SourceContract):
    def make(self, folder, voxels):
        np.save(folder / "a.npy", np.asfortranarray(voxels))
        return folder / "a.npy"


class TestNpyOfChannels(TestNpy):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "float16")


class TestArray(SourceContract):
    def make(self, folder, voxels):
        return voxels


class TestNifti(SourceContract):
    name = "a.nii"

    def make(self, folder, voxels):
        return save_nifti(folder / self.name, voxels)


class TestNiftiOfOtherByteOrder(SourceContract):
    def make(self, folder, voxels):
        header = nib.Nifti1Header(endianness=">")
        header.set_data_dtype(voxels.dtype)
        return save_nifti(folder / "a.nii", voxels, header=header)


class TestNiftiOfChannels(TestNifti):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "float64")


class TestNifti2(SourceContract):
    def make(self, folder, voxels):
        return save_nifti(folder / "a.nii", voxels, make=nib.Nifti2Image)


class TestCompressedNifti(TestNifti):
    name = "a.nii.gz"
    sequential = True


class TestCompressedNiftiOfChannels(TestCompressedNifti):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "uint8")


class TestOmeZarr(SourceContract):
    def make(self, folder, voxels):
        volume = create(
            folder / "a.zarr", VolumeSpec.of(voxels.shape, voxels.dtype, Meta(), chunk=4, shard=8)
        )
        volume.write(Roi.full(voxels.shape), voxels)
        return volume.path


@pytest.mark.parametrize("zarr_format", [2, 3])
class TestPlainZarr:
    def test_it_is_a_source(self, tmp_path, zarr_format):
        voxels = random_zyx()
        path = tmp_path / "a.zarr"
        zarr.create_array(path, data=voxels, chunks=(4, 4, 4), zarr_format=zarr_format)
        source = open_source(path)
        np.testing.assert_array_equal(source.read(Roi.full(source.shape)), voxels)
        assert described(source).source.format == "zarr"


# NIfTI: geometry


@pytest.mark.parametrize("code", ["sform", "qform"])
def test_the_affine_gives_spacing_and_orientation(tmp_path, code):
    affine = np.array([[0, 0, -2.0, 5], [0.5, 0, 0, 6], [0, -1, 0, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(random_zyx().T, None)
    getattr(image, f"set_{code}")(affine, 1)
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "a.nii")
    meta = open_source(tmp_path / "a.nii").meta
    assert meta.spacing == (2, 1, 0.5)
    assert meta.orientation == "LIA"
    assert meta.unit == "micrometer"
    np.testing.assert_allclose(meta.affine, affine, atol=1e-6)


def test_spacing_is_in_the_headers_decimals(tmp_path):
    affine = np.diag([0.78, 0.78, 6.5, 1])
    source = open_source(save_nifti(tmp_path / "a.nii", random_zyx(), affine))
    assert source.meta.spacing == (6.5, 0.78, 0.78)


def test_spacing_follows_the_affine_where_pixdim_lies(tmp_path):
    image = nib.Nifti1Image(random_zyx().T, None)
    image.header["pixdim"][1:4] = 0
    image.set_sform(np.diag([2, 3, 4, 1]), 1)
    image.header["pixdim"][1:4] = (0, 9, np.nan)
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + random_zyx().tobytes())
    assert open_source(tmp_path / "a.nii").meta.spacing == (4, 3, 2)


@pytest.mark.parametrize(("code", "unit"), [(0, None), (1, "millimeter")])
def test_a_header_without_unit_or_orientation(tmp_path, code, unit):
    image = nib.Nifti1Image(random_zyx().T, None)
    image.header.set_zooms((1, 2, 3))
    image.set_sform(np.diag([1, 2, 3, 1]) if code else None, code)
    image.to_filename(tmp_path / "a.nii")
    meta = open_source(tmp_path / "a.nii").meta
    assert meta.spacing == (3, 2, 1)
    assert meta.unit == unit
    assert (meta.orientation, meta.affine is None) == (("SAR", False) if code else (None, True))


@pytest.mark.parametrize(
    ("file_shape", "shape"),
    [
        ((7, 6), (1, 6, 7)),
        ((7, 6, 5, 1), (5, 6, 7)),
        ((7, 6, 5, 1, 3), (3, 5, 6, 7)),
        ((7, 6, 1, 4), (4, 1, 6, 7)),
    ],
)
def test_axes_of_one_voxel_are_dropped(tmp_path, file_shape, shape):
    values = np.arange(np.prod(file_shape), dtype="int16").reshape(file_shape, order="F")
    nib.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "a.nii")
    source = open_source(tmp_path / "a.nii")
    assert source.shape == shape
    np.testing.assert_array_equal(source.read(Roi.full(shape)), values.ravel("F").reshape(shape))


# NIfTI: values


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ("uint8", "float32"),
        ("int16", "float32"),
        ("float32", "float32"),
        ("int32", "float64"),
        ("float64", "float64"),
    ],
)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_scaling_is_applied(tmp_path, stored, given, name):
    raw = random_zyx(dtype="int16").astype(stored)
    image = nib.Nifti1Image(raw.T, np.eye(4))
    image.header.set_slope_inter(0.25, -10)
    header = image.header.copy()
    header.set_data_dtype(stored)
    header["vox_offset"] = 352
    content = header.binaryblock + bytes(4) + raw.tobytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = open_source(tmp_path / name)
    assert source.dtype == given
    for roi, slab in source.slabs(4):
        np.testing.assert_array_equal(slab, (raw[roi.slices()] * 0.25 - 10).astype(given))


@pytest.mark.parametrize("scaling", [(1, 0), (0, 5), (np.nan, np.nan)])
def test_scaling_that_does_nothing_keeps_the_dtype(tmp_path, scaling):
    header = nib.Nifti1Header()
    header.set_data_shape((7, 6, 11))
    header.set_data_dtype("int16")
    header["scl_slope"], header["scl_inter"] = scaling
    header["vox_offset"] = 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + random_zyx().tobytes())
    source = open_source(tmp_path / "a.nii")
    assert source.dtype == "int16"
    np.testing.assert_array_equal(source.read(Roi.full(source.shape)), random_zyx())


def test_header_extensions_are_skipped(tmp_path):
    image = nib.Nifti1Image(random_zyx().T, np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 1000))
    for name in ("a.nii", "a.nii.gz"):
        image.to_filename(tmp_path / name)
        (_, slab), *_ = open_source(tmp_path / name).slabs(100)
        np.testing.assert_array_equal(slab, random_zyx())


# NIfTI: lies


def header_with(**fields):
    header = nib.Nifti1Header()
    header.set_data_shape((7, 6, 11))
    header.set_data_dtype("int16")
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"datatype": 128}, "a volume holds bool, integers or floats"),
        ({"datatype": 32}, "holds complex64"),
        ({"datatype": 1536}, "a volume holds bool"),
        ({"datatype": 999}, "damaged NIfTI header"),
        ({"sform_code": 0, "pixdim": 0}, "voxels of size"),
        ({"dim": (5, 7, 6, 1, 2, 5, 1, 1)}, "more than one axis beyond"),
        ({"dim": (3, 7, -6, 11, 1, 1, 1, 1)}, r"sizes \[7, -6, 11\]"),
        ({"dim": (1, 7, 1, 1, 1, 1, 1, 1)}, "sizes"),
        ({"sform_code": 0, "pixdim": (1, 1, 0, 1, 1, 1, 1, 1)}, "voxels of size"),
        ({"sform_code": 0, "pixdim": (1, 1, np.inf, 1, 1, 1, 1, 1)}, "voxels of size"),
        ({"srow_x": 0}, "singular affine"),
        ({"srow_x": (np.nan, 0, 0, 0)}, "voxels of size"),
        ({"magic": b"ni1"}, "half of a .hdr/.img pair"),
        ({"magic": b"abc"}, "is not a NIfTI file"),
        ({"scl_slope": 2, "scl_inter": np.nan}, "damaged NIfTI header"),
        ({"vox_offset": np.nan}, "damaged NIfTI header"),
        ({"vox_offset": 1e9}, "is cut short"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, fields, message):
    (tmp_path / "a.nii").write_bytes(header_with(**fields) + bytes(4) + random_zyx().tobytes())
    with pytest.raises(InvalidInput, match=message) as caught:
        open_source(tmp_path / "a.nii")
    assert "\n" not in str(caught.value)


def test_a_short_file_is_refused_at_once(tmp_path):
    path = save_nifti(tmp_path / "a.nii", random_zyx())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInput, match="is cut short"):
        open_source(path)


@pytest.mark.parametrize("content", [b"", b"\x5c\x01\x00\x00", b"not an image" * 100])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_other_bytes_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(InvalidInput, match="is not a NIfTI file"):
        open_source(tmp_path / name)


def test_a_name_that_lies_about_compression_is_refused(tmp_path):
    save_nifti(tmp_path / "a.nii", random_zyx()).rename(tmp_path / "a.nii.gz")
    with pytest.raises(InvalidInput, match="is damaged"):
        open_source(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_cut_compressed_file_is_noticed_on_the_way(tmp_path, keep):
    path = save_nifti(tmp_path / "a.nii.gz", random_zyx((40, 40, 40)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InvalidInput, match="is cut short"):
        list(open_source(path).slabs(4))


def test_a_flipped_bit_in_a_compressed_file_is_noticed(tmp_path):
    # Stored, not deflated: only gzip's checksum, at the very end, can tell.
    path = tmp_path / "a.nii.gz"
    plain = save_nifti(tmp_path / "a.nii", random_zyx()).read_bytes()
    content = bytearray(gzip.compress(plain, compresslevel=0))
    content[-100] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InvalidInput, match="is damaged"):
        list(open_source(path).slabs(4))


def test_slabs_are_read_as_they_are_asked_for(tmp_path, monkeypatch):
    path = save_nifti(tmp_path / "a.nii.gz", random_zyx((64, 64, 64)))
    taken = []
    real = gzip.GzipFile.readinto

    def counted(self, target):
        taken.append(real(self, target))
        return taken[-1]

    monkeypatch.setattr(gzip.GzipFile, "readinto", counted)
    slabs = open_source(path).slabs(8)
    next(slabs)
    slabs.close()
    assert sum(taken) == 8 * 64 * 64 * 2


# Other refusals


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xyz", b"II+", "is of a format that cannot be read; NIfTI, NumPy"),
        ("a.npy", b"", "is not a .npy array or is cut short"),
        ("a.npy", b"junk" * 40, "is not a .npy array or is cut short"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=message):
        open_source(tmp_path / name)


def test_a_cut_npy_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", random_zyx())
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-1])
    with pytest.raises(InvalidInput, match="is cut short"):
        open_source(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("voxels", "message"),
    [
        (np.zeros(5), "a volume is zyx or czyx"),
        (np.zeros((1, 1, 2, 2, 2)), "a volume is zyx or czyx"),
        (np.zeros((0, 2, 2)), "not empty"),
        (np.zeros((2, 2, 2), "complex64"), "holds complex64"),
        (np.zeros((2, 2, 2), "datetime64[s]"), "holds datetime64"),
    ],
)
def test_arrays_that_are_no_volume_are_refused(tmp_path, voxels, message):
    np.save(tmp_path / "a.npy", voxels)
    for x in (voxels, tmp_path / "a.npy"):
        with pytest.raises(InvalidInput, match=message):
            open_source(x)


def test_missing_and_unknown_things_are_refused(tmp_path):
    with pytest.raises(InvalidInput, match="does not exist"):
        open_source(tmp_path / "a.nii.gz")
    with pytest.raises(InvalidInput, match="is a directory, but not a Zarr"):
        open_source(tmp_path)
    with pytest.raises(InvalidInput, match="given int"):
        open_source(3)


def test_two_axes_are_one_slice(tmp_path):
    flat = random_zyx((1, 6, 7))[0]
    for x in (flat, np.asfortranarray(flat)):
        np.save(tmp_path / "a.npy", x)
        for source in (open_source(x), open_source(tmp_path / "a.npy")):
            assert source.shape == (1, 6, 7)
            np.testing.assert_array_equal(source.read(Roi.full(source.shape))[0], flat)


@pytest.mark.parametrize(
    ("name", "shape", "orientation"),
    [
        ("mni152/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz", (189, 233, 197), "SAR"),
        ("hippocampus_msd/images/hippocampus_190.nii.gz", (30, 52, 37), "SAR"),
        ("formats_neuroglancer/nifti/standard.nii", (7, 5, 4), "SAR"),
        ("formats_neuroglancer/nifti/example_nifti2.nii.gz", (2, 12, 20, 32), "SAL"),
        pytest.param("t1_brainchop/t1_crop.nii.gz", (256, 256, 256), "AIL", marks=pytest.mark.slow),
    ],
)
def test_real_files_equal_what_nibabel_reads(name, shape, orientation, shared_data):
    folder, file = name.split("/", 1)
    path = shared_data(folder) / file
    source = open_source(path)
    assert (source.shape, source.meta.orientation) == (shape, orientation)
    expected = nib.load(path)
    voxels = np.asarray(expected.dataobj).T
    for roi, slab in source.slabs(32):
        np.testing.assert_array_equal(slab, voxels[roi.slices()])
    np.testing.assert_allclose(source.meta.affine, expected.affine, atol=1e-6)
    assert source.meta.unit == "millimeter"
