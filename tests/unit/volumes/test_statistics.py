import json
import math
import os
import pickle

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster

import volflow as vf
from volflow.engine.run import run
from volflow.engine.task import Context
from volflow.errors import Damaged, InvalidInput, MemoryRefused, Superseded
from volflow.geometry.histogram import measure
from volflow.store.formats.sources import ArraySource
from volflow.store.meta import Meta
from volflow.store.volume import open_volume
from volflow.volumes import fold as fold_module
from volflow.volumes import statistics as module
from volflow.volumes.distribution import Statistics
from volflow.volumes.statistics import StatisticsJob, measure_blocks, piece_shape, plan_statistics

RNG = np.random.default_rng(0)


def stored(path, data, **layout):
    layout = {"chunks": (8,) * data.ndim} | layout
    zarr.create_array(path, data=data, **layout)
    return path


@pytest.fixture
def scan(tmp_path):
    """48 chunks of small integers."""
    data = RNG.integers(0, 4000, (32, 24, 32), dtype="uint16")
    return stored(tmp_path / "scan.zarr", data, shards=(16, 8, 16)), data


@pytest.fixture
def many_blocks(monkeypatch):
    """Pieces of a shard each, in few blocks, as a large volume has them."""
    monkeypatch.setattr(module, "PIECE_BYTES", (1, 1))
    monkeypatch.setattr(module, "BLOCKS", 5)


def sidecar(path, name="statistics-all.json"):
    return path.with_name(path.name + ".volflow") / name


def test_figures_are_numpys(scan):
    path, data = scan
    stats = vf.statistics(path, progress=False)
    assert stats.count == (data.size,)
    assert stats.nonfinite == (0,)
    assert (stats.min, stats.max) == ((data.min(),), (data.max(),))
    assert stats.mean == (data.mean(),)
    assert stats.std == pytest.approx((data.std(),), rel=1e-15)
    for q in (0, 2, 50, 99.5, 100):
        assert stats.percentile(q) == (np.percentile(data, q),)
    both = tuple(np.percentile(data, [5, 99]).tolist())
    assert stats.percentile([5, 99]) == stats.percentile(np.array([5, 99])) == (both,)


def test_channels_are_described_apart(tmp_path, many_blocks):
    data = np.stack([RNG.integers(0, 50, (16, 8, 8)), RNG.integers(100, 200, (16, 8, 8))])
    data = data.astype("uint8")
    for chunks in ((1, 8, 8, 8), (2, 8, 8, 8)):
        path = tmp_path / f"{chunks[0]}.zarr"
        array = zarr.create_array(
            path, data=data, chunks=chunks, dimension_names=["c", "z", "y", "x"]
        )
        stats = vf.statistics(array, progress=False)
        assert stats.histograms == tuple(measure(channel) for channel in data)
        assert len(str(stats).splitlines()) == 2
        assert "channel 1: 1,024 voxels, min 100" in str(stats)


@pytest.mark.slow
def test_the_result_does_not_depend_on_memory_cluster_or_order(tmp_path, many_blocks, monkeypatch):
    data = RNG.normal(size=(32, 24, 32)).astype("float32")
    path = stored(tmp_path / "a.zarr", data)
    volume = open_volume(path)
    job = StatisticsJob(volume, False)
    blocks = tuple(range(job.blocks))
    assert len(blocks) == 5
    assert [n for b in blocks for n in job.pieces_of(b)] == list(range(48))
    expected = vf.statistics(path, progress=False)
    assert expected.std == pytest.approx((data.astype("float64").std(),), rel=1e-12)
    reverse = {
        s.block: s.result
        for s in measure_blocks(job, blocks[::-1], Context())
        if s.block is not None
    }
    in_order = [reverse[b][0] for b in blocks]
    assert module.merge(in_order) == expected.histograms[0]
    with LocalCluster(
        n_workers=1, threads_per_worker=3, processes=False,
        dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:  # fmt: skip
        monkeypatch.setattr(module, "load_statistics", lambda *args: None)
        assert vf.statistics(path, cluster=cluster, memory="1GiB", progress=False) == expected


@pytest.mark.slow
def test_processes_give_the_same(scan):
    path, data = scan
    with Client(
        n_workers=2, threads_per_worker=1,
        dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as client:  # fmt: skip
        stats = vf.statistics(path, cluster=client, progress=False)
    assert stats.histograms == (measure(data),)


@pytest.mark.slow
def test_results_are_kept_beside_the_volume_until_it_changes(scan, monkeypatch):
    path, _ = scan
    first = vf.statistics(path, progress=False)
    assert sidecar(path).exists()
    with monkeypatch.context() as patch:
        patch.setattr(module, "fold", None)  # nothing may run
        assert vf.statistics(path) == first
    zarr.open_array(path)[0, 0, 0] = 60000
    assert vf.statistics(path, progress=False).max == (60000,)
    again = json.loads(sidecar(path).read_text())
    assert again["identity"] == open_volume(path).identity()


def test_reals_come_back_from_the_file_as_they_were(tmp_path):
    data = RNG.normal(size=(8, 8, 8))
    data[0, 0, 0] = np.nan
    path = stored(tmp_path / "a.zarr", data)
    first = vf.statistics(path, progress=False)
    again = vf.statistics(path, progress=False)
    assert first == again
    assert again.nonfinite == (1,)
    assert again.percentile(33) == first.percentile(33)
    assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 9, "identity": ""}'])
def test_a_damaged_file_is_computed_anew(scan, text):
    path, _ = scan
    first = vf.statistics(path, progress=False)
    sidecar(path).write_text(text)
    assert vf.statistics(path, progress=False) == first
    assert json.loads(sidecar(path).read_text())["format"] == 1


def test_each_foreground_is_kept_apart(scan):
    path, data = scan
    assert vf.statistics(path, foreground=True, progress=False).count == (np.count_nonzero(data),)
    above = vf.statistics(path, foreground=100, progress=False)
    assert above.count == (np.count_nonzero(data > 100),)
    assert above.percentile(50) == (np.percentile(data[data > 100], 50),)
    assert vf.statistics(path, progress=False).count == (data.size,)
    assert sorted(p.name for p in sidecar(path).parent.iterdir()) == [
        "statistics-above-100.0.json",
        "statistics-all.json",
        "statistics-nonzero.json",
    ]


def test_beside_a_volume_that_cannot_be_written_the_users_cache_serves(scan, tmp_path, monkeypatch):
    path, _ = scan
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sidecar(path).parent.write_text("in the way, as a read-only disk is")
    first = vf.statistics(path, progress=False)
    (kept,) = (tmp_path / "cache" / "volflow").rglob("*.json")
    assert kept.name == "statistics-all.json"
    monkeypatch.setattr(module, "fold", None)
    assert vf.statistics(path) == first


@pytest.mark.slow
def test_where_nothing_can_be_kept_the_result_is_still_given(scan, tmp_path, monkeypatch):
    path, data = scan
    (tmp_path / "cache").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sidecar(path).parent.write_text("")
    assert vf.statistics(path, progress=False).count == (data.size,)


def test_an_array_inside_a_store_is_not_littered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    zarr.create_group(tmp_path / "a.zarr").create_array(
        "0", shape=(8, 8, 8), chunks=(8, 8, 8), dtype="u1"
    )
    vf.statistics(tmp_path / "a.zarr" / "0", progress=False)
    assert sorted(p.name for p in (tmp_path / "a.zarr").iterdir()) == ["0", "zarr.json"]


def test_a_volume_written_meanwhile_is_not_kept(scan, monkeypatch):
    path, _ = scan

    def run_while_written(*args, **options):
        report = run(*args, **options)
        zarr.open_array(path)[0, 0, 0] = 1
        return report

    monkeypatch.setattr(fold_module, "run", run_while_written)
    vf.statistics(path, progress=False)
    assert not sidecar(path).exists()


def test_a_volume_in_memory(many_blocks):
    data = RNG.integers(-9, 9, (20, 20, 20)).astype("int8")
    stats = vf.statistics(zarr.array(data, chunks=(8, 8, 8)))
    assert stats.histograms == (measure(data),)


def test_all_background_says_so_only_where_it_matters(tmp_path):
    path = stored(tmp_path / "a.zarr", np.zeros((8, 8, 8), "float32"))
    for _ in range(2):  # computed, and read back
        stats = vf.statistics(path, foreground=True, progress=False)
        assert stats.count == (0,)
        assert str(stats) == "0 voxels that are not 0"
        assert stats.to_dict()["channels"][0]["mean"] is None
        with pytest.raises(InvalidInput, match="check the volume, or choose another foreground"):
            _ = stats.std


def test_for_machines(scan):
    path, data = scan
    plain = json.loads(json.dumps(vf.statistics(path, progress=False).to_dict()))
    assert plain["foreground"] is False
    assert plain["channels"][0]["p50"] == np.percentile(data, 50)
    assert plain["channels"][0]["dtype"] == "uint16"


@pytest.mark.parametrize("foreground", ["all", None, math.nan, math.inf, [1]])
def test_an_unknown_foreground_is_refused(scan, foreground):
    with pytest.raises(InvalidInput, match="foreground must be False, True"):
        vf.statistics(scan[0], foreground=foreground)


def test_too_little_memory_is_refused_saying_what_would_do(scan):
    path, data = scan
    with pytest.raises(MemoryRefused) as refusal:
        vf.statistics(path, memory=1000, progress=False)
    enough = str(refusal.value).rsplit("at least ", 1)[1]
    assert vf.statistics(path, memory=enough, progress=False).count == (data.size,)


def test_a_damaged_volume_fails_in_one_line_and_keeps_nothing(scan):
    path, _ = scan
    victim = path / "c" / "1" / "2" / "1"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(Damaged, match=r"scan\.zarr cannot be read"):
        vf.statistics(path, progress=False)
    assert not sidecar(path).exists()


def test_a_task_outliving_its_driver_stops(scan):
    job = StatisticsJob(open_volume(scan[0]), False)
    with pytest.raises(Superseded):
        next(measure_blocks(job, (0,), Context(wanted=lambda: False)))


def test_progress_ends_at_all_voxels(scan):
    path, data = scan
    seen = []
    vf.statistics(path, progress=lambda state: seen.append((state.units, dict(state.stages))))
    assert seen[-1][0] == data.size
    assert set(seen[-1][1]) <= {"read", "count"}


def test_a_plan_names_the_piece(scan):
    plan = plan_statistics(StatisticsJob(open_volume(scan[0]), False), 10**9)
    assert "(32, 24, 32) voxels" in plan.describe()
    assert plan.units == 32 * 24 * 32


@pytest.mark.parametrize(
    ("shape", "shards", "chunks", "dtype", "piece"),
    [
        ((999,) * 3, (256,) * 3, (64,) * 3, "u1", (256, 256, 256)),
        ((999,) * 3, (256,) * 3, (64,) * 3, "f4", (256, 256, 256)),
        ((999,) * 3, (512,) * 3, (64,) * 3, "f4", (64, 512, 512)),
        ((999,) * 3, None, (64,) * 3, "u2", (64, 256, 999)),
        ((999,) * 3, None, (1, 999, 999), "u2", (16, 999, 999)),
        ((999,) * 3, None, (999,) * 3, "u2", (999, 999, 999)),
        ((10, 20, 30), None, (64,) * 3, "u2", (10, 20, 30)),
        ((3, 999, 999, 999), (1, 256, 256, 256), (1, 64, 64, 64), "u1", (1, 256, 256, 256)),
    ],
)
def test_pieces_follow_the_stored_layout_alone(shape, shards, chunks, dtype, piece):
    array = zarr.create_array({}, shape=shape, shards=shards, chunks=chunks, dtype=dtype)
    assert piece_shape(open_volume(array)) == piece


def test_the_sidecars_name_is_the_same_for_every_way_to_name_the_volume(scan, monkeypatch):
    path, _ = scan
    vf.statistics(path, progress=False)
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(module, "fold", None)
    assert isinstance(vf.statistics(path.name), Statistics)
    assert isinstance(vf.statistics(os.fspath(path) + "/"), Statistics)


SENT = []


class Long(ArraySource):
    """Says how often it is sent, as one that workers read."""

    path = "long.img"

    def __reduce__(self):
        SENT.append(1)
        return Long, (self.array, self.meta)


def test_a_source_that_is_long_to_send_goes_to_a_worker_once(local, many_blocks, monkeypatch):
    data = RNG.integers(0, 99, (64, 64, 64), "uint8")
    monkeypatch.setattr(module, "open_input", lambda given: given)
    monkeypatch.setattr(fold_module, "check_sight", lambda *_: None)
    stats = vf.statistics(Long(data, Meta()), cluster=local, progress=False)
    assert stats.mean == (data.mean(),)
    assert SENT == [1]
