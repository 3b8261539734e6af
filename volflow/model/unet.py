"""The built-in U-Net: small and plain, built from keyword arguments that JSON can hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from volflow.errors import InvalidInput

__all__ = ["UNet"]

Norm = Literal["batch", "instance", "group", "none"]
Up = Literal["transposed", "linear"]
MOST_LEVELS, MOST_CHANNELS = 16, 2**16  # beyond these, weights exceed any memory


class UNet(nn.Module):
    """A U-Net with two convolutions per level, max pooling and concatenated skips.

    Parameters
    ----------
    in_channels, out_channels
        Channels of the image, and scores per voxel, which are raw (no softmax).
    features
        Channels per level, finest first; each further level halves the resolution.
    norm
        ``"batch"`` uses stored statistics at inference, so that the result of a voxel does
        not depend on its patch; the same holds for ``"none"``. ``"instance"`` and ``"group"``
        take their statistics from the patch, and differ from patch to patch.
    up
        ``"transposed"`` convolution, or ``"linear"`` interpolation (bi- or trilinear)
        followed by a pointwise convolution.
    dims
        3 for volumes ``(N, C, z, y, x)``, 2 for slices ``(N, C, y, x)``.

    Raises
    ------
    InvalidInput
        If an argument cannot be used, or an input's sides are not multiples of `alignment`.

    Examples
    --------
    >>> net = UNet(1, 3, features=(4, 8)).eval()
    >>> net.alignment, tuple(net(torch.zeros(1, 1, 8, 8, 8)).shape)
    (2, (1, 3, 8, 8, 8))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: Sequence[int] = (16, 32, 64),
        *,
        norm: Norm = "batch",
        up: Up = "transposed",
        dims: Literal[2, 3] = 3,
    ) -> None:
        super().__init__()
        _check((in_channels, out_channels), features, norm, up, dims)
        self.arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "features": list(features),
            "norm": norm,
            "up": up,
            "dims": dims,
        }
        self.encode = nn.ModuleList(
            _block(before, after, norm, dims)
            for before, after in zip((in_channels, *features[:-1]), features, strict=True)
        )
        self.pool = _layer("MaxPool", dims)(2)
        self.up = nn.ModuleList(
            _upsample(coarse, fine, up, dims) for fine, coarse in itertools.pairwise(features)
        )
        self.decode = nn.ModuleList(_block(2 * fine, fine, norm, dims) for fine in features[:-1])
        self.head = _layer("Conv", dims)(features[0], out_channels, 1)

    @property
    def alignment(self) -> int:
        """The number that must divide every side of an input."""
        return int(2 ** (len(self.encode) - 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return scores ``(N, out_channels, …)`` of an image ``(N, in_channels, …)``."""
        sides = image.shape[2:]
        if any(side % self.alignment for side in sides):
            raise InvalidInput(
                f"this U-Net takes sides that are multiples of {self.alignment}, got"
                f" {tuple(sides)}; choose such a patch"
            )
        skips: list[Tensor] = []
        x = self.encode[0](image)
        for encode in self.encode[1:]:
            skips.append(x)
            x = encode(self.pool(x))
        for level in reversed(range(len(skips))):
            x = torch.cat([skips[level], self.up[level](x)], dim=1)
            x = self.decode[level](x)
        scores: Tensor = self.head(x)
        return scores


def _layer(kind: str, dims: int) -> type[nn.Module]:
    """Return the layer class of a kind: ``Conv`` in 3 dims is ``torch.nn.Conv3d``."""
    layer: type[nn.Module] = getattr(nn, f"{kind}{dims}d")
    return layer


def _block(before: int, after: int, norm: Norm, dims: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers.append(_layer("Conv", dims)(channels, after, 3, padding=1, bias=norm == "none"))
        layers.extend(_norm(after, norm, dims))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _norm(channels: int, norm: Norm, dims: int) -> list[nn.Module]:
    if norm == "batch":
        return [_layer("BatchNorm", dims)(channels)]
    if norm == "instance":
        return [_layer("InstanceNorm", dims)(channels, affine=True)]
    if norm == "group":
        return [nn.GroupNorm(math.gcd(8, channels), channels)]
    return []


def _upsample(coarse: int, fine: int, up: Up, dims: int) -> nn.Module:
    if up == "transposed":
        return _layer("ConvTranspose", dims)(coarse, fine, 2, stride=2)
    mode = "trilinear" if dims == 3 else "bilinear"
    # The pointwise convolution commutes with interpolation and is cheaper before it.
    return nn.Sequential(
        _layer("Conv", dims)(coarse, fine, 1),
        nn.Upsample(scale_factor=2, mode=mode, align_corners=False),
    )


def _check(
    channels: Sequence[int], features: Sequence[int], norm: object, up: object, dims: object
) -> None:
    sizes = (*channels, *features)
    whole = all(type(n) is int and 1 <= n <= MOST_CHANNELS for n in sizes)
    if not whole or not 1 <= len(features) <= MOST_LEVELS:
        raise InvalidInput(
            f"a U-Net needs 1 to {MOST_LEVELS} levels and whole channel counts from 1 to"
            f" {MOST_CHANNELS}; got channels {tuple(channels)!r:.60}, features"
            f" {tuple(features)!r:.60}"
        )
    for name, value, known in (
        ("norm", norm, get_args(Norm)),
        ("up", up, get_args(Up)),
        ("dims", dims, (2, 3)),
    ):
        if value not in known:
            raise InvalidInput(
                f"unknown {name} {value!r} for a U-Net; use one of {', '.join(map(str, known))}"
            )
