"""Masks of dropout: the same for any cut, and as good as independent draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from volflow.partition.draws import Draws

WHOLE = [(0, 2), (0, 6), (0, 24), (0, 32), (0, 40)]
# Of some hundred numbers that are standard normal, none lies beyond by chance.
FAR = 5.0


def mask(p: float, spans=WHOLE, salt: int = 0, seed: int = 0, step: int = 0) -> np.ndarray:
    return Draws(seed, step).kept(p, salt, spans).numpy()


def together(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of two masks in standard deviations of that of independent ones."""
    one, other = (m - m.mean() for m in (one.astype(float), other.astype(float)))
    return float((one * other).mean() / (one.std() * other.std()) * np.sqrt(one.size))


@given(st.data())
def test_a_box_of_a_mask_is_the_mask_of_a_box(data):
    sides = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    spans = [
        tuple(sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2)))) for n in sides
    ]
    whole = mask(0.4, [(0, n) for n in sides], seed=3)
    assert np.array_equal(mask(0.4, spans, seed=3), whole[tuple(slice(*span) for span in spans)])


def test_long_axes_are_hashed_in_parts():
    whole = mask(0.5, [(0, 3), (0, 70_000)])
    assert np.array_equal(mask(0.5, [(1, 2), (60_000, 70_000)]), whole[1:2, 60_000:])
    plane = mask(0.5, [(0, 1), (0, 300), (0, 400)])
    assert np.array_equal(mask(0.5, [(0, 1), (290, 300), (390, 400)]), plane[:, 290:, 390:])


@pytest.mark.parametrize("p", [0.5, 0.1, 0.9, 0.004])
def test_the_share_is_kept_that_is_asked_for(p):
    kept = mask(p)
    error = (kept.mean() - (1 - p)) / np.sqrt(p * (1 - p) / kept.size)
    assert abs(error) < FAR
    for axes in ((4,), (3, 4), (2, 3, 4), (0, 1, 2)):  # rows, planes, volumes, columns
        counts = kept.sum(axes)
        n = kept.size / counts.size
        spread = ((counts - n * (1 - p)) ** 2 / (n * p * (1 - p))).sum()
        heavy = (1 - 6 * p * (1 - p)) / (n * p * (1 - p))
        assert abs(spread - counts.size) < FAR * np.sqrt(counts.size * (2 + heavy))


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_neighbours_are_independent(p):
    kept = mask(p)
    for axis in range(kept.ndim):
        for apart in (1, 2, 4):
            if apart < kept.shape[axis]:
                low = kept.take(range(kept.shape[axis] - apart), axis)
                high = kept.take(range(apart, kept.shape[axis]), axis)
                assert abs(together(low, high)) < FAR, (axis, apart)
    even = kept[..., ::2, ::2] ^ kept[..., 1::2, ::2] ^ kept[..., ::2, 1::2] ^ kept[..., 1::2, 1::2]
    if p == 0.5:  # of four neighbours, too
        assert abs(even.mean() - 0.5) < FAR * 0.5 / np.sqrt(even.size)


@pytest.mark.parametrize(
    "other", [{"salt": 1}, {"seed": 1}, {"step": 1}, {"seed": -1}, {"seed": 2**80}], ids=str
)
def test_masks_of_other_keys_are_independent(other):
    assert abs(together(mask(0.5), mask(0.5, **other))) < FAR
    moved = [(low + 1, high + 1) for low, high in WHOLE]
    assert abs(together(mask(0.5), mask(0.5, moved))) < FAR


def test_the_ends_of_the_range():
    assert mask(0.0).all()
    assert not mask(1.0).any()


def test_masks_are_those_that_they_always_were():
    """A resumed training draws what the first run would have drawn."""
    bits = np.packbits(mask(0.5, [(0, 2), (3, 7), (1000, 1008)], salt=2, seed=42, step=7))
    assert bits.tolist() == [111, 25, 213, 184, 51, 91, 194, 64]


def test_nothing_of_torchs_own_random_state_is_used():
    before = torch.random.get_rng_state()
    mask(0.5)
    assert torch.equal(before, torch.random.get_rng_state())
