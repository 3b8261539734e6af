"""Until its run has ended, an output lacks its root metadata, and all readers refuse it."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import volflow as vf
from volflow.errors import Damaged, InvalidInput, RunFailed
from volflow.store.create import check_target, create, create_store, open_begun
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.opening import is_zarr
from volflow.store.unfinished.root import WITHHELD, is_unfinished, publish, withhold

SPEC = VolumeSpec.of((8, 8, 16), "u1", Meta(unit="millimeter"), chunk=4, shard=8)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def begun(tmp_path):
    """An output of two blocks, of which one is done."""
    create(tmp_path / "a.zarr", SPEC, finished=False)
    journal = Journal(journal_dir(tmp_path / "a.zarr"))
    with journal.lock():
        journal.begin(Record("convert", {}, {"grid": [1, 1, 2]}))
        journal.mark(0, [], {})
        journal.end()
    return tmp_path / "a.zarr"


def test_is_refused_in_one_line_that_says_how_far_it_is(begun):
    for path in (begun, f"{begun}/", begun / "0", f"file://{begun}"):
        with pytest.raises(InvalidInput) as refused:
            vf.open(path)
        assert str(refused.value) == (
            f"{begun} is not complete: 1 of 2 blocks are done; wait for its run, or run the command"
            f" that started it again if that has ended (volflow status {begun} says which)"
        )
        assert refused.value.exit_code == 2


def test_no_other_software_takes_it_for_a_volume(begun):
    with pytest.raises(FileNotFoundError):
        zarr.open(str(begun), mode="r")
    with pytest.raises(FileNotFoundError):
        zarr.open_group(str(begun), mode="r")


def test_its_own_run_opens_it_and_then_everybody(begun, monkeypatch):
    monkeypatch.chdir(begun.parent)
    volume = open_begun("a.zarr")
    assert (volume.path, volume.spec) == (str(begun), SPEC)
    publish(begun)
    publish(begun)  # no harm done
    found = vf.open(begun)
    assert (found.spec, found.levels, found.identity()) == (SPEC, volume.levels, volume.identity())
    assert open_begun(begun).identity() == volume.identity()
    create(begun.parent / "b.zarr", SPEC)
    assert contents(begun) == contents(begun.parent / "b.zarr")


def test_several_volumes_in_a_store_are_finished_together(begun, tmp_path):
    store = tmp_path / "s.zarr"
    create_store(store)
    for name in ("seg", "edge"):
        create(store / name, SPEC, finished=False)
    Journal(journal_dir(store)).begin(Record("predict", {}, {"grid": [3, 1, 1]}))
    for path in (store, store / "seg", store / "seg" / "0"):
        with pytest.raises(InvalidInput, match=rf"is not complete: 0 of 3 blocks .*{store} says"):
            vf.open(path)
    publish(store / "seg", store / "edge")
    with pytest.raises(InvalidInput, match="is not complete"):  # as long as the store is not whole
        vf.open(store / "seg")
    for name in ("seg", "edge"):  # a run that was killed here goes on
        assert open_begun(store / name).spec == SPEC
    publish(store / "seg", store / "edge", store)
    assert vf.open(store / "seg").spec == SPEC
    zarr.open_group(tmp_path / "z.zarr", mode="a")
    assert contents(store)["zarr.json"] == contents(tmp_path / "z.zarr")["zarr.json"]


def test_one_whose_journal_is_gone_can_only_be_written_again(begun):
    (journal_dir(begun) / "plan.json").write_text('{"settings": {"grid": "none"}}')
    with pytest.raises(InvalidInput) as refused:
        vf.open(begun)
    assert str(refused.value) == (
        f"{begun} is not complete: its journal {begun}.volflow is gone or damaged; write it again"
        " with overwrite=True (--overwrite)"
    )
    (journal_dir(begun) / "plan.json").unlink()
    voxels = np.ones((8, 8, 16), "u1")
    with pytest.raises(InvalidInput, match="exists; choose another name or overwrite=True"):
        vf.convert(voxels, begun, progress=False)
    assert vf.convert(voxels, begun, overwrite=True, progress=False)[:].all()
    assert not is_unfinished(begun)


def test_it_counts_as_a_volume_where_volumes_are_looked_for(begun):
    assert is_zarr(begun)
    with pytest.raises(InvalidInput, match="exists; choose another"):
        check_target(begun)
    assert check_target(begun, overwrite=True) == str(begun)
    with pytest.raises(InvalidInput, match="is not complete: 1 of 2"):
        vf.PatchStream(begun, vf.UniformSampler(4), 4)


@pytest.mark.parametrize("text", ["", '{"zarr_format": 5}', '{"node_type": "array"}'])
def test_damaged_metadata_are_named(begun, text):
    (begun / WITHHELD).write_text(text)
    with pytest.raises(Damaged, match=rf"a\.zarr cannot be opened: {WITHHELD}: .* overwrite=True"):
        open_begun(begun)


def test_what_cannot_be_put_in_place_is_one_line(begun):
    (begun / "zarr.json").mkdir()
    (begun / "zarr.json" / "file").touch()
    with pytest.raises(
        RunFailed, match=r"a\.zarr cannot be finished: .*run the same command again"
    ):
        publish(begun)


def test_a_volume_in_place_can_be_withheld_again(begun):
    publish(begun)
    withhold(begun)
    assert is_unfinished(begun)
