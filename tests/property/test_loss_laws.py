"""A loss of a volume cut into any boxes is that of the whole, and so is its gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import volflow as vf

losses = vf.losses


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def class_losses(draw, channels):
    """A loss of classes with any options."""
    kind = draw(st.sampled_from([losses.CrossEntropy, losses.Dice, losses.DiceCE]))
    weights = st.lists(st.floats(0.1, 4), min_size=channels, max_size=channels)
    options = {
        "weight": draw(st.none() | weights),
        "ignore": draw(st.none() | st.sampled_from([255, -1, 0])),
        "sigmoid": draw(st.booleans()) or channels == 1,
    }
    if kind is not losses.CrossEntropy:
        options["batch"] = draw(st.booleans())
        options["include_background"] = draw(st.booleans()) or channels == 1
    return kind(**options)


@st.composite
def cuts(draw, sides, step=1):
    """Boxes that cover each voxel once, in any order; some may be empty."""
    bounds = []
    for side in sides:
        steps = st.integers(0, side // step).map(lambda n: n * step)
        bounds.append([0, *sorted(draw(st.lists(steps, max_size=2))), side])
    ranges = [[slice(*pair) for pair in itertools.pairwise(axis)] for axis in bounds]
    return draw(st.permutations(list(itertools.product(*ranges))))


def drawn(seed, shape, kind, loss):
    """Scores, and a target: labels, masks or values to regress."""
    source = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(shape, generator=source, dtype=torch.float64)
    samples, channels, *sides = shape
    if kind == "values":
        return scores, torch.randn(shape, generator=source, dtype=torch.float64)
    if loss.sigmoid:
        target = torch.randint(0, 2, shape, generator=source)
    elif kind == "probabilities" and loss.ignore is None:
        return scores, torch.rand(shape, generator=source, dtype=torch.float64)
    else:
        target = torch.randint(0, channels, (samples, *sides), generator=source)
    if loss.ignore is not None:
        target[torch.rand(target.shape, generator=source) < 0.3] = loss.ignore
    return scores, target


def check(loss, scores, target, boxes, cut_scores, cut_target):
    """Sums add up, and a loss of the sums has the gradient of the whole one."""
    whole = [x.clone().requires_grad_() for x in scores]
    value = loss(*_whole(whole, target))
    expected = torch.autograd.grad(value, whole, allow_unused=True)

    leaves = [x.clone().requires_grad_() for x in scores]
    parts = [loss.partial(cut_scores(leaves, box), cut_target(box)) for box in boxes]
    assert {(part.dtype, part.ndim) for part in parts} == {(torch.float64, 1)}
    total = torch.stack(parts).sum(0)
    close(total, loss.partial(*_whole(scores, target)))

    # As blocks do it: the gradient of the total is known first, then each block is pulled back.
    total = total.detach().requires_grad_()
    finished = loss.finish(total)
    close(finished, value)
    (vector,) = torch.autograd.grad(finished, total)
    for part in parts:
        part.backward(vector)
    for leaf, gradient in zip(leaves, expected, strict=True):
        close(leaf.grad, gradient)


def check_boxes(loss, scores, target, boxes):
    """The same for scores and a target that are cut alike."""
    check(
        loss, [scores], target, boxes,
        lambda leaves, box: leaves[0][(..., *box)], lambda box: target[(..., *box)],
    )  # fmt: skip


def _whole(scores, target):
    return (scores[0] if len(scores) == 1 else list(scores)), target


def close(ours, theirs):
    if ours is not None or theirs is not None:
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


SIDES = st.lists(st.integers(1, 7), min_size=1, max_size=3)


@given(st.data())
def test_classes(data):
    sides = data.draw(SIDES)
    shape = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 4)), *sides)
    loss = data.draw(class_losses(shape[1]))
    kind = data.draw(st.sampled_from(["labels", "probabilities"]))
    scores, target = drawn(data.draw(st.integers(0, 99)), shape, kind, loss)
    boxes = data.draw(cuts(sides))
    check_boxes(loss, scores, target, boxes)


@given(st.data())
def test_means(data):
    sides = data.draw(SIDES)
    loss = data.draw(
        st.sampled_from(
            [losses.l1, losses.l2, losses.mean(lambda s, t: (s - t).abs().sum(1).sqrt())]
        )
    )
    scores, target = drawn(data.draw(st.integers(0, 99)), (2, 2, *sides), "values", loss)
    boxes = data.draw(cuts(sides))
    check_boxes(loss, scores, target, boxes)


@given(st.data())
def test_deep_supervision(data):
    """Boxes begin at multiples of the coarsest scale, and end there or at the end."""
    coarsest = 4
    sides = [coarsest * n for n in data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))]
    inner = data.draw(class_losses(3))
    loss = losses.deep(inner, data.draw(st.sampled_from([None, (2, 1, 1), (1, 0.5, 0)])))
    seed = data.draw(st.integers(0, 99))
    scores, target = drawn(seed, (2, 3, *sides), "labels", inner)
    scales = (1, 2, coarsest)
    outputs = [scores[(..., *[slice(None, None, s)] * len(sides))] * s for s in scales]
    boxes = data.draw(cuts(sides, coarsest))

    def cut(leaves, box):
        return [x[(..., *(slice(a.start // s, a.stop // s) for a in box))]
                for x, s in zip(leaves, scales, strict=True)]  # fmt: skip

    def cut_target(box):
        return [losses.target_at(target[(..., *box)], (s,) * len(sides)) for s in scales]

    check(loss, outputs, target, boxes, cut, cut_target)


@given(st.data())
def test_the_target_of_a_box_is_the_box_of_the_target(data):
    """Also where the scale does not divide the sides."""
    sides = data.draw(SIDES)
    scale = data.draw(st.integers(1, 4))
    whole = torch.arange(torch.tensor(sides).prod()).view(sides)
    coarse = losses.target_at(whole, (scale,) * len(sides))
    assert coarse.shape == tuple(-(-n // scale) for n in sides)
    for box in data.draw(cuts(sides, scale)):
        here = tuple(slice(a.start // scale, -(-a.stop // scale)) for a in box)
        ours = losses.target_at(whole[tuple(box)], (scale,) * len(sides))
        if ours.numel():
            assert torch.equal(ours, coarse[here])
