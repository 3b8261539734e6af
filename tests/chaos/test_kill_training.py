"""A process is killed within a step of training: the same step goes on from there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

import volflow as vf
from tests.killed import killed
from volflow.infer import method
from volflow.passes.cost import Cost
from volflow.passes.planning.gradient_profile import TrainingProfile
from volflow.training import planned

pytestmark = pytest.mark.chaos

SIZE = (13, 16, 26)
STEP = """
import sys, time
import torch
import volflow as vf
from volflow.passes import keeping
from volflow.passes.backward import tasks
from tests.chaos.test_kill_training import net, small_blocks, volume

def slowly(work):
    def slow(*given, **options):
        time.sleep(0.02)
        return work(*given, **options)
    return slow

keeping.pass_block = slowly(keeping.pass_block)
tasks.backward_block = slowly(tasks.backward_block)
small_blocks()
vf.WholeVolume(net(), "1GiB", sys.argv[1], device="cpu").step(*volume(), vf.losses.dice_ce)
"""


def net() -> vf.UNet:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return vf.UNet(1, 2, (3, 6), norm="batch").double().train()


def volume() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((1, *SIZE), dtype=torch.float64, generator=generator)
    return x, torch.randint(2, SIZE, generator=generator)


def assumed(network, model, *rest) -> TrainingProfile:
    """Costs of ops that are the same every time, as times are not."""
    nodes = network.graph(model.module).nodes
    costs = {n: Cost(1e-6, 8.0 * node.value_bytes) for n, node in enumerate(nodes) if node.flops}
    return TrainingProfile(network.resolved(), costs)


def small_blocks() -> None:
    planned.SIDES = (8,)
    planned.profile_training = assumed


@pytest.fixture(autouse=True)
def _one_plan(monkeypatch):
    monkeypatch.setattr(planned, "SIDES", (8,))
    monkeypatch.setattr(planned, "profile_training", assumed)


def state(module: vf.UNet) -> dict[str, torch.Tensor]:
    grads = {name: p.grad for name, p in module.named_parameters()}
    return {**grads, **dict(module.named_buffers())}


def entries(scratch: Path) -> dict[str, int]:
    """When each block and group of the step was recorded."""
    return {str(p): p.stat().st_mtime_ns for p in scratch.glob("step-*/**/done/*.json")}


def test_a_step_that_is_killed_forward_and_backward_ends_with_the_same_bits(root, tmp_path):
    whole = net()
    loss = vf.WholeVolume(whole, "1GiB", tmp_path / "whole", device="cpu").step(
        *volume(), vf.losses.dice_ce
    )
    scratch, before = tmp_path / "killed", dict[str, int]()

    def done(part):
        return len([*scratch.glob(f"step-*/{part}/done/*.json")])

    for part, count in (("000", 1), ("003", 2), ("backward/006", 1), ("backward/002", 3)):
        killed(STEP, scratch, root=root, moment=lambda part=part, count=count: done(part) >= count)
        after = entries(scratch)
        assert {name: after[name] for name in before} == before  # nothing done was done again
        before = after
    resumed = net()
    again = vf.WholeVolume(resumed, "1GiB", scratch, device="cpu").step(
        *volume(), vf.losses.dice_ce
    )
    assert again == loss
    for name, value in state(whole).items():
        assert torch.equal(state(resumed)[name], value), name
    assert not [*scratch.glob("step-*")]


def test_another_volume_begins_anew(root, tmp_path):
    scratch = tmp_path / "scratch"
    begun = "step-*/backward/*/totals.npz"
    killed(STEP, scratch, root=root, moment=lambda: bool([*scratch.glob(begun)]))
    x, y = volume()
    one, two = net(), net()
    vf.WholeVolume(one, "1GiB", scratch, device="cpu").step(x + 1, y, vf.losses.dice_ce)
    vf.WholeVolume(two, "1GiB", device="cpu").step(x + 1, y, vf.losses.dice_ce)
    for name, value in state(two).items():
        assert torch.equal(state(one)[name], value), name


def test_a_disk_that_fills_loses_nothing(tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    module = net()
    try:
        # As if another program had filled the disk behind the plan.
        monkeypatch.setattr(planned, "free_bytes", lambda folder: 2**40)
        whole = vf.WholeVolume(module, "1GiB", small / "scratch", device="cpu")
        with pytest.raises(vf.errors.StoreFull, match=r"(?i)no space (is )?left"):
            whole.step(*volume(), vf.losses.dice_ce)
        assert all(p.grad is None for p in module.parameters())
        before = entries(small / "scratch")
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        whole.step(*volume(), vf.losses.dice_ce)
        assert before
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
    other = net()
    vf.WholeVolume(other, "1GiB", tmp_path / "other", device="cpu").step(
        *volume(), vf.losses.dice_ce
    )
    for name, value in state(other).items():
        assert torch.equal(state(module)[name], value), name


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(tmp_path, monkeypatch):
    """Each has one thread: `net` sets that here, and workers share the cores of a machine."""
    monkeypatch.setattr(method, "cores", lambda: 2)
    found = []
    for number, cluster in enumerate(("threads", 3)):
        module = net()
        whole = vf.WholeVolume(
            module, "1GiB", tmp_path / str(number), cluster=cluster, device="cpu"
        )
        with vf.connect(cluster):
            whole.step(*volume(), vf.losses.dice_ce)
        found.append(state(module))
    one, three = found
    for name, value in one.items():
        assert torch.equal(three[name], value), name
