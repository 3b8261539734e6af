"""Chunks and shards: defaults that follow the voxels' shape, choices that must fit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.layout import default_layout, resolve_layout, split

sizes = st.integers(1, 3000)
shapes = st.tuples(sizes, sizes, sizes)
spacings = st.tuples(*[st.floats(0.01, 100)] * 3)
dtypes = st.sampled_from(["bool", "uint8", "float16", "float32", "float64"])


def power_of_two(n):
    return n & (n - 1) == 0


@given(shapes, spacings, dtypes)
def test_defaults_are_powers_of_two_within_bounds(shape, spacing, dtype):
    chunk, shard = default_layout(shape, spacing, dtype)
    assert all(map(power_of_two, chunk + shard))
    assert all(s % c == 0 for c, s in zip(chunk, shard, strict=True))
    assert np.prod(chunk) <= 64**3
    assert np.prod(shard) <= 256**3
    assert np.prod(shard) * np.dtype(dtype).itemsize <= 64 * 2**20
    assert max(chunk) <= 256
    # Nothing is padded to more than twice its size.
    assert all(s == 1 or s < 2 * n for s, n in zip(shard, shape, strict=True))


@given(shapes, spacings, dtypes)
def test_a_channel_axis_changes_nothing(shape, spacing, dtype):
    chunk, shard = default_layout(shape, spacing, dtype)
    assert default_layout((5, *shape), spacing, dtype) == ((1, *chunk), (1, *shard))


def test_thick_slices_make_flat_chunks():
    chunk, shard = default_layout((2000, 2000, 2000), (8, 1, 1), "uint16")
    assert chunk == (16, 128, 128)
    assert shard == (64, 512, 512)


def test_a_thin_volume_gives_its_voxels_to_the_other_axes():
    chunk, _ = default_layout((5, 2000, 2000), (1, 1, 1), "uint16")
    assert chunk == (8, 128, 256)


@pytest.mark.parametrize(
    ("chunk", "shard", "expected"),
    [
        (None, None, ((64, 64, 64), (256, 256, 256))),
        (32, 96, ((32, 32, 32), (96, 96, 96))),
        ((16, 32, 64), (64, 64, 64), ((16, 32, 64), (64, 64, 64))),
        (None, 128, ((64, 64, 64), (128, 128, 128))),
        (None, 100, ((50, 50, 50), (100, 100, 100))),
        (None, 97, ((97, 97, 97), (97, 97, 97))),
        (100, None, ((100, 100, 100), (200, 200, 400))),
    ],
)
def test_what_is_given_is_kept(chunk, shard, expected):
    assert resolve_layout((900, 900, 900), (1, 1, 1), "uint8", chunk, shard) == expected


def test_sizes_may_name_the_channel():
    given_sizes = (1, 32, 32, 32)
    expected = ((1, 32, 32, 32), (1, 64, 64, 64))
    assert resolve_layout((3, 9, 9, 9), (1, 1, 1), "u1", given_sizes, 64) == expected


@pytest.mark.parametrize(
    ("chunk", "shard", "message"),
    [
        (64, 100, "use shard 64 or 128"),
        (64, 32, "use shard 64$"),
        (0, None, "chunk must be a positive integer"),
        ((64, 64), None, "chunk must be a positive integer"),
        (None, -64, "shard must be a positive integer"),
        (None, "big", "shard must be a positive integer"),
        (None, (2, 64, 64, 64), "shard must be a positive integer"),
    ],
)
def test_what_does_not_fit_is_refused(chunk, shard, message):
    with pytest.raises(InvalidInput, match=message):
        resolve_layout((2, 900, 900, 900), (1, 1, 1), "uint8", chunk, shard)


small = st.tuples(*[st.integers(1, 20)] * 3)
units = st.tuples(*[st.integers(1, 7)] * 3)


@pytest.mark.slow
@given(small, units)
def test_the_pieces_of_everything_cover_each_voxel_once(shape, unit):
    count = np.zeros(shape, int)
    for piece in split(Roi.full(shape), shape, unit, "zyx"):
        count[piece.slices()] += 1
        assert all(a % u == 0 for a, u in zip(piece.start, unit, strict=True))
        assert all(n <= u for n, u in zip(piece.shape, unit, strict=True))
    assert (count == 1).all()


@given(small, units, st.data())
def test_a_box_is_cut_only_where_it_owns_whole_objects(shape, unit, data):
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    owns = all(
        a % u == 0 and (b % u == 0 or b == n)
        for a, b, u, n in zip(start, stop, unit, shape, strict=True)
    )
    if owns:
        pieces = split(Roi(start, stop), shape, unit, "zyx")
        assert sum(piece.size for piece in pieces) == Roi(start, stop).size
    else:
        with pytest.raises(InvalidInput, match="owns stored objects"):
            split(Roi(start, stop), shape, unit, "zyx")
