"""`vf.WholeVolume` takes the steps of plain autograd, through files and a cluster of its own."""

from __future__ import annotations

import copy

import pytest
import torch
from distributed import LocalCluster
from partition_oracle import enlarged, image
from torch import nn
from training_oracle import Step, assert_same_step, padded, target_of

import volflow as vf
from volflow.errors import Damaged, InvalidInput, MemoryRefused, StoreFull
from volflow.partition import reach
from volflow.passes.activations import used_bytes
from volflow.passes.backward import tasks
from volflow.passes.backward.step import StepOnDisk
from volflow.passes.backward.tasks import release
from volflow.passes.cost import Cost
from volflow.passes.planning.gradient_profile import TrainingProfile
from volflow.training import planned, whole_volume

SIZE, SIZES = (11, 12, 18), (12, 12, 20)
LOSS = vf.losses.DiceCE(batch=True)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(planned, "SIDES", (12,))


def unet(norm="batch", seed=0):
    torch.manual_seed(seed)
    return enlarged(vf.UNet(1, 2, features=(2, 4, 4), norm=norm), 1.5).train()


def plain(net, x, target, loss=LOSS):
    """The step of plain autograd on the padded volume, scores cropped before the loss."""
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    scores = net(padded(x, SIZES))[(..., *(slice(0, n) for n in SIZE))]
    value = loss(scores, target)
    value.backward()
    return Step(value.detach(), gradients(net), x.grad, dict(net.named_buffers()))


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_scores_have_the_gradient_of_plain_autograd(norm):
    net, x, target = unet(norm), image(SIZE, 1), target_of(SIZE)
    expected = plain(net, x, target)
    whole, given = vf.WholeVolume(net, "1GiB", device="cpu"), x.clone().requires_grad_()
    scores = whole(given)
    assert scores.shape == (1, 2, *SIZE)
    value = LOSS(scores, target)
    value.backward()
    found = Step(value.detach(), gradients(net), given.grad, dict(net.named_buffers()))
    assert_same_step(expected, found)


@pytest.mark.slow
def test_a_streamed_step_adds_the_same_gradient(tmp_path):
    net, x, target = unet(), image(SIZE, 1), target_of(SIZE)
    expected = plain(net, x, target)
    vf.convert(x[0, 0].numpy(), tmp_path / "x.zarr", progress=False)
    vf.convert(target[0].numpy().astype("u1"), tmp_path / "y.zarr", progress=False)
    whole = vf.WholeVolume(net, "1GiB", tmp_path / "scratch", device="cpu")
    value = whole.step(tmp_path / "x.zarr", tmp_path / "y.zarr", LOSS)
    buffers = dict(net.named_buffers())
    assert_same_step(expected, Step(value, gradients(net), expected.image, buffers))
    assert not [*(tmp_path / "scratch").glob("step-*")]
    before = {name: g.clone() for name, g in gradients(net).items()}
    net.load_state_dict({**net.state_dict(), **dict(buffers)})
    whole.step(x, target, LOSS, weight=0.5)
    for name, g in gradients(net).items():
        torch.testing.assert_close(g, 1.5 * before[name], rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_nothing_is_changed_by_a_loss_that_is_not_a_number(tmp_path):
    net, x, target = unet(), image(SIZE, 1), target_of(SIZE)
    x[0, 0, 3, 4, 5] = torch.nan
    before = copy.deepcopy(net.state_dict())
    whole = vf.WholeVolume(net, "1GiB", tmp_path / "scratch", device="cpu")
    with pytest.raises(Damaged, match="the loss is nan, so that no gradient"):
        whole.step(x, target, LOSS)
    assert all(g is None for g in gradients(net).values())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_target_of_another_shape_is_refused_before_any_work():
    whole = vf.WholeVolume(unet(), "1GiB", device="cpu")
    with pytest.raises(InvalidInput, match=r"the target has 1×11×12×17 voxels .* the volume 1×11"):
        whole.step(image(SIZE, 1), target_of((11, 12, 17)), LOSS)


def test_a_loss_that_is_no_sum_is_told_what_to_use():
    whole = vf.WholeVolume(unet(), "1GiB", device="cpu")
    with pytest.raises(InvalidInput, match=r"vf\.losses\.mean"):
        whole.step(image(SIZE, 1), target_of(SIZE), nn.CrossEntropyLoss())


@pytest.mark.slow
def test_a_batch_is_normed_together():
    net, target = unet(), target_of(SIZE, batch=2)
    x = torch.cat([image(SIZE, 1, 0), image(SIZE, 1, 1)])
    expected = plain(net, x, target)
    whole = vf.WholeVolume(net, "1GiB", device="cpu")
    value = whole.step([x[0], x[1]], target, LOSS)
    buffers = dict(net.named_buffers())
    assert_same_step(expected, Step(value, gradients(net), expected.image, buffers))


@pytest.mark.slow
def test_without_gradients_it_is_exact_inference(tmp_path):
    net, x = unet().eval(), image(SIZE, 1)
    whole = vf.WholeVolume(net, "1GiB", tmp_path, device="cpu")
    with torch.no_grad():
        scores = whole(x)
        expected = net(padded(x, SIZES))[(..., *(slice(0, n) for n in SIZE))]
    assert not scores.requires_grad
    assert float((scores - expected).abs().max()) < 1e-12 * float(expected.abs().max())
    assert not [*tmp_path.iterdir()]
    assert whole.steps == 0


@pytest.mark.slow
def test_a_checkpoint_holds_the_step():
    whole = vf.WholeVolume(unet(), "1GiB", device="cpu", seed=3)
    whole.step(image(SIZE, 1), target_of(SIZE), LOSS)
    other = vf.WholeVolume(unet(seed=1), "1GiB", device="cpu", seed=3)
    other.load_state_dict(whole.state_dict())
    assert other.steps == 1
    for one, two in zip(whole.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.slow
def test_backward_runs_once():
    whole = vf.WholeVolume(unet(), "1GiB", device="cpu")
    scores = whole(image(SIZE, 1))
    scores.sum().backward(retain_graph=True)
    with pytest.raises(vf.errors.RunFailed, match="has run backward already"):
        scores.sum().backward()


@pytest.mark.slow
def test_weights_changed_between_forward_and_backward_are_noticed():
    net = unet()
    scores = vf.WholeVolume(net, "1GiB", device="cpu")(image(SIZE, 1))
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.sum().backward()


def count_traces():
    """Count from now on how often a module is followed in this process."""
    followed = reach.trace

    def counted(*given, **options):
        reach.count += 1
        return followed(*given, **options)

    reach.count, reach.trace = 0, counted


def traces():
    """How often one was since it was asked."""
    found, reach.count = reach.count, 0
    return found


@pytest.fixture
def counting(monkeypatch):
    monkeypatch.setattr(reach, "trace", reach.trace)
    monkeypatch.setattr(reach, "count", 0, raising=False)
    count_traces()


@pytest.mark.slow
def test_a_network_is_followed_once_a_step(counting):
    net = unet()
    whole = vf.WholeVolume(net, "1GiB", device="cpu")
    x, target = image(SIZE, 1), target_of(SIZE)
    whole.step(x, target, LOSS)
    assert traces() == 4  # to align it, for the step, and whether it stays the same
    for _ in range(2):
        with torch.no_grad():
            next(net.parameters()).add_(0.1)
        whole.step(x, target, LOSS)
        assert traces() == 1
    scores = whole(x)
    assert traces() == 1
    scores.sum().backward()
    assert traces() == 1  # its mode may have changed meanwhile


@pytest.mark.slow
def test_each_process_follows_a_network_once_a_step(counting):
    with vf.connect(2) as client:
        client.run(count_traces)
        whole = vf.WholeVolume(unet(), "1GiB", cluster=client, device="cpu")
        for _ in range(2):
            whole.step(image(SIZE, 1), target_of(SIZE), LOSS)
            found = [traces(), *client.run(traces).values()]
        assert found[0] == 1
        assert max(found[1:]) == 1  # those without a block do not


@pytest.mark.slow
def test_what_an_interrupted_step_left_takes_no_room_from_it(tmp_path, monkeypatch):
    """It is gone on with, or deleted; what lies beside it stays where it is."""
    monkeypatch.setattr(planned, "free_bytes", lambda folder: 10**9)
    for number, size in ((0, 4096), (1, 10)):
        kept = tmp_path / f"step-{number:08d}" / "kept"
        kept.mkdir(parents=True)
        (kept / "0.raw").write_bytes(bytes(size))
    whole = vf.WholeVolume(unet(), scratch=tmp_path, device="cpu")
    assert whole.plan(image(SIZE, 1)).free_bytes == 10**9 + 4096


@pytest.mark.slow
def test_an_interrupted_step_does_not_go_on_in_less_memory_than_it_was_planned_for(
    tmp_path, monkeypatch
):
    x, target = image(SIZE, 1), target_of(SIZE)

    def stopped(self, head):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StepOnDisk, "backward", stopped)
        with pytest.raises(KeyboardInterrupt):
            vf.WholeVolume(unet(), "1GiB", tmp_path, device="cpu").step(x, target, LOSS)
    less = vf.WholeVolume(unet(), "8MiB", tmp_path, device="cpu")
    with pytest.raises(
        MemoryRefused, match=r"was planned for blocks of \d+ MiB.*delete the folder"
    ):
        less.step(x, target, LOSS)
    monkeypatch.setattr(whole_volume, "plan_step", None)  # what was begun is gone on with
    net = unet()
    vf.WholeVolume(net, "1GiB", tmp_path, device="cpu").step(x, target, LOSS)
    assert all(p.grad is not None for p in net.parameters())


def assumed(network, model, *rest):
    """Costs by which convolutions are kept, whatever the machine is busy with."""
    nodes = network.graph(model.module).nodes
    costs = {n: Cost(1e-6, 8.0 * node.value_bytes) for n, node in enumerate(nodes) if node.flops}
    return TrainingProfile(network.resolved(), costs)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_the_disk_is_used_as_planned(tmp_path, monkeypatch, count):
    monkeypatch.setattr(planned, "SIDES", (8,))
    monkeypatch.setattr(planned, "profile_training", assumed)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(),
        nn.Conv3d(6, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU(),
        nn.Conv3d(6, 2, 1),
    )  # fmt: skip
    x, found = torch.randn(1, 32, 32, 32), []

    def looked(job, grid, blocks):
        parts = ("kept", "gradients", "backward")
        folder = job.totals.parents[2]
        found.append(sum(used_bytes(folder / part) for part in parts))
        release(job, grid, blocks)

    monkeypatch.setattr(tasks, "release", looked)
    with LocalCluster(
        n_workers=count, threads_per_worker=1, processes=False, dashboard_address=None,
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    ) as cluster:  # fmt: skip
        whole = vf.WholeVolume(net, "1GiB", tmp_path, cluster, device="cpu")
        plan = whole.plan(x)
        whole.step(x, torch.randint(2, (32, 32, 32)), vf.losses.dice_ce)
    assert 0.9 * plan.disk_bytes <= max(found) <= plan.disk_bytes
    # Two nodes are kept, and the gradients of one are taken and those of the other, with margins,
    # given: never all at once.
    assert plan.disk_bytes < 3.6 * 32**3 * 6 * 4


@pytest.mark.slow
def test_a_folder_that_a_user_named_is_filled_further(tmp_path, monkeypatch):
    monkeypatch.setattr(planned, "profile_training", assumed)
    net, x = unet(), image(SIZE, 1)
    most = vf.WholeVolume(net, "1GiB", tmp_path, device="cpu").plan(x).disk_bytes
    monkeypatch.setattr(planned, "free_bytes", lambda folder: int(most / 0.9))
    assert vf.WholeVolume(net, "1GiB", tmp_path, device="cpu").plan(x).disk_bytes == most
    try:
        less = vf.WholeVolume(net, "1GiB", device="cpu").plan(x).disk_bytes
    except StoreFull:
        return
    assert less < most
