"""The GPU benchmarks run through on the stand-in, so that they are whole when there is a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(command, where):
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=where
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_all_stages_run(root, tmp_path):
    run([root / "benchmarks" / "gpu.py", "--stand-in", "--out", tmp_path], tmp_path)
    told = (tmp_path / "gpu.md").read_text()
    for stage in ("correct", "kernels", "predict", "exact", "peers"):
        assert f"### {stage}" in told
    assert "failed" not in told
    assert told.count("| counted |") == 5


@pytest.mark.nightly
def test_what_a_prediction_asks_of_a_gpu_is_counted(root, tmp_path):
    told = run([root / "benchmarks" / "gpu_counts.py"], tmp_path).splitlines()
    heads = [cell.strip() for cell in told[1].split("|")]
    rows = [dict(zip(heads, map(str.strip, line.split("|")), strict=True)) for line in told[3:]]
    assert [row["method"] for row in rows] == ["gaussian", "gaussian", "exact", "exact"]
    for row in rows:
        assert row["pageable"] == row["races"] == "0"
        assert float(row["waits per block"]) <= 2
        assert row["method"] == "exact" or float(row["in"]) < 1.3
        assert row["method"] == "exact" or float(row["out"]) < 1.01
