"""Passes over a network stand alone: an image reader, a module and a folder are enough."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from volflow.model.resident import ModelPlugin, lent
from volflow.partition.reach import alignment_of
from volflow.partition.segments import core, targets_of
from volflow.passes.cost import Cost, Costs
from volflow.passes.executor import Passes, run_passes
from volflow.passes.network import Blockwise, Network
from volflow.passes.schedule import Planner

DIGEST = "a network of these tests"
SHAPE = (16, 12, 20)


def read(scan, box):
    return scan[(slice(None), *box.slices())]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 3, 3, padding=1), nn.InstanceNorm3d(3), nn.ReLU(),
        nn.Conv3d(3, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Conv3d(3, 2, 3, padding=1),
    ).double().eval()  # fmt: skip


@pytest.fixture
def scan():
    return np.random.default_rng(0).random((1, *SHAPE))


@pytest.fixture
def passes(net, scan, tmp_path):
    network = Network(DIGEST, 1, SHAPE, "cpu", "float32", "float64")
    graph = network.graph(net)
    # Convolutions are dear enough to be kept.
    ops = {n: Cost(1e-6, 0.0) for n, node in enumerate(graph.nodes) if node.flops}
    planner = Planner(Costs(graph, ops=ops), alignment_of(graph), 0)
    steps = Planner(planner.costs, planner.alignment, 2 * planner.enough()[0]).choose()
    assert len(steps) > 2
    image = partial(read, scan)
    return Passes(
        steps, graph, Blockwise(network, image), ModelPlugin(net, DIGEST), tmp_path / "passes", 1, 0
    )


def test_the_last_pass_computes_the_network_from_what_the_others_left(passes, net, scan, client):
    run_passes(passes, {"input": "noise"}, client, 2**40, False)
    last, graph = len(passes.steps) - 1, passes.graph
    blockwise, step = passes.inputs_of(last), passes.steps[last]
    assert blockwise.stores
    assert set(blockwise.statistics) == set(graph.statistics)
    result = torch.full((1, 2, *SHAPE), torch.nan, dtype=torch.float64)
    with lent(passes.model), blockwise.network.inference():
        for box in passes.grid(last):
            for node, values in blockwise.compute(graph, targets_of(graph, step, box)):
                result[(..., *core(graph, node, box).slices())] = values
    with torch.inference_mode():
        expected = net(torch.from_numpy(scan)[None])
    assert float((result - expected).abs().max()) < 1e-12


def test_what_is_done_is_not_run_again(passes, client):
    run_passes(passes, {"input": "noise"}, client, 2**40, False)
    assert (
        passes.todo(
            passes.steps[-1].given[1:] if passes.steps[-1].given[0] == 0 else passes.steps[-1].given
        )
        == []
    )
    passes.drop(len(passes.steps) - 1)
    # A repair of the last pass needs again what it reads, and no statistic anew.
    again = passes.todo(
        passes.steps[-1].given[1:] if passes.steps[-1].given[0] == 0 else passes.steps[-1].given
    )
    assert {node for _, wanted in again for node in wanted} >= {
        node for node in passes.steps[-1].given if node
    }
    known = [passes.statistics(number) for number in range(len(passes.steps) - 1)]
    run_passes(passes, {"input": "noise"}, client, 2**40, False)
    assert (
        passes.todo(
            passes.steps[-1].given[1:] if passes.steps[-1].given[0] == 0 else passes.steps[-1].given
        )
        == []
    )
    for before, after in zip(
        known, (passes.statistics(n) for n in range(len(passes.steps) - 1)), strict=True
    ):
        assert all(np.array_equal(before[s], after[s]) for s in before)


def test_the_mode_of_inference_ends_with_its_block(passes):
    with lent(passes.model), passes.blockwise.network.inference():
        assert torch.is_inference_mode_enabled()
        steps = passes.blockwise.compute(passes.graph, {1: passes.grid(0)[0]})
        next(steps)
    assert not torch.is_inference_mode_enabled()
