"""Facts of volumes, files and runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

from volflow.engine.observing.run_facts import run_facts
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.report.facts.info import facts_of, facts_text
from volflow.report.facts.run_state import (
    coverage_facts,
    run_line,
    run_text,
    unfinished,
)
from volflow.store.create import create
from volflow.store.journal.failures import Failure
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.layout import ShardEntry
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.verify import verify


@pytest.fixture
def volume(tmp_path):
    meta = Meta(spacing=(2.5, 1, 1), unit="millimeter", orientation="SAR")
    volume = create(tmp_path / "a.zarr", VolumeSpec.of((8, 16, 16), "u2", meta, chunk=8, shard=16))
    volume.write(Roi.full(volume.shape), np.ones(volume.shape, "u2"))
    return volume


@pytest.fixture
def journal(volume):
    journal = Journal(journal_dir(volume.path))
    with journal.lock():
        session = journal.begin(Record("predict", {"input": "a"}, {"grid": [1, 1, 2]}))
        entry = ShardEntry("0", (0, 0, 0), (8, 16, 16), 0)
        journal.mark(0, [entry], {"read": 1.0, "model": 3.0}, session=session)
        journal.end()
    return journal


def test_facts_of_a_volume(volume):
    facts = facts_of(volume.path)
    assert facts["shape"] == [8, 16, 16]
    assert facts["raw_bytes"] == 8 * 16 * 16 * 2
    assert 0 < facts["stored_bytes"] < 8192
    assert facts["objects"] == 3  # group, array, one shard
    assert "run" not in facts
    json.dumps(facts)
    text = facts_text(facts)
    for line in (
        "shape        8 × 16 × 16 (zyx) uint16",
        "spacing      2.5 × 1 × 1 mm",
        "orientation  SAR for zyx",
        "chunks       8 × 8 × 8",
        "shards       16 × 16 × 16",
    ):
        assert line in text


def test_facts_of_foreign_files(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 5), "f4"))
    facts = facts_of(tmp_path / "a.npy")
    assert (facts["axes"], facts["dtype"], facts["read"]) == ("czyx", "float32", "anywhere")
    nibabel = pytest.importorskip("nibabel", reason="extra io")
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), "i2"), np.diag([-1, 1, 3, 1]))
    nibabel.save(image, tmp_path / "a.nii.gz")
    facts = facts_of(tmp_path / "a.nii.gz")
    assert (facts["shape"], facts["orientation"]) == ([6, 5, 4], "SAL")
    assert facts["spacing"] == [3, 1, 1]
    assert facts["read"] == "front to back"
    assert "front to back" in facts_text(facts)


def test_facts_name_the_run(volume, journal):
    facts = facts_of(volume.path)
    assert facts["run"]["done"] == 1
    assert "run          predict: 1 of 2 blocks done (50%), the last" in facts_text(facts)


def test_an_unfinished_run_is_named_until_it_is_finished(volume, journal):
    assert unfinished(volume.path) == "unfinished: 1 of 2 blocks done"
    assert "unfinished: 1 of 2 blocks done" in volume._repr_html_()
    assert unfinished(f"{volume.path}/0") == "unfinished: 1 of 2 blocks done"  # inside the store
    assert unfinished("s3://bucket/a.zarr") == ""
    with journal.lock():
        session = journal.begin(Record("predict", {"input": "a"}, {"grid": [1, 1, 2]}))
        journal.mark(1, [], {}, session=session)
        journal.end()
    assert unfinished(volume.path) == ""
    assert "blocks done" not in volume._repr_html_()
    (journal.directory / "plan.json").write_text("damaged")
    assert unfinished(volume.path) == ""


def test_missing_volume_is_named(tmp_path):
    with pytest.raises(InvalidInput, match=r"gone\.zarr"):
        facts_of(tmp_path / "gone.zarr")


def test_state_of_a_run(volume, journal):
    facts = run_facts(volume.path)
    assert (facts["done"], facts["total"], facts["grid"]) == (1, 2, [1, 1, 2])
    assert facts["stages_s"] == {"model": 3.0, "read": 1.0}
    json.dumps(facts)
    text = run_text(facts)
    assert "model 75%, read 25%" in text
    assert "failed" not in text
    assert "run the same command again" in text


def test_failed_blocks_are_listed_up_to_a_bound(volume, journal):
    for block in range(1, 23):
        journal.failures.note(Failure(block, "[8:16]", "it did not work"))
    facts = run_facts(volume.path)
    assert facts["failures"][21] == {"block": 22, "box": "[8:16]", "reason": "it did not work"}
    lines = [line for line in run_text(facts).splitlines() if line.startswith("  failed")]
    assert lines[0] == "  failed  block 1 [8:16]: it did not work"
    assert lines[20:] == ["  failed  and 2 more, which --json lists"]


def test_output_without_journal_is_refused(volume):
    with pytest.raises(InvalidInput, match="has no journal"):
        run_facts(volume.path)


@pytest.mark.parametrize(
    ("seconds", "ago"), [(5, "5 s"), (300, "5 min"), (7200, "2 h"), (172800, "2 d")]
)
def test_ages_are_round(seconds, ago):
    facts = {"operation": "predict", "done": 1, "total": 2, "last_block_s": seconds}
    assert run_line(facts).endswith(f"the last {ago} ago")


def test_coverage_is_plain_values(volume, journal):
    facts = coverage_facts(verify(volume.path))
    assert facts["ok"] is False
    assert facts["missing"] == 1
    assert [bad["block"] for bad in facts["bad"]] == [0]
    json.dumps(facts)


def test_state_of_the_volume_behind_an_exported_file(volume, journal, tmp_path):
    out = tmp_path / "seg.nii.gz"
    behind = journal_dir(out) / "output.zarr"
    behind.mkdir(parents=True)
    journal.directory.rename(journal_dir(behind))
    facts = run_facts(out)
    assert (facts["path"], facts["done"]) == (str(behind), 1)


def test_stored_size_is_compared_with_raw():
    facts = {"path": "a.zarr", "unit": None, "kind": "image", "shape": [10], "axes": "x"}
    facts |= {"dtype": "uint8", "spacing": [1], "orientation": None, "channels": []}
    for stored, said in ((500, "2 times smaller"), (1044, "1.04 times larger")):
        text = facts_text(facts | {"raw_bytes": 1000, "stored_bytes": stored})
        assert f"B, {said} than raw" in text
    for stored in (999, 1000, 1001):
        text = facts_text(facts | {"raw_bytes": 10**6, "stored_bytes": 1000 * stored})
        assert text.endswith("KiB, as much as raw")
