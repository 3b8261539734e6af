"""The bound on wrong things after a random check: exact, tight, and true in simulation."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.geometry.sampled_wrong import CHANCE, most_wrong


def chance_of_few(total, drawn, bad, wrong):
    """The probability that at most ``wrong`` bad ones are drawn, by counting all draws."""
    draws = list(itertools.combinations(range(total), drawn))
    return Fraction(sum(sum(n < bad for n in draw) <= wrong for draw in draws), len(draws))


@st.composite
def checks(draw):
    total = draw(st.integers(1, 9))
    drawn = draw(st.integers(0, total))
    return total, drawn, draw(st.integers(0, drawn))


@given(checks())
def test_it_is_the_largest_number_that_is_plausible(check):
    total, drawn, wrong = check
    plausible = [
        bad
        for bad in range(wrong, total - (drawn - wrong) + 1)
        if chance_of_few(total, drawn, bad, wrong) > CHANCE
    ]
    assert most_wrong(total, drawn, wrong) == max(plausible)


def test_what_was_seen_is_counted():
    assert most_wrong(7, 7) == 0
    assert most_wrong(7, 7, wrong=3) == 3
    assert most_wrong(7, 0) == 7
    assert most_wrong(0, 0) == 0


@pytest.mark.parametrize(("total", "drawn", "bad"), [(100, 20, 13), (60, 45, 3), (300, 58, 14)])
def test_it_is_true_in_19_of_20_simulated_checks(total, drawn, bad):
    """And one wrong thing less would be overlooked too often to be excluded."""
    rng = np.random.default_rng(0)
    found = rng.hypergeometric(bad, total - bad, drawn, size=20_000)
    bounds = {wrong: most_wrong(total, drawn, wrong) for wrong in set(found.tolist())}
    right = np.mean([bad <= bounds[wrong] for wrong in found.tolist()])
    assert right >= 0.945
    edge = most_wrong(total, drawn)
    none = [rng.hypergeometric(n, total - n, drawn, size=20_000) == 0 for n in (edge, edge + 1)]
    assert none[0].mean() > 0.045
    assert none[1].mean() < 0.055


def test_many_blocks_are_quick_enough():
    assert most_wrong(300_000, 1000) == 895
