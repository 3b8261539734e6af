"""The state of a pipeline from its record alone."""

from __future__ import annotations

import json
import os

import pytest

from volflow.cli import run
from volflow.errors import InvalidInput
from volflow.jobs.pipeline.pipeline_state import pipeline_state
from volflow.jobs.pipeline.run_record import RunRecord


@pytest.fixture
def record(tmp_path):
    """The record of a pipeline that had failed, and runs again: one step is done, one at work."""
    record = RunRecord(tmp_path / "seg.nii.gz.run.jsonl")
    record.begin_run("segment.yaml", {})
    record.add("begin", step="scan")
    record.add("end", step="scan", outcome="failed", error="the disk is gone")
    record.begin_run("segment.yaml", {})
    record.add("end", step="scan", outcome="skipped")
    record.add("begin", step="segment")
    return record


def test_a_step_at_work_and_the_process_that_runs_it(record, capsys):
    with record.lock():
        assert run(["status", str(record.path)]) == 4
        said = capsys.readouterr().out
    assert f"{record.path}: pipeline: 1 skipped, 1 at work\n" in said
    assert f"  run   process {os.getpid()} on " in said
    assert "  at work  segment, begun 0:0" in said


def test_interrupted_failed_and_done(record, capsys):
    assert run(["status", str(record.path)]) == 1
    said = capsys.readouterr().out
    assert "1 skipped, 1 interrupted" in said
    assert "run the same command again" in said
    record.add("end", step="segment", outcome="failed", error="no space is left")
    state = pipeline_state(str(record.path))
    assert (state.exit_code, state.running) == (1, False)
    assert "  failed  segment: no space is left\n" in state.text()
    record.add("end", step="segment", outcome="done", seconds=3.5)
    assert run(["status", str(record.path), "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["jobs"]
    assert said["counts"] == {"skipped": 1, "done": 1}
    assert [one["state"] for one in said["steps"]] == ["skipped", "done"]
    assert said["steps"][1]["seconds"] == 3.5


def test_what_was_never_begun_is_refused_and_the_others_are_shown(record, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    with pytest.raises(InvalidInput, match="is no record of a pipeline"):
        pipeline_state(str(other))
    other.write_text('{"event": "end"}\n[]\ntorn')
    batch = str(tmp_path / "{case}.zarr")
    assert run(["status", str(other), batch, str(record.path)]) == 2
    out, error = capsys.readouterr()
    assert "1 interrupted" in out
    assert len(error.splitlines()) == 2
