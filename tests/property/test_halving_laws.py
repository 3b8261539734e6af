"""Laws of coarser levels: what merges, and that cuts do not matter."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.merged import exact_mean, merged
from volflow.volumes.pyramid.halving import halved, halvings, mean, mode

FACTORS = st.tuples(*[st.sampled_from((1, 2))] * 3).filter(lambda factors: max(factors) == 2)
SHAPES = st.tuples(*[st.integers(1, 7)] * 3)
INTEGERS = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"]


def cells(voxels, factors, shape):
    for index in np.ndindex(*shape):
        box = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))
        yield index, voxels[box].ravel().tolist()


@given(st.data(), SHAPES, FACTORS, st.sampled_from([*INTEGERS, "f4", "?"]))
def test_a_class_is_a_commonest_one_of_those_that_merge_and_the_smallest(
    data, shape, factors, dtype
):
    few = st.booleans() if dtype == "?" else st.integers(0, 3)
    voxels = data.draw(arrays.arrays(dtype, shape, elements=few))
    out = np.empty(halved(shape, factors), dtype)
    mode(voxels, factors, out)
    for index, cell in cells(voxels, factors, out.shape):
        counts = Counter(cell)
        assert counts[out[index]] == max(counts.values())
        assert out[index] == min(v for v, n in counts.items() if n == max(counts.values()))


@given(st.data(), SHAPES, FACTORS, st.sampled_from(INTEGERS))
def test_a_mean_of_integers_is_the_nearest_one(data, shape, factors, dtype):
    voxels = data.draw(arrays.arrays(dtype, shape))
    out = np.empty(halved(shape, factors), dtype)
    mean(voxels, factors, out)
    for index, cell in cells(voxels, factors, out.shape):
        assert out[index] == round(Fraction(sum(cell), len(cell)))


@given(st.integers(0, 999), SHAPES, FACTORS, st.sampled_from(["f2", "f4", "f8"]))
def test_a_mean_of_floats_is_exact_to_its_last_digits(seed, shape, factors, dtype):
    voxels = np.random.default_rng(seed).normal(100, 50, shape).astype(dtype)
    out = np.empty(halved(shape, factors), dtype)
    mean(voxels, factors, out)
    exact = merged(voxels, factors, exact_mean)
    digits = 4 if dtype == "f8" else 1  # nothing wider sums those of eight bytes
    np.testing.assert_allclose(out, exact, rtol=digits * np.finfo(dtype).eps)


@given(arrays.arrays("?", SHAPES), FACTORS)
def test_a_mean_of_bools_is_their_mode(voxels, factors):
    more = merged(voxels, factors, lambda cell: 2 * sum(cell) > len(cell))
    for kernel in (mean, mode):
        out = np.empty(more.shape, "?")
        kernel(voxels, factors, out)
        assert np.array_equal(out, more)


@given(st.data(), SHAPES, st.sampled_from(["u2", "f4", "f8"]), st.sampled_from([mean, mode]))
def test_any_cut_at_even_voxels_gives_the_same_bits(data, shape, dtype, kernel):
    values = st.integers(0, 9) if dtype == "u2" else st.floats(-1e6, 1e6, width=32)
    voxels = data.draw(arrays.arrays(dtype, shape, elements=values))
    whole = np.empty(halved(shape, (2, 2, 2)), dtype)
    kernel(voxels, (2, 2, 2), whole)
    axis = data.draw(st.integers(0, 2))
    cut = data.draw(st.integers(0, whole.shape[axis]))
    parts = []
    for part in np.split(voxels, [2 * cut], axis=axis):
        out = np.empty(halved(part.shape, (2, 2, 2)), dtype)
        if part.size:
            kernel(part, (2, 2, 2), out)
        parts.append(out)
    assert np.concatenate(parts, axis=axis).tobytes() == whole.tobytes()


@given(
    st.tuples(*[st.integers(1, 3000)] * 3),
    st.tuples(*[st.floats(0.01, 100)] * 3),
)
def test_voxels_tend_to_cubes_and_never_away_from_them(shape, spacing):
    """Twice as long as wide at most, once they have been; a level never makes it worse."""
    ratio = np.inf
    for factors in halvings(shape, spacing):
        assert max(factors) == 2
        assert all(f == 1 for f, n in zip(factors, shape, strict=True) if n == 1)
        shape = halved(shape, factors)
        spacing = tuple(s * f for s, f in zip(spacing, factors, strict=True))
        free = [s for s, n in zip(spacing, shape, strict=True) if n > 1]
        if len(free) > 1:
            assert max(free) / min(free) <= max(2, ratio) * (1 + 1e-9)
            ratio = max(free) / min(free)
    assert max(shape) <= 64
