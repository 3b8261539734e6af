"""Where panels lie: on the page, beside each other, in true proportions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.geometry.views import views
from volflow.report.pictures.scene import (
    CAPTION,
    HEADER,
    MARGIN,
    WIDTH,
    Panel,
    Scene,
    beside,
    in_columns,
    place,
)

LENGTH = st.floats(1, 3000)
BELOW = 1e-6
VIEWS = views(None)


def scene(size, columns, tiles=False):
    return Scene(("",), "", size, None, {}, columns, tiles=tiles)


def check(scene, size):
    """All inside, none over another, all to one scale; each has room for its caption."""
    columns, width = place(scene)
    boxes = [box for column in columns for box in column]
    panels = [panel for column in scene.columns for panel in column]
    assert width <= WIDTH + BELOW
    for left, top, across, _ in boxes:
        assert left >= MARGIN - BELOW
        assert left + across <= width - MARGIN + BELOW
        assert top >= HEADER + CAPTION - BELOW
    for a, b in itertools.combinations(boxes, 2):
        apart = a[0] + a[2] <= b[0] + BELOW or b[0] + b[2] <= a[0] + BELOW
        above = a[1] + a[3] + CAPTION <= b[1] + BELOW or b[1] + b[3] + CAPTION <= a[1] + BELOW
        assert apart or above
    scale = boxes[0][2] / size[panels[0].view.columns]
    for panel, (_, _, across, along) in zip(panels, boxes, strict=True):
        view = panel.view
        expected = (size[view.columns] * scale, size[view.rows] * scale)
        assert (across, along) == (pytest.approx(expected[0]), pytest.approx(expected[1]))
    return max(top + along for _, top, _, along in boxes)


@given(size=st.tuples(LENGTH, LENGTH, LENGTH), count=st.sampled_from([1, 3]))
def test_planes_keep_their_proportions(size, count):
    check(scene(size, beside([Panel(view, ()) for view in VIEWS[:count]], size)), size)


@pytest.mark.slow
@given(size=st.tuples(LENGTH, LENGTH, LENGTH), count=st.integers(1, 200))
def test_tiles_keep_their_proportions(size, count):
    tiles = [Panel(VIEWS[0], ())] * count
    assert check(scene(size, in_columns(tiles, size), tiles=True), size) < 12


@given(size=st.tuples(LENGTH, LENGTH, LENGTH))
def test_a_comparison_keeps_its_proportions(size):
    column = [Panel(view, (), heading="" if n else "A") for n, view in enumerate(VIEWS)]
    check(scene(size, [column] * 3), size)


def test_a_thin_slab_stacks_its_side_views():
    panels = [Panel(view, ()) for view in VIEWS]
    assert list(map(len, beside(panels, (4, 60, 60)))) == [1, 2]
    assert list(map(len, beside(panels, (60, 60, 60)))) == [1, 1, 1]


@pytest.mark.parametrize(
    ("count", "size", "columns"),
    [(24, (1, 1), 6), (10, (1, 1), 4), (1, (1, 1), 1), (24, (233, 197), 6), (24, (20, 500), 2)],
)
def test_few_places_stay_empty(count, size, columns):
    arranged = in_columns([Panel(VIEWS[0], ())] * count, (1, *size))
    assert len(arranged) == columns
    assert sum(map(len, arranged)) == count
