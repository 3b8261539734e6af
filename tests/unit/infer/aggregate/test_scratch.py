"""Arrays in memory or in files: the same values, and an honest account."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from volflow.errors import InvalidInput, StoreFull
from volflow.infer.aggregate.scratch import PendingPatches, Scratch

FLOAT = np.dtype("float32")


def test_arrays_are_zero_and_writable_wherever_they_lie(tmp_path):
    scratch = Scratch(tmp_path, 100)
    arrays = [scratch.zeros((5, 5), FLOAT) for _ in range(3)]
    assert (scratch.held_bytes, scratch.filed_bytes) == (100, 200)
    for n, array in enumerate(arrays):
        assert type(array) is np.ndarray
        assert not array.any()
        array += n
    assert [array.sum() for array in arrays] == [0, 25, 50]
    assert not list(tmp_path.iterdir())  # files have no name


def test_what_nobody_refers_to_is_free_again(tmp_path):
    scratch = Scratch(tmp_path, 100)
    part = scratch.zeros((5, 5), FLOAT)[1:]  # a part keeps the whole
    assert scratch.held_bytes == 100
    del part
    assert scratch.held_bytes == 0
    assert scratch.zeros((5, 5), FLOAT).nbytes == 100
    assert scratch.filed_bytes == 0


def test_patches_come_back_in_any_order_from_slots_that_are_used_again(tmp_path):
    scratch = Scratch(tmp_path, 400)
    pending = PendingPatches(scratch)
    rng = np.random.default_rng(0)
    given = {("a", n): rng.random((2, 5, 5), "float32") for n in range(6)}
    for key, patch in given.items():
        pending.put(key, patch)
    assert scratch.held_bytes == 200  # one: others must find room for rows
    assert pending.slots == 5
    assert pending.numbers("a") == list(range(6))
    for n in (4, 0, 2):
        assert np.array_equal(pending.take(("a", n)), given["a", n])
    assert ("a", 4) not in pending
    for n in (10, 11, 12):
        given["b", n] = rng.random((2, 5, 5), "float32")
        pending.put(("b", n), given["b", n])
    assert pending.slots == 5
    assert pending.numbers("b") == [10, 11, 12]
    for key in [("a", 1), ("b", 12), ("b", 10), ("a", 3), ("b", 11), ("a", 5)]:
        assert np.array_equal(pending.take(key), given[key])
    assert scratch.held_bytes == 0
    pending.close()


def test_pending_patches_are_copies(tmp_path):
    for budget in (1, 10_000):
        pending = PendingPatches(Scratch(tmp_path, budget))
        patch = np.ones((1, 2, 2), "float64")
        pending.put(("a", 3), patch)
        patch[:] = 7
        assert (pending.take(("a", 3)) == 1).all()
        pending.close()


def test_a_full_disk_and_a_folder_without_access_are_told(tmp_path, monkeypatch):
    with pytest.raises(InvalidInput, match=r"no scratch file can be made in .*/none: No such"):
        Scratch(tmp_path / "none", 1).zeros((9,), FLOAT)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreFull, match=r"36 B beside the output .* memory is 1 B; make room"):
        Scratch(tmp_path, 1).zeros((9,), FLOAT)
    pending = PendingPatches(Scratch(tmp_path, 1))
    with pytest.raises(StoreFull, match="make room there, or give more memory"):
        pending.put(("a", 0), np.ones(9, FLOAT))
    pending.close()
