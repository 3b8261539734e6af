"""Dice and its sum with cross-entropy have the values and gradients of MONAI's."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import volflow as vf

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:::monai")]
losses = vf.losses
SHAPE = (2, 3, 6, 5, 4)
WEIGHT = (0.5, 2.0, 1.5)


@pytest.fixture(scope="module")
def monai():
    """The losses of MONAI; warnings of its import are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("monai.losses", reason="MONAI comes with the extra peers")


@pytest.fixture
def pair():
    source = torch.Generator().manual_seed(7)
    scores = 3 * torch.randn(SHAPE, generator=source, dtype=torch.float64)
    return scores, torch.randint(0, 3, (2, 1, *SHAPE[2:]), generator=source)


def agree(ours, theirs, scores, target, their_target=None):
    first, second = (scores.clone().requires_grad_() for _ in range(2))
    values = ours(first, target), theirs(second, target if their_target is None else their_target)
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(v, x)[0] for v, x in zip(values, (first, second), strict=True)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("ours", ["Dice", "DiceCE"])
def test_labels(monai, pair, ours, include_background, batch):
    options = {"include_background": include_background, "batch": batch}
    theirs = getattr(monai, f"{ours}Loss")(softmax=True, to_onehot_y=True, **options)
    agree(getattr(losses, ours)(**options), theirs, *pair)


@pytest.mark.parametrize("smooth", [(0.0, 1e-5), (1.0, 2.0)])
def test_smoothing_and_shares(monai, pair, smooth):
    options = {"lambda_dice": 0.3, "lambda_ce": 1.7}
    options |= dict(zip(("smooth_nr", "smooth_dr"), smooth, strict=True))
    theirs = monai.DiceCELoss(softmax=True, to_onehot_y=True, **options)
    agree(losses.DiceCE(**options), theirs, *pair)


@pytest.mark.parametrize("ours", ["Dice", "DiceCE"])
def test_one_hot_targets(monai, pair, ours):
    scores, labels = pair
    theirs = getattr(monai, f"{ours}Loss")(softmax=True)
    agree(getattr(losses, ours)(), theirs, scores, F.one_hot(labels[:, 0], 3).movedim(-1, 1))


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_masks(monai, pair, include_background, batch):
    scores, _ = pair
    masks = (torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.4).long()
    options = {"sigmoid": True, "include_background": include_background, "batch": batch}
    agree(losses.Dice(**options), monai.DiceLoss(**options), scores, masks)


def test_one_mask(monai, pair):
    """MONAI takes the binary cross-entropy of one channel, and the softmax of more."""
    scores, labels = pair
    masks = labels.clamp(max=1)
    agree(losses.DiceCE(sigmoid=True), monai.DiceCELoss(sigmoid=True), scores[:, :1], masks)


@pytest.mark.parametrize("batch", [False, True])
def test_weights_of_classes(monai, pair, batch):
    """Ours is a weighted mean; MONAI divides the weighted sum by the number of classes."""
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    theirs = monai.DiceLoss(softmax=True, to_onehot_y=True, weight=weight, batch=batch)
    share = weight.mean()
    ours = losses.Dice(weight=WEIGHT, batch=batch)
    agree(lambda s, t: share * ours(s, t), theirs, *pair)


@pytest.mark.parametrize("batch", [False, True])
def test_ignored_voxels(monai, pair, batch):
    scores, labels = pair
    labels[:, :, 2:4] = 255
    theirs = monai.DiceLoss(softmax=True, to_onehot_y=True, ignore_index=255, batch=batch)
    agree(losses.Dice(ignore=255, batch=batch), theirs, scores, labels)
