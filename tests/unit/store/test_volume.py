"""Volumes: opened or refused in one line, read anywhere, written by whole shards only."""

import itertools
import os
import pickle
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.indexing import to_box
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.volume import Volume, open_volume, shard_rois

CZYX = Meta(("c", "z", "y", "x"))


def random_like(shape, dtype="uint16"):
    return np.random.default_rng(0).integers(0, 60000, shape).astype(dtype)


def filled(path, shape=(20, 30, 40), **more):
    meta = Meta() if len(shape) == 3 else CZYX
    volume = create(path, VolumeSpec.of(shape, "uint16", meta, chunk=8, shard=16, **more))
    voxels = random_like(shape)
    volume.write(Roi.full(shape), voxels)
    return volume, voxels


# Opening


def test_what_can_be_opened(tmp_path):
    volume, voxels = filled(tmp_path / "a.zarr")
    group = zarr.open_group(volume.path, mode="r")
    for x in (volume, volume.path, Path(volume.path), f"file://{volume.path}", group):
        np.testing.assert_array_equal(open_volume(x)[...], voxels)
    for x in (group["0"], f"{volume.path}/0"):
        plain = open_volume(x)
        np.testing.assert_array_equal(plain[...], voxels)
        assert (plain.spacing, plain.unit, plain.orientation) == ((1, 1, 1), None, None)


def test_a_path_means_the_same_everywhere(tmp_path, monkeypatch):
    filled(tmp_path / "a.zarr")
    monkeypatch.chdir(tmp_path)
    volume = open_volume("a.zarr")
    assert volume.path == str(tmp_path / "a.zarr")
    monkeypatch.chdir("/")
    assert volume[0, 0, 0] == pickle.loads(pickle.dumps(volume))[0, 0, 0]


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("dtype", [">i2", "<f8", "bool", "uint8"])
def test_plain_arrays_of_either_format_and_byte_order(tmp_path, zarr_format, dtype):
    if dtype == ">i2" and zarr_format == 3:
        dtype = "int16"
    voxels = random_like((5, 6, 7)).astype(dtype)
    zarr.create_array(tmp_path / "a.zarr", data=voxels, chunks=(2, 3, 4), zarr_format=zarr_format)
    volume = open_volume(tmp_path / "a.zarr")
    assert volume.dtype == np.dtype(dtype).newbyteorder("=")
    assert volume.dtype.isnative
    assert volume[...].dtype.isnative
    np.testing.assert_array_equal(volume[...], voxels)
    assert volume.shards is None


@pytest.mark.parametrize(
    ("shape", "names", "axes"),
    [
        ((5, 6, 7), None, "zyx"),
        ((2, 5, 6, 7), None, "czyx"),
        ((6, 7), None, "zyx"),
        ((1, 2, 5, 6, 7), None, "czyx"),
        ((2, 6, 7), ("c", "y", "x"), "czyx"),
        ((1, 5, 6, 7), ("T", "Z", "Y", "X"), "zyx"),
        ((5, 6, 7), ("dim_0", "dim_1", "dim_2"), "zyx"),
    ],
)
def test_axes_of_plain_arrays(shape, names, axes):
    voxels = random_like(shape)
    array = zarr.create_array(
        zarr.storage.MemoryStore(), data=voxels, chunks=(2,) * len(shape), dimension_names=names
    )
    volume = open_volume(array)
    assert volume.axes == tuple(axes)
    assert len(volume.shape) == len(volume.chunks) == volume.ndim == len(axes)
    np.testing.assert_array_equal(volume[...].ravel(), voxels.ravel())
    roi = Roi.full(volume.shape)
    assert volume.read(roi).shape == volume.shape


def test_a_timepoint_is_chosen():
    voxels = random_like((3, 2, 5, 6, 7))
    array = zarr.create_array(zarr.storage.MemoryStore(), data=voxels, chunks=(2, 1, 5, 6, 7))
    with pytest.raises(InvalidInput, match="3 timepoints; choose one with timepoint=0 to 2"):
        open_volume(array)
    with pytest.raises(InvalidInput, match="has 3 timepoints, given timepoint 3"):
        open_volume(array, timepoint=3)
    volume = open_volume(array, timepoint=1)
    assert (volume.shape, volume.channels_count) == ((2, 5, 6, 7), 2)
    np.testing.assert_array_equal(volume[...], voxels[1])
    with pytest.raises(InvalidInput, match="is a view of an array t, c, z, y, x"):
        volume.write(Roi.full(volume.shape), voxels[1])
    with pytest.raises(InvalidInput, match="no time axis"):
        open_volume(zarr.ones(shape=(2, 2, 2)), timepoint=0)


def refusals(folder):
    (folder / "empty").mkdir()
    (folder / "scan.nii.gz").write_bytes(b"\x1f\x8b")
    zarr.create_group(folder / "plate.zarr").create_group("A1")
    for name, text in {
        "cut": '{"zarr_format": 3, "node_type": "array", "sha',
        "keys": '{"zarr_format": 3, "node_type": "array"}',
        "list": "[]",
        "version": '{"zarr_format": 9, "node_type": "group"}',
    }.items():
        (folder / name).mkdir()
        (folder / name / "zarr.json").write_text(text)
    create(folder / "lost.zarr", VolumeSpec.of((5, 6, 7), "uint8", Meta()))
    (folder / "lost.zarr" / "0" / "zarr.json").unlink()
    for name, array in {
        "line": np.zeros(5),
        "six": np.zeros((1,) * 6),
        "complex": np.zeros((2, 2, 2), "complex64"),
        "times": np.zeros((2, 2, 2), "datetime64[s]"),
        "none": np.zeros((0, 2, 2)),
    }.items():
        zarr.create_array(folder / name, data=array, chunks=(2,) * array.ndim)
    zarr.create_array(
        folder / "xyz", data=np.zeros((2, 2, 2)), chunks=(2, 2, 2), dimension_names=("x", "y", "z")
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "is a directory, but not a Zarr array or group"),
        (".", r"open one inside: complex, cut, keys, line, list, …"),
        ("scan.nii.gz", r"is a file, not a Zarr store; convert it first: vf\.convert"),
        ("plate.zarr", "not an image: it has no multiscales metadata; open one inside: A1"),
        ("cut", "cannot be opened: zarr.json: Unterminated"),
        ("keys", "cannot be opened: KeyError"),
        ("list", "its metadata are damaged"),
        ("version", "its metadata are damaged"),
        ("lost.zarr", "level '0' of .*lost.zarr cannot be opened"),
        ("line", "has 1 axes"),
        ("six", "has 6 axes"),
        ("complex", "holds complex64; .* up to 64 bits; save its parts one by one"),
        ("times", r"holds datetime64\[s\]; .* up to 64 bits; cast it to one of these"),
        ("none", "is empty"),
        ("xyz", "axes must be z, y, x"),
    ],
)
def test_refused_in_one_line(tmp_path, name, message):
    refusals(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInput, match=message) as caught:
        open_volume(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (3 if isinstance(caught.value, Damaged) else 2)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("x", [None, 3, np.zeros((2, 2, 2))])
def test_other_objects_are_refused(x):
    with pytest.raises(InvalidInput, match=f"given {type(x).__name__}; store other arrays"):
        open_volume(x)


@pytest.mark.parametrize("level", [-1, 1])
def test_a_level_that_is_not_there(tmp_path, level):
    volume, _ = filled(tmp_path / "a.zarr")
    with pytest.raises(InvalidInput, match=f"level must be 0 to 0, given {level}"):
        open_volume(volume.path, level=level)
    with pytest.raises(InvalidInput, match="open another from its path"):
        open_volume(volume, level=level)


# Reading


@pytest.mark.slow
@given(data=st.data())
def test_reading_is_slicing(data):
    voxels = random_like((2, 9, 10, 11))
    array = zarr.create_array(zarr.storage.MemoryStore(), data=voxels, chunks=(1, 4, 4, 4))
    start = [data.draw(st.integers(0, n)) for n in voxels.shape]
    stop = [data.draw(st.integers(a, n)) for a, n in zip(start, voxels.shape, strict=True)]
    roi = Roi(tuple(start), tuple(stop))
    np.testing.assert_array_equal(open_volume(array).read(roi), voxels[roi.slices()])


def test_a_spatial_box_reads_all_channels(tmp_path):
    volume, voxels = filled(tmp_path / "a.zarr", (2, 20, 30, 40))
    roi = Roi((1, 2, 3), (5, 7, 9))
    np.testing.assert_array_equal(volume.read(roi), voxels[:, 1:5, 2:7, 3:9])


@pytest.mark.parametrize(
    "roi", [Roi((-1, 0, 0), (5, 5, 5)), Roi((0, 0, 0), (5, 5, 41)), Roi((0, 0), (5, 5))]
)
def test_a_box_outside_is_refused(tmp_path, roi):
    volume, _ = filled(tmp_path / "a.zarr")
    with pytest.raises(InvalidInput, match="reaches outside the volume"):
        volume.read(roi)


def test_damaged_bytes_are_reported(tmp_path):
    volume, _ = filled(tmp_path / "a.zarr")
    shard = tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(Damaged, match=r"a\.zarr cannot be read at \(0, 0, 0\)"):
        volume[0, 0, 0]


keys = st.one_of(
    st.integers(-4, 3),
    st.builds(slice, *[st.none() | st.integers(-6, 6)] * 2, st.none() | st.integers(1, 3)),
)


@given(st.lists(keys, max_size=3), st.none() | st.integers(0, 3))
def test_indexing_is_numpys(items, ellipsis):
    if ellipsis is not None:
        items.insert(min(ellipsis, len(items)), Ellipsis)
    voxels = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    roi, inner = to_box(tuple(items), voxels.shape)
    np.testing.assert_array_equal(voxels[roi.slices()][inner], voxels[tuple(items)])


def test_bad_indices_are_refused():
    volume = open_volume(zarr.ones(shape=(4, 5, 6)))
    for key in ("z", None, [1, 2], 1.5, slice(None, None, -1)):
        with pytest.raises(InvalidInput):
            volume[key]
    for key in (4, -5, (0, 0, 0, 0), (..., 0, ...)):
        with pytest.raises(IndexError):
            volume[key]
    assert len(list(volume)) == 4


def test_numpy_takes_it_whole():
    volume = open_volume(zarr.ones(shape=(4, 5, 6), dtype="u1"))
    assert np.asarray(volume).shape == (4, 5, 6)
    assert np.asarray(volume, dtype="f4").sum() == 120


# Writing


def test_a_write_returns_the_checksum_of_each_shard(tmp_path):
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((20, 30, 40), "uint16", Meta(), chunk=8, shard=16)
    )
    voxels = random_like(volume.shape)
    sums = volume.write(Roi.full(volume.shape), voxels)
    assert len(sums) == 2 * 2 * 3
    for entry in sums:
        part = np.ascontiguousarray(volume.read(Roi(entry.start, entry.stop)))
        assert google_crc32c.value(part.tobytes()) == entry.crc32c
        np.testing.assert_array_equal(part, voxels[Roi(entry.start, entry.stop).slices()])
    assert [entry.start for entry in sums] == sorted(entry.start for entry in sums)


def test_data_may_lie_in_memory_any_way(tmp_path):
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((20, 30, 40), "float32", Meta(), chunk=8, shard=16)
    )
    voxels = np.asfortranarray(random_like(volume.shape, ">f4"))
    sums = volume.write(Roi.full(volume.shape), voxels)
    np.testing.assert_array_equal(volume[...], voxels)
    straight = np.ascontiguousarray(voxels[:16, :16, :16], "f4")
    assert sums[0].crc32c == google_crc32c.value(straight.tobytes())


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (Roi((0, 0, 0), (8, 30, 40)), r"roi 0:8 on axis z .* multiple of 16.* use 0:16"),
        (Roi((16, 0, 8), (20, 30, 40)), "roi 8:40 on axis x .* use 0:40"),
        (Roi((0, 16, 0), (16, 29, 40)), "roi 16:29 on axis y .* end 30; use 16:30"),
    ],
)
def test_law_1_a_box_that_owns_a_shard_in_part_is_refused(tmp_path, roi, message):
    volume, voxels = filled(tmp_path / "a.zarr")
    with pytest.raises(InvalidInput, match=message):
        volume.write(roi, np.zeros(roi.shape, "uint16"))
    with pytest.raises(InvalidInput, match="owns stored objects"):
        shard_rois(volume, roi)
    np.testing.assert_array_equal(volume[...], voxels)


def test_law_1_holds_for_chunks_where_there_are_no_shards():
    volume = open_volume(zarr.zeros(shape=(8, 8, 8), chunks=(4, 4, 4), dtype="u1"))
    assert len(volume.write(Roi((0, 4, 0), (4, 8, 8)), np.ones((4, 4, 8), "u1"))) == 2
    with pytest.raises(InvalidInput, match="use 0:4"):
        volume.write(Roi((0, 0, 0), (2, 8, 8)), np.ones((2, 8, 8), "u1"))


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((20, 30, 39), "uint16"),
        np.zeros((20, 30, 40), "int16"),
        np.zeros((20, 30, 40), "float32"),
    ],
)
def test_data_that_do_not_fit_are_refused(tmp_path, data):
    volume, voxels = filled(tmp_path / "a.zarr")
    with pytest.raises(InvalidInput, match=r"data must be uint16 \(20, 30, 40\)"):
        volume.write(Roi.full(volume.shape), data)
    np.testing.assert_array_equal(volume[...], voxels)


def test_shards_of_fill_value_leave_no_file(tmp_path):
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((32, 16, 16), "u1", Meta(), chunk=8, shard=16)
    )
    voxels = np.zeros(volume.shape, "u1")
    voxels[0, 0, 0] = 1
    sums = volume.write(Roi.full(volume.shape), voxels)
    assert len(sums) == 2
    files = [p for p in (tmp_path / "a.zarr" / "0" / "c").rglob("*") if p.is_file()]
    assert [str(p.relative_to(tmp_path)) for p in files] == ["a.zarr/0/c/0/0/0"]
    volume.write(Roi.full(volume.shape), np.zeros_like(voxels))
    assert not volume[...].any()
    assert not [p for p in (tmp_path / "a.zarr" / "0").rglob("c/**/*") if p.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fill", "shards"),
    [*itertools.product((0, 1, np.nan, np.inf), (None, (16, 16, 16))), (None, None)],
)
def test_chunks_are_left_out_as_zarr_leaves_them_out(tmp_path, fill, shards):
    """Whatever the fill value; one voxel of each chunk is looked at first."""
    shape, kept = (20, 9, 12), {}
    version = 2 if fill is None else 3
    empty = np.full(shape, 0 if fill is None else fill, "f4")
    half, corner, signed = empty.copy(), empty.copy(), np.full(shape, -0.0, "f4")
    half[10:] = 2
    corner[0, 0, 0] = 2
    for name, voxels in {"empty": empty, "half": half, "corner": corner, "signed": signed}.items():
        for by in ("volume", "zarr"):
            array = zarr.create_array(
                tmp_path / by / name, shape=shape, dtype="f4", chunks=(8, 8, 8), shards=shards,
                fill_value=fill, zarr_format=version,
            )  # fmt: skip
            volume = open_volume(array)
            if by == "volume":
                volume.write(Roi.full(shape), voxels)
            for piece in shard_rois(volume, Roi.full(shape)) if by == "zarr" else ():
                array.set_basic_selection(piece.slices(), voxels[piece.slices()])
            np.testing.assert_array_equal(volume[...], voxels)
            kept[by, name] = {
                str(path.relative_to(array.store.root)): path.read_bytes()
                for path in array.store.root.rglob("*")
                if path.is_file()
            }
        assert kept["volume", name] == kept["zarr", name]


# Identity, pickling, Dask


def test_identity_follows_the_stored_bytes(tmp_path):
    volume, voxels = filled(tmp_path / "a.zarr")
    first = volume.identity()
    assert open_volume(volume.path).identity() == first
    assert pickle.loads(pickle.dumps(volume)).identity() == first
    volume.write(Roi.full(volume.shape), voxels[::-1])
    changed = volume.identity()
    assert changed != first
    shard = tmp_path / "a.zarr" / "0" / "c" / "0" / "0" / "0"
    os.utime(shard, ns=(0, 0))
    assert volume.identity() not in (first, changed)


def test_identity_tells_levels_and_spacings_apart(tmp_path):
    filled(tmp_path / "a.zarr")
    path = tmp_path / "a.zarr" / "zarr.json"
    before = open_volume(tmp_path / "a.zarr").identity()
    path.write_text(path.read_text().replace("1.0", "2.0"))
    assert open_volume(tmp_path / "a.zarr").identity() != before


@pytest.mark.slow
def test_it_opens_in_another_process_without_reading_metadata(tmp_path):
    volume, voxels = filled(tmp_path / "a.zarr")
    (tmp_path / "pickled").write_bytes(pickle.dumps(volume))
    code = (
        "import pickle, sys, pathlib;"
        "v = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()); print(int(v[...].sum()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pickled")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == voxels.sum()
    assert len(pickle.dumps(volume)) < 10_000


def test_a_volume_in_memory_is_not_sent_away():
    volume = open_volume(zarr.ones(shape=(4, 5, 6)))
    with pytest.raises(InvalidInput, match="cannot be sent to another process"):
        pickle.dumps(volume)


def test_dask_has_one_piece_per_shard(tmp_path):
    volume, voxels = filled(tmp_path / "a.zarr")
    lazy = volume.dask()
    assert lazy.chunks == ((16, 4), (16, 14), (16, 16, 8))
    assert len(lazy.dask) <= lazy.npartitions + 1
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), voxels)
    assert volume.dask((20, 30, 40)).numblocks == (1, 1, 1)


def test_dask_never_takes_old_voxels_for_new(tmp_path):
    volume, voxels = filled(tmp_path / "a.zarr")
    before = volume.dask().name
    assert volume.dask().name == before
    volume.write(Roi.full(volume.shape), voxels + 1)
    assert volume.dask().name != before


def test_repr_is_one_line(tmp_path):
    meta = Meta(spacing=(2, 0.5, 0.5), unit="millimeter", orientation="SAR")
    volume = create(tmp_path / "a.zarr", VolumeSpec.of((20, 30, 40), "u1", meta, chunk=8, shard=16))
    assert repr(volume) == (
        "Volume(a.zarr, zyx 20×30×40 uint8, spacing 2×0.5×0.5 millimeter, SAR, chunks 8×8×8, "
        "shards 16×16×16)"
    )
    assert isinstance(volume, Volume)


# Others' files


def test_five_axes_of_other_software(shared_data):
    path = shared_data("omezarr_v04_tubhiswt") / "tubhiswt4D_sub.zarr"
    with pytest.raises(InvalidInput, match="3 timepoints"):
        open_volume(path)
    volume = open_volume(path, 1, timepoint=2)
    assert (volume.shape, volume.spacing) == ((1, 2, 256, 256), (1, 2, 2))
    stored = zarr.open_array(path / "1", mode="r")[2]
    np.testing.assert_array_equal(volume[...], stored)
    labels = open_volume(path / "labels" / "embryo", timepoint=0)
    assert (labels.shape, labels.meta.kind) == ((2, 512, 512), "classes")


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_an_image_of_two_axes_is_one_slice(version, shared_data):
    folder = shared_data("formats_neuroglancer")
    path = folder / "zarr" / "ome_zarr" / f"simple_{version}"
    volume = open_volume(path, level=1)
    assert volume.shape[0] == 1
    assert volume.axes == ("z", "y", "x")
    assert (volume.spacing, volume.unit) == ((1, 8, 60), "nanometer")
    assert volume.meta.translation == (0, 2, 15)
    stored = zarr.open_array(path / "scale1" / "image", mode="r")[...]
    np.testing.assert_array_equal(volume[0], stored)


@pytest.mark.slow
def test_every_sample_is_read_or_refused(shared_data):
    folder = shared_data("formats_neuroglancer") / "zarr"
    samples = sorted(p.parent for p in [*folder.rglob(".zarray"), *folder.rglob("zarr.json")])
    shapes = []
    for path in samples:
        with suppress(InvalidInput):
            volume = open_volume(path)
            shapes.append(volume.shape)
            assert volume[...].shape == volume.shape
    assert len(shapes) >= 20


def test_two_cuts_of_a_volume_are_two_arrays(tmp_path):
    """Dask takes chunks of one name for the same voxels."""
    volume = create(tmp_path / "a.zarr", VolumeSpec.of((6, 6, 6), "int64", Meta()))
    volume.write(Roi.full(volume.shape), np.arange(6**3).reshape(6, 6, 6))
    thick, thin = volume.dask((3, 6, 6)), volume.dask((2, 6, 6))
    assert int((thick.sum() - thin.sum()).compute()) == 0
    assert thick.name == volume.dask((3, 6, 6)).name != thin.name
