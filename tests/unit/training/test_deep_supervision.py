"""Deep supervision weighs outputs as nnU-Net does, and cuts their targets as its pipeline does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import volflow as vf
from volflow.errors import InvalidInput

losses = vf.losses
SIDES = (8, 12, 4)


@pytest.fixture
def labels():
    return torch.randint(0, 3, (2, *SIDES), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def outputs():
    source = torch.Generator().manual_seed(2)
    scales = ((1, 1, 1), (2, 2, 1), (4, 4, 2))
    sides = ([n // s for n, s in zip(SIDES, scale, strict=True)] for scale in scales)
    return [torch.randn(2, 3, *each, generator=source, dtype=torch.float64) for each in sides]


def nearest(labels, outputs):
    """The targets that nnU-Net's pipeline makes."""
    given = labels[:, None].float()
    return [F.interpolate(given, x.shape[2:], mode="nearest-exact")[:, 0].long() for x in outputs]


@pytest.mark.parametrize(
    ("weights", "shares"),
    [(None, (4 / 7, 2 / 7, 1 / 7)), ((1, 0.5, 0), (2 / 3, 1 / 3, 0)), ((0, 0, 3), (0, 0, 1))],
)
@pytest.mark.parametrize("loss", [losses.dice_ce, losses.Dice(weight=(1, 2, 3))])
def test_outputs_are_weighed(labels, outputs, weights, shares, loss):
    targets = nearest(labels, outputs)
    expected = sum(
        share * loss(x, y) for share, x, y in zip(shares, outputs, targets, strict=True) if share
    )
    supervised = losses.deep(loss, weights)
    named = dict(zip(("fine", "middle", "coarse"), outputs, strict=True))
    for given, target in (
        (outputs, labels),
        (outputs, labels[:, None]),
        (outputs, targets),
        (tuple(outputs), targets),
        (named, labels),
        (named, dict(reversed(list(zip(named, targets, strict=True))))),
    ):
        torch.testing.assert_close(supervised(given, target), expected, rtol=1e-13, atol=0)


def test_an_output_of_weight_0_needs_no_target(labels, outputs):
    assert losses.deep(losses.dice, (1, 0, 0))(outputs, [labels, None, None]) == losses.dice(
        outputs[0], labels
    )


def test_the_only_output_may_come_as_a_tensor(labels, outputs):
    """Networks return one where they are not being trained."""
    assert losses.deep(losses.dice)(outputs[0], labels) == losses.dice(outputs[0], labels)


def test_gradients_are_those_of_the_weighted_sum(labels, outputs):
    given = [x.clone().requires_grad_() for x in outputs]
    plain = [x.clone().requires_grad_() for x in outputs]
    losses.deep(losses.dice_ce, (3, 1, 0))(given, labels).backward()
    targets = nearest(labels, outputs)
    sum(w * losses.dice_ce(plain[n], targets[n]) for n, w in ((0, 0.75), (1, 0.25))).backward()
    for ours, theirs in zip(given[:2], plain[:2], strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-18)
    assert given[2].grad is None


@pytest.mark.parametrize("scale", [(1, 1, 1), (2, 2, 2), (4, 3, 1), (8, 12, 4)])
def test_targets_are_nnunets(labels, scale):
    sides = [n // s for n, s in zip(SIDES, scale, strict=True)]
    expected = F.interpolate(labels[:, None].float(), sides, mode="nearest-exact")[:, 0]
    assert torch.equal(losses.target_at(labels, scale), expected.long())
    assert torch.equal(losses.target_at(labels[:, None], scale)[:, 0], expected.long())


def test_a_centre_beyond_the_end_is_the_last_voxel():
    line = torch.arange(10)
    assert losses.target_at(line, (4,)).tolist() == [2, 6, 9]
    assert losses.target_at(line[:9], (4,)).tolist() == [2, 6, 8]
    assert losses.target_at(line[:0], (4,)).tolist() == []


@pytest.mark.parametrize("scale", [(0, 1, 1), (1.5, 1, 1), (1, 1, 1, 1, 1)])
def test_a_scale_that_is_no_number_of_voxels_is_refused(labels, scale):
    with pytest.raises(InvalidInput, match="scale of a target is a whole number of voxels"):
        losses.target_at(labels, scale)


@pytest.mark.parametrize("weights", [(1, -1), (0, 0), (torch.inf, 1), ()])
def test_weights_are_refused_where_they_make_no_mean(weights):
    with pytest.raises(InvalidInput, match="weights of outputs are 0 or above, not all 0"):
        losses.deep(losses.dice, weights)


def test_what_does_not_fit_together_is_refused(labels, outputs):
    supervised = losses.deep(losses.dice)
    named = dict(zip("abc", outputs, strict=True))
    with pytest.raises(InvalidInput, match="got 2 weights for 3 outputs: give 3"):
        losses.deep(losses.dice, (1, 1))(outputs, labels)
    with pytest.raises(InvalidInput, match=r"got \(8, 12, 4\) and \(8, 12, 3\): .* target_at"):
        supervised(outputs, labels[..., :3])
    with pytest.raises(InvalidInput, match=r"sides of an output divide those of the target"):
        supervised(outputs, labels[0, 0])
    with pytest.raises(InvalidInput, match=r"there is none for b, c: .* got a"):
        supervised(named, {"a": labels})
    for given, target in ((outputs, [labels]), (named, [labels] * 3), (outputs, {"a": labels})):
        with pytest.raises(InvalidInput, match="targets come as the outputs do"):
            supervised(given, target)
    with pytest.raises(InvalidInput, match="deep supervision needs an output; got none"):
        supervised([], [])
