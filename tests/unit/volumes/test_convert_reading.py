"""How a conversion reads: larger pieces seldom, packed files unpacked where planes are too wide."""

import gzip
from dataclasses import dataclass
from types import SimpleNamespace

import dask.array as da
import nibabel
import numpy as np
import pytest
import zarr

import volflow as vf
from volflow.engine.clusters import held
from volflow.errors import ResumeRefused, SourceChanged, StoreFull
from volflow.store.formats.raw import RawSource
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Meta, SourceInfo
from volflow.store.slabs import Source
from volflow.volumes import copy_layout, copying, unpacking
from volflow.volumes.convert import plan_convert

RNG = np.random.default_rng(3)
READ = []


@dataclass(frozen=True, repr=False)
class Planes(Source):
    """A folder of planes, each decoded as a whole; says how often."""

    shape: tuple = (8, 48, 64)
    path = None
    meta = Meta(source=SourceInfo("planes", "uint16"))
    dtype = np.dtype("uint16")

    @property
    def decoded(self):
        return (1, *self.shape[1:])

    @property
    def voxels(self):
        return np.arange(np.prod(self.shape), dtype="u2").reshape(self.shape)

    def identity(self):
        return "planes"

    def read(self, roi):
        READ.extend(range(roi.start[0], roi.stop[0]))
        return self.voxels[roi.slices()]


class TestStrips:
    @pytest.fixture
    def options(self, client):
        READ.clear()
        return {"cluster": client, "chunk": 8, "shard": 16, "progress": False}

    def test_a_plane_is_decoded_once(self, tmp_path, options):
        plan = plan_convert(Planes(), tmp_path / "a.zarr", **options)
        volume = vf.convert(Planes(), tmp_path / "a.zarr", **options)
        assert [len(run) for run in plan.runs] == [12]  # shards of 16³ in a layer
        np.testing.assert_array_equal(volume[:], Planes().voxels)
        assert sorted(READ) == list(range(8))
        assert "is decoded" not in plan.describe()

    def test_less_memory_reads_them_again_and_says_so(self, tmp_path, options):
        # Twelve shards take 48 KiB more than one.
        need = plan_convert(Planes(), tmp_path / "a.zarr", **options).peak_bytes
        options["memory"] = need - 1
        plan = plan_convert(Planes(), tmp_path / "a.zarr", **options)
        assert "each voxel is decoded 2 times, as memory does not" in plan.describe()
        assert plan.peak_bytes <= options["memory"]
        volume = vf.convert(Planes(), tmp_path / "a.zarr", **options)
        np.testing.assert_array_equal(volume[:], Planes().voxels)
        assert sorted(READ) == sorted([*range(8)] * 2)

    def test_what_would_be_decoded_over_and_over_is_unpacked_first(
        self, tmp_path, options, monkeypatch
    ):
        monkeypatch.setattr(copy_layout, "DEAR", 1.5)
        need = plan_convert(Planes(), tmp_path / "a.zarr", **options).peak_bytes
        options["memory"] = need - 1
        plan = plan_convert(Planes(), tmp_path / "a.zarr", **options)
        assert "unpacked     first, to " in plan.describe()
        volume = vf.convert(Planes(), tmp_path / "a.zarr", **options)
        np.testing.assert_array_equal(volume[:], Planes().voxels)
        assert sorted(READ) == list(range(8))
        assert not (tmp_path / "a.zarr.volflow" / "unpacked.raw").exists()
        usage = SimpleNamespace(free=2**10)
        monkeypatch.setattr("volflow.volumes.copy_layout.shutil.disk_usage", lambda _: usage)
        plan = plan_convert(Planes(), tmp_path / "b.zarr", **options)
        assert "each voxel is decoded 2 times" in plan.describe()

    def test_what_is_left_is_done_with_any_memory(self, tmp_path, options):
        vf.convert(Planes(), tmp_path / "a.zarr", **options)
        Journal(journal_dir(tmp_path / "a.zarr")).forget([1, 6])
        READ.clear()
        memory = plan_convert(Planes(), tmp_path / "b.zarr", **options).peak_bytes - 1
        volume = vf.convert(Planes(), tmp_path / "a.zarr", memory=memory, **options)
        np.testing.assert_array_equal(volume[:], Planes().voxels)
        assert len(READ) in (8, 16)  # both blocks at once, or one after the other

    def test_one_that_is_long_to_send_goes_to_a_worker_once(
        self, tmp_path, options, monkeypatch, local
    ):
        sent, options["cluster"] = [], local
        monkeypatch.setattr(held, "LONG_BYTES", 0)
        monkeypatch.setattr(Planes, "__reduce__", lambda _: sent.append(1) or (Planes, ()))
        options["memory"] = plan_convert(Planes(), tmp_path / "a.zarr", **options).peak_bytes - 1
        assert len(plan_convert(Planes(), tmp_path / "a.zarr", **options).runs) > 1
        volume = vf.convert(Planes(), tmp_path / "a.zarr", **options)
        np.testing.assert_array_equal(volume[:], Planes().voxels)
        assert sent == [1]

    def test_the_state_of_a_folder_is_asked_for_at_the_end(self, tmp_path, options, monkeypatch):
        asked = []
        monkeypatch.setattr(Planes, "path", str(tmp_path))
        monkeypatch.setattr(Planes, "identity", lambda _: asked.append(1) or "planes")
        vf.convert(Planes(), tmp_path / "a.zarr", **options)
        assert len(asked) == 2

    def test_zarr_in_planes_is_read_once(self, tmp_path, options):
        voxels = RNG.integers(0, 99, (16, 64, 64), "uint8")
        zarr.create_array(tmp_path / "a.zarr", data=voxels, chunks=(1, 64, 64))
        plan = plan_convert(tmp_path / "a.zarr", tmp_path / "b.zarr", **options)
        assert [len(run) for run in plan.runs] == [16]


WIDE = RNG.integers(0, 9, (20, 400, 400), "uint16")
TIGHT = "40MiB"  # does not hold sixteen planes and what is made of them


def killed(*_, **__):
    raise KeyboardInterrupt


@pytest.fixture
def packed(tmp_path):
    nibabel.save(nibabel.Nifti1Image(WIDE.T, np.diag([2, 2, 3, 1])), tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz"


class TestUnpacking:
    @pytest.fixture
    def options(self, client):
        return {
            "cluster": client,
            "chunk": (16, 64, 64),
            "shard": (16, 128, 128),
            "progress": False,
        }

    @staticmethod
    def left(folder):
        return sorted(path.name for path in (folder / "a.zarr.volflow").iterdir())

    @pytest.mark.slow
    def test_where_no_layer_of_shards_fits(self, packed, tmp_path, options):
        plan = plan_convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)
        assert "unpacked     first, to " in plan.describe()
        assert "a.zarr.volflow/unpacked.raw, 6.1 MiB" in plan.describe()
        volume = vf.convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)
        np.testing.assert_array_equal(volume[:], WIDE)
        assert (volume.shards, volume.spacing) == ((16, 128, 128), (3, 2, 2))
        assert "unpacked.raw" not in self.left(tmp_path)
        assert vf.verify(volume.path).ok
        # Finished, it is what it is with any memory.
        again = vf.convert(packed, tmp_path / "a.zarr", **options)
        assert again.identity() == volume.identity()

    @pytest.mark.slow
    def test_killed_behind_it_nothing_is_unpacked_again(self, packed, tmp_path, options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying, "run", killed)
            with pytest.raises(KeyboardInterrupt):
                vf.convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)
        assert "unpacked.raw" in self.left(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(unpacking, "run", None)  # would fail if it were called
            volume = vf.convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)
        np.testing.assert_array_equal(volume[:], WIDE)
        assert "unpacked.raw" not in self.left(tmp_path)

    @pytest.mark.slow
    def test_what_another_run_left_is_not_taken(self, packed, tmp_path, options):
        (tmp_path / "a.zarr.volflow").mkdir()
        (tmp_path / "a.zarr.volflow" / "unpacked.raw").write_bytes(bytes(2 * WIDE.size))
        volume = vf.convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)
        np.testing.assert_array_equal(volume[:], WIDE)

    def test_a_full_disk_is_found_before_the_first_byte(
        self, packed, tmp_path, options, monkeypatch
    ):
        usage = SimpleNamespace(free=2**20)
        monkeypatch.setattr("volflow.volumes.unpacking.shutil.disk_usage", lambda _: usage)
        with pytest.raises(StoreFull, match=r"takes 6\.1 MiB, and 1 MiB are free there; make"):
            vf.convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)

    def test_a_file_that_is_cut_short_leaves_nothing(self, packed, tmp_path, options):
        packed.write_bytes(packed.read_bytes()[:-9])
        with pytest.raises(vf.errors.Damaged, match="is cut short; copy it again"):
            vf.convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)
        assert list(tmp_path.glob("a.zarr*")) == []

    @pytest.mark.slow
    def test_a_file_that_changes_meanwhile_is_not_trusted(
        self, packed, tmp_path, options, monkeypatch
    ):
        perform = unpacking.Unpacking.perform

        def changed(self, *given):
            perform(self, *given)
            packed.touch()

        monkeypatch.setattr(unpacking.Unpacking, "perform", changed)
        with pytest.raises(SourceChanged, match="was changed while it was read"):
            vf.convert(packed, tmp_path / "a.zarr", memory=TIGHT, **options)
        monkeypatch.undo()
        vf.convert(packed, tmp_path / "a.zarr", **options)  # now it need not be unpacked
        assert "unpacked.raw" not in self.left(tmp_path)


class TestWhatIsMadeOfIt:
    @pytest.fixture
    def four(self, tmp_path):
        np.save(tmp_path / "a.npy", RNG.normal(0, 30, (4, 9, 10, 11)))
        return tmp_path / "a.npy"

    def test_channel_dtype_spacing_and_unit(self, four, tmp_path, client):
        options = {"channel": 2, "dtype": "int16", "spacing": (2, 1, 1), "unit": "um"}
        options |= {"cluster": client, "progress": False}
        volume = vf.convert(four, tmp_path / "a.zarr", **options)
        np.testing.assert_array_equal(volume[:], np.rint(np.load(four)[2]).astype("i2"))
        assert (volume.spacing, volume.unit) == ((2, 1, 1), "micrometer")
        assert volume.axes == ("z", "y", "x")
        vf.convert(four, tmp_path / "a.zarr", **options)
        with pytest.raises(ResumeRefused, match=r"settings: channel: 2 → 1; use those again"):
            vf.convert(four, tmp_path / "a.zarr", **options | {"channel": 1})
        with pytest.raises(ResumeRefused, match="dtype: int16 → absent; use those again"):
            vf.convert(four, tmp_path / "a.zarr", **options | {"dtype": None})

    def test_what_a_dtype_does_not_hold_is_refused(self, four, tmp_path, client):
        first = r"voxel \(0, 0, \d+\) is -?\d+\.\d+, which int8 does not hold; choose a wider dtype"
        with pytest.raises(vf.errors.InvalidInput, match=first):
            vf.convert(
                np.load(four)[0] * 9, tmp_path / "a.zarr", dtype="int8", cluster=client,
                progress=False,
            )  # fmt: skip
        assert not (tmp_path / "a.zarr").exists()

    def test_spacing_scales_the_affine_along_its_axes(self, packed, tmp_path, client):
        volume = vf.convert(
            packed, tmp_path / "a.zarr", spacing=(6, 1, 1), cluster=client, progress=False
        )
        np.testing.assert_allclose(volume.affine, np.diag([1, 1, 6, 1]))
        assert (volume.spacing, volume.unit) == ((6, 1, 1), "millimeter")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"unit": "furlong"},
                "unit 'furlong' is not known; use nm, um, mm or any other length",
            ),
            ({"spacing": (1, 2)}, "spacing needs one number, or one each for z, y, x; given"),
            ({"spacing": 0}, "spacing must be positive and finite"),
            ({"dtype": "int99"}, "dtype must be a NumPy dtype such as uint16, given 'int99'"),
            ({"dtype": "complex64"}, "complex64"),
            ({"channel": 4}, "has 4 channels, given channel 4; choose 0 to 3"),
            ({"level": 1}, "is NumPy, of which no level can be chosen"),
        ],
    )
    def test_slips(self, four, tmp_path, options, message):
        with pytest.raises(vf.errors.InvalidInput, match=message):
            vf.convert(four, tmp_path / "a.zarr", progress=False, **options)
        assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"dtype": "uint8"}, "dtype= is for what is stored, .* give array.astype"),
            ({"channel": 1}, r"channel= is for what is stored, .* give array\[0\]"),
            ({"level": 1}, "the array is computed by Dask, of which no level can be chosen"),
        ],
    )
    def test_slips_with_what_dask_computes(self, tmp_path, options, message):
        computed = da.zeros((4, 5, 6), dtype="uint16") + 1
        with pytest.raises(vf.errors.InvalidInput, match=message):
            vf.convert(computed, tmp_path / "a.zarr", progress=False, **options)

    def test_what_dask_computes_gets_a_spacing(self, tmp_path, client):
        computed = da.zeros((4, 5, 6), dtype="uint16") + 1
        words = {"spacing": (2, 1, 1), "unit": "um"}
        volume = vf.convert(computed, tmp_path / "a.zarr", cluster=client, progress=False, **words)
        assert (volume.spacing, volume.unit) == ((2, 1, 1), "micrometer")


class TestChannelsPackedSideBySide:
    @pytest.fixture
    def packed(self, tmp_path, monkeypatch):
        self.passes = []
        self.colours = RNG.integers(0, 99, (3, 20, 200, 200), "uint16")
        data = gzip.compress(np.moveaxis(self.colours, 0, -1).tobytes(), 1)
        (tmp_path / "a.gz").write_bytes(data)
        stream = RawSource._stream
        monkeypatch.setattr(RawSource, "_stream", lambda raw: self.passes.append(1) or stream(raw))
        return RawSource(
            path=str(tmp_path / "a.gz"), shape=self.colours.shape, meta=Meta(tuple("czyx")),
            stored_dtype=np.dtype("<u2"), packing="gzip", interleaved=True, slope=2.0,
        )  # fmt: skip

    @pytest.mark.parametrize("memory", ["64MiB", "38MiB"])
    def test_are_unpacked_once(self, tmp_path, packed, client, memory):
        options = {"cluster": client, "memory": memory, "shard": (16, 64, 64), "chunk": 16}
        plan = plan_convert(packed, tmp_path / "b.zarr", **options)
        assert ("unpacked     first" in plan.describe()) == (memory == "38MiB")
        volume = vf.convert(packed, tmp_path / "b.zarr", progress=False, **options)
        np.testing.assert_array_equal(volume[:], self.colours * 2.0)
        assert self.passes == [1]

    def test_one_of_them_is_taken(self, tmp_path, packed, client):
        options = {"cluster": client, "channel": 1, "progress": False}
        volume = vf.convert(packed, tmp_path / "b.zarr", labels=True, **options)
        np.testing.assert_array_equal(volume[:], self.colours[1] * 2)
