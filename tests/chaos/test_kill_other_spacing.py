"""A prediction on the network's grid is killed there and on the way back: a rerun goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import volflow as vf
from tests.killed import killed
from tests.nets import random_net
from tests.stores import files
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.journal.journal import journal_dir
from volflow.store.meta import Meta, VolumeSpec

pytestmark = pytest.mark.chaos

SHAPE = (44, 15, 27)
OPTIONS = {"patch": 8, "spacing": 1.4, "batch_size": 2, "chunk": 8, "shard": 8, "progress": False}
PREDICT = f"""
import sys, time
import volflow as vf
from volflow.infer.patches.writer import Writer
from volflow.infer.regrid.brought_back import BroughtBack
from tests.chaos.test_kill_other_spacing import net

put, finish = Writer.put, BroughtBack._finish

def slow_put(*given):
    time.sleep(0.05)
    return put(*given)

def slow_finish(*given):
    time.sleep(0.05)
    return finish(*given)

Writer.put, BroughtBack._finish = slow_put, slow_finish
if __name__ == "__main__":
    vf.predict(sys.argv[1], net(), sys.argv[2], **{OPTIONS})
"""


def net() -> torch.nn.Module:
    torch.set_num_threads(2)
    return random_net(channels_out=3)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "scan.zarr"
    meta = Meta(spacing=(2, 1, 1), unit="millimeter")
    volume = create(path, VolumeSpec.of(SHAPE, "float32", meta, chunk=8, shard=8))
    volume.write(Roi.full(SHAPE), np.random.default_rng(0).random(SHAPE, "float32") + 0.1)
    return volume


def entries(out: Path) -> dict[str, int]:
    """When each block of the scores, and of the result, was recorded."""
    folder = journal_dir(out)
    found = (*folder.glob("passes/*/done/*.json"), *folder.glob("done/*.json"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in found}


def test_killed_on_the_networks_grid_and_on_the_way_back(scan, root, tmp_path):
    out, whole = tmp_path / "out.zarr", tmp_path / "whole.zarr"
    vf.predict(scan, net(), whole, **OPTIONS)
    passes = journal_dir(out) / "passes"

    def done(pattern):
        return len(list(journal_dir(out).glob(pattern)))

    before: dict[str, int] = {}
    for moment in (
        lambda: done("passes/*/done/*.json") >= 2,
        lambda: done("done/*.json") >= 2,
    ):
        killed(PREDICT, scan.path, out, root=root, moment=moment)
        after = entries(out)
        assert {name: after[name] for name in before} == before  # nothing done was done again
        before = after
    assert (passes / "scores.zarr").exists()
    with pytest.raises(vf.errors.InvalidInput, match="is not complete"):
        vf.open(out)
    vf.predict(scan, net(), out, **OPTIONS)
    after = entries(out)
    kept = {name: at for name, at in before.items() if name.startswith("done")}
    assert {name: after[name] for name in kept} == kept
    assert files(out) == files(whole)
    assert not passes.exists()
