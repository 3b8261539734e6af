"""What tests of inference share: exact runs that do not measure their worker first."""

from __future__ import annotations

from dataclasses import replace

import pytest

import volflow as vf
from volflow.infer.exact import method as exact_method
from volflow.infer.predict import plan_predict
from volflow.passes.cost import Cost
from volflow.passes.network import Network
from volflow.passes.profile import OpProfile


@pytest.fixture
def assumed(monkeypatch):
    """Exact runs profile no worker: convolutions are slow, and plans always the same.

    A network is traced once, rather than by every task, which takes most of the time of small ones.
    """
    traced, known = Network.graph, {}

    def graph(network, module=None):
        key = replace(network, device="cpu")
        if key not in known:
            known[key] = traced(network, module)
        return known[key]

    def profile_ops(network, model, *rest):
        nodes = network.graph(model.module).nodes
        costs = {
            n: Cost(node.flops * node.depth / 1e9, 8.0 * node.value_bytes)
            for n, node in enumerate(nodes)
            if node.flops
        }
        return OpProfile(network.resolved(), costs)

    monkeypatch.setattr(exact_method, "profile_ops", profile_ops)
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
