"""The benchmark of training runs through on next to nothing, and what is done is not done again."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


def run(root, where):
    command = [root / "benchmarks" / "training.py", "--small", "--out", where, "--folder", where]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=where
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (where / "training.md").read_text()


@pytest.mark.nightly
def test_all_parts_run_once(root, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    told = run(root, folder)
    for part in ("sizes", "plane", "ranks", "float32"):
        assert f"### {part}" in told
    assert "failed" not in told
    assert "not run" not in told
    assert "bytes sent are those of the closed form: yes" in told
    (kept,) = folder.glob("training_*.json")
    rows = json.loads(kept.read_text())
    steps = [row for row in rows.values() if row["case"]["kind"] == "step"]
    assert [len(row["case"]["sides"]) for row in steps] == [3, 2]
    for row in steps:
        assert row["asked_bytes"] == pytest.approx(row["plan"]["read_bytes"], rel=0.1)
    again = run(root, folder)
    assert json.loads(kept.read_text()) == rows
    assert again.count("|") == told.count("|")
