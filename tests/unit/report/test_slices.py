"""The planes of a preview: the same anatomy from every stored orientation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.report import slices
from volflow.report.slices import Streamed, busiest, class_maps, cut, same_box, views
from volflow.store.create import create
from volflow.store.meta import Meta
from volflow.store.sources import open_source

LETTERS = ("RL", "AP", "SI")
ORIENTATIONS = [
    "".join(letters)
    for pairs in itertools.permutations(LETTERS)
    for letters in itertools.product(*pairs)
]


class Held:
    """An array that records what is read of it."""

    def __init__(self, array, meta=None):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.meta = meta or Meta(("z", "y", "x") if array.ndim == 3 else ("c", "z", "y", "x"))
        self.read_voxels = 0

    def read(self, roi):
        self.read_voxels += roi.size
        return self.array[roi.slices()]


def anatomy():
    """Stored right-anterior-superior: each voxel tells where it lies."""
    r, a, s = np.ogrid[:5, :6, :7]
    return 100 * r + 10 * a + s


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_all_48_orientations_show_the_same_anatomy(orientation):
    stored = anatomy()
    # Axis order and directions of this orientation, from RAS.
    stored = stored.transpose([next(i for i in range(3) if x in LETTERS[i]) for x in orientation])
    stored = stored[tuple(slice(None, None, 1 if x in "RAS" else -1) for x in orientation)]
    volume = Held(stored, Meta(orientation=orientation))
    axial, coronal, sagittal = views(orientation)
    # In the first voxels: superior, anterior, right each come first in the picture.
    first = {"S": 0.0, "I": 0.999}
    top = cut(volume, axial, first.get(orientation[axial.normal], 0.0))[0]
    assert axial.edges == ("R", "L", "A", "P")
    assert top.shape == (6, 5)
    assert top[0, 0] - top[1, 0] == 10  # down is posterior
    assert top[0, 0] - top[0, 1] == 100  # to the right is the patient's left
    front = cut(volume, coronal, 0.5)[0]
    assert front.shape == (7, 5)
    assert (front[0, 0] - front[1, 0], front[0, 0] - front[0, 1]) == (1, 100)
    side = cut(volume, sagittal, 0.5)[0]
    assert side.shape == (7, 6)
    assert (side[0, 0] - side[1, 0], side[0, 0] - side[0, 1]) == (1, 10)


def test_without_orientation_planes_are_shown_as_stored():
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    xy, xz, yz = views(None)
    np.testing.assert_array_equal(cut(Held(array), xy, 0.9)[0], array[1])
    np.testing.assert_array_equal(cut(Held(array), xz, 0.0)[0], array[:, 0])
    np.testing.assert_array_equal(cut(Held(array), yz, 0.5)[0], array[:, :, 2])


def test_only_the_plane_is_read():
    volume = Held(np.zeros((20, 30, 40), "u1"))
    for view, size in zip(views(None), (30 * 40, 20 * 40, 20 * 30), strict=True):
        volume.read_voxels = 0
        cut(volume, view, 0.5)
        assert volume.read_voxels == size


def test_long_planes_are_thinned_out(monkeypatch):
    monkeypatch.setattr(slices, "LONGEST", 16)
    array = np.arange(3 * 70 * 40).reshape(3, 70, 40)
    np.testing.assert_array_equal(cut(Held(array), views(None)[0], 0.5)[0], array[1, ::5, ::5])


def test_channels_are_cut_together():
    array = np.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    got = cut(Held(array), views(None)[0], 0.0, slice(1, 3))
    np.testing.assert_array_equal(got, array[1:3, 0])


def test_streamed_file_gives_the_same_planes(tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="extra io")
    array = np.random.default_rng(0).integers(0, 255, (7, 9, 19), "u1")  # x, y, z
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii.gz")
    source = open_source(tmp_path / "a.nii.gz")
    assert source.sequential
    streamed = Streamed(source)
    for view in views(None):
        want = cut(Held(np.ascontiguousarray(array.T)), view, 0.6)
        np.testing.assert_array_equal(cut(streamed, view, 0.6), want)


def test_busiest_finds_the_content():
    labels = np.zeros((40, 50, 60), "u1")
    labels[28:31, 8:12, 40:50] = 1
    labels[29, 20:24, 41:44] = 2
    z, y, x = busiest(Held(labels), slice(0, 1), class_maps)
    assert 28 <= z * 40 < 31
    assert 8 <= y * 50 < 24
    assert 40 <= x * 60 < 50


def test_busiest_of_nothing_is_the_middle():
    assert busiest(Held(np.zeros((4, 5, 6))), slice(0, 1), class_maps) == (0.5, 0.5, 0.5)


def test_busiest_reads_a_bounded_number_of_voxels(tmp_path, monkeypatch):
    volume = create(tmp_path / "a.zarr", (64, 64, 64), "u1", Meta(), chunk=16, shard=64)
    volume.write(Roi.full(volume.shape), np.ones(volume.shape, "u1"))
    held = Held(volume[:])
    held.chunks = volume.chunks
    monkeypatch.setattr(slices, "SCAN_VOXELS", 3 * 16 * 64 * 64)
    busiest(held, slice(0, 1), class_maps)
    assert held.read_voxels == 3 * 64 * 64
    monkeypatch.setattr(slices, "SCAN_VOXELS", 64 * 64)
    assert busiest(held, slice(0, 1), class_maps) == (0.5, 0.5, 0.5)


def test_many_labels_share_a_few_maps():
    maps = class_maps(np.arange(10_000).reshape(1, 100, 100))
    assert len(maps) == slices.MANY_CLASSES
    assert maps.sum() == 9_999


def test_scores_weigh_by_their_argmax_or_value():
    scores = np.array([[[0.9, 0.2]], [[0.1, 0.8]]], "f4")
    np.testing.assert_array_equal(class_maps(scores), [[[0, 1]]])
    np.testing.assert_array_equal(class_maps(np.array([[[np.nan, -1, 2]]], "f4")), [[[0, 0, 2]]])


@pytest.mark.parametrize(
    ("meta", "shape", "text"),
    [
        (Meta(spacing=(2, 1, 1)), (4, 5, 6), "a and b must cover the same box .* 8 × 5 × 6"),
        (Meta(orientation="SAR"), (4, 5, 6), "same orientation .* SAR and SPL"),
        (Meta(unit="micrometer"), (4, 5, 6), "same unit .* micrometer and millimeter"),
    ],
)
def test_volumes_of_different_boxes_are_refused(meta, shape, text):
    scan = Meta(unit="millimeter", orientation="SPL")
    with pytest.raises(InvalidInput, match=text):
        same_box(Held(np.zeros(shape), meta), Held(np.zeros((4, 5, 6)), scan), "a", "b")


def test_half_size_result_covers_the_same_box():
    half = Held(np.zeros((3, 3, 3)), Meta(spacing=(2, 2, 2)))
    same_box(half, Held(np.zeros((5, 5, 5))), "a", "b")
