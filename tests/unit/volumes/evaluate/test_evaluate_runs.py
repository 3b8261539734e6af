"""Scores from workers of every kind, within memory."""

from __future__ import annotations

import sys

import dask.array as da
import numpy as np
import pytest

import volflow as vf
from volflow.errors import MemoryRefused

pytestmark = pytest.mark.slow

MEASURED = """
from types import SimpleNamespace

from volflow.geometry.budget import parse_bytes

if __name__ == "__main__":
    small, pred, truth, memory = sys.argv[1:]
    with connect("threads") as client:
        options = {"cluster": client, "progress": False}
        vf.evaluate(small, small, **options)
        asked = SimpleNamespace(to_dict=lambda: {"memory_bytes": parse_bytes(memory)})
        report_growth(asked, lambda: vf.evaluate(pred, truth, memory=memory, **options))
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Two label maps of several blocks each, and their scores in memory."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    truth = np.zeros((130, 150, 140), "uint8")
    truth[20:100, 30:110, 40:120] = 1
    truth[60:70, 60:70, 60:70] = 2
    pred = np.roll(truth, (3, -2, 4), (0, 1, 2))
    pred[rng.random(pred.shape) < 1e-4] = 2
    paths = []
    for name, labels in (("pred", pred), ("truth", truth)):
        paths.append(folder / f"{name}.zarr")
        vf.write(da.from_array(labels, chunks=64), paths[-1], spacing=(2, 1, 1), unit="mm",
                 chunk=32, shard=64, progress=False)  # fmt: skip
    return paths, vf.evaluate(pred, vf.open(paths[1]), progress=False)


@pytest.mark.parametrize("cluster", ["threads", "processes:2"])
@pytest.mark.parametrize("memory", [None, "140MiB"])
def test_workers_and_memory_change_nothing(stored, cluster, memory):
    paths, expected = stored
    found = vf.evaluate(*paths, cluster=cluster, memory=memory, progress=False)
    assert found.rows == expected.rows


def test_what_dask_computes_is_computed_on_the_workers(stored):
    paths, expected = stored
    lazy = vf.open(paths[0]).dask()
    found = vf.evaluate(lazy + (lazy * 0), paths[1], cluster="processes:2", progress=False)
    assert found.rows == expected.rows


def test_too_little_memory_is_refused_before_anything_is_read(stored):
    with pytest.raises(MemoryRefused, match="measure surfaces needs 131 MiB per worker"):
        vf.evaluate(*stored[0], memory="100MiB", progress=False)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize("memory", ["1GiB", "200MiB"])
def test_growth_is_within_memory(grown, noise, memory):
    """In noise each voxel lies on a surface, which takes the most."""
    draw = np.random.default_rng(0).random
    small = noise("small.zarr", (40, 40, 40), "uint8", 128, draw)
    pred, truth = (
        noise(f"{name}.zarr", (200, 192, 192), "uint8", 128, lambda shape: draw(shape) < 0.5)
        for name in ("pred", "truth")
    )
    found = grown(MEASURED, small, pred, truth, memory)
    assert found["growth"] <= found["memory_bytes"]
