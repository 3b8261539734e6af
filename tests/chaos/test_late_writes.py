"""A task stops amid a shard, its run is replaced, and it comes back: nothing of it arrives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import volflow as vf
from tests.stores import files
from volflow.store.create import create
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.journal.outputs import begin_anew
from volflow.store.meta import Meta, VolumeSpec

pytestmark = pytest.mark.chaos

SPEC = VolumeSpec.of((16, 8, 8), "u1", Meta(), chunk=4, shard=8)
PATIENCE_S = 120
# It stops where the shard is whole and about to get its name.
LATE = """
import os, pathlib, signal, sys
import numpy as np
from volflow.engine.task import Context
from volflow.geometry.roi import Roi
from volflow.store.create import open_begun
from volflow.store.journal.journal import Journal, journal_dir

replace = pathlib.Path.replace

def stopped(path, target):
    os.kill(os.getpid(), signal.SIGSTOP)
    return replace(path, target)

pathlib.Path.replace = stopped
out, session, value = sys.argv[1:]
with Context(Journal(journal_dir(out)), session).block(1) as block:
    block.write(open_begun(out), Roi((8, 0, 0), (16, 8, 8)), np.full((8, 8, 8), int(value), "u1"))
"""


@pytest.mark.parametrize("value", [7, 0])  # a shard of zeros is deleted
def test_what_is_under_way_when_a_run_is_replaced_never_arrives(tmp_path, root, value):
    out = tmp_path / "out.zarr"
    journal = Journal(journal_dir(out))
    journal.make_place()
    record = Record("convert", {"input": "another"}, {"grid": [2, 1, 1]})
    begin_anew(out, journal, record)
    create(out, SPEC, finished=False)
    session = journal.begin(record)
    with subprocess.Popen(
        [sys.executable, "-c", LATE, str(out), session, str(value)], text=True,
        env={**os.environ, "PYTHONPATH": str(root)}, stderr=subprocess.PIPE,
    ) as task:  # fmt: skip
        try:
            _, status = os.waitpid(task.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status), task.communicate(timeout=PATIENCE_S)[1]
            scan = np.random.default_rng(0).integers(1, 9, SPEC.shape, "u1")
            given = {"chunk": 4, "shard": 8, "progress": False}
            vf.convert(scan, tmp_path / "whole.zarr", **given)
            vf.convert(scan, out, overwrite=True, **given)
            done = files(journal.directory / "done")
            task.send_signal(signal.SIGCONT)
            _, told = task.communicate(timeout=PATIENCE_S)
        finally:
            task.kill()
    assert "Superseded" in told
    assert files(out) == files(tmp_path / "whole.zarr")
    assert files(journal.directory / "done") == done
    assert vf.verify(out).ok
