"""Laws of resampling: any cut has the same bits, grids map back, storage changes nothing."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.resample_oracle import coordinates
from volflow.geometry.frame import Frame
from volflow.geometry.resampling.lines import GridAxis
from volflow.geometry.resampling.regridding import GridMap, Regridding
from volflow.geometry.roi import Roi
from volflow.volumes.resample.resample_pieces import pieces

sides = st.integers(1, 12)
steps = st.floats(0.2, 5)
frames = st.builds(
    Frame,
    st.sampled_from(list(itertools.permutations(range(3)))),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
axes = st.builds(GridAxis, sides, sides, steps, st.floats(-4, 8))
shifts = st.builds(GridAxis, sides, sides, st.just(1.0), st.integers(-3, 6).map(float))
grids = st.builds(GridMap, frames, st.tuples(axes | shifts, axes, axes))


@st.composite
def regriddings(draw, kinds=("f4", "f8", "u1", "?")):
    dtype = np.dtype(draw(st.sampled_from(kinds)))
    classes = dtype.kind in "?" or (dtype.kind == "u" and draw(st.booleans()))
    orders = st.sampled_from((0, 1) if classes or dtype.kind == "b" else (0, 1, 3))
    smooth = not classes and draw(st.booleans())
    fill = draw(st.sampled_from((None, 0, 1)))
    return Regridding(draw(grids), draw(st.tuples(*[orders] * 3)), dtype, smooth, classes, fill)


def voxels_of(how, seed=0):
    values = np.random.default_rng(seed).integers(0, 200, how.grid.source_shape)
    return (values > 100) if how.dtype.kind == "b" else values.astype(how.dtype)


def made(how, voxels, box):
    return how.make(np.ascontiguousarray(voxels[how.source(box).slices()]), box)


@given(how=regriddings(), data=st.data())
def test_any_box_has_the_bits_of_the_whole(how, data):
    voxels, full = voxels_of(how), Roi.full(how.grid.shape)
    whole = made(how, voxels, full)
    ends = [
        sorted((data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n - 1))))
        for n in full.shape
    ]
    box = Roi(tuple(a for a, _ in ends), tuple(b + 1 for _, b in ends))
    part = made(how, voxels, box)
    assert part.dtype == whole.dtype == how.dtype
    assert np.array_equal(part, whole[box.slices()])


@given(how=regriddings())
def test_pieces_tile_a_box_upwards_in_the_source(how):
    full = Roi.full(how.grid.shape)
    parts = pieces(how, full)
    covered = np.zeros(full.shape, int)
    for part in parts:
        covered[part.slices()] += 1
    assert (covered == 1).all()
    starts = [how.source(part).start[0] for part in parts if how.source(part).size]
    assert starts == sorted(starts)


@given(how=regriddings())
def test_what_is_needed_lies_in_the_source(how):
    for part in [Roi.full(how.grid.shape)]:
        box = how.source(part)
        assert box == box.clip(how.grid.source_shape)


@given(grid=grids)
def test_the_inverse_maps_back(grid):
    back = grid.inverse
    assert back.shape == grid.source_shape
    assert back.source_shape == grid.shape
    again = back.inverse
    assert again.frame == grid.frame
    for one, other in zip(again.axes, grid.axes, strict=True):
        assert np.isclose(one.step, other.step)
        assert np.isclose(one.offset, other.offset, atol=1e-9)


@given(grid=grids, sizes=st.tuples(steps, steps, steps))
def test_between_affines_is_the_map_that_made_them(grid, sizes):
    """A grid laid out by a map in the world of the source is found there again."""
    source = np.diag([*sizes, 1.0])
    target = np.eye(4)
    for axis, (stored, flip) in enumerate(zip(grid.frame.axes, grid.frame.flips, strict=True)):
        one, column, row = grid.axes[axis], 2 - axis, 2 - stored
        target[:3, column] = 0
        target[row, column] = (-one.step if flip else one.step) * sizes[row]
        first = one.source - 1 - one.offset if flip else one.offset
        target[row, 3] = first * sizes[row]
    found = GridMap.between(source, grid.source_shape, target, grid.shape)
    assert found.frame == grid.frame
    points = coordinates(source, target, grid.shape)
    for axis, stored in enumerate(grid.frame.axes):
        at = np.moveaxis(points[stored], axis, 0)[:, 0, 0]
        n, flip = grid.source_shape[stored], grid.frame.flips[axis]
        own = found.axes[axis].at(0, grid.shape[axis])
        np.testing.assert_allclose(n - 1 - own if flip else own, at, atol=2e-4)


@given(how=regriddings(("f8", "u1")))
def test_the_result_does_not_depend_on_how_the_source_is_stored(how):
    """A source whose axes are turned and reversed gives the same voxels."""
    voxels, full = voxels_of(how), Roi.full(how.grid.shape)
    plain = Regridding(
        GridMap(Frame(), how.grid.axes), how.order, how.dtype, how.antialias, how.classes, how.fill
    )
    shown = np.ascontiguousarray(how.grid.frame.show(voxels))
    assert np.array_equal(made(how, voxels, full), made(plain, shown, full))
