"""Planes: what is read of them, and what a pixel stands for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.geometry.roi import Roi
from volflow.report import planes
from volflow.report.planes import read_planes, steps
from volflow.store.create import create
from volflow.store.formats.sources import ArraySource, open_source
from volflow.store.meta import Meta, VolumeSpec

FULL = 10_000  # pixels: nothing is thinned


class Held(ArraySource):
    """An array that records what is read of it."""

    def __init__(self, array, chunks=None):
        super().__init__(array, Meta(("z", "y", "x") if array.ndim == 3 else ("c", "z", "y", "x")))
        self.__dict__["boxes"] = []
        if chunks:
            self.__dict__["chunks"] = chunks

    def read(self, roi):
        self.boxes.append(roi)
        return self.array[roi.slices()]


def test_only_the_plane_is_read():
    array = np.arange(20 * 30 * 40).reshape(20, 30, 40)
    for axis, size in enumerate((30 * 40, 20 * 40, 20 * 30)):
        held = Held(array)
        (plane,) = read_planes(held, [(axis, 7)], pixels=FULL)
        np.testing.assert_array_equal(plane, array.take(7, axis=axis))
        assert sum(box.size for box in held.boxes) == size


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    chunks=st.tuples(*[st.integers(1, 5)] * 3),
    pixels=st.integers(1, 9),
    piece=st.integers(1, 100),
    data=st.data(),
)
def test_pieces_never_show(shape, chunks, pixels, piece, data):
    """However a plane is cut for reading, a pixel is the middle or the mean of its voxels."""
    array = np.random.default_rng(0).integers(0, 99, shape)
    wanted = data.draw(
        st.lists(
            st.integers(0, 2).flatmap(
                lambda axis: st.tuples(st.just(axis), st.integers(0, shape[axis] - 1))
            ),
            min_size=1,
            max_size=4,
        )
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planes, "PIECE_VOXELS", piece)
        held = Held(array, chunks)
        step = steps(held, pixels)
        picked = read_planes(held, wanted, pixels=pixels)
        means = read_planes(held, wanted, pixels=pixels, average=True)
    for (axis, index), pick, mean in zip(wanted, picked, means, strict=True):
        plane = array.take(index, axis=axis)
        rows, columns = (s for n, s in enumerate(step) if n != axis)
        for i in range(pick.shape[0]):
            for j in range(pick.shape[1]):
                cell = plane[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
                middle = min(rows // 2, cell.shape[0] - 1), min(columns // 2, cell.shape[1] - 1)
                assert pick[i, j] == cell[middle]
                assert mean[i, j] == pytest.approx(cell.mean())
        assert max(pick.shape) <= pixels
    assert pick.dtype == array.dtype  # classes stay whole numbers


def test_no_more_is_held_than_a_few_chunks(monkeypatch):
    """Also of a volume without levels, a plane of which would not fit."""
    monkeypatch.setattr(planes, "PIECE_VOXELS", 4 * 8 * 8)
    held = Held(np.zeros((8, 400, 300), "u1"), (8, 8, 8))
    (plane,) = read_planes(held, [(0, 3)], pixels=100)
    assert plane.shape == (100, 100)
    assert max(box.size for box in held.boxes) <= 4 * 8 * 8
    # Whole chunks, each once.
    assert all(low % 8 == 0 for box in held.boxes for low in box.start[1:])
    assert sum(box.size for box in held.boxes) == 400 * 300


def test_a_chunk_layer_is_decoded_once_for_all_its_planes():
    held = Held(np.zeros((64, 32, 32), "u1"), (16, 16, 16))
    read_planes(held, [(0, n) for n in range(0, 64, 4)], pixels=FULL)
    assert [(box.start[0], box.stop[0]) for box in held.boxes] == [
        (0, 13), (16, 29), (32, 45), (48, 61)
    ]  # fmt: skip


def test_one_chunk_larger_than_a_piece_is_read_whole(monkeypatch):
    monkeypatch.setattr(planes, "PIECE_VOXELS", 10)
    held = Held(np.zeros((4, 32, 32), "u1"), (4, 32, 32))
    read_planes(held, [(0, 1)], pixels=FULL)
    assert [box.shape for box in held.boxes] == [(1, 32, 32)]


def test_the_highest_channel_is_found_in_pieces(monkeypatch):
    monkeypatch.setattr(planes, "PIECE_VOXELS", 64)
    scores = np.random.default_rng(0).integers(-3, 3, (5, 9, 20, 21)).astype("f4")
    held = Held(scores, (1, 4, 4, 4))
    (plane,) = read_planes(held, [(1, 6)], pixels=FULL, channel=None)
    np.testing.assert_array_equal(plane, scores[:, :, 6].argmax(axis=0))
    (one,) = read_planes(held, [(1, 6)], pixels=FULL, channel=3)
    np.testing.assert_array_equal(one, scores[3, :, 6])


def test_scores_that_are_no_numbers_are_background():
    scores = np.full((3, 2, 2, 2), np.nan, "f4")
    assert not read_planes(Held(scores), [(0, 0)], pixels=FULL, channel=None)[0].any()


@pytest.mark.parametrize("channels", [0, 3])
def test_a_file_that_only_reads_forward_is_read_once(tmp_path, channels, monkeypatch):
    nibabel = pytest.importorskip("nibabel", reason="extra io")
    shape = (7, 9, 19, channels)[: 4 if channels else 3]  # x, y, z
    array = np.random.default_rng(0).integers(0, 255, shape, "u1")
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    source = open_source(tmp_path / "a.nii.gz")
    assert source.sequential
    passes = []
    slabs = type(source).slabs
    monkeypatch.setattr(
        type(source), "slabs", lambda self, depth: passes.append(depth) or slabs(self, depth)
    )
    wanted = [(0, 2), (0, 11), (1, 5), (2, 3)]
    held = Held(np.ascontiguousarray(array.T))
    for channel in [0, 2, None] if channels else [0]:
        passes.clear()
        for options in ({}, {"average": True}):
            got = read_planes(source, wanted, pixels=6, channel=channel, **options)
            want = read_planes(held, wanted, pixels=6, channel=channel, **options)
            for mine, theirs in zip(got, want, strict=True):
                np.testing.assert_allclose(mine, theirs)
        assert len(passes) == 2


def test_a_stored_volume_gives_the_same(tmp_path):
    array = np.random.default_rng(0).integers(0, 2**16, (20, 50, 60)).astype("u2")
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of(array.shape, "u2", Meta(), chunk=16, shard=32)
    )
    volume.write(Roi.full(array.shape), array)
    for mine, axis in zip(
        read_planes(volume, [(0, 9), (1, 9), (2, 9)], pixels=FULL), range(3), strict=True
    ):
        np.testing.assert_array_equal(mine, array.take(9, axis=axis))
