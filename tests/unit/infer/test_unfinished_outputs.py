"""Whatever writes an output: until its last block is done nobody reads it, and then as ever."""

from __future__ import annotations

import math
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr

import volflow as vf
import volflow.infer.prediction as prediction
import volflow.infer.under_journal as under_journal
import volflow.store.journal.outputs as outputs
from tests.nets import Named, random_net
from tests.stores import files
from volflow.engine.observing.run_facts import run_facts
from volflow.errors import InvalidInput, SourceChanged, StoreFull
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.unfinished.root import WITHHELD
from volflow.store.volume import Volume

SCAN = np.random.default_rng(0).random((40, 16, 16), "float32") + 0.1
LAYOUT = {"chunk": 8, "shard": 8}


@pytest.fixture
def write(client, stored, predict, exact):
    """Writes outputs of each kind, by name; returns where the volume lies, or the store."""
    volume, silent = stored(SCAN), {"cluster": client, "progress": False}
    both = Named(random_net(), random_net(channels_out=1, seed=3))
    array = da.from_array(SCAN, chunks=8)
    doubled = vf.map_overlap(lambda x: 2 * x, volume, depth=1, boundary="reflect", dtype="f4")
    kinds = {
        "convert": lambda out: vf.convert(SCAN, out, progress=False, **LAYOUT),
        "write": lambda out: vf.write(array, out, **LAYOUT, **silent),
        "map_overlap": lambda out: vf.write(doubled, out, **LAYOUT, **silent),
        "predict": lambda out: predict(volume, random_net(), out, **LAYOUT),
        "several": lambda out: predict(volume, both, out, **LAYOUT),
        "file": lambda out: predict(volume, random_net(), out.with_suffix(".npy"), **LAYOUT),
        "exact": lambda out: exact(volume, random_net(), out, **LAYOUT),
    }

    def into(kind, out):
        kinds[kind](out)
        return journal_dir(out.with_suffix(".npy")) / "output.zarr" if kind == "file" else out

    return into


EXACT = pytest.param("exact", marks=pytest.mark.slow)
KINDS = ("convert", "write", "map_overlap", "predict", "several", "file", EXACT)


def interrupted(write, kind, out):
    """Write an output whose last block finds no room; returns where it lies."""
    mark = Journal.mark

    def full(journal, block, *args, **options):
        last = math.prod(journal.recorded().settings["grid"]) - 1
        if block == last and "passes" not in journal.directory.parts:
            raise StoreFull("no room")
        mark(journal, block, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "mark", full)
        with pytest.raises(StoreFull, match="no room"):
            write(kind, out)
    return journal_dir(out.with_suffix(".npy")) / "output.zarr" if kind == "file" else out


def killed(*args, **options):
    raise KeyboardInterrupt


def volumes_of(out: Path):
    """The volumes of an output, finished or not."""
    return [path.parent for path in out.glob("*/0")] or [out]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_refused_until_it_is_finished(write, kind, tmp_path):
    whole = files(write(kind, tmp_path / "whole.zarr"))
    out = interrupted(write, kind, tmp_path / "out.zarr")
    assert not (out / "zarr.json").exists()
    for path in {out, *volumes_of(out)}:
        for use in (vf.open, vf.preview, lambda x: vf.export(x, tmp_path / "x.npy"), vf.statistics):
            with pytest.raises(InvalidInput, match=r"is not complete: \d+ of \d+ blocks are done;"):
                use(path)
        with pytest.raises(FileNotFoundError):
            zarr.open(str(path), mode="r")
    coverage = vf.verify(out)
    assert coverage.missing
    assert not coverage.ok
    assert not coverage.damaged
    assert run_facts(out)["state"] == "stopped"
    assert files(write(kind, tmp_path / "out.zarr")) == whole
    for path in volumes_of(out):
        assert np.array_equal(zarr.open(str(path), mode="r")["0"][:], vf.open(path)[:])
    assert vf.verify(out).ok
    assert run_facts(out)["state"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convert", "several", EXACT])
def test_one_of_an_earlier_version_is_resumed_and_no_input_before(write, kind, tmp_path):
    """It had its root metadata from the start."""
    whole = files(write(kind, tmp_path / "whole.zarr"))
    out = interrupted(write, kind, tmp_path / "out.zarr")
    for path in list(out.rglob(WITHHELD)):
        path.rename(path.with_name("zarr.json"))
    for path in volumes_of(out):
        assert vf.open(path).shape[-3:] == SCAN.shape
        with pytest.raises(InvalidInput, match=r"is not complete: .* would be read as zeros"):
            vf.export(path, tmp_path / "x.npy")
    assert files(write(kind, tmp_path / "out.zarr")) == whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["convert", "several"])
def test_killed_between_the_last_block_and_the_end(write, kind, tmp_path, monkeypatch):
    whole, out = files(write(kind, tmp_path / "whole.zarr")), tmp_path / "out.zarr"

    with monkeypatch.context() as patch:
        patch.setattr(outputs, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            write(kind, out)
    with pytest.raises(InvalidInput, match=r"is not complete: (\d+) of \1 blocks are done;"):
        vf.open(out)
    assert run_facts(out)["state"] == "stopped"
    coverage = vf.verify(out)
    assert coverage.cells == "#" * coverage.total
    assert not coverage.ok
    assert str(coverage).endswith("verified; its run has not ended, run the same command again")
    monkeypatch.setattr(Journal, "mark", None)  # nothing is computed again
    assert files(write(kind, out)) == whole
    assert vf.verify(out).ok


@pytest.mark.parametrize(
    "kind", [*(pytest.param(k, marks=pytest.mark.slow) for k in ("convert", "several")), EXACT]
)
def test_a_finished_one_is_refused_again_while_bad_blocks_are_written(write, kind, tmp_path):
    out = write(kind, tmp_path / "out.zarr")
    whole, journal = files(out), Journal(journal_dir(out))
    journal.forget([max(journal.done())])
    places = volumes_of(out)
    for path in places:  # nothing writes it
        vf.open(path)
    interrupted(write, kind, out)
    for path in (out, *places):
        with pytest.raises(InvalidInput, match=r"is not complete: (\d+) of \d+ blocks are done;"):
            vf.open(path)
        with pytest.raises(FileNotFoundError):
            zarr.open(str(path), mode="r")
    assert files(write(kind, out)) == whole


def test_one_of_another_input_stays_as_it_is(write, tmp_path):
    out = write("convert", tmp_path / "out.zarr")
    journal = Journal(journal_dir(out))
    journal.forget([0])
    with pytest.raises(InvalidInput, match="different inputs or settings: input: "):
        vf.convert(SCAN + 1, out, progress=False, **LAYOUT)
    assert vf.open(out).shape == SCAN.shape


def test_one_whose_source_changed_while_blocks_were_written_again(tmp_path, monkeypatch):
    source, out = tmp_path / "scan.npy", tmp_path / "out.zarr"
    np.save(source, SCAN)
    vf.convert(source, out, progress=False, **LAYOUT)
    Journal(journal_dir(out)).forget([3])

    def changed(*args, **options):
        with pytest.raises(InvalidInput, match="is not complete: 19 of 20"):
            vf.open(out)
        np.save(source, SCAN + 1)
        return write(*args, **options)

    with monkeypatch.context() as patch:
        write = Volume.write
        patch.setattr(Volume, "write", changed)
        with pytest.raises(SourceChanged):
            vf.convert(source, out, progress=False, **LAYOUT)
    with pytest.raises(InvalidInput, match="is not complete"):
        vf.open(out)
    vf.convert(source, out, progress=False, **LAYOUT)
    assert np.array_equal(vf.open(out)[:], SCAN + 1)


def test_overwriting_withholds_the_new_one(predict, stored, tmp_path, monkeypatch):
    volume = stored(SCAN)
    predict(volume, random_net())
    assert vf.open(tmp_path / "out.zarr")[:].any()
    monkeypatch.setattr(under_journal, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(volume, random_net(), overwrite=True)
    with pytest.raises(InvalidInput, match=r"is not complete: 0 of \d+ blocks are done;"):
        vf.open(tmp_path / "out.zarr")


def test_levels_are_made_when_the_volume_is_whole(predict, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "pyramid", killed)
    with pytest.raises(KeyboardInterrupt):
        predict(stored(SCAN), random_net(), levels=True)
    assert len(vf.open(tmp_path / "out.zarr").levels) == 1
