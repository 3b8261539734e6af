"""A network run on a whole volume at once: what exact inference must equal."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

EXACT = 1e-12  # of what is computed in float64


def lively(net: nn.Module, factor: float = 1.5) -> nn.Module:
    """A copy in float64, its weights so large that every voxel of a halo matters."""
    net = copy.deepcopy(net).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(factor)
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2.0, generator=generator)
    return net


def whole(image: np.ndarray, net: nn.Module, alignment: int | tuple[int, ...] = 1) -> np.ndarray:
    """Scores ``CZYX`` of an image ``ZYX`` or ``CZYX``: padded at the far end, run, cropped."""
    image = image if image.ndim == 4 else image[None]
    shape = image.shape[1:]
    steps = (alignment,) * 3 if isinstance(alignment, int) else alignment
    padding = [(0, -n % a) for n, a in zip(shape, steps, strict=True)]
    padded = torch.from_numpy(np.pad(image, [(0, 0), *padding]))
    with torch.inference_mode():
        scores = net(padded[None])[0].numpy()
    scale = [n // m for n, m in zip(padded.shape[1:], scores.shape[1:], strict=True)]
    z, y, x = (-(-n // s) for n, s in zip(shape, scale, strict=True))
    return scores[:, :z, :y, :x]


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())
