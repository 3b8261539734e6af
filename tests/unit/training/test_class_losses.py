"""Cross-entropy and Dice are torch's and the textbook's, for every kind of target and option."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F

import volflow as vf
from volflow.errors import InvalidInput
from volflow.training.losses.loss import Loss

losses = vf.losses
SIDES = (5, 4, 3)
SAMPLES, CLASSES = 2, 3
WEIGHT = (0.5, 2.0, 1.25)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, check_dtype=False)


def same_with_gradient(loss, reference, scores):
    """Two functions of scores agree, and so do their gradients."""
    first, second = (scores.detach().clone().requires_grad_() for _ in range(2))
    ours, theirs = loss(first), reference(second)
    close(ours, theirs)
    close(*(torch.autograd.grad(value, x)[0] for value, x in ((ours, first), (theirs, second))))


@pytest.fixture
def source():
    return torch.Generator().manual_seed(3)


@pytest.fixture
def scores(source):
    return 3 * torch.randn(SAMPLES, CLASSES, *SIDES, generator=source, dtype=torch.float64)


@pytest.fixture
def labels(source):
    return torch.randint(0, CLASSES, (SAMPLES, *SIDES), generator=source)


@pytest.fixture
def probabilities(source):
    drawn = torch.rand(SAMPLES, CLASSES, *SIDES, generator=source, dtype=torch.float64)
    return drawn / drawn.sum(1, keepdim=True)


@pytest.fixture
def masks(source):
    return torch.randint(0, 2, (SAMPLES, CLASSES, *SIDES), generator=source, dtype=torch.uint8)


def dice_of(chances, true, counted=None, *, batch=False, smooth=(1e-5, 1e-5)):
    """The losses of samples and classes."""
    axes = tuple(range(2, chances.ndim))
    counted = torch.ones_like(chances) if counted is None else counted
    both, predicted, real = (
        (x * counted).sum(axes) for x in (chances * true, chances, true.to(chances))
    )
    if batch:
        both, predicted, real = both.sum(0), predicted.sum(0), real.sum(0)
    return 1 - (2 * both + smooth[0]) / (predicted + real + smooth[1])


def one_hot(labels):
    return F.one_hot(labels, CLASSES).movedim(-1, 1).double()


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("ignore", [None, 255, -1, 1])
def test_cross_entropy_of_labels_is_torchs(scores, labels, weight, ignore):
    if ignore is not None:
        labels[:, 1] = ignore
    class_weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    same_with_gradient(
        lambda x: losses.CrossEntropy(weight=weight, ignore=ignore)(x, labels),
        lambda x: F.cross_entropy(x, labels, class_weight, ignore_index=ignore or -100),
        scores,
    )


@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_cross_entropy_of_probabilities_is_torchs(scores, probabilities, weight):
    class_weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    same_with_gradient(
        lambda x: losses.CrossEntropy(weight=weight)(x, probabilities),
        lambda x: F.cross_entropy(x, probabilities, class_weight),
        scores,
    )


def test_cross_entropy_of_masks_is_torchs(scores, masks):
    same_with_gradient(
        lambda x: losses.CrossEntropy(sigmoid=True)(x, masks),
        lambda x: F.binary_cross_entropy_with_logits(x, masks.double()),
        scores,
    )


def test_cross_entropy_of_masks_is_a_weighted_mean(scores, masks):
    masks[:, 0, 2:] = 255
    counted = (masks != 255) * torch.tensor(WEIGHT).double().view(-1, 1, 1, 1)

    def reference(x):
        each = F.binary_cross_entropy_with_logits(x, (masks == 1).double(), reduction="none")
        return (each * counted).sum() / counted.sum()

    loss = losses.CrossEntropy(sigmoid=True, ignore=255, weight=WEIGHT)
    same_with_gradient(lambda x: loss(x, masks), reference, scores)


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("ignore", [None, 255])
def test_dice_of_labels(scores, labels, batch, include_background, ignore):
    true = one_hot(labels)
    counted = torch.ones(SAMPLES, 1, *SIDES, dtype=torch.float64)
    if ignore is not None:
        counted[:, :, :2] = 0
        labels[:, :2] = ignore
    first = 0 if include_background else 1
    loss = losses.Dice(batch=batch, include_background=include_background, ignore=ignore)
    same_with_gradient(
        lambda x: loss(x, labels),
        lambda x: dice_of(x.softmax(1), true, counted, batch=batch)[..., first:].mean(),
        scores,
    )


def test_dice_of_probabilities(scores, probabilities):
    same_with_gradient(
        lambda x: losses.dice(x, probabilities),
        lambda x: dice_of(x.softmax(1), probabilities).mean(),
        scores,
    )


@pytest.mark.parametrize("batch", [False, True])
def test_dice_of_masks(scores, masks, batch):
    masks[1, 2, :, 1:] = 200
    same_with_gradient(
        lambda x: losses.Dice(sigmoid=True, ignore=200, batch=batch)(x, masks),
        lambda x: dice_of(x.sigmoid(), masks % 200, masks != 200, batch=batch).mean(),
        scores,
    )


@pytest.mark.parametrize("include_background", [False, True])
@pytest.mark.parametrize("batch", [False, True])
def test_dice_is_a_weighted_mean_over_classes(scores, labels, batch, include_background):
    first = 0 if include_background else 1
    weight = torch.tensor(WEIGHT).double()[first:]
    loss = losses.Dice(weight=WEIGHT, batch=batch, include_background=include_background)
    same_with_gradient(
        lambda x: loss(x, labels),
        lambda x: (
            (dice_of(x.softmax(1), one_hot(labels), batch=batch)[..., first:] * weight)
            .sum(-1)
            .mean()
            / weight.sum()
        ),
        scores,
    )


def test_smoothing_is_added_above_and_below(scores, labels):
    loss = losses.Dice(smooth_nr=0.5, smooth_dr=2.0)
    expected = dice_of(scores.softmax(1), one_hot(labels), smooth=(0.5, 2.0)).mean()
    close(loss(scores, labels), expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight": WEIGHT}, {"ignore": 255, "batch": True}, {"include_background": False}],
)
def test_dice_ce_is_their_weighted_sum(scores, labels, options):
    if "ignore" in options:
        labels[:, 2:] = 255
    common = {name: value for name, value in options.items() if name in ("weight", "ignore")}
    entropy, dice = losses.CrossEntropy(**common), losses.Dice(**options)
    both = losses.DiceCE(**options, lambda_dice=0.25, lambda_ce=2.0)
    same_with_gradient(
        lambda x: both(x, labels),
        lambda x: 2 * entropy(x, labels) + 0.25 * dice(x, labels),
        scores,
    )


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float32"]
)
def test_labels_may_have_any_type(scores, labels, dtype):
    labels %= 2
    given = labels.to(getattr(torch, dtype))
    assert losses.dice_ce(scores, given) == losses.dice_ce(scores, labels)
    assert losses.dice_ce(scores, given.unsqueeze(1)) == losses.dice_ce(scores, labels)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32"])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_masks_may_have_any_type(scores, masks, dtype, sigmoid):
    loss = losses.DiceCE(sigmoid=sigmoid)
    assert loss(scores, masks.to(getattr(torch, dtype))) == loss(scores, masks.double())


def test_the_label_of_a_wide_type_is_not_that_of_a_narrow_one(scores):
    """300 as uint8 is 44: compared as bytes, label 44 would be ignored."""
    wide = torch.zeros(1, 60, 4)
    labels = torch.full((1, 4), 44, dtype=torch.uint8)
    assert losses.CrossEntropy(ignore=300)(wide, labels) > 4
    loss = losses.CrossEntropy(sigmoid=True, ignore=257)
    assert loss(wide, torch.ones(wide.shape, dtype=torch.uint8)) > 0


def test_one_mask_may_come_without_an_axis_of_channels(scores, masks):
    loss = losses.DiceCE(sigmoid=True)
    assert loss(scores[:, :1], masks[:, 0]) == loss(scores[:, :1], masks[:, :1])


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "dice_ce"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_is_summed_in_float64(scores, labels, name, dtype):
    loss = getattr(losses, name)
    low = scores.to(dtype).requires_grad_()
    value = loss(low, labels)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, loss(low.double(), labels), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(value, low)
    assert gradient.dtype == dtype


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "dice_ce"])
def test_autocast_changes_nothing(scores, labels, name):
    loss, low = getattr(losses, name), scores.bfloat16()
    plain = [loss(x, labels) for x in (low, scores)]
    with torch.autocast("cpu", torch.bfloat16):
        assert [loss(x, labels) for x in (low, scores)] == plain


def test_a_million_voxels_are_summed_exactly_enough():
    """In float32, a running sum of a million values loses four digits."""
    scores = torch.zeros(1, 2, 100, 100, 100)
    scores[:, 0] = 0.1
    labels = torch.ones(1, 100, 100, 100, dtype=torch.uint8)
    expected = F.cross_entropy(scores[..., :1, 0, 0], labels[..., :1, 0, 0].long()).double()
    torch.testing.assert_close(losses.cross_entropy(scores, labels), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize("name", ["cross_entropy", "dice", "dice_ce"])
def test_where_nothing_counts_nothing_is_learnt(scores, name):
    kind = {"cross_entropy": "CrossEntropy", "dice": "Dice", "dice_ce": "DiceCE"}[name]
    x = scores.requires_grad_()
    value = getattr(losses, kind)(ignore=9)(x, torch.full((SAMPLES, *SIDES), 9))
    (gradient,) = torch.autograd.grad(value, x)
    assert value == 0
    assert not gradient.any()


def test_nan_scores_make_a_nan_loss(scores, labels):
    scores[0, 0, 0, 0, 0] = torch.nan
    assert losses.cross_entropy(scores, labels).isnan()
    assert losses.dice(scores, labels).isnan()


def test_slices_and_lines_have_losses_too(scores, labels):
    for end in ((), (0,)):
        flat, true = scores[:, :, 0][(..., *end)], labels[:, 0][(..., *end)]
        close(losses.cross_entropy(flat, true), F.cross_entropy(flat, true))


def test_losses_are_plain_data():
    loss = losses.DiceCE(weight=torch.tensor([1, 2]), ignore=255)
    assert loss == losses.DiceCE(weight=[1.0, 2.0], ignore=255) != losses.DiceCE()
    assert hash(loss) == hash(losses.DiceCE(weight=(1, 2), ignore=255))
    assert pickle.loads(pickle.dumps(loss)) == loss
    assert "weight=(1.0, 2.0), ignore=255" in repr(loss)
    assert isinstance(loss, Loss)


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, (2, 5, 4, 2), "scores are (2, 3, 5, 4, 3), the target (2, 5, 4, 2): cut or resample"),
        ({}, (2, 2, 5, 4, 3), "here (2, 5, 4, 3) or (2, 1, 5, 4, 3), or a probability for each"),
        ({}, (1, 5, 4, 3), "the target (1, 5, 4, 3)"),
        ({"sigmoid": True}, (2, 5, 4, 3), "a mask for each class, here (2, 3, 5, 4, 3)"),
        ({"sigmoid": True}, (2, 2, 5, 4, 3), "stack masks of the classes, or leave sigmoid out"),
    ],
)
def test_a_target_of_another_shape_is_refused(scores, options, shape, words):
    with pytest.raises(InvalidInput) as refused:
        losses.DiceCE(**options)(scores, torch.zeros(shape, dtype=torch.uint8))
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("value", "options", "words"),
    [
        (3, {}, "whole numbers from 0 to 2; the target also holds 3: number the classes so"),
        (255, {}, "also holds 255: number the classes so, or give ignore= the label"),
        (-1, {"ignore": 255}, "from 0 to 2, or 255, which is ignored; the target also holds -1"),
        (1.5, {}, "also holds 1.5"),
        (torch.nan, {}, "also holds nan"),
        (2**40, {}, "also holds 1.09951e+12"),
    ],
)
def test_what_is_no_label_is_refused(scores, labels, value, options, words):
    labels = labels.double() if isinstance(value, float) else labels
    labels[0, 0, 0, 0] = value
    for kind in (losses.CrossEntropy, losses.Dice, losses.DiceCE):
        with pytest.raises(InvalidInput) as refused:
            kind(**options)(scores, labels)
        assert words in str(refused.value)


@pytest.mark.parametrize("value", [2, -0.5, torch.nan, 255])
def test_what_is_no_probability_is_refused(scores, probabilities, value):
    probabilities[1, 2, 3, 0, 0] = value
    with pytest.raises(InvalidInput, match=r"holds a value from 0 to 1 for each class; channel 2"):
        losses.dice_ce(scores, probabilities)
    with pytest.raises(InvalidInput, match=r", or 7, which is ignored; channel 2 holds"):
        losses.DiceCE(sigmoid=True, ignore=7)(scores, probabilities)


def test_what_cannot_be_meant_is_refused(scores, labels, probabilities):
    with pytest.raises(InvalidInput, match=r"ignore=7 is a label.*give labels, or leave ignore"):
        losses.Dice(ignore=7)(scores, probabilities)
    with pytest.raises(InvalidInput, match=r"softmax of one channel is always 1.*sigmoid=True"):
        losses.dice(scores[:, :1], labels)
    with pytest.raises(InvalidInput, match=r"no class left in scores of 1 channel"):
        losses.Dice(sigmoid=True, include_background=False)(scores[:, :1], labels)
    with pytest.raises(InvalidInput, match=r"one weight for each class; got 2 .* give 3 weights"):
        losses.Dice(weight=[1, 2])(scores, labels)
    with pytest.raises(InvalidInput, match=r"floating-point numbers \(N, C, …\).*int64"):
        losses.dice(labels, labels)
    with pytest.raises(InvalidInput, match=r"takes the scores of one output.*losses.deep\(loss\)"):
        losses.dice([scores], labels)
    with pytest.raises(InvalidInput, match=r"target of one output is a tensor; got a list"):
        losses.dice(scores, [labels])


@pytest.mark.parametrize("weight", [[1, -1], [1, torch.inf], [0, 0], [torch.nan, 1]])
def test_weights_are_refused_where_they_make_no_mean(weight):
    with pytest.raises(InvalidInput, match="weights of classes are 0 or above, not all 0"):
        losses.CrossEntropy(weight=weight)


def test_options_of_dice_are_refused_where_they_make_no_mean():
    with pytest.raises(InvalidInput, match=r"a class whose weight is above 0; got \(1.0, 0.0\)"):
        losses.DiceCE(weight=[1, 0], include_background=False)
    with pytest.raises(InvalidInput, match="smooth_dr is a number, 0 or above; got -1"):
        losses.Dice(smooth_dr=-1)
