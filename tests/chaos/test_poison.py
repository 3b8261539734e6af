"""A block that ends each worker that comes to it is found, named and left out; then mended."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests.nets import Faulty, random_net
from tests.stores import files
from volflow.engine.observing.run_facts import run_facts
from volflow.errors import RunFailed
from volflow.report.facts.run_state import run_text

pytestmark = pytest.mark.chaos

POISON = 5
# Without overlap no other block sees what is too bright.
OPTIONS = {"patch": 8, "overlap": 0, "batch_size": 2, "chunk": 8, "shard": 8, "progress": False}


@pytest.fixture(scope="module")
def scan():
    """Eight blocks along z, of which one is too bright."""
    voxels = np.random.default_rng(0).random((64, 15, 14), "float32") + 0.1
    voxels[POISON * 8 + 3 : POISON * 8 + 5] = 9
    return voxels


@pytest.fixture
def fault(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLFLOW_TEST_FAULT", str(tmp_path / "fault"))
    return tmp_path / "fault"


def predict(scan, out, **options):
    return vf.predict(scan, Faulty(random_net(), 5), out, **OPTIONS | options)


@pytest.mark.parametrize(
    ("workers", "deaths"),
    [
        # A run is halved until one block is left, which fails three times, alone on its worker. One
        # more where another ran beside it.
        (2, 2 + 3 + 1),
        pytest.param(1, 3 + 3, marks=pytest.mark.nightly),
    ],
)
def test_a_block_that_kills_its_worker(scan, fault, tmp_path, workers, deaths):
    predict(scan, tmp_path / "whole.zarr")
    fault.write_text("deadly")
    out = tmp_path / "out.zarr"
    with pytest.raises(RunFailed) as failed:
        predict(scan, out, cluster=workers)
    assert failed.value.exit_code == 1
    assert str(failed.value) == (
        "1 of 8 blocks failed after 2 retries; what is done is kept, and the same command tries"
        " them again: block 5 [40:48, 0:15, 0:14]: its worker died"
    )
    assert len((tmp_path / "met").read_text().split()) <= deaths
    assert vf.verify(out).cells == "#####.##"
    facts = run_facts(out)
    assert facts["failures"] == [
        {"block": 5, "box": "[40:48, 0:15, 0:14]", "reason": "its worker died"}
    ]
    assert "  failed  block 5 [40:48, 0:15, 0:14]: its worker died" in run_text(facts)
    fault.unlink()
    predict(scan, out)
    assert files(out) == files(tmp_path / "whole.zarr")
    assert run_facts(out)["failures"] == []
