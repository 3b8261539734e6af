"""Plans of exact runs: passes, blocks and bytes that keep to the laws of a schedule."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from volflow.errors import MemoryRefused
from volflow.geometry.roi import Roi
from volflow.infer.predict import plan_predict
from volflow.model.unet import UNet
from volflow.partition.footprint import live_bytes
from volflow.partition.graph import compute, needed
from volflow.partition.reach import alignment_of, trace_any
from volflow.partition.segments import core, targets_of
from volflow.passes.cost import Cost, Costs
from volflow.passes.schedule import Planner
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec

KINDS = ("conv", "wide", "norm", "relu", "skip", "gate", "pool")


class Random(nn.Module):
    """Layers in any order, with statistics, skips and a coarser level."""

    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds
        self.layers = nn.ModuleList(
            {"conv": nn.Conv3d(2, 2, 3, padding=1), "wide": nn.Conv3d(2, 2, 5, padding=2),
             "norm": nn.InstanceNorm3d(2), "relu": nn.ReLU(), "skip": nn.Conv3d(4, 2, 1),
             "gate": nn.Conv3d(2, 2, 1), "pool": nn.Conv3d(2, 2, 2, 2)}[kind]
            for kind in kinds
        )  # fmt: skip

    def forward(self, image):
        x = first = torch.cat([image, -image], 1)
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            if kind == "skip":
                x = layer(torch.cat([x, first], 1))
            elif kind == "gate":
                x = x * layer(x.mean((2, 3, 4), keepdim=True)).sigmoid()
            elif kind == "pool":
                x = nn.functional.interpolate(layer(x), scale_factor=2.0)
            else:
                x = layer(x)
        return x


def planner(kinds, sizes, memory, scratch=2**62, workers=1):
    graph = trace_any(Random(kinds).eval(), 1, sizes)
    # Convolutions are dear enough to be kept.
    ops = {n: Cost(1e-6, 0.0) for n, node in enumerate(graph.nodes) if node.flops}
    return Planner(Costs(graph, ops=ops, workers=workers), alignment_of(graph), memory, scratch)


schedules = {
    "kinds": st.lists(st.sampled_from(KINDS), min_size=1, max_size=7),
    "sizes": st.tuples(*[st.sampled_from((16, 24, 40))] * 3),
    "share": st.floats(1.0, 30.0),
    "workers": st.sampled_from((1, 5)),
}


def chosen(kinds, sizes, share, workers, scratch=2**62):
    found = planner(kinds, sizes, 0, scratch, workers)
    memory = int(share * found.enough()[0])
    found = planner(kinds, sizes, memory, scratch, workers)
    return found, found.choose()


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(**schedules)
def test_a_schedule_keeps_to_its_laws(kinds, sizes, share, workers):
    found, passes = chosen(kinds, sizes, share, workers)
    what_is_read_was_stored_and_what_is_needed_was_measured(found.graph, passes)
    no_block_of_a_pass_takes_more_than_memory(found, passes)


def what_is_read_was_stored_and_what_is_needed_was_measured(graph, passes):
    alone = len(passes) == 1 and passes[0].block == graph.sizes(0)
    stored, measured = {0}, []
    for step in passes:
        assert set(step.given) <= stored
        if not alone:
            # Nothing but what is at hand is computed with.
            above = graph.above(
                [*step.stores, *(graph.nodes[s].inputs[0] for s in step.statistics)],
                {*step.given, *measured},
            )
            assert not any(graph.nodes[n].statistic for n in above)
            assert 0 not in above
        assert not set(step.stores) & stored or step is passes[-1]
        stored |= set(step.stores)
        measured += step.statistics
    assert set(passes[-1].stores) == set(graph.outputs.values())
    assert not passes[-1].statistics
    assert len(set(measured)) == len(measured)
    assert alone or set(measured) == set(graph.statistics)


def no_block_of_a_pass_takes_more_than_memory(found, passes):
    graph, known = found.graph, set()
    for step in passes:
        assert step.peak_bytes <= found.memory_bytes
        cuts = [(*range(0, n, b), n) for n, b in zip(graph.sizes(0), step.block, strict=True)]
        alone = len(passes) == 1 and step.block == graph.sizes(0)
        for index in np.ndindex(*(len(axis) - 1 for axis in cuts)):
            box = Roi(
                tuple(axis[i] for axis, i in zip(cuts, index, strict=True)),
                tuple(axis[i + 1] for axis, i in zip(cuts, index, strict=True)),
            )
            given = (*step.given, *(() if alone else known))
            boxes = needed(graph, targets_of(graph, step, box), given)
            workspaces = {n: 0.0 for n in found.costs.ops}
            taken = live_bytes(graph, boxes, given, workspaces, copied=False)
            assert taken <= step.peak_bytes
        known |= set(step.statistics)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(**schedules, room=st.integers(0, 400_000))
def test_what_is_kept_at_a_time_is_within_scratch(kinds, sizes, share, workers, room):
    found, passes = chosen(kinds, sizes, share, workers, room)
    graph = found.graph
    for number in range(len(passes) - 1):
        later = {n for step in passes[number:] for n in step.given if n}
        before = {n for step in passes[:number] for n in step.stores}
        alive = (later & before) | set(passes[number].stores)
        size = sum(graph.nodes[n].value_bytes * math.prod(graph.sizes(n)) for n in alive)
        assert size <= room


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(**schedules)
def test_the_passes_compute_the_network(kinds, sizes, share, workers):
    torch.manual_seed(0)
    _, passes = chosen(kinds, sizes, share, workers)
    net = Random(kinds).double().eval()
    graph = trace_any(net, 1, sizes)
    image = torch.rand((1, 1, *sizes), dtype=torch.float64)
    with torch.inference_mode():
        expected = net(image)
        held, merged = {0: image}, {}

        def fetch(n, part):
            return merged[n] if n in merged else held[n][(..., *part.slices())]

        for step in passes:
            partials = {s: [] for s in step.statistics}
            cuts = [(*range(0, n, b), n) for n, b in zip(sizes, step.block, strict=True)]
            made = {n: torch.full(graph.nodes[n].shape, torch.nan).double() for n in step.stores}
            for index in np.ndindex(*(len(axis) - 1 for axis in cuts)):
                box = Roi(
                    tuple(axis[i] for axis, i in zip(cuts, index, strict=True)),
                    tuple(axis[i + 1] for axis, i in zip(cuts, index, strict=True)),
                )
                given = {*step.given, *merged}

                targets = targets_of(graph, step, box)
                for n, values in compute(graph, targets, given, fetch):
                    if n in made:
                        made[n][(..., *core(graph, n, box).slices())] = values
                    for s in step.statistics:
                        if graph.nodes[s].inputs[0] == n:
                            partials[s].append(graph.nodes[s].compute.partial(values, targets[n]))
            held.update(made)
            for s, parts in partials.items():
                rule = graph.nodes[s].compute
                merged[s] = rule.finish(rule.merged(parts), graph.device)
    result = held[graph.outputs[""]]
    assert float((result - expected).abs().max()) <= 1e-11 * float(expected.abs().max() + 1e-300)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(**schedules)
def test_least_bytes_are_enough_and_much_less_is_not(kinds, sizes, share, workers):
    del share
    found = planner(kinds, sizes, 0, workers=workers)
    least = found.enough()[0]
    assume(least > 100)
    passes = planner(kinds, sizes, least, workers=workers).choose()
    assert max(step.peak_bytes for step in passes) <= least
    with pytest.raises(MemoryRefused, match=r"in blocks of .* takes .*, and memory leaves"):
        planner(kinds, sizes, 1, workers=workers).choose()


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(**schedules)
def test_on_a_gpu_both_budgets_hold_and_what_is_enough_is(kinds, sizes, share, workers):
    found = planner(kinds, sizes, 0, workers=workers)
    found = replace(found, costs=replace(found.costs, on_gpu=True), device_bytes=0)
    memory, device = found.enough()
    assume(min(memory, device) > 100)
    roomy = replace(found, memory_bytes=int(share * memory), device_bytes=int(share * device))
    for one in (replace(found, memory_bytes=memory, device_bytes=device), roomy):
        passes = replace(one).choose()
        what_is_read_was_stored_and_what_is_needed_was_measured(one.graph, passes)
        assert max(step.peak_bytes for step in passes) <= one.memory_bytes
        assert max(step.device_peak_bytes for step in passes) <= one.device_bytes
    # Where one budget is enough, the other is what is named.
    assert replace(roomy, device_bytes=1).enough()[0] == roomy.memory_bytes
    assert replace(roomy, memory_bytes=1).enough()[1] == roomy.device_bytes
    with pytest.raises(MemoryRefused, match=r"takes .*, and device_memory leaves 1 B; give more"):
        replace(roomy, device_bytes=1).choose()


class TestPlanPredict:
    @pytest.fixture
    def plan(self, client, tmp_path, assumed):
        def made(norm="instance", shape=(40, 33, 50), scan=None, **options):
            torch.manual_seed(0)
            net = UNet(1, 2, (3, 6, 12), norm=norm).double().eval()
            scan = np.broadcast_to(np.float32(1), shape) if scan is None else scan
            options = {"memory": "52MiB", "chunk": 8, "shard": 8, "cluster": client} | options
            return plan_predict(scan, net, tmp_path / "out.zarr", blend="exact", **options)

        return made

    @pytest.mark.slow
    def test_says_what_passes_there_are(self, plan, tmp_path):
        facts = plan().to_dict()
        count = int(facts["passes"].split(",")[0])
        assert count > 5
        assert [f"pass_{n}" in facts for n in range(1, count + 2)] == [True] * count + [False]
        text = plan().describe()
        for part in ("computing", "× the network", "measures 1 statistics", "keeps", "reads"):
            assert part in text
        assert "keeps" not in facts[f"pass_{count}"]
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.slow
    def test_its_peak_is_within_memory_and_flat(self, plan):
        peaks = []
        for depth in (40, 400):
            found = plan(shape=(depth, 33, 50))
            assert found.peak_bytes <= found.memory_bytes
            peaks.append(found.peak_bytes)
        assert abs(peaks[1] - peaks[0]) < 2 * 2**20

    @pytest.mark.slow
    def test_needs_no_voxels(self, plan, tmp_path):
        volume = create(
            tmp_path / "in.zarr", VolumeSpec.of((40, 33, 50), "float32", Meta(), chunk=8, shard=8)
        )
        assert not list((tmp_path / "in.zarr" / "0").rglob("c/*"))
        assert plan(scan=volume).blocks == plan().blocks

    @pytest.mark.slow
    def test_does_not_identify_its_input(self, plan, monkeypatch):
        """That may mean to read all of it."""
        monkeypatch.delattr("volflow.infer.request.Request.fingerprint")
        assert plan().blocks > 1

    @pytest.mark.parametrize("shard", [8, (16, 8, 24), None])
    def test_blocks_of_the_last_pass_are_whole_shards(self, plan, shard):
        found = plan("none", shard=shard, memory="50MiB")
        assert len(found.job.grid) > 1
        sides = [int(side) for side in re.findall(r"\d+", found.to_dict()["layout"])]
        chunks, shards, block = sides[:3], sides[3:6], sides[6:]
        assert block == list(found.job.grid.block)
        assert all(b % s == 0 for b, s in zip(block, shards, strict=True))
        assert all(s % c == 0 for s, c in zip(shards, chunks, strict=True))
