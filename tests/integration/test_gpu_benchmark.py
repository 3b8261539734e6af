"""The benchmark of GPUs runs through on the stand-in, so that it is whole when there is a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_all_stages_run_on_the_stand_in(root, tmp_path):
    command = [sys.executable, root / "benchmarks" / "gpu.py", "--stand-in", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = (tmp_path / "gpu.md").read_text()
    for stage in ("correct", "kernels", "predict", "exact", "peers", "counts per block"):
        assert f"### {stage}" in told
    assert "failed" not in told
