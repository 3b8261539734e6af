"""Storing Dask arrays: whole shards, whatever the array's chunks."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

import volflow as vf
from volflow.errors import InvalidInput, MemoryRefused, ResumeRefused, RunFailed
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Meta

SCAN = np.random.default_rng(4).integers(0, 4000, (37, 22, 29), "uint16")


# Functions of this module travel by name, so that what they see is seen here.
seen: list[tuple[int, ...]] = []
failing: list[bool] = []


@pytest.fixture(autouse=True)
def forget():
    seen.clear()
    failing.clear()


def adds_one(block):
    seen.append(block.shape)
    return block + 1


def fails(block, block_info=None):
    where = block_info[0]["chunk-location"]
    if failing and where[0] == 2:
        raise OSError("not yet")
    seen.append(where)
    return block


@pytest.fixture
def write(client, tmp_path):
    def run(array, out="out.zarr", **options):
        options = {"cluster": client, "chunk": 8, "shard": 16, "progress": False} | options
        return vf.write(array, tmp_path / out, **options)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(7, 7, 7), (37, 5, 29), (16, 16, 16), (1, 22, 29), 3])
def test_chunks_need_not_match_shards(write, chunks):
    volume = write(da.from_array(SCAN, chunks=chunks))
    assert np.array_equal(volume[:], SCAN)
    assert volume.dtype == SCAN.dtype
    assert vf.verify(volume.path).ok


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(2, 32, 22, 29), (1, 16, 32, 29), (2, 16, 16, 16)])
@pytest.mark.layered
def test_chunks_larger_than_shards_are_computed_once(write, chunks):
    scan = np.stack([SCAN, SCAN + 1])
    array = da.from_array(scan, chunks=chunks)
    array = array.map_blocks(adds_one, dtype="uint16", meta=scan[:0, :0, :0, :0])
    volume = write(array)
    assert np.array_equal(volume[:], scan + 1)
    assert volume.shards == (1, 16, 16, 16)
    assert len(seen) == array.npartitions
    assert vf.verify(volume.path).ok


@pytest.mark.layered
@pytest.mark.slow
def test_memory_decides_between_large_blocks_and_computing_twice(write):
    array = da.zeros((160, 160, 160), chunks=-1, dtype="uint16")
    array = array.map_blocks(adds_one, dtype="uint16", meta=SCAN[:0, :0, :0])
    least = 4 * array.nbytes + 34 * 2**20  # the chunk is computed whole in any case
    assert (write(array, memory=least, shard=40)[:] == 1).all()
    assert len(seen) == 4**3


def test_lazy_results_are_computed_block_by_block(write):
    array = da.from_array(SCAN, chunks=16)
    array = array.map_blocks(adds_one, dtype="uint16", meta=SCAN[:0, :0, :0])
    volume = write(array)
    assert np.array_equal(volume[:], SCAN + 1)
    assert len(seen) == 3 * 2 * 2  # each chunk once
    assert vf.verify(volume).ok


def test_channels(write):
    both = np.stack([SCAN, SCAN[::-1]])
    volume = write(da.from_array(both, chunks=(2, 9, 9, 9)))
    assert volume.axes == ("c", "z", "y", "x")
    assert volume.shards == (1, 16, 16, 16)
    assert np.array_equal(volume[:], both)


def test_numpy_arrays_are_taken_too(write):
    assert np.array_equal(write(SCAN)[:], SCAN)


class TestLike:
    @pytest.fixture
    def model(self, stored):
        return stored(SCAN, "like.zarr", spacing=(2.0, 0.5, 0.5), unit="millimeter",
                      orientation="SAL")  # fmt: skip

    def test_place_and_layout_are_taken(self, write, model):
        volume = write(model.dask() * 2, like=model, chunk=None, shard=None)
        assert np.array_equal(volume[:], SCAN * 2)
        assert (volume.spacing, volume.unit, volume.orientation) == (
            (2.0, 0.5, 0.5), "millimeter", "SAL",
        )  # fmt: skip
        assert (volume.chunks, volume.shards) == (model.chunks, model.shards)

    @pytest.mark.slow
    def test_a_result_with_channels_takes_them_too(self, write, model):
        volume = write(da.stack([model.dask()] * 2), like=model, chunk=None, shard=None)
        assert volume.axes == ("c", "z", "y", "x")
        assert volume.spacing == (2.0, 0.5, 0.5)
        assert volume.chunks == (1, 8, 8, 8)

    def test_another_shape_is_refused(self, write, model):
        with pytest.raises(InvalidInput, match=r"like= has shape \(37, 22, 29\) but the array"):
            write(model.dask()[::2], like=model)

    def test_meta_says_it_in_detail(self, write):
        volume = write(da.from_array(SCAN), meta=Meta(spacing=(3.0, 1.0, 1.0), unit="micrometer"))
        assert (volume.spacing, volume.unit) == ((3.0, 1.0, 1.0), "micrometer")


class TestWords:
    """Spacing, unit and orientation as they are typed."""

    def test_they_complete_what_the_array_knows(self, write):
        words = {"spacing": (2, 0.5, 0.5), "unit": "mm", "orientation": "sal"}
        volume = write(da.from_array(SCAN), **words)
        assert (volume.spacing, volume.unit, volume.orientation) == (
            (2.0, 0.5, 0.5), "millimeter", "SAL",
        )  # fmt: skip
        write(da.from_array(SCAN), **words)  # and are known again
        with pytest.raises(ResumeRefused, match=r"spacing: \[2.0, 0.5, 0.5\] → \[3.0, 3.0, 3.0\]"):
            write(da.from_array(SCAN), **words | {"spacing": 3})

    @pytest.mark.parametrize("given", ["volume", "path", "meta"])
    def test_what_says_otherwise_is_refused(self, write, stored, given):
        model = stored(SCAN, "like.zarr", spacing=(2, 0.5, 0.5), unit="millimeter")
        name = "meta" if given == "meta" else "like"
        known = {name: {"volume": model, "path": model.path, "meta": model.meta}[given]}
        match = f"{name}= has spacing 2×0.5×0.5 mm and the call says 2×0.5×0.5 µm; leave out one"
        with pytest.raises(InvalidInput, match=match):
            write(SCAN, **known, unit="um")
        volume = write(SCAN, **known, spacing=(2, 0.5, 0.5), orientation="SAR")
        assert (volume.unit, volume.orientation) == ("millimeter", "SAR")

    def test_a_corrected_orientation_is_exported(self, write, tmp_path):
        nibabel = pytest.importorskip("nibabel")
        image = nibabel.Nifti1Image(SCAN.T, np.diag([0.5, 0.5, 2, 1]))
        image.to_filename(tmp_path / "scan.nii")
        volume = write(vf.convert(tmp_path / "scan.nii", tmp_path / "scan.zarr", progress=False),
                       orientation="SAL", unit="um")  # fmt: skip
        header = nibabel.load(vf.export(volume.path, tmp_path / "out.nii")).header
        assert nibabel.aff2axcodes(header.get_best_affine()) == ("L", "A", "S")
        assert header.get_xyzt_units()[0] == "micron"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ({"spacing": "wide"}, "spacing needs one number, or one each for z, y, x; given wide"),
            ({"orientation": "XYZ"}, "orientation needs one letter of R/L, A/P, S/I each"),
            ({"unit": "pixel"}, "unit 'pixel' is not known"),
        ],
    )
    def test_slips(self, write, words, message):
        with pytest.raises(InvalidInput, match=message):
            write(SCAN, **words)


class TestRefused:
    def test_an_output_that_is_its_model(self, write):
        volume = write(SCAN)
        with pytest.raises(InvalidInput, match="would replace its own input"):
            write(volume.dask() + 1, like=volume, overwrite=True)
        assert np.array_equal(volume[:], SCAN)

    @pytest.mark.parametrize("shape", [(5,), (2, 2, 5, 5, 5), (5, 0, 5)])
    def test_arrays_that_are_no_volume(self, write, tmp_path, shape):
        with pytest.raises(InvalidInput, match="a volume is zyx or czyx and not empty"):
            write(da.zeros(shape))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.layered
    def test_arrays_of_unknown_size(self, write):
        array = da.from_array(SCAN, chunks=8)
        with pytest.raises(InvalidInput, match=r"unknown sizes, .*compute_chunk_sizes"):
            write(array[array.sum(axis=(1, 2)) > 0])

    def test_empty_arrays(self, write):
        with pytest.raises(InvalidInput, match=r"shape \(0, 5, 5\); a volume is zyx or czyx and"):
            write(da.zeros((0, 5, 5)))

    def test_arrays_that_lie_about_their_dtype(self, write):
        lying = da.from_array(SCAN, chunks=16).map_blocks(
            lambda block: block.astype("f8"), dtype="uint16", meta=SCAN[:0, :0, :0]
        )
        with pytest.raises(InvalidInput, match="declares uint16 but computes float64; pass the ri"):
            write(lying)

    def test_memory_that_cannot_do(self, write, tmp_path):
        with pytest.raises(MemoryRefused, match=r'use memory="\d+MiB" or more'):
            write(da.zeros((64, 64, 64), chunks=64), memory="10MiB")
        assert list(tmp_path.iterdir()) == []

    def test_chunks_that_fill_memory_count(self, write, tmp_path):
        array = da.zeros((256, 256, 256), chunks=256, dtype="u1")
        with pytest.raises(MemoryRefused, match="needs 96"):
            write(array, memory="60MiB")


class TestResume:
    @pytest.mark.slow
    def test_only_what_is_left_is_computed(self, write, tmp_path):
        failing.append(True)

        def array():
            return da.map_blocks(
                fails, da.from_array(SCAN, chunks=16), dtype="uint16", meta=SCAN[:0, :0, :0],
                name="the-same-work",
            )  # fmt: skip

        with pytest.raises(RunFailed, match="4 of 12 blocks failed"):
            write(array())
        assert len(Journal(journal_dir(tmp_path / "out.zarr")).done()) == 8
        assert len(seen) == 8
        failing.clear()
        seen.clear()
        assert np.array_equal(write(array())[:], SCAN)
        assert {z for z, _, _ in seen} == {2}

    def test_another_array_is_refused(self, write):
        write(da.from_array(SCAN))
        with pytest.raises(ResumeRefused, match="different inputs or settings: input"):
            write(da.from_array(SCAN + 1))
        assert np.array_equal(write(da.from_array(SCAN + 1), overwrite=True)[:], SCAN + 1)


@pytest.mark.slow
def test_processes_get_their_own_part_of_the_graph(tmp_path):
    array = (da.from_array(SCAN, chunks=9) + 1).rechunk(7)
    volume = vf.write(
        array, tmp_path / "out.zarr", chunk=8, shard=8, cluster=2, progress=False
    )  # fmt: skip
    assert np.array_equal(volume[:], SCAN + 1)


@pytest.mark.parametrize("call", [lambda x, out: vf.write(x, out), lambda x, out: vf.preview(x)])
def test_several_outputs_are_taken_by_name(tmp_path, call):
    scores = {name: da.zeros((4, 5, 6)) for name in ("seg", "edge")}
    with pytest.raises(
        InvalidInput,
        match=r'a dict of volumes by name was given \(seg, edge\).*take.*scores\["seg"',
    ):
        call(scores, tmp_path / "out.zarr")
