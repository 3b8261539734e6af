"""A process that makes levels is killed: the volume stays valid, and a rerun ends the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import volflow as vf
from tests.stores import files
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.journal.journal import journal_dir
from volflow.store.meta import Meta, VolumeSpec

pytestmark = pytest.mark.chaos

PATIENCE_S = 120
LEVELS = """
import sys
import volflow as vf
if __name__ == "__main__":
    vf.pyramid(sys.argv[1], levels=2, cluster=sys.argv[2], progress=False)
"""


def done(path: Path, level: int) -> dict[str, int]:
    found = (journal_dir(path) / "levels" / str(level) / "done").glob("*.json")
    return {entry.name: entry.stat().st_mtime_ns for entry in found}


@pytest.fixture
def volume(tmp_path):
    """64 blocks at level 1."""
    voxels = np.random.default_rng(0).integers(1, 9, (32, 32, 32), "u2")
    made = create(tmp_path / "a.zarr", VolumeSpec.of(voxels.shape, "u2", Meta(), chunk=4, shard=4))
    made.write(Roi.full(voxels.shape), voxels)
    return Path(made.path)


@pytest.mark.parametrize(("cluster", "count"), [("threads", 10), ("2", 1)])
def test_killed_amid_a_level(volume, root, tmp_path, cluster, count):
    with subprocess.Popen(
        [sys.executable, "-c", LEVELS, str(volume), cluster],
        env={**os.environ, "PYTHONPATH": str(root)}, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while len(done(volume, 1)) < count:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    before = done(volume, 1)
    assert count <= len(before) < 64
    assert [level.path for level in vf.open(volume).levels] == ["0"]
    assert vf.open(volume)[:].any()
    result = vf.pyramid(volume, levels=2, progress=False)
    after = done(volume, 1)
    assert len(after) == 64
    assert {name: after[name] for name in before} == before  # nothing done was done again
    resumed = files(volume)
    assert len(result.levels) == 3
    vf.pyramid(volume, levels=2, progress=False, overwrite=True)
    assert files(volume) == resumed
