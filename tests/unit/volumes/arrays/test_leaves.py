"""Dask arrays as people have them: their files change, map memory, lie on a cluster, hold locks."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from distributed import Client, LocalCluster
from torch import nn

import volflow as vf
from tests.leaves import KINDS, lazy, looked_up, same, save
from volflow.errors import InvalidInput, ResumeRefused
from volflow.geometry.roi import Roi
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.journal import journal_dir
from volflow.volumes.arrays.pieces import Pieces

SCAN = np.random.default_rng(0).integers(0, 900, (64, 64, 64), "int16")
LIMITS = dict(chunk=16, shard=32, progress=False)

# Functions of this module travel by name, so that what they see is seen here.
seen: list[int] = []


@pytest.fixture(autouse=True)
def forget():
    seen.clear()


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, SCAN)
    return tmp_path


def quiet(state):
    """A progress that shows nothing, and lets announcements through."""


def doubled(block):
    seen.append(block.size)
    return block * 2


def loaded(path):
    seen.append(1)
    return np.load(path)


@pytest.fixture(scope="module")
def processes():
    """A worker in a process of its own, on a cluster as users have it."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):  # fmt: skip
        yield client


class TestChangedInput:
    def write(self, client, folder, array, **options):
        return vf.write(array, folder / "out.zarr", cluster=client, **LIMITS, **options)

    def work(self, folder):
        array = da.from_zarr(str(folder / "a.zarr"))
        return array.map_blocks(doubled, dtype="i2", meta=np.empty((0, 0, 0), "i2"))

    def test_written_again_it_is_resumed(self, client, folder):
        self.write(client, folder, self.work(folder))
        seen.clear()
        assert np.array_equal(self.write(client, folder, self.work(folder))[:], SCAN * 2)
        assert seen == []

    def test_a_changed_store_never_gives_the_old_result(self, client, folder):
        self.write(client, folder, self.work(folder))
        save(folder, SCAN + 4)
        with pytest.raises(
            ResumeRefused, match=r"different inputs or settings: input: .*overwrite"
        ):
            self.write(client, folder, self.work(folder))
        volume = self.write(client, folder, self.work(folder), overwrite=True)
        assert np.array_equal(volume[:], (SCAN + 4) * 2)

    @pytest.mark.slow
    def test_nor_from_predict(self, predict, folder):
        def run(**options):
            array = da.from_zarr(str(folder / "a.zarr"))
            return predict(array, nn.Identity(), patch=32, chunk=16, shard=32, **options)

        run()
        save(folder, SCAN + 4)
        with pytest.raises(ResumeRefused, match="different inputs or settings: input"):
            run()
        assert np.allclose(run(overwrite=True)[0], SCAN + 4, atol=0.01)

    @pytest.mark.slow
    def test_records_of_an_older_version_are_refused(self, client, folder):
        volume = self.write(client, folder, self.work(folder))
        path = journal_dir(volume.path) / "plan.json"
        saved = read_json(path)
        saved["fingerprint"]["input"] = dask.base.tokenize(self.work(folder))
        write_json(path, saved)
        with pytest.raises(ResumeRefused, match=r"older version of volflow.* by its name alone"):
            self.write(client, folder, self.work(folder))
        assert vf.verify(volume.path).ok
        assert np.array_equal(vf.open(volume.path)[:], SCAN * 2)


class TestUnidentified:
    ANEW = (
        "{} is computed again: the array depends on the function loaded, which may read something"
        " else by now; resume=True trusts that it does not\n"
    )

    def array(self, folder):
        voxels = dask.delayed(loaded)(str(folder / "a.npy"))
        return da.from_delayed(voxels, SCAN.shape, "i2", meta=np.empty((0, 0, 0), "i2"))

    def write(self, client, folder, array=None, **options):
        array = self.array(folder) if array is None else array
        options = LIMITS | {"progress": quiet} | options
        return vf.write(array, folder / "out.zarr", cluster=client, **options)

    def test_is_computed_anew_saying_so(self, client, folder, capsys):
        self.write(client, folder)
        assert capsys.readouterr().err == ""
        save(folder, SCAN + 1)
        assert np.array_equal(self.write(client, folder)[:], SCAN + 1)
        assert capsys.readouterr().err == "write: " + self.ANEW.format(folder / "out.zarr")
        assert vf.verify(folder / "out.zarr").ok

    def test_is_resumed_by_those_who_know_better(self, client, folder):
        self.write(client, folder)
        seen.clear()
        assert np.array_equal(self.write(client, folder, resume=True)[:], SCAN)
        assert seen == []

    def test_another_array_replaces_nothing(self, client, folder):
        self.write(client, folder)
        for options in ({}, {"resume": True}):
            with pytest.raises(ResumeRefused, match="different inputs or settings: input"):
                self.write(client, folder, self.array(folder) + 1, **options)
        assert np.array_equal(vf.open(folder / "out.zarr")[:], SCAN)

    @pytest.mark.slow
    def test_predict_begins_anew_with_it(self, client, folder, capsys):
        def run(scale=1.0, **options):
            module = nn.Conv3d(1, 1, 1, bias=False)
            nn.init.constant_(module.weight, scale)
            return vf.predict(
                self.array(folder), module, folder / "out.zarr", patch=32, chunk=16, shard=32,
                cluster=client, progress=quiet, **options,
            )  # fmt: skip

        said = "write: " + self.ANEW.format(folder / "out.zarr.volflow/input.zarr")
        assert np.allclose(run()[0], SCAN, atol=0.01)
        save(folder, SCAN + 1)
        assert np.allclose(run()[0], SCAN + 1, atol=0.01)
        assert capsys.readouterr().err == said
        save(folder, SCAN + 2)
        assert np.allclose(run(resume=True)[0], SCAN + 1, atol=0.01)
        with pytest.raises(ResumeRefused, match="different inputs or settings: weights"):
            run(2.0)
        assert capsys.readouterr().err == said
        assert np.allclose(vf.open(folder / "out.zarr")[0], SCAN + 1, atol=0.01)


class TestTravel:
    """A task carries what its block needs, whatever the array is over."""

    ROIS = (Roi((0, 0, 0), (32, 32, 32)), Roi((32, 32, 32), (64, 64, 64)))
    BLOCK_BYTES = 32**3 * 2

    def sent(self, array, client):
        """Bytes of the first task, and of what each worker gets once."""
        pieces = Pieces.of(array, client, here=False).shared(self.ROIS)
        parcel, _ = pieces.parcel(self.ROIS[0], None)
        return len(parcel), pieces.kept_bytes

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_task_carries_at_most_its_block(self, client, folder, kind):
        array = lazy(kind, folder)
        held = self.BLOCK_BYTES if kind in ("numpy", "memmap") else 0
        # A box of a large chunk is cut before it travels.
        for work in (
            lazy(kind, folder, chunks=64),
            array + 1,
            vf.map_overlap(same, array, depth=0, dtype="i2"),
        ):
            task, once = self.sent(work, client)
            assert task <= held + 8000, kind
            assert once == 0

    def test_what_all_need_whole_goes_once(self, client, folder):
        table = np.arange(2**19)
        array = lazy("zarr", folder).map_blocks(looked_up, table, dtype="i8")
        task, once = self.sent(array, client)
        assert task < 8000
        assert table.nbytes <= once <= table.nbytes + 8000

    @pytest.mark.slow
    def test_results_on_processes_are_the_same(self, processes, folder):
        table = np.arange(2**19)
        parts = [lazy(kind, folder) for kind in KINDS]
        array = da.concatenate(parts, axis=2).map_blocks(looked_up, table, dtype="i8")
        volume = vf.write(array, folder / "out.zarr", cluster=processes, **LIMITS | {"shard": 64})
        assert np.array_equal(volume[:], np.concatenate([SCAN] * len(KINDS), axis=2))

    def test_a_mapping_is_stored_as_it_is(self, client, folder):
        mapping = np.load(folder / "a.npy", mmap_mode="r")
        for n, array in enumerate((mapping, mapping[::2, :, ::-1])):
            out = folder / f"{n}.zarr"
            assert np.array_equal(vf.write(array, out, cluster=client, **LIMITS)[:], array)
        near = vf.map_overlap(same, mapping, depth=3, boundary="reflect", dtype="i2", block=24)
        assert np.array_equal(near.compute(), SCAN)


class TestPersisted:
    """Results on a cluster are what a task waits for."""

    def persisted(self, client):
        return da.from_array(SCAN, chunks=(24, 64, 32)).persist(scheduler=client)

    @pytest.mark.slow
    def test_are_written(self, processes, tmp_path):
        array = self.persisted(processes)
        for n, (work, wanted) in enumerate([(array, SCAN), (array[:, 3:] + 1, SCAN[:, 3:] + 1)]):
            volume = vf.write(work, tmp_path / f"{n}.zarr", cluster=processes, **LIMITS)
            assert np.array_equal(volume[:], wanted)

    def test_count_by_their_voxels(self, processes, tmp_path):
        def write(**options):
            array = self.persisted(processes) + 1
            return vf.write(array, tmp_path / "out.zarr", cluster=processes, **LIMITS, **options)

        write()
        before = (tmp_path / "out.zarr/0/c/0/0/0").stat().st_mtime_ns
        assert np.array_equal(write()[:], SCAN + 1)
        assert (tmp_path / "out.zarr/0/c/0/0/0").stat().st_mtime_ns == before

    @pytest.mark.slow
    def test_are_predicted_and_mapped(self, client, predict, tmp_path):
        array = self.persisted(client)
        options = {"patch": 32, "chunk": 16, "shard": 32}
        result = predict(array * 2, nn.Identity(), **options)
        assert np.allclose(result[0], SCAN * 2, atol=0.01)
        scores = vf.map_model(array + 1, nn.Identity(), patch=32)
        written = vf.write(scores, tmp_path / "scores.zarr", cluster=client, **LIMITS)
        assert np.allclose(written[0], SCAN + 1, atol=0.01)

    def test_are_measured(self, processes):
        """A scheduler of its own takes tasks apart that hold what it has not, and passes it on."""
        array = self.persisted(processes) + 1
        known = vf.statistics(SCAN + 1)
        for x in (array, da.from_array(SCAN, chunks=32) + 1):
            assert vf.statistics(x, cluster=processes, progress=False).to_dict() == known.to_dict()
        options = dict(cluster=processes, progress=False)
        case = {"image": SCAN, "label": da.from_array(SCAN, chunks=32) > 450}
        sampler = vf.LabelSampler(16, probabilities={0: 1, 1: 1})
        assert len(vf.PatchStream(case, sampler, 8, **options)) == 8

    def test_are_streamed(self, processes):
        array = self.persisted(processes) + 1
        for cluster in (None, processes):
            stream = vf.PatchStream(array, vf.UniformSampler(16), 4, cluster=cluster)
            for sample in stream:
                z, y, x = sample["location"][:3].tolist()
                wanted = SCAN[z : z + 16, y : y + 16, x : x + 16] + 1
                assert np.array_equal(sample["image"][0].numpy(), wanted)

    def test_of_another_cluster_are_refused(self, client, processes, tmp_path):
        array = self.persisted(processes) + 1
        refused = (
            r"the array holds results that are kept on the Dask cluster at tcp://.*, but this run"
            r" works on inproc://.*; pass the client that persisted it as cluster=, or give the"
            r" array as it was before persist\(\)$"
        )
        with pytest.raises(InvalidInput, match=refused):
            vf.write(array, tmp_path / "out.zarr", cluster=client, **LIMITS)
        assert list(tmp_path.iterdir()) == []


class TestLocks:
    """What cannot be pickled runs in this process; elsewhere one line names it."""

    REFUSED = (
        r"^the Dask array cannot be sent to another process: {}.* holds what does not pickle"
        r" \(cannot pickle '_thread.R?[lL]ock' object\); run it in this process"
        r' \(cluster="threads"\), or open files and make locks within the function that uses them$'
    )

    def locked(self):
        lock = threading.Lock()

        def locked(block):
            with lock:
                return block + 1

        array = da.from_array(SCAN, chunks=32)
        return array.map_blocks(locked, dtype="i2", meta=np.empty((0, 0, 0), "i2"))

    def tiff(self, folder):
        tifffile.imwrite(folder / "a.tif", SCAN)
        return tifffile.imread(folder / "a.tif", aszarr=True)

    def test_in_this_process_they_run(self, client, folder):
        volume = vf.write(self.locked(), folder / "0.zarr", cluster=client, **LIMITS)
        assert np.array_equal(volume[:], SCAN + 1)
        with self.tiff(folder) as tiff:
            array = da.from_array(zarr.open(tiff, mode="r"), chunks=32)
            volume = vf.write(array, folder / "1.zarr", cluster=client, **LIMITS)
            assert np.array_equal(volume[:], SCAN)

    def test_elsewhere_the_culprit_is_named(self, processes, folder):
        out = folder / "out.zarr"
        with pytest.raises(InvalidInput, match=self.REFUSED.format("the function locked of ")):
            vf.write(self.locked(), out, cluster=processes, **LIMITS)
        with self.tiff(folder) as tiff:
            array = da.from_array(zarr.open(tiff, mode="r"), chunks=32)
            with pytest.raises(InvalidInput, match=self.REFUSED.format("original-")):
                vf.write(array, out, cluster=processes, **LIMITS)
        assert not out.exists()
        assert not Path(f"{out}.volflow").exists()

    @pytest.mark.slow
    def test_streams_alike(self, client, processes):
        labels = (self.locked() > 400).astype("u1")
        case = {"image": self.locked(), "label": labels}
        sampler = vf.LabelSampler(16, label="label", probabilities={1: 1})
        assert len(list(vf.PatchStream(case, sampler, 3))) == 3
        refused = self.REFUSED.format("the function locked of ")
        with pytest.raises(InvalidInput, match=refused):
            list(vf.PatchStream(self.locked(), vf.UniformSampler(16), 3, cluster=processes))


GROWTH = """
import pathlib
import numpy as np
from tests.leaves import KINDS, lazy, save, same

if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    save(folder, np.random.default_rng(0).integers(0, 9, (64, 128, 256), "int16"))
    grown = {}
    with connect("threads") as client:
        for kind in ("warm", *KINDS):
            array = lazy("numpy" if kind == "warm" else kind, folder)
            work = array.map_blocks(same, dtype="int16", meta=np.empty((0, 0, 0), "int16"))
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = resident("VmRSS")
            vf.write(work, folder / f"{kind}-out.zarr", chunk=32, shard=32, memory="64MiB",
                     cluster=client, progress=False)
            grown[kind] = resident("VmHWM") - before
    print(json.dumps(grown))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_growth_stays_within_the_budget_whatever_the_leaf(grown, tmp_path):
    found = grown(GROWTH, str(tmp_path))
    assert set(found) == {"warm", *KINDS}
    assert max(found.values()) <= 64 * 2**20, found
