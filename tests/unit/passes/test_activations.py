"""Activations kept between passes: what is written in blocks is read in any box."""

from __future__ import annotations

import errno
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.errors import RunFailed, StoreFull
from volflow.geometry.roi import Roi
from volflow.passes.activations import ActivationStore, free_bytes

SIZES, SIDES = (11, 7, 9), (4, 7, 3)


def kept_in(folder, dtype="float64", depth=2, sizes=SIZES, sides=SIDES, *, last=False):
    cuts = tuple((*range(0, n, b), n) for n, b in zip(sizes, sides, strict=True))
    return ActivationStore(Path(folder) / "7", depth, cuts, dtype, last)


def indices(kept):
    return itertools.product(*(range(len(axis) - 1) for axis in kept.cuts))


def filled(kept):
    """Stores noise block by block; returns it."""
    sizes = tuple(axis[-1] for axis in kept.cuts)
    values = np.random.default_rng(0).random((kept.depth, *sizes)).astype(kept.dtype)
    kept.open()
    for index in indices(kept):
        kept.write(index, values[(slice(None), *kept.box(index).slices())])
    return values


@pytest.fixture(params=[False, True], ids=["channels first", "channels last"])
def kept(tmp_path, request):
    return kept_in(tmp_path, last=request.param)


@pytest.fixture(scope="module", params=[False, True], ids=["channels first", "channels last"])
def shared(tmp_path_factory, request):
    found = kept_in(tmp_path_factory.mktemp("kept"), "float32", 3, last=request.param)
    return found, filled(found)


@given(st.data())
def test_any_box_is_read(shared, data):
    kept, values = shared
    low = [data.draw(st.integers(0, n)) for n in SIZES]
    high = [data.draw(st.integers(a, n)) for a, n in zip(low, SIZES, strict=True)]
    box = Roi(tuple(low), tuple(high))
    found = kept.read(box)
    assert found.dtype == np.float32
    assert np.array_equal(found, values[(slice(None), *box.slices())])


def test_values_lie_in_memory_as_in_the_files(kept):
    values = filled(kept)
    index, box = (0, 0, 1), kept.box((0, 0, 1))
    part = values[(slice(None), *box.slices())]
    stored = np.fromfile(kept.path(index), kept.dtype)
    assert np.array_equal(stored, (np.moveaxis(part, 0, -1) if kept.last else part).ravel())
    found = kept.read(Roi((1, 2, 3), (9, 7, 8)))
    assert (np.moveaxis(found, 0, -1) if kept.last else found).flags.c_contiguous


def test_blocks_tile_the_node(kept):
    seen = np.zeros(SIZES, int)
    for index in indices(kept):
        seen[kept.box(index).slices()] += 1
    assert (seen == 1).all()
    assert kept.nbytes == 2 * 11 * 7 * 9 * 8


def test_a_coarse_node_may_have_no_voxel_in_a_block(tmp_path):
    kept = ActivationStore(tmp_path / "7", 1, ((0, 0, 1), (0, 1, 2), (0, 2)), "float32")
    values = filled(kept)
    assert not any(kept.missing(index) for index in indices(kept))
    assert np.array_equal(kept.read(Roi((0, 0, 0), (1, 2, 2))), values)


def test_other_dims_and_dtypes_become_its_own(kept):
    kept.open()
    index, box = (0, 0, 0), kept.box((0, 0, 0))
    values = np.random.default_rng(0).random((1, 2, *box.shape)).astype("f4")
    kept.write(index, np.asfortranarray(values))
    assert np.array_equal(kept.read(box), values[0].astype("f8"))


def test_missing_are_those_not_there_or_not_whole(kept):
    filled(kept)
    assert not any(kept.missing(index) for index in indices(kept))
    kept.path((0, 0, 1)).unlink()
    with kept.path((1, 0, 0)).open("r+b") as file:
        file.truncate(100)
    assert [i for i in indices(kept) if kept.missing(i)] == [(0, 0, 1), (1, 0, 0)]
    for index in ((0, 0, 1), (1, 0, 0)):
        with pytest.raises(RunFailed, match=r"\.raw cannot be read .*; delete .* and run the same"):
            kept.read(kept.box(index))


def test_nothing_unfinished_is_left_by_a_full_disk(kept, monkeypatch):
    kept.open()

    def full(self, file):
        file.write(b"some")
        raise OSError("1000 requested and 4 written")

    class Full(np.ndarray):
        tofile = full

    monkeypatch.setattr(np, "ascontiguousarray", lambda a, dtype: np.zeros(9).view(Full))
    with pytest.raises(StoreFull, match="no space is left for activations between passes; make"):
        kept.write((0, 0, 0), np.zeros((2, 4, 7, 3)))
    assert list(kept.folder.iterdir()) == []


def test_other_failures_of_the_disk_are_what_they_are(kept, monkeypatch):
    kept.open()

    def broken(self, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="Input/output error"):
        kept.write((0, 0, 0), np.zeros((2, 4, 7, 3)))
    assert list(kept.folder.iterdir()) == []


def test_dropped(kept):
    filled(kept)
    kept.drop()
    assert not kept.folder.exists()
    kept.drop()
    assert kept.missing((0, 0, 0))


def test_room_where_a_folder_will_lie(tmp_path):
    assert free_bytes(tmp_path / "not" / "there" / "yet") == pytest.approx(
        free_bytes(tmp_path), rel=0.2
    )


def test_a_block_that_is_released_is_not_missing_and_cannot_be_read(kept):
    filled(kept)
    index = next(iter(indices(kept)))
    before = kept.read(kept.box(index))
    mapped = kept._mapped(index, kept.box(index))
    for _ in range(2):
        kept.release(index)
        assert not kept.missing(index)
        assert kept.path(index).stat().st_size == 1
        with pytest.raises(RunFailed, match="cannot be read"):
            kept.read(kept.box(index))
    assert np.array_equal(mapped, before)  # who reads it still has it
    kept.path(index).write_bytes(b"")  # as a power cut leaves files
    assert kept.missing(index)
