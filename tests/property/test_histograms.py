"""Histograms against NumPy on the whole data, however it was cut."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from volflow.geometry.histogram import measure, merge

SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=12)
SMALL = st.sampled_from(["bool", "uint8", "int8", "uint16", "int16"]).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES)
)
# Values whose float32 is normal, or zero: what a bin holds to 2**-12.
REALS = hnp.arrays(
    "float64",
    SHAPES,
    elements=st.one_of(
        st.just(0.0),
        st.floats(1e-30, 1e30),
        st.floats(-1e30, -1e-30),
        st.integers(-5, 5).map(float),
    ),
)
PERCENT = st.one_of(st.floats(0, 100), st.integers(0, 100))
CUTS = st.lists(st.integers(0, 1728), max_size=4)
TOLERANCE = 2**-12 + 2**-23  # of a bin, and of rounding to float32


def cut(data, cuts):
    return [measure(part) for part in np.split(data.reshape(-1), sorted(cuts))]


@given(SMALL, PERCENT)
def test_percentiles_of_small_integers_equal_numpy(data, q):
    # In float64, as NumPy's own differences of int8 overflow.
    assert measure(data).percentile(q) == np.percentile(data.astype("float64"), q)


@given(SMALL)
def test_moments_of_small_integers_are_exact(data):
    found = measure(data)
    values = [int(v) for v in data.reshape(-1)]
    n, total = len(values), sum(values)
    assert found.count == n
    assert (found.min, found.max, found.mean) == (min(values), max(values), total / n)
    exact = (n * sum(v * v for v in values) - total * total) / (n * n)
    assert abs(found.std - exact**0.5) <= 4e-16 * exact**0.5


@given(SMALL, CUTS, st.randoms())
def test_small_integers_do_not_show_how_they_were_cut(data, cuts, random):
    parts = cut(data, cuts)
    random.shuffle(parts)
    assert merge(parts) == measure(data)


@pytest.mark.slow
@given(REALS, PERCENT)
def test_percentiles_of_reals_are_known_to_a_bin(data, q):
    found, expected = measure(data).percentile(q), np.percentile(data, q)
    # Interpolated between two voxels, each known to a share of its own size.
    ranked = np.sort(data.reshape(-1))
    first = int(np.floor((data.size - 1) * q / 100))
    size = np.abs(ranked[[first, min(first + 1, data.size - 1)]]).max()
    assert abs(found - expected) <= TOLERANCE * size * (1 + 1e-9)


@pytest.mark.slow
@given(REALS, CUTS)
def test_moments_of_reals_are_numpys(data, cuts):
    found = merge(cut(data, cuts))
    size = np.abs(data).max()
    assert found.count == data.size
    assert (found.min, found.max) == (data.min(), data.max())
    assert abs(found.mean - data.mean()) <= 1e-13 * size
    assert abs(found.std - data.std()) <= 1e-7 * size


@given(REALS, CUTS, st.randoms())
def test_counts_of_reals_do_not_show_how_they_were_cut(data, cuts, random):
    parts = cut(data, cuts)
    random.shuffle(parts)
    found, whole = merge(parts), measure(data)
    assert np.array_equal(found.bins, whole.bins)
    assert np.array_equal(found.counts, whole.counts)


@pytest.mark.slow
@given(REALS, st.lists(PERCENT, min_size=2, max_size=5))
def test_percentiles_ascend(data, qs):
    histogram = measure(data)
    found = [histogram.percentile(q) for q in sorted(qs)]
    assert all(b >= a - 1e-9 * abs(a) for a, b in pairwise(found))
