import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracle import padded_by
from volflow.errors import InvalidInput
from volflow.geometry.outside import Padding
from volflow.geometry.roi import Roi

FAR = 20


@st.composite
def boxes(draw):
    """A small shape, and a box that meets it, or lies outside of it altogether."""
    shape = tuple(draw(st.integers(1, 6)) for _ in range(3))
    start = [draw(st.integers(-FAR, n + 5)) for n in shape]
    stop = [
        a + draw(st.integers(1, min(15, n + FAR - a))) for a, n in zip(start, shape, strict=True)
    ]
    return shape, Roi(tuple(start), tuple(stop))


def shown(padding, volume, box, rows):
    """The box, put together of runs of rows of its source."""
    found = np.full((len(volume), *box.shape), -99.0)
    if padding.number is not None:
        found[...] = padding.number
    source = padding.source(box, volume.shape[1:])
    for low in range(source.start[0], source.stop[0], rows):
        part = Roi((low, *source.start[1:]), (min(low + rows, source.stop[0]), *source.stop[1:]))
        padding.put(volume[(slice(None), *part.slices())], part, found, box, volume.shape[1:])
    return found


@given(boxes(), st.sampled_from([0, -1024.5, "edge", "reflect"]), st.integers(1, 4))
def test_a_box_is_that_of_the_whole_volume_padded_by_numpy(found, given, rows):
    shape, box = found
    volume = np.arange(2 * np.prod(shape), dtype=float).reshape(2, *shape)
    whole = padded_by(given, volume, [(0, 0), *[(FAR, FAR)] * 3])
    expected = whole[(slice(None), *box.shift([FAR] * 3).slices())]
    assert np.array_equal(shown(Padding(given), volume, box, rows), expected)


@given(boxes(), st.sampled_from([0, "edge", "reflect"]))
def test_no_more_is_read_than_the_box_holds(found, given):
    shape, box = found
    source = Padding(given).source(box, shape)
    assert source == source.clip(shape)
    assert all(s <= b for s, b in zip(source.shape, box.shape, strict=True))


@pytest.mark.parametrize("wrong", ["mirror", "0", float("nan"), float("inf"), True, None, (0, 1)])
def test_anything_else_is_refused(wrong):
    with pytest.raises(
        InvalidInput, match='padding must be a finite number, "edge" or "reflect"; g'
    ):
        Padding(wrong)
