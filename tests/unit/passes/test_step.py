"""A step of training out of core equals that of plain autograd, whatever stops it on the way."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from partition_oracle import enlarged, image
from torch import nn
from training_oracle import (
    DiceEntropy,
    Step,
    assert_same_step,
    gradients_of,
    padded,
    plain_step,
    target_of,
)

from volflow.errors import RunFailed
from volflow.model.resident import ModelPlugin, held
from volflow.partition.draws import Draws
from volflow.partition.gradients import Segmented, backward_block, forward_block
from volflow.partition.stages import segments_for_ranks
from volflow.passes.activations import used_bytes
from volflow.passes.backward import tasks
from volflow.passes.backward.heads import LossHead
from volflow.passes.backward.step import StepOnDisk
from volflow.passes.backward.tasks import release
from volflow.passes.cost import Pass
from volflow.passes.executor import Passes
from volflow.passes.network import Blockwise, Network

SIZE, SIZES = (11, 12, 18), (12, 12, 20)


def read(scan, box):
    return scan[(..., *box.slices())]


@dataclass(frozen=True, eq=False)
class Setup:
    net: nn.Module
    x: torch.Tensor
    loss: DiceEntropy
    folder: object

    def step(self, client, block=(8, 12, 8), loss=None, number=0, **more) -> StepOnDisk:
        digest = f"a network of these tests {id(self.net)}"
        network = Network(digest, 1, SIZES, "cpu", "float32", "float64", draws=Draws(0, number))
        graph = network.graph(self.net)
        steps = tuple(
            Pass(s.given, s.stores, s.statistics, block) for s in segments_for_ranks(graph)
        )
        whole = padded(self.x, SIZES).numpy()
        blockwise = Blockwise(network, partial(read, whole))
        passes = Passes(
            steps, graph, blockwise, ModelPlugin(self.net, digest, "cpu"), self.folder, 1, 0
        )
        return StepOnDisk(passes, SIZE, {"step": number}, client, 2**40, False, True, **more)

    def taken(self, step: StepOnDisk) -> Step:
        graph = step.passes.graph
        total = torch.from_numpy(step.forward(LossHead(self.loss))).requires_grad_()
        value = self.loss.finish(total)
        (vector,) = torch.autograd.grad(value, total)
        found = step.backward(LossHead(self.loss, vector.numpy())).weights
        net = Segmented(graph, step.passes.steps, SIZE)
        gradients = {n: torch.from_numpy(g) for n, g in found.items()}
        of_image = torch.from_numpy(step.image_gradient(SIZES)).reshape(1, 1, *SIZES)
        return Step(
            value.detach(),
            gradients_of(self.net, net, gradients),
            of_image[(..., *(slice(0, n) for n in SIZE))],
            dict(self.net.named_buffers()),
        )


@pytest.fixture
def setup(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv3d(1, 3, 3, padding=1), nn.BatchNorm3d(3), nn.ReLU(),
        nn.Conv3d(3, 4, 3, padding=1, stride=2), nn.LeakyReLU(),
        nn.ConvTranspose3d(4, 2, 2, stride=2),
    )  # fmt: skip
    net = enlarged(net, 1.5)
    return Setup(net, image(SIZE, 1), DiceEntropy(target_of(SIZE)), tmp_path / "step")


@pytest.mark.slow
def test_the_step_is_that_of_plain_autograd(setup, client):
    expected = plain_step(setup.net, setup.x, SIZES, setup.loss)
    for block in ((12, 12, 20), (8, 12, 8), (2, 4, 6)):
        step = setup.step(client, block)
        with held(step.passes.model):
            assert_same_step(expected, setup.taken(step))
        # All that is left of it are the sums, the image's gradient and the journals.
        assert not [*step.passes.folder.glob("kept/*")]
        assert {path.name for path in step.passes.folder.glob("gradients/*")} == {"0"}
        for path in sorted(step.passes.folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("at", [5, 9, 16])
def test_a_step_that_fails_on_the_way_goes_on_there(setup, client, monkeypatch, at):
    whole = setup.step(client)
    with held(whole.passes.model):
        expected = setup.taken(whole)
    other = Setup(setup.net, setup.x, setup.loss, setup.folder.parent / "other")
    step = other.step(client)
    computed = []
    monkeypatch.setattr(
        "volflow.passes.backward.tasks.backward_block", partial(_counted, computed, at=at)
    )
    with held(step.passes.model):
        with pytest.raises(RunFailed, match="too tired"):
            other.taken(step)
        begun = len(computed)
        monkeypatch.setattr(
            "volflow.passes.backward.tasks.backward_block", partial(_counted, computed, at=None)
        )
        again = other.taken(other.step(client))
    # What was done is not done again; what it had read is deleted.
    assert not {*computed[: at - 1]} & {*computed[begun:]}
    assert again.loss == expected.loss
    for name, gradient in expected.weights.items():
        assert torch.equal(again.weights[name], gradient), name


def _counted(computed, net, number, box, board, upstream, *, image, at):
    computed.append((number, box))
    if at is not None and len(computed) >= at:
        raise ConnectionError("too tired")
    return backward_block(net, number, box, board, upstream, image=image)


def assert_same_bits(found, expected):
    assert found.loss == expected.loss
    assert torch.equal(found.image, expected.image)
    for name, gradient in expected.weights.items():
        assert torch.equal(found.weights[name], gradient), name


@pytest.mark.slow
@pytest.mark.parametrize("block", [(8, 12, 8), (2, 4, 6)])
def test_what_is_deleted_on_the_way_changes_no_bit(setup, client, monkeypatch, block):
    left = []

    def released(job, grid, blocks):
        release(job, grid, blocks)
        left.append((job.number, used_bytes(setup.folder / "gradients")))

    monkeypatch.setattr(tasks, "release", released)
    step = setup.step(client, block)
    with held(step.passes.model):
        found = setup.taken(step)
    other = Setup(setup.net, setup.x, setup.loss, setup.folder.parent / "other")
    monkeypatch.setattr(tasks, "release", lambda *_: None)
    step = other.step(client, block)
    with held(step.passes.model):
        assert_same_bits(found, other.taken(step))
    # The last pass deletes nothing, and those before it all that they took.
    assert [size for number, size in left if number == step.last][-1] > 0
    of_image = used_bytes(setup.folder / "gradients" / "0")
    assert [size for number, size in left if number == 0][-1] == of_image


@pytest.mark.slow
def test_a_task_that_stops_before_it_deletes_leaves_nothing(setup, client, monkeypatch):
    def stopped(job, grid, blocks):
        if job.number == 1 and blocks[0] > 2:
            raise ConnectionError("too tired")
        release(job, grid, blocks)

    step = setup.step(client)
    with held(step.passes.model):
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "release", stopped)
            with pytest.raises(RunFailed, match="too tired"):
                setup.taken(step)
        found = setup.taken(setup.step(client))
    other = Setup(setup.net, setup.x, setup.loss, setup.folder.parent / "other")
    whole = other.step(client)
    with held(whole.passes.model):
        assert_same_bits(found, other.taken(whole))


@pytest.mark.slow
def test_nothing_is_held_of_a_block_while_the_next_is_computed(setup, client, monkeypatch):
    given, outputs = [], []

    def backward(*arguments, **options):
        assert not any(one() is not None for one in given)
        found = backward_block(*arguments, **options)
        given.extend(weakref.ref(window.values) for window in found.windows.values())
        return found

    def forward(*arguments):
        assert not any(one() is not None for one in outputs)
        for number, share, partials in forward_block(*arguments):
            outputs.append(weakref.ref(share.values))
            yield number, share, partials
            del share

    monkeypatch.setattr(tasks, "backward_block", backward)
    monkeypatch.setattr(tasks, "forward_block", forward)
    step = setup.step(client, (2, 4, 6))
    with held(step.passes.model):
        setup.taken(step)
    assert len(given) > 10
    assert len(outputs) > 10


AT_WORK = []


def thought_lost(job, groups, context):
    for group in groups:
        AT_WORK[:] = [(job, group, context)]
        yield from tasks.backward_groups(job, (group,), context)


@pytest.mark.slow
def test_a_task_that_was_thought_lost_finds_its_groups_done(setup, client, monkeypatch):
    """Another one does each group as a whole, while the first is at its first block."""
    whole = setup.step(client, (2, 4, 6))
    with held(whole.passes.model):
        expected = setup.taken(whole)
    late = set()

    def overtaken(net, number, box, *rest, **more):
        if len(AT_WORK) == 1:
            AT_WORK.append(None)
            job, group, context = AT_WORK[0]
            list(tasks.backward_groups(job, (group,), context))
            late.add(number)
        return backward_block(net, number, box, *rest, **more)

    monkeypatch.setattr(tasks, "backward_block", overtaken)
    monkeypatch.setattr("volflow.passes.backward.step.backward_groups", thought_lost)
    other = Setup(setup.net, setup.x, setup.loss, setup.folder.parent / "other")
    step = other.step(client, (2, 4, 6))
    with held(step.passes.model):
        assert_same_bits(other.taken(step), expected)
    assert late == set(range(step.last + 1))


def test_a_damaged_sum_of_a_group_is_refused_for_what_it_read_is_gone(setup, client, monkeypatch):
    step = setup.step(client)
    with held(step.passes.model):
        with monkeypatch.context() as patch:
            patch.setattr(tasks, "backward_block", partial(_counted, [], at=9))
            with pytest.raises(RunFailed, match="too tired"):
                setup.taken(step)
        totals = min(setup.folder.glob("backward/001/groups/*.npz"))
        totals.write_bytes(totals.read_bytes()[:40])
        with pytest.raises(RunFailed, match=r"is damaged; delete .* and take the step again"):
            setup.taken(setup.step(client))


@pytest.mark.slow
def test_a_damaged_sum_of_a_pass_is_refused(setup, client):
    step = setup.step(client)
    with held(step.passes.model):
        setup.taken(step)
        totals = step.passes.folder / "backward" / "000" / "totals.npz"
        totals.write_bytes(totals.read_bytes()[:40])
        with pytest.raises(RunFailed, match="is damaged"):
            setup.taken(setup.step(client))
