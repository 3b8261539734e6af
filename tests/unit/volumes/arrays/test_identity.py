"""What a Dask array is, told by what its graph reads and does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import dask
import dask.array as da
import h5py
import numpy as np
import pytest
import tifffile
import zarr

from tests.leaves import FILES, KINDS, lazy, leaf, save
from volflow.volumes.arrays.identity import identify
from volflow.volumes.arrays.leaves import identity_of, mapped

SCAN = np.random.default_rng(0).integers(0, 900, (40, 36, 33), "int16")

HASHES = """
import pathlib, sys, threading
import dask.array as da
from tests.leaves import KINDS, lazy
from volflow.volumes.arrays.identity import identify

lock = threading.Lock()
def locked(block):
    with lock:
        return block if "a" in {"a", "b", "c"} else block + 1
for kind in KINDS:
    array = (lazy(kind, pathlib.Path(sys.argv[1])) * 2).map_blocks(lambda b: b + 1, dtype="i2")
    print(identify(array.map_blocks(locked, dtype="i2")))
print(identify(da.random.default_rng(3).random((8, 8, 8), chunks=4)))
"""


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, SCAN)
    return tmp_path


def read_whole(path):
    return np.load(path)


class TestLeaves:
    @pytest.mark.parametrize("kind", KINDS)
    def test_same_again_and_other_for_other_work(self, folder, kind):
        first, again = identify(lazy(kind, folder) * 2), identify(lazy(kind, folder) * 2)
        assert first == again
        assert first.unknown == ""
        assert identify(lazy(kind, folder) * 3).token != first.token

    @pytest.mark.parametrize("kind", KINDS)
    def test_other_voxels_are_another_array(self, folder, kind):
        before = identify(lazy(kind, folder) * 2)
        save(folder, SCAN + 1)
        assert identify(lazy(kind, folder) * 2).token != before.token

    @pytest.mark.parametrize("kind", FILES)
    def test_a_file_is_looked_at_and_not_read(self, folder, kind):
        path = folder / FILES[kind]
        before = identity_of(leaf(kind, folder))
        path = path / "c/0/0/0" if path.is_dir() else path
        os.utime(path, ns=(1, 1))
        assert "" != identity_of(leaf(kind, folder)) != before

    @pytest.mark.slow
    def test_other_processes_agree(self, folder, root):
        found = [
            subprocess.run(
                [sys.executable, "-c", HASHES, str(folder)],
                env={**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": seed},
                capture_output=True, text=True, check=True,
            ).stdout
            for seed in ("1", "2")
        ]  # fmt: skip
        assert found[0] == found[1]
        assert found[0].count("unknown=''") == len(KINDS) + 1

    def test_parts_of_a_mapping_are_found(self, folder):
        whole = leaf("mapped", folder)
        plain = np.asarray(whole)
        for view in (whole, plain, plain[3:20:2, ::-1], whole.T[4:], plain[5]):
            part = mapped(view)
            assert np.array_equal(part.open(), view)
            assert np.array_equal(part[1:3], view[1:3])

    def test_what_lies_in_memory_is_no_part_of_a_file(self, folder):
        own = np.load(folder / "a.npy", mmap_mode="c")
        own[0] = 7  # reaches no file
        for array in (own, np.array(own), leaf("mapped", folder).copy()):
            assert mapped(array) is None
        gone = leaf("mapped", folder)
        (folder / "a.npy").unlink()
        assert mapped(gone) is None

    def test_stores_in_memory_count_by_their_voxels(self):
        array = zarr.create_array({}, shape=(8, 8, 8), chunks=(4, 4, 4), dtype="i2")
        before = identify(da.from_array(array))
        array[0, 0, 0] = 1
        assert identify(da.from_array(array)).token != before.token

    def test_masks_count(self):
        masked = np.ma.masked_equal(SCAN, 3)
        same = np.ma.masked_equal(SCAN, 4)
        assert identify(da.from_array(masked)) == identify(da.from_array(masked))
        assert identify(da.from_array(masked)) != identify(da.from_array(same))


class TestWork:
    def test_what_functions_capture_counts(self):
        def adding(n):
            return da.ones((4, 4, 4)).map_blocks(lambda block: block + n)

        assert identify(adding(1)) == identify(adding(1))
        assert identify(adding(1)) != identify(adding(2))

    def test_a_file_that_a_function_captures_counts(self, folder):
        with h5py.File(folder / "a.h5") as file:
            scan = file["scan"]
            array = da.ones((8, 8, 8), chunks=8).map_blocks(lambda block: block * scan[:8, :8, :8])
            before = identify(array)
            assert before.unknown == ""
            os.utime(folder / "a.h5", ns=(1, 1))
            assert identify(array).token != before.token

    def test_names_and_optimization_play_no_part(self, folder):
        array = lazy("hdf5", folder) + 1
        assert array.name != (lazy("hdf5", folder) + 1).name  # Dask cannot hash a dataset
        (fused,) = dask.optimize(array)
        assert identify(fused).unknown == ""

    @pytest.mark.parametrize(
        "make",
        [
            lambda: da.ones((8, 8, 8), chunks=4),
            lambda: da.arange(512, chunks=64),
            lambda: da.random.default_rng(1).normal(size=(8, 8), chunks=4),
            lambda: da.linspace(0, 1, 9, chunks=3),
            lambda: da.eye(9, chunks=3),
            lambda: (da.ones((8, 8), chunks=4) - da.ones((8, 8), chunks=4).mean(axis=0)).std(),
        ],
        ids=["ones", "arange", "random", "linspace", "eye", "statistics"],
    )
    def test_what_is_made_of_nothing_is_known(self, make):
        assert identify(make()).unknown == ""

    def test_results_in_memory_are_known(self, folder):
        array = lazy("zarr", folder).persist(scheduler="synchronous") + 1
        assert identify(array).unknown == ""


class TestUnknown:
    def test_functions_that_read_files(self, tmp_path):
        path = str(tmp_path / "a.npy")
        chunks = ((8,), (8,), (8,))
        stacked = str(tmp_path / "stack")
        da.to_npy_stack(stacked, da.ones((8, 8, 8), chunks=4))
        arrays = {
            "load": da.from_delayed(dask.delayed(np.load)(path), (8, 8, 8), float),
            "read_whole": da.from_delayed(dask.delayed(read_whole)(path), (8, 8, 8), float),
            "<lambda>": da.map_blocks(
                lambda block_id=None: np.load(path), chunks=chunks, dtype=float
            ),
        }
        for name, array in arrays.items():
            assert identify(array + 1).unknown == f"the function {name}"
        assert identify(da.from_npy_stack(stacked)).unknown == "the function load"

    def test_their_graphs_are_with_distinct_names_all_the_same(self, tmp_path):
        def made(path):
            return identify(da.from_delayed(dask.delayed(read_whole)(path), (8, 8), float)).token

        assert made("a") == made("a") != made("b")

    def test_foreign_stores_and_arrays(self, tmp_path):
        tifffile.imwrite(tmp_path / "a.tif", SCAN)
        with tifffile.imread(tmp_path / "a.tif", aszarr=True) as tiff:
            found = identify(da.from_array(zarr.open(tiff, mode="r"), chunks=(20, 36, 33)))
        assert found.unknown == "a Zarr array in a ZarrTiffStore"

    def test_array_likes_that_say_how_to_read(self):
        class Reader:
            shape, dtype, ndim = (8, 8, 8), np.dtype("f4"), 3

            def __getitem__(self, index):
                return np.zeros((8, 8, 8), "f4")[index]

        found = identify(da.from_array(Reader(), chunks=4, name="a"))
        assert found.unknown == "an array of type Reader"

    def test_what_does_not_pickle(self):
        held = (n for n in range(3))
        array = da.ones((4, 4)).map_blocks(lambda block: block * bool(held))
        assert identify(array).unknown.startswith("an object of type function (cannot pickle")

    def test_a_lock_changes_no_voxel(self):
        lock = threading.Lock()

        def locked(block):
            with lock:
                return block

        assert identify(da.ones((4, 4)).map_blocks(locked)).unknown == ""
