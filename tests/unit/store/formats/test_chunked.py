"""N5 and precomputed volumes: chunks written by hand, and what their metadata say or lie."""

import itertools
import json
import shutil
import struct

import numpy as np
import pytest

from tests.unit.store.formats.test_sources import (
    SourceContract,
    assert_refused_in_one_line,
    random_zyx,
)
from volflow.errors import Damaged, InvalidInput, Unreadable
from volflow.geometry.roi import Roi
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import open_source
from volflow.volumes.convert import convert

tensorstore = pytest.importorskip("tensorstore")

SIDE = 4  # of a chunk


def boxes(shape):
    """Where each chunk lies in an array, whose first axis varies fastest."""
    starts = itertools.product(*(range(0, size, SIDE) for size in shape))
    for start in starts:
        yield tuple(slice(a, min(a + SIDE, n)) for a, n in zip(start, shape, strict=True))


def write_n5(folder, voxels, **attributes):
    """Write C-ordered voxels as a dataset whose axes are reversed, as its specification says."""
    array = voxels.T
    said = {"dimensions": array.shape, "blockSize": [SIDE] * array.ndim}
    said |= {"dataType": voxels.dtype.name, "compression": {"type": "raw"}} | attributes
    folder.mkdir(parents=True)
    (folder / "attributes.json").write_text(json.dumps(said))
    for box in boxes(array.shape):
        part = array[box]
        path = folder.joinpath(*(str(one.start // SIDE) for one in box))
        path.parent.mkdir(parents=True, exist_ok=True)
        head = struct.pack(f">HH{array.ndim}I", 0, array.ndim, *part.shape)
        path.write_bytes(head + part.astype(voxels.dtype.newbyteorder(">")).tobytes("F"))
    return folder


def write_attributes(folder, **attributes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attributes.json").write_text(json.dumps(attributes))


SCALE = {"key": "4_4_40", "resolution": [4, 5, 40], "encoding": "raw", "voxel_offset": [0, 0, 0]}


def write_precomputed(folder, voxels, offset=(0, 0, 0), **info):
    """Write raw chunks of a volume ``zyx`` or ``czyx`` as Neuroglancer describes them."""
    array = voxels.reshape(-1, *voxels.shape[-3:]).T
    scale = {**SCALE, "size": array.shape[:3], "chunk_sizes": [[SIDE] * 3], "voxel_offset": offset}
    said = {"type": "image", "data_type": voxels.dtype.name, "num_channels": array.shape[3]}
    (folder / SCALE["key"]).mkdir(parents=True)
    (folder / "info").write_text(json.dumps(said | {"scales": [scale]} | info))
    for box in boxes(array.shape[:3]):
        spans = zip(box, offset, strict=True)
        name = "_".join(f"{one.start + at}-{one.stop + at}" for one, at in spans)
        (folder / SCALE["key"] / name).write_bytes(array[box].tobytes("F"))
    return folder


class TestN5(SourceContract):
    def make(self, folder, voxels):
        return write_n5(folder / "a.n5", voxels)


class TestN5OfChannels(SourceContract):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "float64")

    def make(self, folder, voxels):
        write_n5(folder / "a.n5/setup/raw", voxels)
        return f"{folder / 'a.n5'}::setup/raw"


class TestN5WhoseChannelsLieInside(SourceContract):
    """As Fiji writes them: x, y, c, z."""

    def voxels(self):
        return random_zyx((3, 11, 6, 7), "uint16")

    def make(self, folder, voxels):
        axes = ["x", "y", "c", "z"]
        return write_n5(folder / "a.n5", voxels.swapaxes(0, 1), axes=axes)


class TestPrecomputed(SourceContract):
    def make(self, folder, voxels):
        return write_precomputed(folder / "a", voxels, offset=(10, 20, 30))


class TestPrecomputedOfChannels(SourceContract):
    def voxels(self):
        return random_zyx((3, 11, 6, 7), "float32")

    def make(self, folder, voxels):
        return write_precomputed(folder / "a", voxels)


# N5


def pyramid(folder, **attributes):
    """Three levels of which the coarser ones say how coarse they are."""
    for level in range(3):
        voxels = random_zyx((11, 6, 7))[:: 2**level, :: 2**level, :: 2**level]
        write_n5(folder / f"s{level}", voxels, downsamplingFactors=[2**level] * 3)
    write_attributes(folder, **attributes)
    return folder


@pytest.mark.parametrize("level", [None, 0, 2])
def test_a_level_of_a_pyramid_is_chosen(tmp_path, level):
    path = pyramid(tmp_path / "a.n5", pixelResolution={"dimensions": [1, 2, 3], "unit": "um"})
    step = 2 ** (level or 0)
    for source in (
        open_source(path, ImageChoice(level=level)),
        open_source(f"{path}::s{level or 0}"),
        open_source(path / f"s{level or 0}"),
    ):
        voxels = source.read(Roi.full(source.shape))
        np.testing.assert_array_equal(voxels, random_zyx()[::step, ::step, ::step])
        assert source.meta.spacing == (3 * step, 2 * step, step)
        shift = (step - 1) / 2
        assert source.meta.translation == (3 * shift, 2 * shift, shift)
        assert (source.meta.unit, source.decoded) == (
            "micrometer",
            tuple(min(SIDE, n) for n in source.shape),
        )
    assert source.identity() != open_source(path / "s1").identity()


NM = {"resolution": [1, 2, 3], "units": ["nm", "nm", "um"]}
COSEM = {"axes": ["z", "y", "x"], "scale": [3, 2, 1], "translate": [30, 20, 10]}


@pytest.mark.parametrize(
    ("own", "spacing", "translation", "unit"),
    [
        ({}, (1, 1, 1), (0, 0, 0), None),
        ({"resolution": [1, 2, 3]}, (3, 2, 1), (0, 0, 0), None),
        ({"pixelResolution": [1, 2, 3], "unit": "micron"}, (3, 2, 1), (0, 0, 0), "micrometer"),
        (NM, (3000, 2, 1), (0, 0, 0), "nanometer"),
        ({"transform": {**COSEM, "units": ["nm"] * 3}}, (3, 2, 1), (30, 20, 10), "nanometer"),
        ({"transform": {**COSEM, "ordering": "F", "axes": ["x", "y", "z"]}}, (1, 2, 3),
         (10, 20, 30), None),
    ],
)  # fmt: skip
def test_the_ways_in_which_a_dataset_says_its_grid(tmp_path, own, spacing, translation, unit):
    meta = open_source(write_n5(tmp_path / "a.n5", random_zyx(), **own)).meta
    assert (meta.spacing, meta.translation, meta.unit) == (spacing, translation, unit)


def test_the_axes_may_be_those_of_numpy(tmp_path):
    """As h5py-minded software writes them, the slowest axis first."""
    voxels = random_zyx()
    path = write_n5(tmp_path / "a.n5", voxels.T, axes=["z", "y", "x"], resolution=[3, 2, 1])
    source = open_source(path)
    np.testing.assert_array_equal(source.read(Roi.full(source.shape)), voxels)
    assert source.meta.spacing == (3, 2, 1)


def test_labels_of_paintera_are_classes(tmp_path):
    pyramid(tmp_path / "a.n5/labels", painteraData={"type": "label"})
    assert open_source(tmp_path / "a.n5").meta.kind == "classes"


def test_two_axes_are_one_slice_and_a_timepoint_is_chosen(tmp_path):
    voxels = random_zyx((3, 6, 7))
    path = write_n5(tmp_path / "a.n5", voxels, axes=["x", "y", "t"])
    with pytest.raises(InvalidInput, match=r"has 3 timepoints; choose one of 0 to 2 with tim"):
        open_source(path)
    with pytest.raises(InvalidInput, match=r"has 3 timepoints, given timepoint 3"):
        open_source(path, ImageChoice(timepoint=3))
    source = open_source(path, ImageChoice(timepoint=2))
    np.testing.assert_array_equal(source.read(Roi((0, 1, 0), (1, 6, 7)))[0], voxels[2, 1:])


def test_what_is_meant_of_several_is_asked_for(tmp_path):
    root = tmp_path / "a.n5"
    for name in ("volumes/raw", "volumes/labels/ids"):
        write_n5(root / name, random_zyx())
    with pytest.raises(InvalidInput, match=r"choose one, as a\.n5::volumes/labels/ids or by datas"):
        open_source(root)
    with pytest.raises(InvalidInput, match="no dataset volumes; there are volumes/labels/ids, vol"):
        open_source(f"{root}::volumes")
    assert open_source(root, ImageChoice(dataset="volumes/raw")).shape == (11, 6, 7)
    shutil.rmtree(root / "volumes/labels")
    assert open_source(root).shape == (11, 6, 7)


@pytest.mark.parametrize("name", ["n5_viewer_multiscale_modern", "n5_viewer_multiscale_deprecated"])
def test_real_containers(name, tmp_path, shared_data):
    """Their y is in seconds; as nanometres, they are read as Neuroglancer's tests read them."""
    given = shared_data("formats_neuroglancer") / "n5" / name
    with pytest.raises(InvalidInput, match="have the units s, nanometer, which are not all length"):
        open_source(given)
    for file in given.rglob("attributes.json"):
        at = tmp_path / file.relative_to(given.parent)
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(file.read_text().replace('"s"]', '"nm"]'))
    for level, shape in enumerate([(1, 20, 10), (1, 10, 5), (1, 5, 3)]):
        source = open_source(tmp_path / name, ImageChoice(level=level))
        assert (source.shape, source.dtype) == (shape, "uint16")
        assert source.meta.spacing == (1, 20 * 2**level, 10 * 2**level)
        assert not source.read(Roi.full(shape)).any()


@pytest.mark.parametrize(
    ("own", "error", "message"),
    [
        ({"dataType": "complex64"}, Damaged, "complex64 data type is not one of the supported"),
        ({"dataType": 3}, Damaged, "its metadata are damaged"),
        ({"dimensions": [7, 6, 2**62]}, Damaged, "which is impossible"),
        ({"dimensions": [7, 0, 11]}, Damaged, "which is impossible"),
        ({"dimensions": [2**40, 2**40, 11]}, Damaged, "which is impossible"),
        ({"dimensions": [7, 6, -11]}, Damaged, "its metadata are damaged"),
        ({"dimensions": "7"}, InvalidInput, "its 1 axes are called"),
        ({"dimensions": 7}, Damaged, "damaged N5 attributes"),
        ({"blockSize": [10**4] * 3}, Damaged, "exceeds maximum chunk size"),
        ({"blockSize": [4, 4, 0]}, Damaged, "its metadata are damaged"),
        ({"compression": {"type": "../"}}, Damaged, "is not registered"),
        ({"axes": ["x", "y", "q"]}, InvalidInput, "its 3 axes are called x, y, q; a volume has"),
        ({"axes": ["x", "y", "y"]}, InvalidInput, "its 3 axes are called x, y, y"),
        ({"axes": ["x", "y"]}, InvalidInput, "its 3 axes are called x, y"),
        ({"axes": 5}, Damaged, "damaged N5 attributes"),
        ({"resolution": [1, 2, 3, 4]}, Damaged, "damaged N5 attributes"),
        ({"resolution": [1, 2, 0]}, InvalidInput, "spacing must be positive"),
        ({"resolution": {"a": 1}}, Damaged, "damaged N5 attributes"),
        (
            {"resolution": [1, 1, 1], "units": ["nm", "nm", "furlong"]},
            InvalidInput,
            "units furlong",
        ),
        ({"isLabelMultiset": True}, InvalidInput, "several labels for a voxel"),
    ],
)
def test_attributes_that_lie_are_refused_in_one_line(tmp_path, own, error, message):
    path = write_n5(tmp_path / "a.n5", random_zyx())
    said = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps(said | own))
    assert_refused_in_one_line(path, error, message, 600)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("a.n5::../b.n5", {}, r"'\.\./b\.n5' lies outside .*a\.n5, where nothing is read"),
        ("a.n5::/etc", {}, r"'/etc' lies outside"),
        ("a.n5::s7", {}, "has no dataset s7; there are s0|has no dataset s7"),
        ("a.n5", {"level": 3}, "has 3 levels, given level 3; choose 0 to 2"),
        ("a.n5::s1", {"level": 2}, "is one level of a pyramid, or none; leave level 2 out"),
        ("a.n5", {"timepoint": 0}, "has no time axis, given timepoint 0"),
        ("a.n5", {"series": 1}, "is N5, of which no series can be chosen"),
    ],
)
def test_choices_that_are_none(tmp_path, path, options, message):
    pyramid(tmp_path / "a.n5")
    with pytest.raises(InvalidInput, match=message):
        open_source(tmp_path / path, ImageChoice(**options))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 9999])
def test_attributes_that_are_no_object(tmp_path, content):
    path = write_n5(tmp_path / "a.n5", random_zyx())
    (path / "attributes.json").write_text(content)
    with pytest.raises(Damaged, match=r"attributes\.json (cannot be read|holds no JSON object)"):
        open_source(path)


def test_a_file_or_an_empty_folder_is_no_container(tmp_path):
    (tmp_path / "a.n5").mkdir()
    (tmp_path / "b.n5").write_bytes(b"")
    for name in ("a.n5", "b.n5"):
        with pytest.raises(InvalidInput, match="no dataset lies in it; check the path"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("what", ["cut", "header"])
def test_a_damaged_chunk_is_named_where_it_is_read(tmp_path, what):
    source = open_source(write_n5(tmp_path / "a.n5", random_zyx()))
    chunk = tmp_path / "a.n5/0/0/0"
    data = chunk.read_bytes()
    large = struct.pack(">HH3I", 0, 3, *[2**31 - 1] * 3)
    chunk.write_bytes(data[:40] if what == "cut" else large + data[16:])
    with pytest.raises(Unreadable, match=r"a\.n5 cannot be read at \(0, 0, 0\):") as caught:
        source.read(Roi.full(source.shape))
    assert "\n" not in str(caught.value)
    assert "tensorstore_spec" not in str(caught.value)
    np.testing.assert_array_equal(source[8:, 4:, 4:], random_zyx()[8:, 4:, 4:])


# Precomputed


@pytest.mark.parametrize(
    ("encoding", "dtype", "sharded"),
    [
        ("compressed_segmentation", "uint64", False),
        ("raw", "uint16", True),
        ("png", "uint8", False),
        ("jpeg", "uint8", False),
    ],
)
def test_each_encoding_is_read(tmp_path, encoding, dtype, sharded):
    voxels = np.broadcast_to(np.arange(20, dtype=dtype)[:, None, None], (20, 18, 16))
    scale = {**SCALE, "size": [16, 18, 20], "encoding": encoding, "chunk_size": [8, 8, 8]}
    if encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    if sharded:
        scale["sharding"] = {
            "@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 1,
            "minishard_bits": 2, "shard_bits": 1, "data_encoding": "gzip",
            "minishard_index_encoding": "gzip",
        }  # fmt: skip
    kind = "segmentation" if dtype == "uint64" else "image"
    said = {"data_type": dtype, "num_channels": 1, "type": kind}
    store = tensorstore.open(
        {"driver": "neuroglancer_precomputed", "scale_metadata": scale, "multiscale_metadata": said,
         "kvstore": {"driver": "file", "path": f"{tmp_path}/a"}},
        create=True,
    ).result()  # fmt: skip
    store[...] = voxels.T[..., None]
    source = open_source(tmp_path / "a")
    found = source.read(Roi.full(source.shape))
    np.testing.assert_allclose(found, voxels, atol=1 if encoding == "jpeg" else 0)
    assert (source.meta.unit, source.meta.spacing) == ("nanometer", (40, 5, 4))
    assert (source.dtype, source.decoded) == (dtype, (8, 8, 8))
    assert source.meta.kind == ("classes" if dtype == "uint64" else "image")


def test_scales_are_chosen_by_number_or_key(shared_data):
    path = shared_data("formats_neuroglancer") / "precomputed/two_channels"
    key = open_source(f"{path}::6_8_10")
    number = open_source(path, ImageChoice(level=1))
    assert key.shape == number.shape == (2, 15, 10, 5)
    assert key.meta.spacing == (10, 8, 6)
    assert key.meta.translation == (2.5, 2, 1.5)
    assert key.identity() == number.identity() != open_source(path).identity()
    for wanted in ("9", "6_8"):
        with pytest.raises(InvalidInput, match=rf"has 3 levels, given level {wanted}; .*\(3_4_5,"):
            open_source(f"{path}::{wanted}")


def test_an_offset_is_a_place(tmp_path):
    path = write_precomputed(tmp_path / "a", random_zyx(), (10, 20, 30), type="segmentation")
    meta = open_source(path).meta
    assert (meta.kind, meta.translation) == ("classes", (1200, 100, 40))


@pytest.mark.parametrize(
    ("scale", "info", "error", "message"),
    [
        ({"key": "../b"}, {}, InvalidInput, r"'\.\./b' lies outside"),
        ({"key": "/etc"}, {}, InvalidInput, "'/etc' lies outside"),
        ({"key": 5}, {}, Damaged, "its metadata are damaged"),
        ({"resolution": [1, 2]}, {}, Damaged, "damaged info"),
        ({"resolution": [1, 2, 0]}, {}, InvalidInput, "spacing must be positive"),
        ({"voxel_offset": "a"}, {}, Damaged, "damaged info"),
        ({"size": [7, 6, 2**62]}, {}, Damaged, "its metadata are damaged|impossible"),
        ({"size": [7, 6, 0]}, {}, Damaged, "its metadata are damaged|impossible"),
        ({"chunk_sizes": [[10**5] * 3]}, {}, Damaged, "claims chunks of .* held whole"),
        ({"chunk_sizes": []}, {}, Damaged, "its metadata are damaged"),
        ({"encoding": "none"}, {}, Damaged, "its metadata are damaged"),
        ({}, {"data_type": "float64"}, Damaged, "its metadata are damaged"),
        ({}, {"num_channels": 2**60}, Damaged, "its metadata are damaged|impossible"),
        ({}, {"num_channels": -1}, Damaged, "its metadata are damaged"),
        ({}, {"scales": []}, InvalidInput, "has 0 levels"),
        ({}, {"scales": 3}, Damaged, "damaged info"),
        ({}, {"scales": [3]}, Damaged, "damaged info"),
    ],
)
def test_an_info_that_lies_is_refused_in_one_line(tmp_path, scale, info, error, message):
    path = write_precomputed(tmp_path / "a", random_zyx())
    said = json.loads((path / "info").read_text())
    said["scales"][0] |= scale
    (path / "info").write_text(json.dumps(said | info))
    with pytest.raises(InvalidInput, match=message) as caught:
        open_source(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("content", ['{"scales": [', '{"scales": [] ' + "[" * 9999, "x"])
def test_an_info_that_is_none(tmp_path, content):
    (tmp_path / "info").write_text(content)
    with pytest.raises(InvalidInput, match=r"info cannot be read|is a directory, but not a Zarr"):
        open_source(tmp_path)


@pytest.mark.parametrize("write", [write_n5, write_precomputed])
def test_a_folder_is_converted(tmp_path, write):
    volume = convert(write(tmp_path / "a", random_zyx()), tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(np.asarray(volume), random_zyx())
