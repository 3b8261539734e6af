"""Rows of a tile, in the frame's order, read once."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.normalize import Normalization
from volflow.geometry.roi import Roi
from volflow.infer.patches.rows import RowReader, rows_at_once
from volflow.store.volume import Volume
from volflow.volumes.framed import FramedImage

ALL = [
    "".join(letters)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*order)
]


@pytest.fixture
def scan():
    return np.random.default_rng(0).integers(1, 200, (70, 45, 12), "uint8")


@pytest.fixture
def reader_of():
    """Makes readers of rows, and closes them."""
    made = []

    def make(inputs, tile=None, dtype="float32"):
        reader = RowReader(inputs, tile or Roi.full(inputs.shape), dtype)
        made.append(reader)
        return reader

    yield make
    for reader in made:
        reader.close()


def inputs_of(*volumes, frame=None, normalize=None, **options) -> FramedImage:
    specs = tuple(volume.spec for volume in volumes)
    normalize = normalize or (None,) * len(volumes)
    return FramedImage(specs, volumes, normalize, frame or Frame(), **options)


def filled(reader, roi, channels=1):
    """A patch, in memory that held something else before."""
    patch = np.full((channels, *roi.shape), 777, reader.dtype)
    reader.load(roi.stop[0])
    reader.fill(patch, roi)
    return patch


def cut(array, roi):
    """The box of an array, zeros outside."""
    margin = [(max(0, -a), max(0, b - n)) for (a, b), n in zip(roi, array.shape[-3:], strict=True)]
    padded = np.pad(array, [(0, 0), *margin])
    start = [a + low for a, (low, _) in zip(roi.start, margin, strict=True)]
    box = Roi(start, tuple(a + n for a, n in zip(start, roi.shape, strict=True)))
    return padded[(slice(None), *box.slices())]


ROIS = [
    Roi((0, 0, 0), (8, 8, 8)),
    Roi((30, 10, 2), (38, 20, 12)),
    Roi((60, 40, 5), (72, 50, 14)),  # reaches beyond
    Roi((-3, -1, -2), (75, 4, 14)),  # all rows, and padding before
]


class TestFill:
    @pytest.mark.slow
    @pytest.mark.parametrize("orientation", ALL)
    def test_patches_are_those_of_the_shown_array(self, stored, reader_of, scan, orientation):
        frame = Frame.between("SAR", orientation)
        shown = frame.show(scan)[None]
        reader = reader_of(inputs_of(stored(scan), frame=frame))
        for roi in ROIS:
            assert np.array_equal(filled(reader, roi), cut(shown, roi))

    def test_channels_of_all_volumes_follow_each_other(self, stored, reader_of, scan):
        two = np.stack([scan // 2, scan // 3])
        reader = reader_of(inputs_of(stored(scan, "a.zarr"), stored(two, "b.zarr")))
        expected = np.concatenate([scan[None], two])
        for roi in ROIS:
            assert np.array_equal(filled(reader, roi, channels=3), cut(expected, roi))

    def test_outside_of_its_tile_it_knows_nothing(self, stored, reader_of, scan):
        tile = Roi((20, 8, 0), (50, 30, 12))
        reader = reader_of(inputs_of(stored(scan)), tile)
        roi = Roi((18, 25, -2), (30, 33, 8))
        hidden = np.zeros_like(scan)
        hidden[tile.slices()] = scan[tile.slices()]
        assert np.array_equal(filled(reader, roi), cut(hidden[None], roi))

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_in_the_dtype_of_the_model(self, stored, reader_of, dtype):
        values = np.random.default_rng(0).standard_normal((9, 9, 9)) * 1e6
        reader = reader_of(inputs_of(stored(values)), dtype=dtype)
        found = filled(reader, Roi.full((9, 9, 9)))
        assert found.dtype == dtype
        assert np.array_equal(found[0], values.astype(dtype))


class TestRows:
    def test_each_row_is_read_once_and_by_whole_chunks(self, stored, reader_of, scan, monkeypatch):
        read, plain = [], Volume.read

        def watched(volume, roi):
            read.append((roi.start[0], roi.stop[0]))
            return plain(volume, roi)

        monkeypatch.setattr(Volume, "read", watched)
        for frame in (Frame(), Frame((0, 1, 2), (True, False, False))):
            read.clear()
            reader = reader_of(inputs_of(stored(scan, f"{frame.flips}.zarr", chunk=8), frame=frame))
            for row in range(0, 70, 5):
                filled(reader, Roi((row, 0, 0), (row + 5, 4, 4)))
                reader.drop(row)
            rows = sorted(read)
            assert rows[0][0] == 0
            assert rows[-1][1] == 70
            assert all(a[1] == b[0] for a, b in itertools.pairwise(rows))
            assert all(low % 8 == 0 for low, _ in rows)

    def test_rows_left_behind_are_forgotten(self, stored, reader_of, scan):
        reader = reader_of(inputs_of(stored(scan, chunk=8)))
        reader.load(70)
        reader.wait()
        assert [box.start[0] for box, _ in reader.segments] == [0, 32, 64]
        reader.drop(31)
        assert [box.start[0] for box, _ in reader.segments] == [0, 32, 64]
        reader.drop(64)
        assert [box.start[0] for box, _ in reader.segments] == [64]
        assert np.array_equal(filled(reader, Roi((64, 0, 0), (70, 9, 9)))[0], scan[64:, :9, :9])

    def test_memory_that_is_handed_on_holds_the_new_rows(self, stored, reader_of):
        tall = np.random.default_rng(0).random((200, 10, 10), "float32")
        reader = reader_of(inputs_of(stored(tall, chunk=8)))
        for row in range(200):
            found = filled(reader, Roi((row, 0, 0), (row + 1, 10, 10)))
            assert np.array_equal(found[0, 0], tall[row])
            reader.drop(row)

    @pytest.mark.parametrize(
        ("chunk", "depth", "rows"),
        [(8, 70, 32), (20, 70, 20), (33, 70, 33), (64, 70, 64), (8, 6, 30), (1, 70, 32)],
    )
    def test_segments_are_of_whole_chunks_neither_thin_nor_thick(self, stored, chunk, depth, rows):
        volume = stored(np.zeros((depth, 9, 9), "u1"), chunk=(chunk, 9, 9), shard=(chunk, 9, 9))
        assert rows_at_once(inputs_of(volume)) == rows

    def test_thick_chunks_are_read_in_parts(self, stored):
        volume = stored(np.zeros((300, 2, 2), "u1"), chunk=(256, 2, 2), shard=(256, 2, 2))
        assert rows_at_once(inputs_of(volume)) == 128

    def test_reading_goes_on_behind_the_back(self, stored, reader_of, scan, monkeypatch):
        threads, plain = set(), Volume.read

        def watched(volume, roi):
            threads.add(threading.current_thread().name)
            return plain(volume, roi)

        monkeypatch.setattr(Volume, "read", watched)
        reader = reader_of(inputs_of(stored(scan)))
        reader.load(70)
        reader.wait()
        assert len(threads) == 1
        assert threads.pop().startswith("volflow-read")

    def test_an_error_of_the_reader_comes_out(self, stored, reader_of, scan, monkeypatch):
        def broken(volume, roi):
            raise OSError("the disk is gone")

        monkeypatch.setattr(Volume, "read", broken)
        reader = reader_of(inputs_of(stored(scan)))
        reader.load(1)
        with pytest.raises(OSError, match="the disk is gone"):
            reader.wait()


class TestActive:
    def boxes(self):
        rng = np.random.default_rng(5)
        for _ in range(40):
            start = rng.integers(-4, (70, 45, 12))
            yield Roi(start, start + rng.integers(1, 12, 3))

    @pytest.mark.parametrize("flip", [False, True])
    def test_where_a_voxel_is_in_the_mask_and_bright(self, stored, reader_of, scan, flip):
        dark = np.where(np.random.default_rng(1).random(scan.shape) < 0.995, 0, scan)
        mask = (np.random.default_rng(2).random(scan.shape) < 0.5).astype("u1") * 3
        frame = Frame((0, 1, 2), (flip, False, flip))
        volumes = stored(dark, "dark.zarr"), stored(mask, "mask.zarr")
        reader = reader_of(inputs_of(volumes[0], frame=frame, mask=volumes[1], skip_below=9))
        reader.load(70)
        wanted = frame.show((dark >= 9) & (mask > 0))
        found = {roi: reader.active(roi) for roi in self.boxes()}
        expected = {roi: bool(cut(wanted[None], roi).any()) for roi in found}
        assert found == expected
        assert 0 < sum(expected.values()) < len(expected)

    def test_any_channel_may_be_bright(self, stored, reader_of, scan):
        two = np.zeros((2, *scan.shape), "u1")
        two[1, 5, 5, 5] = 50
        reader = reader_of(inputs_of(stored(two), skip_below=50))
        reader.load(70)
        assert reader.active(Roi((5, 5, 5), (6, 6, 6)))
        assert not reader.active(Roi((6, 5, 5), (70, 45, 12)))

    def test_all_are_where_nothing_is_skipped(self, stored, reader_of):
        reader = reader_of(inputs_of(stored(np.zeros((9, 9, 9), "u1"))))
        assert reader.active(Roi.full((9, 9, 9)))


class TestNormalize:
    def test_constants_are_those_of_each_volume(self, stored, reader_of, scan):
        half = Normalization((-2.0,), (0.5,), (None,), (None,))
        cutting = Normalization((0.0,), (1.0,), (10.0,), (20.0,))
        volumes = stored(scan, "a.zarr"), stored(scan, "b.zarr")
        reader = reader_of(inputs_of(*volumes, normalize=(half, cutting)))
        found = filled(reader, Roi.full(scan.shape), channels=2)
        np.testing.assert_allclose(found[0], scan * 0.5 + 1)
        np.testing.assert_allclose(found[1], np.clip(scan, 10, 20))

    def test_padding_is_zero_not_a_normalised_zero(self, stored, reader_of, scan):
        shifted = Normalization((100.0,), (1.0,), (None,), (None,))
        reader = reader_of(inputs_of(stored(scan), normalize=(shifted,)))
        assert (filled(reader, Roi((-2, 0, 0), (0, 4, 4))) == 0).all()

    def test_a_function_gets_floats_and_may_not_touch_the_input(self, stored, reader_of, scan):
        def own(block_CZYX):
            assert block_CZYX.dtype == np.float32
            assert block_CZYX.ndim == 4
            block_CZYX *= 2
            return block_CZYX

        reader = reader_of(inputs_of(stored(scan), normalize=(own,)))
        assert np.array_equal(filled(reader, Roi.full(scan.shape))[0], 2.0 * scan)

    def test_a_function_that_changes_the_shape_is_refused(self, stored, reader_of, scan):
        reader = reader_of(inputs_of(stored(scan), normalize=(lambda block: block[:, :1],)))
        reader.load(1)
        with pytest.raises(InvalidInput, match="normalize must keep the shape of its block: got"):
            reader.wait()
