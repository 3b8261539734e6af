import pickle

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry import histogram as module
from volflow.geometry.histogram import Histogram, Moments, measure, merge

RNG = np.random.default_rng(0)


def test_each_small_integer_value_has_its_own_bin():
    for dtype in ("uint8", "int8", "uint16", "int16"):
        info = np.iinfo(dtype)
        data = np.arange(info.min, info.max + 1).astype(dtype)
        found = measure(data)
        assert np.array_equal(found.values, data)
        assert set(found.counts.tolist()) == {1}
        assert found.moments is None


def test_booleans_count_as_zero_and_one():
    found = measure(np.array([True, False, True]))
    assert (found.count, found.min, found.max, found.mean) == (3, 0.0, 1.0, 2 / 3)


def test_bins_of_other_types_are_in_the_order_of_the_values():
    data = np.array([-np.float32(3e38), -7, -1e-3, -0.0, 0.0, 1e-30, 2.5, 3e38], dtype="float32")
    found = measure(data)
    assert found.counts.tolist() == [1, 1, 1, 2, 1, 1, 1]
    assert np.all(np.diff(found.values) > 0)
    # A bin's edge is at most 2**-12 of the value from any value in it.
    assert np.allclose(found.values, np.unique(data), rtol=2**-12, atol=0)


def test_any_stored_order_and_byte_order_count_alike():
    data = RNG.normal(size=(8, 9, 10)).astype("float32")
    expected = measure(data)
    assert measure(data.astype(">f4")) == expected
    found = measure(np.asfortranarray(data)[::-1])
    assert np.array_equal(found.bins, expected.bins)
    assert np.array_equal(found.counts, expected.counts)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_small_and_large_blocks_count_alike(dtype):
    data = RNG.integers(0, 250, 200_000).astype(dtype)
    parts = [measure(part) for part in np.array_split(data, 20_000 if dtype == "uint8" else 100)]
    whole, merged = measure(data), merge(parts)
    assert np.array_equal(merged.bins, whole.bins)
    assert np.array_equal(merged.counts, whole.counts)


def test_pieces_within_a_block_do_not_show(monkeypatch):
    data = RNG.integers(0, 9, 1000).astype("uint8")
    expected = measure(data)
    monkeypatch.setattr(module, "PIECE_VOXELS", 7)
    assert measure(data) == expected
    real = measure(data.astype("float64"))
    assert real.std == pytest.approx(data.std(), rel=1e-14)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_and_infinite_voxels_are_counted_apart(dtype):
    data = np.array([1, np.nan, 2, np.inf, -np.inf], dtype=dtype)
    found = measure(data)
    assert (found.count, found.nonfinite, found.min, found.max, found.mean) == (2, 3, 1, 2, 1.5)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32"])
def test_the_foreground_is_nonzero_or_above_a_number(dtype):
    data = np.array([0, 0, 1, 5, 9], dtype=dtype)
    assert measure(data).count == 5
    assert measure(data, True).count == 3
    assert measure(data, 1).count == 2
    assert measure(data, 4.5).mean == 7
    assert measure(data, -1e9).count == 5
    assert measure(data, 1e9).count == 0


def test_a_negative_voxel_is_not_zero():
    assert measure(np.array([-1000, 0, 40], dtype="int16"), True).min == -1000


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
def test_no_voxel_has_no_statistics(dtype):
    found = measure(np.zeros(4, dtype=dtype), True)
    assert (found.count, found.values.tolist()) == (0, [])
    for use in (
        lambda: found.min,
        lambda: found.max,
        lambda: found.mean,
        lambda: found.std,
        lambda: found.percentile(50),
    ):
        with pytest.raises(InvalidInput, match="statistics need at least one voxel"):
            use()


def test_only_nan_has_no_statistics():
    found = measure(np.full(4, np.nan))
    assert found.nonfinite == 4
    with pytest.raises(InvalidInput, match="at least one voxel that is finite"):
        found.percentile(50)


@pytest.mark.parametrize("q", [-1, 100.5, float("nan"), "50"])
def test_percentiles_lie_between_0_and_100(q):
    with pytest.raises(InvalidInput, match=r"a percentile must be a number in 0..100; got"):
        measure(np.zeros(3, "uint8")).percentile(q)


@pytest.mark.parametrize("dtype", ["complex64", "datetime64[s]", "S3"])
def test_what_is_no_real_number_is_refused(dtype):
    with pytest.raises(InvalidInput, match="need real numbers"):
        measure(np.zeros(3, dtype))


def test_small_integers_are_exact_where_floats_would_not_be():
    # 2**40 voxels: sums of squares beyond float64 and int64.
    large = Histogram("uint16", np.array([0, 65535], "u4"), np.array([2**40, 2**40]))
    assert large.mean == 32767.5
    assert large.std == 32767.5
    near = Histogram("uint16", np.array([65534, 65535], "u4"), np.array([1, 2**40 - 1]))
    assert near.std == pytest.approx(2.0**-20, rel=1e-9)


def test_extremes_and_constants_of_floats_are_exact():
    data = RNG.normal(size=1000).astype("float32")
    found = measure(data)
    assert (found.percentile(0), found.percentile(100)) == (data.min(), data.max())
    constant = measure(np.full(100, 0.7, dtype="float32"))
    assert constant.percentile(50) == np.float32(0.7)
    assert constant.std == 0


def test_zeros_among_floats_stay_zero():
    data = np.r_[np.zeros(900), RNG.uniform(1, 2, 100)].astype("float32")
    assert measure(data).percentile(50) == 0.0
    assert measure(-data).percentile(50) == 0.0


def test_beyond_the_range_of_float32_values_are_only_cut_in_the_histogram():
    found = measure(np.array([-1e300, 1e-300, 1e300]))
    assert (found.min, found.max) == (-1e300, 1e300)
    assert found.percentile(50) == pytest.approx(0, abs=1.2e-38)


def test_wide_integers_are_binned_to_their_full_width():
    data = np.array([0, 2**31, 2**63, 2**64 - 1], dtype="uint64")
    found = measure(data)
    assert found.percentile(100 / 3) == pytest.approx(2**31, rel=2**-12)
    assert found.percentile(200 / 3) == pytest.approx(2**63, rel=2**-12)


def test_a_mean_far_from_zero_keeps_its_deviation():
    data = (1e6 + RNG.normal(size=100_000)).astype("float64")
    parts = [measure(part) for part in np.array_split(data, 13)]
    assert merge(parts).std == pytest.approx(data.std(), rel=1e-9)


def test_merging_with_nothing_changes_nothing():
    data = RNG.normal(size=100)
    found, none = measure(data), measure(np.full(3, np.nan))
    total = merge([none, found, none])
    assert (total.moments, total.nonfinite) == (found.moments, 6)
    assert Moments().merge(Moments()) == Moments()
    assert merge([none, none]).count == 0


def test_histograms_compare_by_value_and_travel():
    found = measure(RNG.normal(size=100))
    assert pickle.loads(pickle.dumps(found)) == found
    assert found != measure(np.zeros(100))
    assert found != 1
