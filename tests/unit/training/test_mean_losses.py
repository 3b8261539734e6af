"""Means over voxels: of distances as torch takes them, and of any function."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import volflow as vf
from volflow.errors import InvalidInput

losses = vf.losses


@pytest.fixture
def pair():
    source = torch.Generator().manual_seed(5)
    return [torch.randn(2, 3, 5, 4, 3, generator=source, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize(
    ("loss", "reference"),
    [
        (losses.l1, F.l1_loss),
        (losses.l2, F.mse_loss),
        (losses.mean(lambda s, t: F.huber_loss(s, t, reduction="none")), F.huber_loss),
        (losses.mean(lambda s, t: (s - t).abs().mean(1)), F.l1_loss),
        (losses.mean(lambda s, t: (s - t).abs().mean(1, keepdim=True)), F.l1_loss),
    ],
    ids=["l1", "l2", "huber", "voxels", "channel"],
)
def test_means_are_torchs(pair, loss, reference):
    first, second = (pair[0].clone().requires_grad_() for _ in range(2))
    ours, theirs = loss(first, pair[1]), reference(second, pair[1])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    (mine,), (plain,) = torch.autograd.grad(ours, first), torch.autograd.grad(theirs, second)
    torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("hole", [-1000.0, torch.nan])
@pytest.mark.parametrize("kind", [losses.L1, losses.L2])
def test_what_is_ignored_counts_for_nothing(pair, hole, kind):
    scores, target = pair
    target[0, 1, :2] = hole
    counted = torch.ones_like(target, dtype=torch.bool)
    counted[0, 1, :2] = False
    x = scores.clone().requires_grad_()
    value = kind(ignore=hole)(x, target)
    (gradient,) = torch.autograd.grad(value, x)
    expected = kind()(scores[counted].view(1, 1, -1), target[counted].view(1, 1, -1))
    torch.testing.assert_close(value.detach(), expected, rtol=1e-12, atol=0)
    assert gradient.isfinite().all()
    assert torch.equal(gradient != 0, counted)


def test_a_voxel_counts_where_all_channels_of_its_target_do(pair):
    scores, target = pair
    target[:, 1, 3:] = torch.nan
    distance = losses.mean(lambda s, t: (s - t).norm(dim=1), ignore=torch.nan)
    expected = (scores - target)[:, :, :3].norm(dim=1).mean()
    torch.testing.assert_close(distance(scores, target), expected, rtol=1e-12, atol=0)


def test_where_nothing_counts_nothing_is_learnt(pair):
    x = pair[0].requires_grad_()
    value = losses.L2(ignore=0)(x, torch.zeros_like(x))
    assert value == 0
    assert not torch.autograd.grad(value, x)[0].any()


def test_one_channel_may_come_without_its_axis(pair):
    scores, target = (x[:, :1] for x in pair)
    assert losses.l1(scores, target[:, 0]) == losses.l1(scores, target)


def test_low_precision_is_summed_in_float64(pair):
    scores, target = (x.bfloat16() for x in pair)
    value = losses.l2(scores, target)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, losses.l2(scores.double(), target), rtol=1e-6, atol=0)


def test_nothing_is_broadcast(pair):
    scores, target = pair
    for other in (target[:, :1], target[:1], target[..., :2], target[:, 0]):
        with pytest.raises(InvalidInput, match=r"shape of the scores, \(2, 3, 5, 4, 3\); got"):
            losses.l1(scores, other)


@pytest.mark.parametrize("function", [F.l1_loss, lambda s, t: (s - t).sum((2, 3, 4))])
def test_a_function_of_more_than_a_voxel_is_refused(pair, function):
    with pytest.raises(InvalidInput, match=r'value for each, .* use reduction="none"'):
        losses.mean(function)(*pair)


def test_several_outputs_are_refused(pair):
    with pytest.raises(InvalidInput, match=r"takes the scores of one output.*got a dict"):
        losses.l1({"fine": pair[0]}, pair[1])
    with pytest.raises(InvalidInput, match="target of one output is a tensor; got a tuple"):
        losses.l1(pair[0], tuple(pair))
