import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.histogram import measure
from volflow.geometry.normalize import normalization
from volflow.volumes.distribution import Statistics

DATA = np.random.default_rng(0).gamma(2, 100, size=(2, 10, 11, 12)).astype("uint16")
STATS = Statistics(tuple(measure(channel) for channel in DATA))


def applied(name, data=DATA, stats=STATS):
    values = np.full(data.shape, np.nan, "float32")
    normalization(name, 2, lambda foreground: stats).apply(data, values)
    return values


def test_minmax_spans_zero_to_one_in_each_channel():
    values = applied("minmax")
    assert np.allclose(values.min(axis=(1, 2, 3)), 0, atol=1e-6)
    assert np.allclose(values.max(axis=(1, 2, 3)), 1, atol=1e-6)


def test_zscore_has_mean_zero_and_deviation_one():
    values = applied("zscore").astype("float64")
    assert np.allclose(values.mean(axis=(1, 2, 3)), 0, atol=1e-6)
    assert np.allclose(values.std(axis=(1, 2, 3)), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "low", "high"), [("percentile", 2, 98), ("percentile:0.5,99.5", 0.5, 99.5)]
)
def test_percentiles_become_zero_and_one_and_the_rest_is_cut(name, low, high):
    for channel, values in zip(DATA, applied(name), strict=True):
        a, b = np.percentile(channel, [low, high])
        assert np.allclose(values, np.clip((channel - a) / (b - a), 0, 1), atol=1e-6)
        assert (values.min(), values.max()) == (0, 1)


@pytest.mark.parametrize(("name", "value"), [("minmax", 0.0), ("zscore", 0.0), ("percentile", 0.0)])
def test_a_constant_image_is_shifted_but_not_scaled(name, value):
    data = np.full((1, 2, 3, 4), 7, dtype="uint8")
    stats = Statistics((measure(data),))
    assert normalization(name, 2, lambda foreground: stats).scale == (1.0,)
    assert np.all(applied(name, data, stats) == value)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", ">u4"])
@pytest.mark.parametrize("name", ["zscore", "minmax", "percentile"])
def test_values_far_from_zero_lose_nothing(name, dtype):
    far = {"float32": 60_000, "float64": 1e12}.get(dtype, 1_000_000_000)
    data = (far + np.random.default_rng(0).normal(0, 3, (1, 9, 10, 11))).astype(dtype)
    stats = Statistics((measure(data),))
    exact = data.astype("float64")
    if name == "zscore":
        expected = (exact - stats.mean[0]) / stats.std[0]
    else:
        low, high = (2, 98) if name == "percentile" else (0, 100)
        a, b = stats.percentile(low)[0], stats.percentile(high)[0]
        expected = np.clip((exact - a) / (b - a), 0, 1)
    assert np.abs(applied(name, data, stats) - expected).max() < 5e-7


def unmeasured(foreground):
    raise AssertionError("nothing is measured for constants")


def test_a_window_becomes_zero_to_one_and_the_rest_is_cut_without_statistics():
    found = np.empty(DATA.shape, "float32")
    normalization("window:-160,240", 2, unmeasured).apply(DATA.astype("int16") - 300, found)
    expected = np.clip((DATA.astype("float64") - 300 + 160) / 400, 0, 1)
    assert np.abs(found - expected).max() < 1e-6
    assert (found.min(), found.max()) == (0, 1)


def test_a_scale_divides_without_statistics():
    found = np.empty(DATA.shape, "float32")
    normalization("scale:255", 2, unmeasured).apply(DATA, found)
    assert np.allclose(found, DATA / 255, rtol=1e-6)


def test_of_the_foreground_zeros_neither_count_nor_change():
    data = np.where(DATA > 150, DATA, 0)
    stats = Statistics(tuple(measure(channel, True) for channel in data), True)
    asked, found = [], np.empty(data.shape, "float32")
    normalization("zscore:foreground", 2, lambda x: asked.append(x) or stats).apply(data, found)
    assert asked == [True]
    for stored, values in zip(data, found, strict=True):
        inside = stored[stored > 0].astype("float64")
        assert np.all(values[stored == 0] == 0)
        assert np.allclose(values[stored > 0], (inside - inside.mean()) / inside.std(), atol=1e-6)


@pytest.mark.parametrize("detail", ["", "5", "240,-160", "5,5", "a,b", "1,2,3", "nan,5", "0,inf"])
def test_a_window_must_ascend(detail):
    with pytest.raises(InvalidInput, match="two ascending values"):
        normalization(f"window:{detail}", 1, unmeasured)


@pytest.mark.parametrize("detail", ["", "0", "-255", "nan", "inf", "1e-320", "255,1", "x"])
def test_a_scale_must_be_above_zero(detail):
    with pytest.raises(InvalidInput, match="a number above 0"):
        normalization(f"scale:{detail}", 1, unmeasured)


@pytest.mark.parametrize(
    "name", ["", "none", "minmax:1", "minmax:", "zscore:", "zscore:nonzero", "zscore:0.5", "MINMAX"]
)
def test_an_unknown_name_is_refused(name):
    with pytest.raises(InvalidInput, match="unknown normalize"):
        normalization(name, 2, lambda foreground: STATS)


@pytest.mark.parametrize("detail", ["5", "a,b", "98,2", "5,5", "-1,50", "2,101", "1,2,3", "nan,5"])
def test_percentiles_must_ascend(detail):
    with pytest.raises(InvalidInput, match="two ascending percentiles"):
        normalization(f"percentile:{detail}", 2, lambda foreground: STATS)


def test_another_number_of_channels_is_refused():
    known = normalization("minmax", 2, lambda foreground: STATS)
    with pytest.raises(InvalidInput, match="for 2 channels; got 1"):
        known.apply(np.zeros((1, 2, 2, 2)), np.zeros((1, 2, 2, 2), "f4"))


def test_an_empty_foreground_cannot_normalise():
    with pytest.raises(InvalidInput, match="statistics need at least one voxel"):
        normalization("zscore", 1, lambda _: Statistics((measure(np.zeros(3), True),), True))
