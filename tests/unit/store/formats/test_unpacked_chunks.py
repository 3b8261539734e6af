"""Chunks of HDF5 that are unpacked here hold what the library finds in them."""

from __future__ import annotations

import itertools
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.errors import Damaged
from volflow.store.formats.hdf5.unpacked_chunks import read_unpacked

h5py = pytest.importorskip("h5py", reason="extra hdf5")

SHAPE = (9, 7, 11)


NAMES = itertools.count()


def in_memory():
    """A file in memory, whose name no other has that is still open."""
    return h5py.File(f"{next(NAMES)}.h5", "w", driver="core", backing_store=False)


def made(dtype="u2", **options):
    """A dataset of random bytes, in a file in memory."""
    file = in_memory()
    size = np.prod(SHAPE) * np.dtype(dtype).itemsize
    voxels = np.random.default_rng(0).integers(0, 256, size, "u1").view(dtype).reshape(SHAPE)
    options = {"chunks": (4, 3, 5), "compression": "gzip"} | options
    return file.create_dataset("a", data=voxels, dtype=dtype, **options)


@st.composite
def boxes(draw):
    box = []
    for n in SHAPE:
        low = draw(st.integers(0, n - 1))
        box.append(draw(st.just(low) | st.integers(low + 1, n).map(lambda b, a=low: slice(a, b))))
    return tuple(box)


@given(box=boxes(), shuffle=st.booleans(), dtype=st.sampled_from(["u1", "<u2", ">i4", "<f8"]))
def test_any_box_is_that_of_the_library(box, shuffle, dtype):
    dataset = made(dtype, shuffle=shuffle)
    found = read_unpacked(dataset, box)
    assert found.dtype == dataset.dtype
    np.testing.assert_array_equal(found, dataset[box])


def test_chunks_that_were_never_written_hold_the_fill_value():
    file = in_memory()
    options = {"shape": SHAPE, "chunks": (4, 3, 5), "compression": "gzip", "fillvalue": 7}
    dataset = file.create_dataset("a", dtype="i2", **options)
    dataset[:4, :3, :5] = 1
    whole = tuple(slice(0, n) for n in SHAPE)
    np.testing.assert_array_equal(read_unpacked(dataset, whole), dataset[:])


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzf"},
        {"compression": None},
        {"compression": None, "chunks": None},
        {"fletcher32": True},
        {"dtype": "?"},
    ],
)
def test_others_are_left_to_the_library(options):
    assert read_unpacked(made(**options), (slice(0, 2),) * 3) is None


def test_so_is_a_chunk_that_was_not_packed():
    dataset = made()
    dataset.id.write_direct_chunk((0, 0, 0), bytes(4 * 3 * 5 * 2), filter_mask=1)
    assert read_unpacked(dataset, (slice(0, 2),) * 3) is None
    assert not dataset[:4, :3, :5].any()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x00" * 40, r"chunk at \(0, 0, 0\) cannot be unpacked"),
        (zlib.compress(b"short"), r"chunk at \(0, 0, 0\) holds 5 bytes, expected 120"),
    ],
)
def test_a_damaged_chunk_is_named(content, said):
    dataset = made()
    dataset.id.write_direct_chunk((0, 0, 0), content)
    with pytest.raises(Damaged, match=said):
        read_unpacked(dataset, (slice(0, 2),) * 3)


def test_threads_unpack_beside_each_other(monkeypatch):
    """Two threads are in the unpacking at once, which the lock of the library forbids."""
    dataset, meeting, box = made(), threading.Barrier(2, timeout=30), (slice(0, 4),) * 3
    decompress = zlib.decompressobj

    def meets():
        meeting.wait()
        return decompress()

    monkeypatch.setattr(zlib, "decompressobj", meets)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(read_unpacked(dataset, box))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        np.testing.assert_array_equal(one, dataset[box])
    assert len(found) == 2
