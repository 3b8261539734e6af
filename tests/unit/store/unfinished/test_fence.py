"""A late write of a run that was replaced reaches no path of the next one."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from tests.stores import files
from volflow.engine.task import Context
from volflow.errors import StoreFull, Superseded
from volflow.geometry.roi import Roi
from volflow.passes.activations import ActivationStore
from volflow.store.create import create
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.journal.outputs import begin_anew, discard
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.unfinished.fence import Fence, end_sessions

SPEC = VolumeSpec.of((8, 8, 16), "u1", Meta(), chunk=4, shard=8)
LEFT, RIGHT = Roi((0, 0, 0), (8, 8, 8)), Roi((0, 0, 8), (8, 8, 16))
FIRST = Record("predict", {"input": "a"}, {"grid": [1, 1, 2]})
SECOND = Record("predict", {"input": "b"}, {"grid": [1, 1, 2]})


def everything(folder):
    """Names of all files and folders, with what is in the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def voxels(value):
    return np.full((8, 8, 8), value, "u1")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.zarr"


@pytest.fixture
def first(out):
    """A task of the first run, which outlives it, and the volume that it writes."""
    journal = Journal(journal_dir(out))
    journal.make_place()
    begin_anew(out, journal, FIRST)
    return Context(journal, journal.begin(FIRST)), create(out, SPEC, finished=False)


def replaced(out):
    """A run that begins the output anew; returns a task of it and the volume."""
    journal = Journal(journal_dir(out))
    begin_anew(out, journal, SECOND)
    volume = create(out, SPEC, finished=False)
    context = Context(journal, journal.begin(SECOND))
    return context, volume


class TestShards:
    def test_are_those_that_are_written_without_one(self, first, out, tmp_path):
        context, volume = first
        plain = create(tmp_path / "plain.zarr", SPEC, finished=False)
        scan = np.random.default_rng(0).integers(0, 9, SPEC.shape, "u1")
        scan[LEFT.slices()] = 0  # a shard of which nothing is stored
        with context.block(0) as block:
            block.write(volume, Roi.full(SPEC.shape), scan)
        assert plain.write(Roi.full(SPEC.shape), scan) == tuple(block.entries)
        assert everything(out) == everything(tmp_path / "plain.zarr")
        assert list(context.fence.folder.iterdir()) == []

    def test_a_shard_of_zeros_deletes_what_was_there(self, first, out, tmp_path):
        context, volume = first
        for value in (3, 0):
            volume.write(LEFT, voxels(value), fence=context.fence)
        assert not volume[LEFT.slices()].any()
        assert list(files(out / "0")) == ["zarr.json"]
        assert list(context.fence.folder.iterdir()) == []

    @pytest.mark.parametrize("value", [7, 0])
    def test_of_a_replaced_run_change_nothing(self, first, out, value):
        context, volume = first
        new, target = replaced(out)
        with new.block(0) as block:
            block.write(target, LEFT, voxels(3))
        before = everything(out)
        for box in (LEFT, RIGHT):
            with pytest.raises(Superseded, match=r"out\.zarr was replaced by another; this task"):
                volume.write(box, voxels(value), fence=context.fence)
        assert everything(out) == before

    @pytest.mark.parametrize(
        ("value", "at"), [(7, "mkdir"), (7, "open"), (7, "replace"), (0, "replace")]
    )
    def test_replaced_in_the_middle_of_one_it_changes_nothing(
        self, first, out, monkeypatch, value, at
    ):
        """Just before each of the calls by which it reaches for the output."""
        context, volume = first
        if value == 0:  # there is something to delete
            volume.write(LEFT, voxels(5), fence=context.fence)
        original, now = getattr(type(out), at), {}

        def halted(*args, **options):
            monkeypatch.undo()
            new, target = replaced(out)
            target.write(LEFT, voxels(3), fence=new.fence)
            now.update(files(out))
            return original(*args, **options)

        monkeypatch.setattr(type(out), at, halted)
        with pytest.raises(Superseded):
            volume.write(LEFT, voxels(value), fence=context.fence)
        assert files(out) == now
        assert len(now) == 3

    def test_of_a_run_whose_output_was_taken_away_do_not_make_it_anew(self, first, out):
        context, volume = first
        discard(out, context.journal)
        with pytest.raises(Superseded, match="has ended"):
            volume.write(LEFT, voxels(1), fence=context.fence)
        assert not out.exists()

    def test_a_damaged_one_at_the_border_is_repaired_behind_the_fence(self, out, tmp_path):
        journal = Journal(journal_dir(out))
        spec = VolumeSpec.of((6, 6, 6), "u1", Meta(), chunk=4, shard=8)
        volume = create(out, spec)
        journal.begin(FIRST)
        fence = journal.fence(journal.begin(FIRST))
        volume.write(Roi.full((6, 6, 6)), np.ones((6, 6, 6), "u1"), fence=fence)
        (shard,) = (path for path in (out / "0" / "c").rglob("*") if path.is_file())
        whole = shard.read_bytes()
        shard.write_bytes(whole[:-9])
        volume.write(Roi.full((6, 6, 6)), np.ones((6, 6, 6), "u1"), fence=fence)
        assert shard.read_bytes() == whole
        shard.write_bytes(whole[:-9])
        journal.end()
        with pytest.raises(Superseded):
            volume.write(Roi.full((6, 6, 6)), np.ones((6, 6, 6), "u1"), fence=fence)
        assert shard.read_bytes() == whole[:-9]

    def test_a_full_disk_is_one_line(self, first, out, monkeypatch):
        context, volume = first

        def full(path, *args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(type(out), "replace", full)
        with pytest.raises(StoreFull, match=r"out\.zarr cannot be written: No space left"):
            volume.write(LEFT, voxels(1), fence=context.fence)
        assert list(context.fence.folder.iterdir()) == []

    def test_an_array_in_memory_has_none(self, first):
        from volflow.store.volume import open_volume

        volume = open_volume(zarr.zeros(shape=(8, 8, 8), chunks=(8, 8, 8), dtype="u1"))
        volume.write(Roi.full((8, 8, 8)), voxels(1), fence=first[0].fence)
        assert volume[:].all()


class TestRecords:
    def test_of_a_replaced_run_count_for_nothing(self, first, out, monkeypatch):
        context, _ = first
        monkeypatch.setattr(Journal, "check", lambda *_: None)  # it looked just before
        replaced(out)
        with pytest.raises(Superseded):
            context.journal.mark(1, [], {}, session=context.session)
        assert context.journal.done() == {}

    def test_neither_do_those_of_a_run_that_has_ended(self, first, out):
        context, _ = first
        context.journal.end()
        with pytest.raises(Superseded, match="has ended"):
            context.journal.mark(1, [], {}, session=context.session)


class TestActivations:
    @pytest.fixture
    def store(self, first):
        """The store of a pass of the first run, and its fence."""
        context, _ = first
        folder = context.journal.passes / "kept" / "7"
        one = Journal(context.journal.passes / "000")
        one.directory.mkdir(parents=True)
        fence = one.fence(one.begin(FIRST))
        store = ActivationStore(folder, 1, ((0, 8),) * 3, "float32", fence=fence)
        store.open()
        return store

    def test_of_a_replaced_run_change_nothing(self, store, out):
        values = np.ones((1, 8, 8, 8), "float32")
        store.write((0, 0, 0), values)
        assert np.array_equal(store.read(Roi.full((8, 8, 8))), values)
        replaced(out)
        store.open()  # as the next run does
        with pytest.raises(Superseded):
            store.write((0, 0, 0), values)
        assert list(store.folder.iterdir()) == []

    def test_even_if_half_written(self, store, out):
        def half():
            with store.fence.file(store.path((0, 0, 0))) as file:
                file.write(b"half of it")
                replaced(out)
                store.open()

        with pytest.raises(Superseded):
            half()
        assert list(store.folder.iterdir()) == []


def test_what_the_dead_were_writing_goes_with_their_session(first, out):
    context, _ = first
    folder = context.fence.folder
    (folder / "0123").write_text("torn")
    (folder.parent / "session").write_text('"of an earlier version"')
    ended = folder.parent / "ended-abc"
    ended.mkdir()
    (ended / "torn").touch()
    context.journal.begin(FIRST)
    names = sorted(path.name for path in folder.parent.iterdir())
    assert [name for name in names if name.startswith("session-")] == names[-1:]
    assert "ended-abc" not in names
    assert folder.name not in names


def test_an_error_while_writing_leaves_nothing(tmp_path):
    fence = Fence.of(tmp_path, "a")
    fence.begin()
    (tmp_path / "file").write_bytes(b"before")

    def fails():
        with fence.file(tmp_path / "file") as file:
            file.write(b"half")
            raise ValueError("it did not work")

    with pytest.raises(ValueError, match="did not work"):
        fails()
    assert list(fence.folder.iterdir()) == []
    assert (tmp_path / "file").read_bytes() == b"before"
    with pytest.raises(FileNotFoundError):  # another reason than the session
        fence.put(tmp_path / "missing" / "file", b"")
    fence.remove(tmp_path / "file")
    fence.remove(tmp_path / "file")
    assert not (tmp_path / "file").exists()
    end_sessions(tmp_path)
    with pytest.raises(Superseded):
        fence.remove(tmp_path / "file")
