"""Random changes of the values of a patch, channel by channel.

Each takes floating ``(C, z, y, x)``, which it may change in place, the amount asked for along z, y
and x (one number is three equal ones) and a random stream; it returns the changed values. Mean,
standard deviation and range are the channel's own, over the patch as it is just then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from volflow.sampling.augment.separable import along_axes, as_tensor, gaussian, spline

__all__ = ["CHANGES", "bias", "blur", "brightness", "contrast", "gamma", "noise"]

Array = npt.NDArray[np.float64]
Change = Callable[[torch.Tensor, Array, np.random.Generator], torch.Tensor]


def gamma(values: torch.Tensor, amount: Array, rng: np.random.Generator) -> torch.Tensor:
    """Raise to a power within the channel's range: low + (high − low) · u^γ, |log γ| ≤ amount."""
    power = _each(np.exp(_within(amount, values, rng)), values)
    low, high = (extreme[:, None, None, None] for extreme in values.flatten(1).aminmax(dim=1))
    span = (high - low).clamp_(min=torch.finfo(values.dtype).tiny)
    return values.sub_(low).div_(span).pow_(power).mul_(span).add_(low)


def contrast(values: torch.Tensor, amount: Array, rng: np.random.Generator) -> torch.Tensor:
    """Spread about the channel's mean by a factor in 1 ± amount."""
    factor = _each(1 + _within(amount, values, rng), values)
    mean = values.flatten(1).mean(dim=1)[:, None, None, None]
    return values.sub_(mean).mul_(factor).add_(mean)


def brightness(values: torch.Tensor, amount: Array, rng: np.random.Generator) -> torch.Tensor:
    """Shift by up to ± amount standard deviations of the channel."""
    return values.add_(_std(values) * _each(_within(amount, values, rng), values))


def bias(values: torch.Tensor, amount: Array, rng: np.random.Generator) -> torch.Tensor:
    """Multiply by a smooth field: the exponential of a cubic polynomial within ± amount."""
    weights = [spline(side, max(side - 1, 1)) for side in values.shape[1:]]  # one piece per axis
    controls = amount[0] * rng.uniform(-1, 1, (len(values), *(w.shape[1] for w in weights)))
    field = as_tensor(controls, values.dtype, values.device)
    return values.mul_(along_axes(field, weights).exp_())


def blur(values: torch.Tensor, amount: Array, rng: np.random.Generator) -> torch.Tensor:
    """Blur with a Gaussian of up to amount voxels; what lies outside the patch does not count."""
    sigmas = rng.random((len(values), 1)) * amount
    sides = values.shape[1:]
    return along_axes(values, [gaussian(n, sigmas[:, i]) for i, n in enumerate(sides)])


def noise(values: torch.Tensor, amount: Array, rng: np.random.Generator) -> torch.Tensor:
    """Add Gaussian noise of up to amount standard deviations of the channel.

    The voxels are drawn by torch where the values are, from a seed of the stream: on another kind
    of device they are others.
    """
    strength = _each(amount[0] * rng.random(len(values)), values)
    source = torch.Generator(values.device).manual_seed(int(rng.integers(2**63)))
    drawn = torch.randn(values.shape, generator=source, dtype=values.dtype, device=values.device)
    return values.add_(drawn.mul_(_std(values) * strength))


CHANGES: Mapping[str, Change] = MappingProxyType(
    {
        "gamma": gamma,
        "contrast": contrast,
        "brightness": brightness,
        "bias": bias,
        "blur": blur,
        "noise": noise,
    }
)
"""By name, in the order in which they are made: what the object shows, then how it was taken."""


def _within(amount: Array, values: torch.Tensor, rng: np.random.Generator) -> Array:
    """For each channel a number within ± amount."""
    return np.asarray(amount[0] * rng.uniform(-1, 1, len(values)))


def _std(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).std(dim=1, correction=0)[:, None, None, None]


def _each(amounts: Array, values: torch.Tensor) -> torch.Tensor:
    """One number for each channel, to be used with the values."""
    return as_tensor(amounts, values.dtype, values.device)[:, None, None, None]
