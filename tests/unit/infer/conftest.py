"""What tests of operations share: one Dask in this process, small volumes, predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import volflow as vf
from tests import nets
from volflow.engine.cluster import connect
from volflow.geometry.roi import Roi
from volflow.infer.exact import plan as exact_plan
from volflow.infer.exact.job import Network
from volflow.infer.exact.profile import Look
from volflow.infer.predict import plan_predict
from volflow.passes.cost import Cost
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


@pytest.fixture
def assumed(monkeypatch):
    """Exact runs do not look at a worker: convolutions are slow, and plans always the same.

    A network is traced once, rather than by every task, which takes most of the time of small ones.
    """
    traced, known = Network.graph, {}

    def graph(network, module=None):
        key = replace(network, device="cpu")
        if key not in known:
            known[key] = traced(network, module)
        return known[key]

    def look_at(network, module, *rest):
        nodes = network.graph(module).nodes
        costs = {
            n: Cost(node.flops * node.depth / 1e9, 8.0 * node.value_bytes)
            for n, node in enumerate(nodes)
            if node.flops
        }
        return Look(network.here(), costs)

    monkeypatch.setattr(exact_plan, "look_at", look_at)
    monkeypatch.setattr(Network, "graph", graph)


@pytest.fixture
def exact(client, tmp_path, assumed):
    """`vf.predict(..., blend="exact")` in small blocks, silent, into the test's folder."""

    def run(volume, model, out="out.zarr", **options):
        options = {"chunk": 8, "shard": 8, "cluster": client, "progress": False} | options
        return vf.predict(volume, model, tmp_path / out, blend="exact", **options)

    return run


@pytest.fixture
def planned(client, tmp_path, assumed):
    """The number of passes, and of blocks of the last, of an exact prediction."""

    def plan(volume, model, out="out.zarr", **options):
        options = {"chunk": 8, "shard": 8, "cluster": client} | options
        found = plan_predict(volume, model, tmp_path / out, blend="exact", **options)
        return int(found.to_dict()["passes"].split(",")[0]), found.blocks

    return plan
