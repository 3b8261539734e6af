"""What tests of operations share: one Dask in this process, small volumes, predictions."""

from __future__ import annotations

import numpy as np
import pytest

import volflow as vf
from tests import nets
from volflow.engine.cluster import connect
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Meta


@pytest.fixture(scope="module")
def client():
    """One embedded Dask for all tests of a module."""
    with connect("threads") as client:
        yield client


@pytest.fixture
def stored(tmp_path):
    """Stores an array as a volume in small chunks and shards."""

    def store(scan, name="scan.zarr", *, chunk=8, shard=16, **meta):
        axes = ("z", "y", "x") if scan.ndim == 3 else ("c", "z", "y", "x")
        volume = create(
            tmp_path / name, scan.shape, scan.dtype, Meta(axes, **meta), chunk=chunk, shard=shard
        )
        volume.write(Roi.full(scan.shape), scan)
        return volume

    return store


@pytest.fixture
def predict(client, tmp_path):
    """`vf.predict` on the module's client, silent, into the test's folder."""

    def run(volume, model, out="out.zarr", **options):
        options = {"patch": 8, "chunk": 8, "shard": 8, "cluster": client} | options
        return vf.predict(volume, model, tmp_path / out, progress=False, **options)

    return run


@pytest.fixture
def scan():
    """A small scan without zeros."""
    return np.random.default_rng(1).random((22, 19, 25), "float32") + 0.1


@pytest.fixture
def calls():
    """Batch sizes of the forwards on data from here on."""
    nets.calls.clear()
    return nets.calls
