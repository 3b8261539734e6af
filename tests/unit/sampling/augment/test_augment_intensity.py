"""Changes of values against their formulas, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import gaussian_filter

from volflow.sampling.augment import intensity
from volflow.sampling.augment.augment import Augment

SHAPES = [(2, 7, 9, 8), (1, 1, 12, 10), (3, 6, 1, 5)]


def stream(key=3):
    return np.random.default_rng(key)


def changed(name, values, amount, key=3):
    given = torch.tensor(values)
    return intensity.CHANGES[name](given, np.broadcast_to(np.float64(amount), 3), stream(key))


def values_of(shape):
    return np.random.default_rng(0).gamma(2, 3, shape) - 1


def per_channel(reduce, values):
    return reduce(values, axis=(1, 2, 3), keepdims=True)


@pytest.mark.parametrize("shape", SHAPES)
class TestFormulas:
    def test_gamma(self, shape):
        x, power = values_of(shape), np.exp(0.7 * stream().uniform(-1, 1, shape[0]))
        low, high = per_channel(np.min, x), per_channel(np.max, x)
        expected = low + (high - low) * ((x - low) / (high - low)) ** power.reshape(-1, 1, 1, 1)
        assert np.allclose(changed("gamma", x, 0.7), expected, rtol=0, atol=1e-10)

    def test_contrast(self, shape):
        x, factor = values_of(shape), 1 + 0.4 * stream().uniform(-1, 1, (shape[0], 1, 1, 1))
        mean = per_channel(np.mean, x)
        assert np.allclose(changed("contrast", x, 0.4), mean + factor * (x - mean), atol=1e-10)

    def test_brightness(self, shape):
        x, shift = values_of(shape), 0.4 * stream().uniform(-1, 1, (shape[0], 1, 1, 1))
        expected = x + shift * per_channel(np.std, x)
        assert np.allclose(changed("brightness", x, 0.4), expected, rtol=0, atol=1e-10)

    def test_bias(self, shape):
        x = values_of(shape)
        # One cubic piece over the axis; an axis of one voxel sees three of its points.
        axes = []
        for side in shape[1:]:
            knots = max(side - 1, 1) * np.arange(-3.0, 5)
            weights = BSpline(knots, np.eye(4), 3)(np.arange(side))
            axes.append(weights if side > 1 else weights[:, :3])
        controls = 0.8 * stream().uniform(-1, 1, (shape[0], *(a.shape[1] for a in axes)))
        field = np.einsum("ai,bj,ck,dijk->dabc", *axes, controls)
        assert np.abs(field).max() <= 0.8
        assert np.allclose(changed("bias", x, 0.8), x * np.exp(field), rtol=0, atol=1e-10)

    @pytest.mark.parametrize("amount", [1.5, (0, 2, 0.5)])
    def test_blur(self, shape, amount):
        x, sigmas = values_of(shape), stream().random((shape[0], 1)) * np.broadcast_to(amount, 3)
        found = changed("blur", x, amount)
        for channel, sigma in enumerate(sigmas):
            # What lies outside does not count: divided by the blur of ones.
            blurred, counted = (
                gaussian_filter(v, sigma, mode="constant", truncate=9)
                for v in (x[channel], np.ones(shape[1:]))
            )
            assert np.allclose(found[channel], blurred / counted, rtol=0, atol=1e-10)

    def test_noise(self, shape):
        x, rng = values_of(shape), stream()
        strength = (0.3 * rng.random(shape[0])).reshape(-1, 1, 1, 1) * per_channel(np.std, x)
        source = torch.Generator().manual_seed(int(rng.integers(2**63)))
        drawn = torch.randn(shape, generator=source, dtype=torch.float64).numpy()
        assert np.allclose(changed("noise", x, 0.3), x + strength * drawn, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", sorted(intensity.CHANGES))
def test_a_constant_image_stays_finite(name):
    found = changed(name, np.full((1, 4, 4, 4), 7.0), 0.5)
    assert found.isfinite().all()
    if name != "bias":
        assert np.allclose(found, 7)


def test_noise_has_the_spread_that_was_asked():
    image = torch.randn(40, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0)) * 5
    moved = Augment(flip=0, noise=0.2)({"image": image, "key": torch.arange(40)})["image"]
    shares = (moved - image).std(dim=(1, 2, 3, 4)) / image.std(dim=(1, 2, 3, 4))
    assert 0 < shares.min() < 0.03
    assert 0.17 < shares.max() < 0.21


def test_channels_are_changed_apart():
    image = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    image[:, 1] = image[:, 0]
    for name in intensity.CHANGES:
        one, other = Augment(flip=0, **{name: 0.5})({"image": image, "key": [1]})["image"][0]
        assert not torch.equal(one, other)
