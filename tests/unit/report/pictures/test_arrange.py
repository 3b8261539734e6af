"""Where panels lie: on the page, beside each other, in true proportions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.report.pictures.arrange import (
    HEADER,
    MARGIN,
    WIDTH,
    best_columns,
    grid,
    raised,
    three_planes,
)

LENGTH = st.floats(1, 3000)
BELOW = 1e-6


def check(boxes, page, sizes):
    """All inside, none over another, all to one scale."""
    wide, high = page
    assert wide <= WIDTH + BELOW
    for left, bottom, across, along in boxes:
        assert left >= MARGIN - BELOW
        assert left + across <= wide - MARGIN + BELOW
        assert bottom >= -BELOW
        assert bottom + along <= high - HEADER + BELOW
    for a, b in itertools.combinations(boxes, 2):
        assert (
            a[0] + a[2] <= b[0] + BELOW
            or b[0] + b[2] <= a[0] + BELOW
            or a[1] + a[3] <= b[1] + BELOW
            or b[1] + b[3] <= a[1] + BELOW
        )
    scale = boxes[0][2] / sizes[0][0]
    for (_, _, across, along), (w, h) in zip(boxes, sizes, strict=True):
        assert (across, along) == (pytest.approx(w * scale), pytest.approx(h * scale))


@given(size=st.tuples(LENGTH, LENGTH, LENGTH))
def test_three_planes_keep_their_proportions(size):
    z, y, x = size
    for sizes in ([(x, y), (x, z), (y, z)], [(x, y)]):
        boxes, page = three_planes(sizes)
        check(boxes, page, sizes)


@given(size=st.tuples(LENGTH, LENGTH), count=st.integers(1, 200))
def test_tiles_keep_their_proportions(size, count):
    columns = best_columns(count, size, 0.22, 0.08)
    rows = [[size] * min(columns, count - n) for n in range(0, count, columns)]
    boxes, page = grid(rows, caption=0.22, gap=0.08)
    check([box for row in boxes for box in row], page, [size] * count)
    assert page[1] < 12


@given(size=st.tuples(LENGTH, LENGTH, LENGTH))
def test_a_comparison_keeps_its_proportions(size):
    z, y, x = size
    rows = [[(x, y)] * 3, [(x, z)] * 3, [(y, z)] * 3]
    boxes, page = grid(rows, caption=0.3, gap=0.3)
    check([box for row in boxes for box in row], page, [one for row in rows for one in row])


def test_thin_slab_stacks_its_side_views():
    boxes, _ = three_planes([(60, 60), (60, 4), (60, 4)])
    assert boxes[1][0] == boxes[2][0]
    assert boxes[1][1] > boxes[2][1] + boxes[2][3]


def test_few_places_stay_empty():
    assert best_columns(24, (1, 1), 0.22, 0.08) == 6
    assert best_columns(10, (1, 1), 0.22, 0.08) == 4
    assert best_columns(1, (1, 1), 0.22, 0.08) == 1


def test_what_stands_below_raises_the_panels():
    assert raised([(1, 0, 2, 3)], 0.5) == [(1, 0.5, 2, 3)]
