from __future__ import annotations

import math

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.windows import check_blend, weights, window


@pytest.mark.parametrize("p", [1, 2, 3, 8, 15, 96])
def test_hann_is_the_formula_of_torchio_and_never_zero(p):
    expected = [0.5 * (1 - math.cos(2 * math.pi * (n + 1) / (p + 1))) for n in range(p)]
    np.testing.assert_allclose(window("hann", p), expected, rtol=1e-14)
    assert window("hann", p).min() > 0


@pytest.mark.parametrize("p", [1, 2, 3, 8, 15, 96])
def test_gaussian_is_the_formula_of_monai(p):
    sigma = 0.125 * p
    expected = [math.exp(-((n - (p - 1) / 2) ** 2) / (2 * sigma**2)) for n in range(p)]
    np.testing.assert_allclose(window("gaussian", p), expected, rtol=1e-14)


@pytest.mark.parametrize("blend", ["crop", "average"])
def test_crop_and_average_weigh_alike(blend):
    assert np.array_equal(window(blend, 7), np.ones(7))
    assert np.array_equal(weights(blend, (2, 3, 4)), np.ones((2, 3, 4)))


@pytest.mark.parametrize("blend", ["hann", "gaussian", "average", "crop"])
def test_is_symmetric(blend):
    for p in (1, 2, 9, 16):
        np.testing.assert_allclose(window(blend, p), window(blend, p)[::-1], rtol=1e-13)


def test_the_floor_of_gaussian_holds_for_the_product_over_the_axes():
    patch = (8, 9, 10)
    axes = [window("gaussian", p) for p in patch]
    product = axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]
    found = weights("gaussian", patch)
    assert product.min() < 1e-6  # the floor matters here
    np.testing.assert_allclose(found, np.maximum(product, 1e-3), rtol=1e-6)


@pytest.mark.parametrize("sigma_scale", [0.05, 0.125, 0.3, 2])
def test_the_gaussian_is_that_of_monai(sigma_scale):
    """exp(-x²/2σ²) with σ = sigma_scale · side, axis by axis, raised to 1e-3."""
    patch, expected = (5, 8, 1), np.ones(())
    for side in patch:
        x = np.arange(-(side - 1) / 2, (side - 1) / 2 + 1)
        expected = expected[..., None] * np.exp(x**2 / (-2 * (sigma_scale * side) ** 2))
    np.testing.assert_allclose(
        weights("gaussian", patch, sigma_scale), np.maximum(expected, 1e-3), rtol=1e-6
    )


def test_weights_are_a_product_with_its_axes_in_order():
    found = weights("hann", (2, 5, 9))
    assert found.shape == (2, 5, 9)
    assert found.dtype == np.float32
    expected = window("hann", 2)[1] * window("hann", 5)[3] * window("hann", 9)[0]
    assert found[1, 3, 0] == pytest.approx(expected, rel=1e-6)


def test_an_unknown_blend_is_refused_naming_the_known():
    with pytest.raises(InvalidInput, match="unknown blend 'gauss'; use one of crop, average"):
        check_blend("gauss")
    assert check_blend("hann") == "hann"
