"""A process that predicts exactly is killed in any of its passes: a rerun goes on from there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import volflow as vf
from tests.exact_oracle import EXACT, error, lively, whole
from tests.killed import killed
from tests.stores import files
from volflow.geometry.roi import Roi
from volflow.model.unet import UNet
from volflow.store.create import create
from volflow.store.journal.journal import journal_dir
from volflow.store.meta import Meta, VolumeSpec

pytestmark = pytest.mark.chaos

SHAPE = (22, 13, 27)
OPTIONS = {"blend": "exact", "memory": "50MiB", "chunk": 8, "shard": 8, "progress": False}
PREDICT = f"""
import sys, time
import volflow as vf
from volflow.infer.exact.window import ExactWindow
from volflow.passes import keeping
from tests.chaos.test_kill_exact import net

def slowly(work):
    def slow(*given):
        time.sleep(0.02)
        return work(*given)
    return slow

keeping.pass_block = slowly(keeping.pass_block)
ExactWindow.begun = slowly(ExactWindow.begun)
if __name__ == "__main__":
    vf.predict(sys.argv[1], net(), sys.argv[2], **{OPTIONS})
"""


def net() -> UNet:
    torch.manual_seed(0)
    torch.set_num_threads(2)
    return lively(UNet(1, 2, (3, 6), norm="instance"))


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "scan.zarr"
    volume = create(path, VolumeSpec.of(SHAPE, "float64", Meta(), chunk=8, shard=8))
    volume.write(Roi.full(SHAPE), np.random.default_rng(0).random(SHAPE) + 0.1)
    return volume


def entries(out: Path) -> dict[str, int]:
    """When each block of each pass, and of the result, was recorded."""
    folder = journal_dir(out)
    found = (*folder.glob("passes/*/done/*.json"), *folder.glob("done/*.json"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


def test_killed_in_the_first_pass_a_middle_one_and_the_last(scan, root, tmp_path):
    """One run that is killed three times is byte for byte the run that never was."""
    out = tmp_path / "out.zarr"
    passes = journal_dir(out) / "passes"

    def done(where):
        return len(list((journal_dir(out) / where / "done").glob("*.json")))

    moments = [
        lambda: done("passes/000") >= 1,
        lambda: done("passes/002") >= 1,
        lambda: done("") >= 1,
    ]
    before: dict[str, int] = {}
    for moment in moments:
        killed(PREDICT, scan.path, out, root=root, moment=moment)
        after = entries(out)
        assert {name: after[name] for name in before} == before  # nothing done was done again
        before = after
    assert (passes / "kept").exists()
    result = vf.predict(scan, net(), out, **OPTIONS)
    after = entries(out)
    assert {name: after[name] for name in before} == before
    assert vf.verify(out).ok
    assert error(result[:], whole(scan[:], net(), 2)) < EXACT
    assert not list(passes.rglob("*.raw"))
    assert not list(passes.rglob("*.part"))
    assert not list(passes.rglob("*.tmp"))
    # The same passes again, since they were recorded, in one go.
    settings = (journal_dir(out) / "plan.json").read_text()
    resumed = files(out)
    for folder in (passes, journal_dir(out) / "done"):
        for path in folder.rglob("*.json"):
            if path.parent.name == "done":
                path.unlink()
    for path in passes.rglob("statistics.f64"):
        path.unlink()
    vf.predict(scan, net(), out, **OPTIONS)
    assert (journal_dir(out) / "plan.json").read_text() == settings
    assert files(out) == resumed
