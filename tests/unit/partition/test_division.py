"""How a volume is divided over processes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.errors import InvalidInput
from volflow.partition.exchange.division import Division

AXES = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 5), st.integers(1, 8)), min_size=1, max_size=3
)


@given(AXES)
def test_boxes_tile_the_volume_and_differ_by_one_step_at_most(axes):
    axes = [(max(size, parts), parts, step) for size, parts, step in axes]
    sizes, partition, alignment = zip(*axes, strict=True)
    division = Division.even(sizes, partition, alignment)
    assert (division.sizes, division.partition) == (sizes, partition)
    assert len(division.boxes) == math.prod(partition)
    assert sum(box.size for box in division.boxes) == math.prod(sizes)
    for bounds, (size, parts, step) in zip(division.bounds, axes, strict=True):
        step = step if size // step >= parts else 1
        assert all(cut % step == 0 for cut in bounds[:-1])
        sides = [b - a for a, b in itertools.pairwise(bounds)]
        assert min(sides) > 0
        assert max(sides) - min(sides) <= 2 * step  # the last one has the remainder as well


def test_the_last_axis_varies_fastest():
    starts = [box.start for box in Division(((0, 3, 8), (0, 5, 9))).boxes]
    assert starts == [(0, 0), (0, 5), (3, 0), (3, 5)]


def test_boxes_may_be_empty_where_bounds_say_so():
    assert [box.size for box in Division(((0, 4, 4, 9),)).boxes] == [4, 0, 5]


@pytest.mark.parametrize("bounds", [((0,),), ((1, 4),), ((0, 5, 4),)])
def test_bounds_that_are_none_are_refused(bounds):
    with pytest.raises(InvalidInput, match="bounds must begin at 0, end at the size"):
        Division(bounds)


@pytest.mark.parametrize("partition", [(2,), (2, 0, 1), (1, 1, 1, 1)])
def test_a_partition_has_a_number_per_axis(partition):
    with pytest.raises(InvalidInput, match="one positive number per axis of the volume"):
        Division.even((8, 8, 8), partition, (1, 1, 1))


def test_no_more_boxes_than_voxels():
    with pytest.raises(InvalidInput, match="use fewer processes or other axes"):
        Division.even((8, 3), (1, 4), (1, 1))
