"""Copies of inputs beside an exported file go when it is complete, and nothing is computed anew."""

from __future__ import annotations

import json

import numpy as np
import pytest

import volflow as vf
from tests.nets import random_net
from volflow.errors import InvalidInput, ResumeRefused
from volflow.store.journal.journal import Journal, journal_dir

OPTIONS = {"patch": 8, "batch_size": 1, "chunk": 8, "shard": 8, "progress": False}
NAMED = "tests.nets:slow"


@pytest.fixture
def scan(tmp_path):
    np.save(tmp_path / "scan.npy", np.random.default_rng(0).random((20, 9, 8), "float32"))
    return tmp_path / "scan.npy"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "seg.npy"


def predict(scan, out, model=NAMED, **options):
    return vf.predict(scan, model, out, **OPTIONS | options)


def beside(out):
    return sorted(path.name for path in journal_dir(out).iterdir())


WITHOUT = ["copies.json", "export.json", "output.zarr", "output.zarr.volflow"]


def test_they_are_deleted_unless_they_are_to_be_kept(scan, out):
    predict(scan, out)
    assert beside(out) == WITHOUT
    kept = out.with_name("kept.npy")
    predict(scan, kept, keep=True)
    assert beside(kept) == ["export.json", "input.zarr", "input.zarr.volflow", *WITHOUT[2:]]
    assert out.read_bytes() == kept.read_bytes()
    assert vf.verify(out).ok
    assert vf.verify(kept).ok
    predict(scan, kept)  # whoever kept them may let them go later
    assert beside(kept) == WITHOUT


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("normalize", [None, "zscore"])
def test_the_same_call_copies_and_computes_nothing(scan, out, monkeypatch, gone, normalize):
    first = predict(scan, out, normalize=normalize)[:]
    before = out.read_bytes()
    if gone:
        out.unlink()
    monkeypatch.setattr("volflow.infer.ready_inputs.convert", None)
    monkeypatch.setattr("volflow.infer.under_journal.run", None)
    again = predict(scan, out, normalize=normalize)
    assert np.array_equal(again[:], first)
    assert out.read_bytes() == before
    assert beside(out) == WITHOUT


@pytest.mark.slow
def test_another_call_is_refused_by_name(scan, out):
    predict(scan, out)
    with pytest.raises(ResumeRefused, match="overlap"):
        predict(scan, out, overlap=4)
    with pytest.raises(ResumeRefused, match="weights"):
        predict(scan, out, random_net(seed=5))
    assert beside(out) == WITHOUT
    predict(scan, out, overlap=4, overwrite=True)
    assert beside(out) == WITHOUT


@pytest.mark.slow
def test_a_scan_that_changed_is_another(scan, out):
    predict(scan, out)
    np.save(scan, np.load(scan)[::-1])
    with pytest.raises(ResumeRefused, match="input"):
        predict(scan, out)
    result = predict(scan, out, overwrite=True)
    whole = predict(scan, out.with_name("whole.zarr"))
    assert np.array_equal(result[:], whole[:])


@pytest.mark.slow
def test_a_bad_block_is_repaired_of_a_copy_made_again(scan, out):
    first = predict(scan, out)[:]
    shard = journal_dir(out) / "output.zarr" / "0" / "c" / "0" / "1" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 16
    shard.write_bytes(data)
    found = vf.verify(out)
    assert len(found.bad) == 1
    done = Journal(journal_dir(journal_dir(out) / "output.zarr")).done()
    result = predict(scan, out)
    after = Journal(journal_dir(journal_dir(out) / "output.zarr")).done()
    assert {block: after[block] for block in done} == done
    assert np.array_equal(result[:], first)
    assert beside(out) == WITHOUT
    assert vf.verify(out).ok


@pytest.mark.slow
@pytest.mark.parametrize("amid", ["drop_levels", "remove_tree"])
def test_killed_amid_the_deletion_nothing_is_computed_again(scan, out, monkeypatch, amid):
    """The copy has another name by then, and its journal is still there."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    predict(scan, out, keep=True)
    with monkeypatch.context() as patch:
        patch.setattr(f"volflow.store.journal.outputs.{amid}", killed, raising=False)
        patch.setattr("volflow.infer.input_copies.remove_tree", killed)
        with pytest.raises(KeyboardInterrupt):
            predict(scan, out)
    assert "input.zarr" not in beside(out)
    assert "input.zarr.volflow" in beside(out)
    monkeypatch.setattr("volflow.infer.ready_inputs.convert", None)
    monkeypatch.setattr("volflow.infer.under_journal.run", None)
    predict(scan, out)
    assert beside(out) == WITHOUT


@pytest.mark.slow
def test_several_inputs_and_those_that_are_volumes(scan, out, tmp_path):
    stored = vf.convert(scan, tmp_path / "stored.zarr", progress=False)
    given = {"t1": str(scan), "flair": stored, "t2": np.load(scan)}
    net = random_net(3)
    predict(given, out, net)
    noted = json.loads((journal_dir(out) / "copies.json").read_text())
    assert set(noted) == {"t1", "t2"}
    assert beside(out) == WITHOUT
    assert (tmp_path / "stored.zarr").is_dir()
    predict(given, out, net)
    assert beside(out) == WITHOUT


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"": {"source": 1, "copy": []}}', '{"": null}'])
def test_a_damaged_note_counts_for_nothing(scan, out, text):
    """What cannot be told from another scan is not taken for it."""
    predict(scan, out)
    (journal_dir(out) / "copies.json").write_text(text)
    with pytest.raises(ResumeRefused, match="input"):
        predict(scan, out)
    predict(scan, out, overwrite=True)
    assert vf.verify(out).ok


@pytest.mark.slow
def test_blocks_are_computed_anew_of_a_copy_made_for_that(scan, out):
    predict(scan, out)
    found = vf.verify(out, recompute=2, progress=False)
    assert found.ok
    assert found.recomputed.compared == "bit for bit"
    assert beside(out) == WITHOUT
    scan.rename(scan.with_name("moved.npy"))
    with pytest.raises(InvalidInput, match=r"is not at .*/scan.npy any more; give it: input="):
        vf.verify(out, recompute=2, progress=False)
    np.save(scan, np.load(scan.with_name("moved.npy"))[::-1])
    with pytest.raises(InvalidInput, match="not made from this"):
        vf.verify(out, recompute=2, progress=False)
