"""HDF5 files as sources: which dataset is meant, its axes and grid, and what is not followed."""

import fcntl
import json
import sys
from typing import ClassVar

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import SourceContract, random_zyx
from volflow.errors import Damaged, InvalidInput, Unreadable
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import open_source

h5py = pytest.importorskip("h5py", reason="extra hdf5")


def save(path, voxels, name="volumes/raw", attributes=None, **options):
    with h5py.File(path, "a") as file:
        dataset = file.create_dataset(name, data=voxels, **options)
        dataset.attrs.update(attributes or {})
    return path


def tags(axes):
    return {"axistags": json.dumps({"axes": [{"key": axis, "typeFlags": 1} for axis in axes]})}


class Hdf5(SourceContract):
    """A dataset; `options` say how it is stored."""

    options: ClassVar = {}

    def make(self, folder, voxels):
        return save(folder / "a.h5", voxels, **self.options)


class TestInOneRun(Hdf5):
    pass


class TestInChunks(Hdf5):
    options: ClassVar = {"chunks": (3, 4, 5), "compression": "gzip", "shuffle": True}


class TestOfTheOtherByteOrder(Hdf5):
    options: ClassVar = {"chunks": (11, 2, 2), "compression": "lzf"}

    def voxels(self):
        return random_zyx(dtype=">f4")


class TestOfChannels(Hdf5):
    def voxels(self):
        return random_zyx((3, 11, 6, 7))


class TestOfBooleans(Hdf5):
    def voxels(self):
        return random_zyx() > 0


class TestOfIlastik(TestOfChannels):
    """Channels come last, and axes of one voxel in front."""

    def make(self, folder, voxels):
        stored = np.moveaxis(voxels, 0, -1)[None]
        return save(folder / "a.h5", stored, attributes=tags("tzyxc"), chunks=(1, 2, 3, 4, 2))


class TestOfMatlab(TestOfChannels):
    """What MATLAB knows as V(y, x, z, c)."""

    def make(self, folder, voxels):
        matlab = np.einsum("czyx->yxzc", voxels)
        with h5py.File(folder / "a.mat", "w", userblock_size=512) as file:
            file["V"] = matlab.T  # the last axis of MATLAB varies slowest
            file["V"].attrs["MATLAB_class"] = np.bytes_("int16")
            file["#refs#/a"] = np.zeros((5, 5, 5))
        return folder / "a.mat"


def imaris(path, voxels, level=0, timepoint=0, **more):
    """A level and timepoint as Imaris stores it: each channel in whole chunks, texts by letters."""
    with h5py.File(path, "a") as file:
        place = f"DataSet/ResolutionLevel {level}/TimePoint {timepoint}"
        for number, channel in enumerate(voxels):
            group = file.create_group(f"{place}/Channel {number}")
            padded = np.pad(channel, [(0, -side % 8) for side in channel.shape])
            group.create_dataset("Data", data=padded, chunks=(8, 8, 8), compression="gzip")
            for axis, side in zip("ZYX", channel.shape, strict=True):
                group.attrs[f"ImageSize{axis}"] = letters(side)
            own = file.require_group(f"DataSetInfo/Channel {number}")
            own.attrs["Name"] = letters(f"channel {number}")
        image = file.require_group("DataSetInfo/Image")
        extent = {"ExtMin0": -1, "ExtMax0": 2.5, "ExtMin1": 0, "ExtMax1": 6, "ExtMin2": 0}
        for name, value in {**extent, "ExtMax2": 22, "Unit": "um", **more}.items():
            image.attrs[name] = letters(value)
    return path


def letters(value):
    return np.frombuffer(str(value).encode(), "S1")


class TestOfImaris(TestOfChannels):
    def make(self, folder, voxels):
        return imaris(folder / "a.ims", voxels)


def test_the_grid_of_imaris(tmp_path):
    fine, coarse = random_zyx((2, 11, 6, 7), "uint8"), random_zyx((2, 11, 3, 4), "uint8")
    for timepoint in (0, 1):
        imaris(tmp_path / "a.ims", fine + timepoint, timepoint=timepoint)
        imaris(tmp_path / "a.ims", coarse + timepoint, level=1, timepoint=timepoint)
    second = open_source(tmp_path / "a.ims", ImageChoice(timepoint=1))
    np.testing.assert_array_equal(second[:], fine + 1)
    assert second.meta.spacing == (2, 1, 0.5)
    assert second.meta.translation == (1, 0.5, -0.75)
    assert (second.meta.unit, second.meta.channels) == ("micrometer", ("channel 0", "channel 1"))
    half = open_source(tmp_path / "a.ims", ImageChoice(timepoint=0, level=1, channel="channel 1"))
    np.testing.assert_array_equal(half[:], coarse[1])
    assert half.meta.spacing == (2, 2, 0.875)
    with pytest.raises(InvalidInput, match="has 2 timepoints; choose one of 0 to 1"):
        open_source(tmp_path / "a.ims")
    with pytest.raises(InvalidInput, match="has 2 levels, given level 2; choose 0 to 1"):
        open_source(tmp_path / "a.ims", ImageChoice(level=2, timepoint=0))
    plain = f"{tmp_path}/a.ims::DataSet/ResolutionLevel 1/TimePoint 1/Channel 0/Data"
    assert open_source(plain).shape == (16, 8, 8)


@pytest.mark.parametrize(("name", "said"), [("ImageSizeZ", 99), ("ImageSizeZ", 0)])
def test_imaris_that_lies_is_refused(tmp_path, name, said):
    path = imaris(tmp_path / "a.ims", random_zyx((1, 11, 6, 7)))
    with h5py.File(path, "a") as file:
        place = "DataSet/ResolutionLevel 0/TimePoint 0/Channel 0"
        file[place].attrs[name] = letters(said)
    with pytest.raises(Damaged, match=f"says {said} × 6 × 7 voxels at .* and has 16 × 8 × 8"):
        open_source(path)


# Which dataset


def test_one_dataset_of_several(tmp_path):
    path = save(tmp_path / "a.h5", random_zyx())
    save(path, random_zyx((3, 4, 5)), "volumes/labels/ids")
    save(path, np.zeros((9, 9)), "table")
    save(path, np.array([[[b"a"]]]), "words")
    assert open_source(f"{path}::volumes/labels/ids").shape == (3, 4, 5)
    assert open_source(path, ImageChoice(dataset="/volumes/labels")).shape == (3, 4, 5)
    assert open_source(f"{path}::table").shape == (1, 9, 9)
    with pytest.raises(InvalidInput) as caught:
        open_source(path)
    assert str(caught.value) == (
        f"{path} holds 2 datasets; choose one with dataset= (--dataset, or {path}::volumes/labels/"
        "ids): volumes/labels/ids 3 × 4 × 5 int16, volumes/raw 11 × 6 × 7 int16"
    )
    with pytest.raises(InvalidInput, match="holds 2 datasets, given volumes/mask; choose one"):
        open_source(f"{path}::volumes/mask")
    first, second = (open_source(path, ImageChoice(dataset=d)) for d in ("volumes/raw", "table"))
    assert first.identity() != second.identity()


def test_a_file_without_volumes(tmp_path):
    save(tmp_path / "a.h5", np.zeros((9, 9)))
    with pytest.raises(InvalidInput, match="holds no dataset of three axes; name one as"):
        open_source(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2, 2), "complex64"), "holds complex64"),
        (np.zeros((2, 2, 2), [("a", "i4"), ("b", "f4")]), "a volume holds bool, integers or fl"),
        (np.full((2, 2, 2), b"word"), "a volume holds bool, integers or floats"),
        (np.zeros((0, 2, 2)), "has an empty dataset volumes/raw"),
        (np.zeros((2, 3, 2, 2, 2, 2)), r"of shape \(2, 3, 2, 2, 2, 2\) with axes without names"),
        (np.zeros(5), r"of shape \(5,\) with axes without names; a volume has"),
    ],
)
def test_what_no_volume_holds_is_refused(tmp_path, values, message):
    path = save(tmp_path / "a.h5", values)
    with pytest.raises(InvalidInput, match=message):
        open_source(f"{path}::volumes/raw")


# Axes


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((5, 6, 7), (5, 6, 7)),
        ((6, 7), (1, 6, 7)),
        ((1, 5, 6, 7), (5, 6, 7)),
        ((5, 6, 7, 1), (5, 6, 7)),
        ((1, 1, 5, 6, 7), (5, 6, 7)),
        ((1, 2, 5, 6, 7, 1), (2, 5, 6, 7)),
    ],
)
def test_axes_without_names(tmp_path, shape, found):
    voxels = np.arange(np.prod(shape)).reshape(shape)
    source = open_source(f"{save(tmp_path / 'a.h5', voxels)}::volumes/raw")
    assert source.shape == found
    np.testing.assert_array_equal(source[:], voxels.reshape(found))


@pytest.mark.parametrize("axes", ["xyz", "yxc", "zcyx", "cxyz", "yx"])
def test_axes_with_names(tmp_path, axes):
    sizes = {"t": 2, "c": 3, "z": 4, "y": 5, "x": 6}
    voxels = np.arange(np.prod([sizes[a] for a in axes])).reshape([sizes[a] for a in axes])
    wanted = np.einsum(f"{axes}->{''.join(a for a in 'czyx' if a in axes)}", voxels)
    for name, attributes in (("a.h5", tags(axes)), ("b.h5", {})):
        path = save(tmp_path / name, voxels, attributes=attributes)
        if not attributes:
            with h5py.File(path, "a") as file:
                for number, axis in enumerate(axes):
                    file["volumes/raw"].dims[number].label = axis
        source = open_source(f"{path}::volumes/raw")
        np.testing.assert_array_equal(source[:].squeeze(), wanted)
        assert source.shape[-2:] == (5, 6)


def test_one_timepoint_of_several(tmp_path):
    voxels = random_zyx((2, 4, 5, 6))
    path = save(tmp_path / "a.h5", voxels, attributes=tags("tzyx"))
    second = open_source(path, ImageChoice(timepoint=1))
    np.testing.assert_array_equal(second[:], voxels[1])
    assert second.identity() != open_source(path, ImageChoice(timepoint=0)).identity()
    with pytest.raises(InvalidInput, match="has 2 timepoints; choose one of 0 to 1"):
        open_source(path)
    with pytest.raises(InvalidInput, match="has 1 level, given level 1"):
        open_source(path, ImageChoice(level=1, timepoint=0))


def test_axes_that_a_volume_has_not(tmp_path):
    path = save(tmp_path / "a.h5", random_zyx(), attributes=tags("zyq"))
    assert open_source(path).shape == (11, 6, 7)  # as if they had none
    save(tmp_path / "b.h5", random_zyx((2, 2, 2, 2, 2)), attributes=tags("abcde"))
    with pytest.raises(InvalidInput, match="with axes abcde; a volume has z, y, x and channels"):
        open_source(tmp_path / "b.h5")
    save(tmp_path / "c.h5", random_zyx(), attributes={"axistags": "{"})
    with pytest.raises(Damaged, match=r"has damaged axistags at volumes/raw \(.*\); repair them"):
        open_source(tmp_path / "c.h5")


# Grid


@pytest.mark.parametrize(
    ("attributes", "spacing", "unit", "translation"),
    [
        ({"element_size_um": [2, 0.5, 0.5]}, (2, 0.5, 0.5), "micrometer", (0, 0, 0)),
        ({"element_size_um": np.float32([2, 0.1, 0.1])}, (2, 0.1, 0.1), "micrometer", (0, 0, 0)),
        ({"element_size_um": [0, 1, 1]}, (1, 1, 1), None, (0, 0, 0)),
        ({"element_size_um": "large"}, (1, 1, 1), None, (0, 0, 0)),
        ({"element_size_um": [1e300, 1, 1]}, (1, 1, 1), None, (0, 0, 0)),
        ({"resolution": [4, 4, 4], "offset": [0, np.nan, 0]}, (4, 4, 4), "nanometer", (0, 0, 0)),
        ({"resolution": [40, 4, 4]}, (40, 4, 4), "nanometer", (0, 0, 0)),
        (
            {"resolution": [40.0, 4, 4], "offset": [1480.0, 3644, 3644]},
            (40, 4, 4), "nanometer", (1480, 3644, 3644),
        ),
        ({"voxel_size": [2, 1, 1], "units": ["um"] * 3}, (2, 1, 1), "micrometer", (0, 0, 0)),
        ({}, (1, 1, 1), None, (0, 0, 0)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["volumes/raw", "volumes", "/"])
def test_the_grid(tmp_path, attributes, spacing, unit, translation, place):
    path = save(tmp_path / "a.h5", random_zyx())
    with h5py.File(path, "a") as file:
        file[place].attrs.update(attributes)
    meta = open_source(path).meta
    assert (meta.spacing, meta.unit, meta.translation) == (spacing, unit, translation)


def test_integers_of_big_data_viewer_have_no_sign(tmp_path):
    voxels = random_zyx(dtype="uint16")
    path = save(tmp_path / "a.h5", voxels.view("int16"), "t00000/s00/0/cells")
    save(path, voxels.view("int16")[::2], "t00000/s00/1/cells")
    source = open_source(f"{path}::t00000/s00/0/cells")
    assert source.dtype == "uint16"
    np.testing.assert_array_equal(source[:], voxels)


# What leads elsewhere, and what is broken


def test_links_within_a_file_are_followed(tmp_path):
    path = save(tmp_path / "a.h5", random_zyx())
    with h5py.File(path, "a") as file:
        file["here"] = h5py.SoftLink("/volumes")
        file["volumes/again"] = h5py.SoftLink("raw")
        file["round"] = h5py.SoftLink("/round")
    assert open_source(path).shape == (11, 6, 7)
    assert open_source(f"{path}::here/again").shape == (11, 6, 7)
    with pytest.raises(Damaged, match="has links at round that lead in a circle"):
        open_source(f"{path}::round")


def test_other_files_are_not_read(tmp_path):
    secret = save(tmp_path / "secret.h5", random_zyx())
    (tmp_path / "secret.raw").write_bytes(random_zyx().tobytes())
    layout = h5py.VirtualLayout((11, 6, 7), "int16")
    layout[:] = h5py.VirtualSource(secret, "volumes/raw", (11, 6, 7))
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["linked"] = h5py.ExternalLink(str(secret), "/volumes")
        file["by/way"] = h5py.SoftLink("/linked/raw")
        file.create_virtual_dataset("virtual", layout)
        outside = [(str(tmp_path / "secret.raw"), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("outside", (11, 6, 7), "int16", external=outside)
    for name in ("linked/raw", "by/way"):
        with pytest.raises(InvalidInput, match=f"has {name} in another file, {secret}, which is"):
            open_source(f"{path}::{name}")
    for name in ("virtual", "outside"):
        with pytest.raises(InvalidInput, match=f"has the voxels of {name} in other datasets or"):
            open_source(f"{path}::{name}")


def test_a_missing_filter_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((4, 4, 4))
        made.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
        space = h5py.h5s.create_simple((8, 8, 8))
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_INT16, space, made)
    if h5py.h5z.filter_avail(32015):
        pytest.skip("hdf5plugin is installed")
    with pytest.raises(InvalidInput, match=r"holds raw packed by filter 32015, .* hdf5plugin"):
        open_source(tmp_path / "a.h5")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.h5", random_zyx())
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InvalidInput, match=r'need h5py, .*; pip install "volflow\[hdf5\]"'):
        open_source(path)


@pytest.mark.parametrize("name", ["a.h5", "a.mat"])
@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" * 99])
def test_other_bytes_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput, match=r"is not an HDF5 file; (check|MATLAB writes one)"):
        open_source(tmp_path / name)


def test_a_cut_file_is_refused_at_once(tmp_path):
    path = save(tmp_path / "a.h5", random_zyx())
    content = path.read_bytes()
    for keep in (600, len(content) - 1):
        path.write_bytes(content[:keep])
        with pytest.raises(Damaged, match=r"is damaged HDF5 \(.*truncated file.*\); copy it"):
            open_source(path)


def test_a_broken_chunk_is_named_when_it_is_read(tmp_path):
    voxels = random_zyx((16, 8, 8))
    path = save(tmp_path / "a.h5", voxels, chunks=(8, 8, 8), compression="gzip")
    with h5py.File(path) as file:
        chunk = file["volumes/raw"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    source = open_source(path)
    assert source.decoded == (8, 8, 8)
    np.testing.assert_array_equal(source[:8], voxels[:8])
    with pytest.raises(Unreadable, match="cannot be read at volumes/raw"):
        source[7:9]


def test_a_file_that_is_being_written_is_refused(tmp_path):
    path = save(tmp_path / "a.h5", random_zyx())
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # as HDF5 does in another process
        with pytest.raises(InvalidInput, match="is open in another program that writes it"):
            open_source(path)


# Real files


def test_real_datasets(shared_data):
    folder = shared_data("em_gala")
    kinds = {"image": "uint8", "gt.lzf": "int32", "p1.lzf": "float32", "ws.lzf": "int32"}
    for name, dtype in kinds.items():
        path = folder / f"train-{name}.h5"
        with h5py.File(path) as file:
            voxels = file["stack"][()]
        source = open_source(path)
        assert (source.shape, source.dtype) == ((50, 100, 200), dtype)
        np.testing.assert_array_equal(source[:], voxels)
        np.testing.assert_array_equal(source[7:9, 90:, 3:5], voxels[7:9, 90:, 3:5])
        assert (source.meta.spacing, source.meta.unit) == ((1, 1, 1), None)
