"""`vf.WholeVolume` over real processes takes the steps of plain autograd on the whole volume."""

from __future__ import annotations

import copy

import pytest
import torch
from partition_oracle import enlarged, image
from process_group import processes
from training_oracle import Step, assert_same_step, padded, target_of

import volflow as vf
from volflow.errors import InvalidInput, MemoryRefused
from volflow.training import partitioned, share_plan

SIZE, SIZES = (11, 12, 18), (12, 12, 20)
LOSS = vf.losses.DiceCE(batch=True)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with processes(4, tmp_path_factory.mktemp("group")) as found:
        yield found


def unet(norm="batch"):
    torch.manual_seed(0)
    return enlarged(vf.UNet(1, 2, features=(2, 4, 4), norm=norm), 1.5).train()


def weighted(scores, box):
    """A sum over voxels, each with a weight of its own."""
    weights = torch.arange(scores[0, 0].numel() if box is None else 0)
    if box is not None:
        whole = torch.arange(11 * 12 * 18).reshape(SIZE)
        weights = whole[box.slices()]
    return (scores.square() * weights.reshape(scores.shape[2:]).double().cos()).sum()


def plain(net, x, loss, *given):
    net, x = copy.deepcopy(net), x.clone().requires_grad_()
    value = loss(net(padded(x, SIZES))[(..., *(slice(0, n) for n in SIZE))], *given)
    value.backward()
    return Step(value.detach(), gradients(net), x.grad, dict(net.named_buffers()))


def gradients(net):
    return {name: p.grad for name, p in net.named_parameters()}


def streamed(peers, net, volumes, targets, partition):
    """A step over the volume of this process's group."""
    whole = vf.WholeVolume(net, partition=partition)
    volume = peers.rank * len(volumes) // len(peers)
    value = whole.step(volumes[volume], targets[volume], LOSS)
    whole.close()
    return Step(value, gradients(net), torch.zeros(1), dict(net.named_buffers()))


@pytest.mark.slow
@pytest.mark.parametrize("partition", [(1, 2, 2), (4, 1, 1)])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_streamed_step_is_divided(group, partition, norm):
    net, x, target = unet(norm), image(SIZE, 1), target_of(SIZE)
    expected = plain(net, x, LOSS, target)
    expected = Step(expected.loss, expected.weights, torch.zeros(1), expected.buffers)
    for found in group.run(4, streamed, net, [x], [target], partition):
        assert_same_step(expected, found)


@pytest.mark.slow
def test_a_mesh_averages_over_volumes(group):
    """Two volumes, each shared by two processes; buffers are those of the first."""
    net = unet()
    volumes, targets = (
        [image(SIZE, 1, n) for n in (0, 1)],
        [target_of(SIZE, seed=n) for n in (1, 2)],
    )
    one, other = (plain(net, x, LOSS, t) for x, t in zip(volumes, targets, strict=True))
    weights = {name: (g + other.weights[name]) / 2 for name, g in one.weights.items()}
    expected = Step((one.loss + other.loss) / 2, weights, torch.zeros(1), one.buffers)
    for found in group.run(4, streamed, net, volumes, targets, (1, 2, 1)):
        assert_same_step(expected, found)


def scored(peers, net, x):
    whole, x = vf.WholeVolume(net, partition=(2, 1, 2)), x.clone().requires_grad_()
    box, scores = whole.box(x), whole(x)
    value = weighted(scores, box)
    value.backward()
    whole.close()
    return Step(value.detach(), gradients(net), x.grad, dict(net.named_buffers()))


@pytest.mark.slow
def test_each_process_has_its_part_of_the_scores_and_of_the_gradient(group):
    net, x = unet(), image(SIZE, 1)
    expected = plain(net, x, lambda scores: weighted(scores, None))
    found = group.run(4, scored, net, x)
    loss, gradient = sum(one.loss for one in found), sum(one.image for one in found)
    for one in found:
        assert_same_step(expected, Step(loss, one.weights, gradient, one.buffers))


def differing(peers, net, x):
    if peers.rank == 2:
        net = copy.deepcopy(net)
        next(net.parameters()).data.add_(1)
    whole = vf.WholeVolume(net, partition=(2, 1, 2), seed=peers.rank // 3)
    with pytest.raises(InvalidInput) as caught:
        whole.step(x, target_of(SIZE), LOSS)
    whole.close()
    return str(caught.value)


@pytest.mark.slow
def test_processes_that_differ_are_stopped_at_the_start(group):
    for said in group.run(4, differing, unet(), image(SIZE, 1)):
        assert "the weights is" in said
        assert "on ranks 0, 1, 3 and" in said
        assert "on rank 2; seed and step is Draws(seed=0, step=0) on ranks 0, 1, 2 and" in said


def refused(peers, net, memory, free_bytes):
    """What is said where one process has too little memory; nothing of the volume is read."""
    whole = vf.WholeVolume(net, memory=memory[peers.rank], partition=(2, 1, 2))
    read, said = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitioned.Partitioned, "_read", lambda self, box: read.append(box))
        patch.setattr(partitioned, "free_memory_bytes", lambda: free_bytes)
        patch.setattr(share_plan, "MOST_PROCESSES", 8)  # each of more would be looked at
        for work in (
            lambda: whole.step(image(SIZE, 1), target_of(SIZE), LOSS),
            lambda: whole(image(SIZE, 1)),
        ):
            with pytest.raises(MemoryRefused) as caught:
                work()
            said.append(str(caught.value))
    whole.close()
    assert not read
    assert len(set(said)) == 1
    assert whole.steps == 0
    return said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "free_bytes", "budget"),
    [
        (["1GiB", "1GiB", "8KiB", "1GiB"], 2**40, "8 KiB"),
        ([None] * 4, 54_614, "8 KiB"),  # 0.6 of it, for four
    ],
)
def test_too_little_memory_is_refused_on_every_process(group, memory, free_bytes, budget):
    for said in group.run(4, refused, unet(), memory, free_bytes):
        assert "a step divided into (2, 1, 2) takes" in said
        assert f"and memory is {budget}; give more, or leave partition out (None)" in said


def ill_divided(peers, net):
    with pytest.raises(InvalidInput, match="must be a multiple of the 3 boxes of the partition"):
        vf.WholeVolume(net, partition=(3, 1, 1))(image(SIZE, 1))
    with pytest.raises(InvalidInput, match="one positive number per axis"):
        vf.WholeVolume(net, partition=(2, 2))(image(SIZE, 1))


@pytest.mark.slow
def test_a_partition_that_does_not_suit_is_refused(group):
    group.run(4, ill_divided, unet())


def test_a_partition_needs_a_process_group():
    with pytest.raises(InvalidInput, match="needs a running process group; start the script with"):
        vf.WholeVolume(unet(), partition=(1, 2, 2))(image(SIZE, 1))
