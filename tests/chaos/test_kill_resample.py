"""A process that resamples is killed: a rerun does what is left, a changed input nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import volflow as vf
from tests.stores import files
from volflow.errors import InvalidInput, ResumeRefused
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.journal.journal import journal_dir
from volflow.store.meta import Meta, VolumeSpec

pytestmark = pytest.mark.chaos

PATIENCE_S = 120
GRID = {"spacing": (1.1, 1.3, 0.9), "order": 3, "chunk": 8, "shard": 8}
RESAMPLE = f"""
import sys
import volflow as vf
if __name__ == "__main__":
    vf.resample(sys.argv[1], sys.argv[2], cluster=sys.argv[3], progress=False, **{GRID})
"""


def done(path):
    found = (journal_dir(path)).glob("done*/*.json")
    return {entry.name: entry.stat().st_mtime_ns for entry in found}


@pytest.fixture
def volume(tmp_path):
    voxels = np.random.default_rng(0).integers(1, 999, (36, 40, 32), "u2")
    meta = Meta(spacing=(1, 1, 1), unit="millimeter", orientation="SAR")
    made = create(tmp_path / "a.zarr", VolumeSpec.of(voxels.shape, "u2", meta, chunk=8, shard=16))
    made.write(Roi.full(voxels.shape), voxels)
    return made


@pytest.mark.parametrize(("cluster", "count"), [("threads", 10), ("2", 1)])
def test_killed_amid(volume, root, tmp_path, cluster, count):
    out = tmp_path / "out.zarr"
    with subprocess.Popen(
        [sys.executable, "-c", RESAMPLE, volume.path, str(out), cluster],
        env={**os.environ, "PYTHONPATH": str(root)}, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while len(done(out)) < count:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    before = done(out)
    assert count <= len(before) < 5 * 4 * 5
    with pytest.raises(InvalidInput, match="blocks are done"):
        vf.open(out)
    result = vf.resample(volume, out, progress=False, **GRID)
    after = done(out)
    assert len(after) == 5 * 4 * 5
    assert {name: after[name] for name in before} == before  # nothing done was done again
    whole = vf.resample(volume, spacing=GRID["spacing"], order=3, shard=64, chunk=64)
    assert np.array_equal(result[:], whole.compute())
    resumed = files(out)
    vf.resample(volume, out, progress=False, overwrite=True, **GRID)
    assert files(out) == resumed


def test_a_changed_input_is_not_resumed(volume, tmp_path):
    out = tmp_path / "out.zarr"
    vf.resample(volume, out, progress=False, **GRID)
    volume.write(Roi((0, 0, 0), (16, 16, 16)), np.zeros((16, 16, 16), "u2"))
    with pytest.raises(ResumeRefused, match="input"):
        vf.resample(volume, out, progress=False, **GRID)
