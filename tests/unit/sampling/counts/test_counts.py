import itertools
import math
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from volflow.engine.task import Context
from volflow.errors import Damaged, InvalidInput, MemoryRefused, Superseded
from volflow.geometry.roi import Roi
from volflow.sampling.counts import counting, tally
from volflow.sampling.counts.counting import (
    CLASSES,
    WEIGHTS,
    CountJob,
    count_pieces,
    plan_counts,
)
from volflow.sampling.counts.per_cell import count_classes, sum_weights
from volflow.store.formats.sources import ArraySource, open_source
from volflow.store.volume import Volume, open_volume
from volflow.volumes import fold as fold_module
from volflow.volumes.arrays.inputs import open_input

RNG = np.random.default_rng(0)
LAYOUT = {"shards": (16, 16, 16), "chunks": (8, 8, 8)}


@dataclass(frozen=True, eq=False)
class Filed(ArraySource):
    """An array that has a path, so that what is measured of it is kept."""

    path: str = ""
    state: str = "as made"

    def identity(self):
        return self.state


@pytest.fixture(scope="module")
def client():
    local = LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False,
        dashboard_address=None, scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    )  # fmt: skip
    with local, Client(local, set_as_default=False) as client:
        yield client


@pytest.fixture
def labels(tmp_path):
    """A label volume whose chunks are not the cells, and its voxels."""
    data = RNG.choice(np.array([0, 0, 0, 1, 2, 250], "uint8"), (40, 30, 36))
    return stored(tmp_path / "labels.zarr", data), data


@pytest.fixture
def reads(monkeypatch):
    """The boxes that are read of volumes."""
    seen = []
    plain = Volume.read

    def read(self, roi):
        seen.append(roi)
        return plain(self, roi)

    monkeypatch.setattr(Volume, "read", read)
    return seen


def stored(path, data):
    zarr.create_array(path, data=data, **LAYOUT)
    return open_source(path)


def everything(source):
    return Roi.full(source.shape[-3:])


def files(source):
    """The names and sizes of the sidecars of a volume."""
    folder = Path(source.path + ".volflow")
    return {file.name: file.stat().st_size for file in sorted(folder.glob("*"))}


def oracle(voxels, cell, per_box, reach):
    """The voxels within reach of every box of cells, in C order."""
    inside = np.zeros(voxels.shape, bool)
    inside[reach.clip(voxels.shape).slices()] = True
    cells = [-(-n // c) for n, c in zip(voxels.shape, cell, strict=True)]
    counts = [-(-n // p) for n, p in zip(cells, per_box, strict=True)]
    for index in np.ndindex(*counts):
        box = tuple(
            slice(i * c * p, (i + 1) * c * p) for i, c, p in zip(index, cell, per_box, strict=True)
        )
        yield voxels[box][inside[box]]


def entries(counts):
    """Cell, class and number of class counts, in one order."""
    return sorted(
        zip(*(c.tolist() for c in (counts.cell, counts.value, counts.count)), strict=True)
    )


@st.composite
def questions(draw):
    shape = draw(st.tuples(*[st.integers(1, 13)] * 3))
    cell = draw(st.tuples(*[st.integers(1, 7)] * 3))
    per_box = draw(st.tuples(*[st.integers(1, 3)] * 3))
    ends = [sorted(draw(st.tuples(*[st.integers(-2, n + 2)] * 2))) for n in shape]
    return shape, cell, per_box, Roi(tuple(a for a, _ in ends), tuple(b for _, b in ends))


VALUES = {
    "bool": st.booleans(),
    "uint8": st.sampled_from([0, 1, 255]),
    "int16": st.integers(-3, 3),
    "int64": st.sampled_from([-(2**63), -1, 0, 5, 2**63 - 1]),
    "uint64": st.sampled_from([0, 3, 2**53 + 1]),
    "float32": st.sampled_from([-2.0, -0.0, 0.0, 1.0, 2.0**40]),
}


@given(questions(), st.data())
def test_class_counts_are_numpys(question, data):
    shape, cell, per_box, reach = question
    dtype = data.draw(st.sampled_from(sorted(VALUES)))
    voxels = data.draw(hnp.arrays(dtype, shape, elements=VALUES[dtype]))
    found = count_classes(open_source(voxels), cell, reach)
    expected = list(oracle(voxels, cell, per_box, reach))
    assert np.unique(found.value).tolist() == sorted({int(v) for part in expected for v in part})
    assert found.value.dtype == found.count.dtype == np.int64
    classes = [*np.unique(found.value).tolist(), 77]
    table = found.boxes(per_box, classes[::-1])
    assert table.dtype == np.int64
    assert table[:, ::-1].tolist() == [[int((p == v).sum()) for v in classes] for p in expected]
    assert found.boxes(per_box).tolist() == [[int((part > 0).sum())] for part in expected]


@given(questions(), st.data())
def test_weight_sums_are_numpys(question, data):
    shape, cell, per_box, reach = question
    dtype = data.draw(st.sampled_from(["uint8", "uint16", "bool", "float32", "float64"]))
    voxels = (RNG.integers(0, 2**16, shape) * RNG.integers(0, 2, shape)).astype(dtype)
    found = sum_weights(open_source(voxels), cell, reach)
    assert found.sums.shape == tuple(-(-n // c) for n, c in zip(shape, cell, strict=True))
    expected = [part.sum(dtype=float) for part in oracle(voxels, cell, per_box, reach)]
    assert found.boxes(per_box).tolist() == expected  # whole numbers: exact


@pytest.mark.slow
@given(questions(), st.sampled_from([1, 5, 2**16]))
def test_the_border_measured_apart_changes_no_bit(tmp_path_factory, question, group):
    shape, cell, per_box, reach = question
    path = str(tmp_path_factory.mktemp("kept") / "a")
    labels, weights = RNG.integers(-2, 3, shape), RNG.random(shape).astype("float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tally, "GROUP_VOXELS", group)
        for data, measure in ((labels, count_classes), (weights, sum_weights)):
            memory = open_source(data)
            at_once = measure(memory, cell, reach)
            for _ in range(2):  # measured, kept
                kept = measure(Filed(memory.array, memory.meta, path=path), cell, reach)
                if measure is count_classes:
                    assert entries(kept) == entries(at_once)
                else:
                    assert kept.sums.tobytes() == at_once.sums.tobytes()
                    assert (kept.boxes(per_box) == at_once.boxes(per_box)).all()


@pytest.mark.parametrize("kind", [CLASSES, WEIGHTS])
def test_the_result_does_not_depend_on_the_cut(kind, monkeypatch):
    data = RNG.integers(0, 9, (40, 30, 36)) if kind is CLASSES else RNG.random((40, 30, 36))
    job = CountJob(open_source(data), kind, (7, 5, 9), (Roi((3, 0, 2), (39, 30, 30)),))
    (whole,) = counting.measure([job])
    assert len(job) == 1
    monkeypatch.setattr(counting, "piece_of_cells", lambda *args: (14, 15, 9))
    job = replace(job)
    assert len(job) == 3 * 2 * 4
    steps = {
        step.block: step.result
        for step in count_pieces(job, tuple(range(len(job)))[::-1], Context())
    }
    cut = kind.join([steps[piece] for piece in sorted(steps)])
    order = [
        np.lexsort([t["cell"], *([t["value"]] if kind is CLASSES else [])]) for t in (whole, cut)
    ]
    for key in whole:
        assert (whole[key][order[0]] == cut[key][order[1]]).all()


def test_pieces_cover_each_box_once():
    job = CountJob(
        open_source(np.zeros((40, 30, 36), "u1")),
        CLASSES, (4, 4, 4),
        (Roi((2, 3, 4), (5, 29, 36)), Roi((30, 0, 0), (40, 30, 1))),
    )  # fmt: skip
    job.__dict__["piece"] = (8, 8, 16)
    seen = Counter(
        voxel
        for piece in range(len(job))
        for voxel in itertools.product(*(range(a, b) for a, b in job.roi(piece)))
    )
    assert set(seen.values()) == {1}
    assert len(seen) == sum(box.size for box in job.boxes)


def test_a_second_call_reads_no_voxel(labels, client, reads):
    source, data = labels
    for measure, dtype in ((count_classes, np.int64), (sum_weights, np.float64)):
        first = measure(source, 8, everything(source), cluster=client, progress=False)
        read = sum(roi.size for roi in reads)
        assert read == data.size
        reads.clear()
        again = measure(source, 8, everything(source), cluster="no cluster is needed")
        assert reads == []
        assert first.boxes((1, 2, 3)).tolist() == again.boxes((1, 2, 3)).tolist()
        assert again.boxes((1, 1, 1)).dtype == dtype
    assert list(files(source)) == ["classes-8x8x8.npz", "weights-8x8x8.npz"]


def test_another_reach_reads_the_border_only(labels, client, reads):
    source, data = labels
    count_classes(source, 8, everything(source), cluster=client, progress=False)
    reads.clear()
    reach = Roi((4, 4, 4), (37, 27, 33))
    found = count_classes(source, 8, reach, cluster=client, progress=False)
    inner = Roi((8, 8, 8), (32, 24, 32))
    assert sum(roi.size for roi in reads) == reach.size - inner.size
    assert all(roi.intersect(inner).size == 0 for roi in reads)
    (expected,) = oracle(data, (8, 8, 8), (9, 9, 9), reach)
    assert found.boxes((9, 9, 9), [0, 250]).tolist() == [
        [(expected == 0).sum(), (expected == 250).sum()]
    ]
    reads.clear()
    count_classes(source, 8, reach)
    assert reads == []
    assert list(files(source)) == ["classes-8x8x8-reach-4x4x4-37x27x33.npz", "classes-8x8x8.npz"]


def test_both_are_measured_in_one_go_on_one_cluster(labels, client, monkeypatch):
    opened, plain = [], counting.connect
    monkeypatch.setattr(counting, "connect", lambda c: opened.append(c) or plain(c))
    count_classes(labels[0], 8, Roi((1, 1, 1), (39, 29, 35)), cluster=client, progress=False)
    assert opened == [client]


def test_what_changed_is_measured_anew(labels, client):
    source, _ = labels
    count_classes(source, 8, everything(source), cluster=client, progress=False)
    zarr.open_array(source.path)[0, 0, 0] = 99
    found = count_classes(source, 8, everything(source), cluster=client, progress=False)
    assert 99 in found.value
    assert found.boxes((1, 1, 1), [99])[0] == 1


def test_a_volume_written_meanwhile_is_not_kept(labels, client, monkeypatch):
    source, _ = labels
    plain = fold_module.run

    def run_while_written(*args, **options):
        report = plain(*args, **options)
        zarr.open_array(source.path)[0, 0, 0] = 1
        return report

    monkeypatch.setattr(fold_module, "run", run_while_written)
    count_classes(source, 8, everything(source), cluster=client, progress=False)
    assert files(source) == {}


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "pickle", "another format"])
def test_a_damaged_sidecar_is_made_anew(tmp_path, damage):
    data = RNG.integers(0, 5, (9, 9, 9))
    source = Filed(data, open_source(data).meta, path=str(tmp_path / "a"))
    first = count_classes(source, 4, everything(source))
    (path,) = (tmp_path / "a.volflow").iterdir()
    good = path.read_bytes()
    if damage == "pickle":
        np.savez(path, fingerprint=np.array(["classes 1 as made"], object))
    elif damage == "another format":
        np.savez(path, fingerprint=np.array("classes 0 as made"), cell=np.zeros(3))
    else:
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :]
        bad = {"empty": b"", "cut": good[:-40], "flipped": flipped, "text": b"hello"}
        path.write_bytes(bad[damage])
    again = count_classes(source, 4, everything(source))
    assert entries(again) == entries(first)
    assert path.read_bytes()[:2] == b"PK"
    with np.load(path) as saved:
        assert saved["fingerprint"] == "classes 1 as made"


def test_beside_a_volume_that_cannot_be_written_the_users_cache_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = np.ones((4, 4, 4), "uint8")
    source = Filed(data, open_source(data).meta, path=str(tmp_path / "a"))
    (tmp_path / "a.volflow").write_text("in the way, as a read-only disk is")
    sum_weights(source, 2, everything(source))
    (kept,) = (tmp_path / "cache" / "volflow").rglob("*.npz")
    assert kept.name == "weights-2x2x2.npz"
    monkeypatch.setattr(ArraySource, "read", None)
    assert sum_weights(source, 2, everything(source)).sums.sum() == 64


def test_levels_and_timepoints_are_kept_apart(tmp_path, client):
    data = np.zeros((2, 4, 4, 4), "uint8")
    data[1] = 1
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=data, chunks=(1, 4, 4, 4), dimension_names=["t", "z", "y", "x"])
    for t in (0, 1):
        source = open_source(open_volume(path, timepoint=t))
        found = count_classes(source, 4, everything(source), cluster=client, progress=False)
        assert np.unique(found.value).tolist() == [t]
    assert list(files(source)) == ["classes-4x4x4-t1.npz", "classes-4x4x4.npz"]


def test_arrays_without_a_path_are_measured_every_time(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = RNG.integers(0, 3, (20, 20, 20)).astype("uint8")
    reach = Roi((3, 3, 3), (18, 18, 20))
    expected = [[int((part == 2).sum())] for part in oracle(data, (8, 8, 8), (1, 1, 1), reach)]
    in_zarr = open_source(zarr.array(data, chunks=(8, 8, 8)))
    computed = open_input(da.from_array(data, chunks=(7, 20, 9)) * 1)
    for source in (in_zarr, computed, open_source(data[None])):
        found = count_classes(source, 8, reach, cluster=client, progress=False)
        assert found.boxes((1, 1, 1), [2]).tolist() == expected
    assert list(tmp_path.iterdir()) == []


def test_npy_files_are_read_in_planes(tmp_path, client):
    data = RNG.random((20, 21, 22))
    np.save(tmp_path / "w.npy", data)
    source = open_source(tmp_path / "w.npy")
    found = sum_weights(source, 4, everything(source), cluster=client, progress=False)
    assert found.sums.sum() == pytest.approx(data.sum(), rel=1e-12)
    assert (tmp_path / "w.npy.volflow" / "weights-4x4x4.npz").is_file()


def test_a_patch_that_fits_nowhere_leaves_nothing():
    source = open_source(np.ones((4, 4, 4), "uint8"))
    nothing = Roi((4, 0, 0), (4, 4, 4))
    assert count_classes(source, 2, nothing).value.tolist() == []
    assert count_classes(source, 2, nothing).boxes((2, 2, 2)).tolist() == [[0]]
    assert sum_weights(source, 2, nothing).sums.tolist() == np.zeros((2, 2, 2)).tolist()


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (0.5, "float32", "labels must be whole numbers of 64 bits at most; .* holds 0.5 at"),
        (np.nan, "float64", "labels must be whole numbers of 64 bits at most; .* holds nan at"),
        (np.inf, "float32", "labels must be whole numbers of 64 bits at most; .* holds inf at"),
        (
            2**63,
            "uint64",
            "labels must be whole numbers of 64 bits at most; .* 9223372036854775808",
        ),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, client, value, dtype, message):
    data = np.ones((20, 20, 20), dtype)
    data[3, 17, 9] = data[3, 18, 2] = value
    source = stored(tmp_path / "mine.zarr", data)
    with pytest.raises(InvalidInput, match=message) as refusal:
        count_classes(source, 8, everything(source), cluster=client, progress=False)
    assert re.search(r"mine\.zarr holds .* at voxel \(3, 17, 9\) \(z, y, x\)", str(refusal.value))
    assert files(source) == {}


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(-1, "int16"), (-0.25, "float32"), (np.nan, "float64"), (np.inf, "float32")],
)
def test_weights_that_are_none_are_refused(value, dtype):
    data = np.ones((9, 9, 9), dtype)
    data[8, 1, 0] = value
    source = open_source(data)
    with pytest.raises(InvalidInput, match="weights must be finite and not negative") as refusal:
        sum_weights(source, 4, everything(source))
    assert f"the array holds {data[8, 1, 0]} at voxel (8, 1, 0) (z, y, x)" in str(refusal.value)


@pytest.mark.parametrize("kept", [True, False])
def test_whether_voxels_are_refused_does_not_depend_on_the_reach(tmp_path, kept):
    data = np.ones((9, 9, 9), "float32")
    data[8, 1, 0] = 0.5
    source = open_source(data)
    source = Filed(data, source.meta, path=str(tmp_path / "a")) if kept else source
    for reach in (Roi((0, 0, 0), (8, 9, 9)), Roi((2, 2, 2), (2, 2, 2))):
        with pytest.raises(InvalidInput, match=r"holds 0\.5 at voxel \(8, 1, 0\)"):
            count_classes(source, 4, reach)


def test_weights_beyond_float64_are_refused():
    data = np.full((4, 4, 4), 1e308)
    with pytest.raises(InvalidInput, match="scale them down"), np.errstate(over="ignore"):
        sum_weights(open_source(data), 4, Roi.full((4, 4, 4)))


def test_channels_of_weights_are_refused():
    source = open_source(np.zeros((3, 4, 4, 4), "uint8"))
    with pytest.raises(InvalidInput, match=r"weights must be one number .* one array z, y, x"):
        sum_weights(source, 2, everything(source))


def test_too_little_memory_is_refused_saying_what_would_do(labels, client):
    source, data = labels
    with pytest.raises(MemoryRefused, match="class counts needs") as refusal:
        count_classes(source, 8, everything(source), cluster=client, memory=1000)
    enough = str(refusal.value).rsplit("at least ", 1)[1]
    reach = everything(source)
    found = count_classes(source, 8, reach, cluster=client, memory=enough, progress=False)
    assert found.count.sum() == data.size


def test_a_damaged_volume_fails_in_one_line_and_keeps_nothing(labels, client):
    source, _ = labels
    os.truncate(Path(source.path) / "c" / "1" / "1" / "1", 100)
    with pytest.raises(Damaged, match=r"labels\.zarr cannot be read"):
        count_classes(source, 8, everything(source), cluster=client, progress=False)
    assert files(source) == {}


def test_a_task_outliving_its_driver_stops(labels):
    source, _ = labels
    job = CountJob(source, CLASSES, (8, 8, 8), (everything(source),))
    with pytest.raises(Superseded):
        next(count_pieces(job, (0,), Context(wanted=lambda: False)))


def test_a_plan_names_the_piece_and_progress_ends_at_all_voxels(labels, client):
    source, data = labels
    job = CountJob(source, WEIGHTS, (8, 8, 8), (everything(source),))
    assert "weight sums" in plan_counts(job, source, 10**9).describe()
    assert "(64, 32, 64) voxels" in plan_counts(job, source, 10**9).describe()
    seen = []
    sum_weights(source, 8, everything(source), cluster=client, progress=seen.append)
    assert seen[-1].units == data.size
    assert set(seen[-1].stages) <= {"read", "count"}


@pytest.mark.slow
def test_processes_give_the_same(labels):
    source, data = labels
    reach = Roi((4, 4, 4), (37, 27, 33))
    found = count_classes(source, 8, reach, cluster="2", progress=False)
    there = count_classes(open_source(data), 8, reach)
    assert found.boxes((1, 1, 1), [0, 1, 2, 250]).tolist() == (
        there.boxes((1, 1, 1), [0, 1, 2, 250]).tolist()
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(70_000, 20, 20), (3, 70_001, 90), (300, 260, 256)])
def test_long_sides_and_many_voxels_of_which_one_chunk_is_stored(tmp_path, client, shape):
    chunk = (64, 64, 64)
    array = zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=chunk, dtype="uint8")
    last = tuple((n - 1) // c * c for n, c in zip(shape, chunk, strict=True))
    array[tuple(slice(a, None) for a in last)] = 3
    source = open_source(tmp_path / "a.zarr")
    there = math.prod(n - a for n, a in zip(shape, last, strict=True))
    found = count_classes(source, chunk, everything(source), cluster=client, progress=False)
    cells = math.prod(found.cells)
    assert np.unique(found.value).tolist() == [0, 3]
    assert found.boxes((1, 1, 1), [3]).ravel().tolist() == [0] * (cells - 1) + [there]
    assert found.boxes(found.cells, [0, 3]).tolist() == [[math.prod(shape) - there, there]]
    weights = sum_weights(source, chunk, everything(source), cluster=client, progress=False)
    assert weights.boxes((1, 1, 1)).tolist() == [0.0] * (cells - 1) + [3.0 * there]
    assert max(files(source).values()) < 20_000
