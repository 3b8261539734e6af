"""What the fingerprints of `same_bits.py` are taken of: volumes, networks, options.

Networks stand here, so that no change of the package changes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import nn

import volflow as vf

SHAPE = (22, 19, 25)
QUIET: dict[str, Any] = {"progress": False, "memory": "1GiB"}
TILED: dict[str, Any] = {"chunk": 8, "shard": 8, **QUIET}

# Names of results, and how each is made.
Work = Callable[[], Any]
Cases = Iterator[tuple[str, Work]]


def conv_net(channels: int = 1, outputs: int = 2, *, dims: int = 3) -> nn.Module:
    """Its zero padding makes patches disagree at their borders."""
    torch.manual_seed(0)
    conv = nn.Conv3d if dims == 3 else nn.Conv2d
    layers = (conv(channels, 4, 3, padding=1), nn.GELU(), conv(4, outputs, 3, padding=1))
    return nn.Sequential(*layers).eval()


def half_net(channels: int = 1) -> nn.Module:
    """Its output has half the resolution."""
    torch.manual_seed(1)
    layers = (nn.Conv3d(channels, 3, 2, stride=2), nn.ReLU(), nn.Conv3d(3, 2, 3, padding=1))
    return nn.Sequential(*layers).eval()


class Two(nn.Module):
    """Two outputs, by name or in order."""

    def __init__(self, first: nn.Module, second: nn.Module, *, named: bool) -> None:
        super().__init__()
        self.first, self.second, self.named = first, second, named

    def forward(self, batch: torch.Tensor) -> Any:
        found = {"seg": self.first(batch), "edge": self.second(batch)}
        return found if self.named else tuple(found.values())


class Encoder(nn.Module):
    """Two levels with norms, a skip and a transposed convolution."""

    def __init__(self, norm: str, channels: int = 1, *, dims: int = 3) -> None:
        super().__init__()
        torch.manual_seed(2)
        conv, pool = (nn.Conv3d, nn.MaxPool3d) if dims == 3 else (nn.Conv2d, nn.MaxPool2d)
        back = nn.ConvTranspose3d if dims == 3 else nn.ConvTranspose2d
        self.fine = nn.Sequential(conv(channels, 4, 3, padding=1), norm_of(norm, 4, dims))
        self.pool = pool(2)
        self.coarse = nn.Sequential(conv(4, 8, 3, padding=1), norm_of(norm, 8, dims), nn.ReLU())
        self.up = back(8, 4, 2, stride=2)
        self.head = conv(8, 2, 3, padding=1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        fine = nn.functional.leaky_relu(self.fine(batch))
        return self.head(torch.cat([fine, self.up(self.coarse(self.pool(fine)))], 1))


def norm_of(norm: str, channels: int, dims: int) -> nn.Module:
    if norm == "instance":
        return (nn.InstanceNorm3d if dims == 3 else nn.InstanceNorm2d)(channels, affine=True)
    if norm == "group":
        return nn.GroupNorm(2, channels)
    if norm == "batch":
        found = (nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d)(channels)
        found.running_mean.uniform_(-0.5, 0.5)
        found.running_var.uniform_(0.5, 2.0)
        return found
    return nn.Identity()


class Pooled(nn.Module):
    """Every voxel depends on the mean of all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv3d(1, 4, 3, padding=2, dilation=2)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(4, 4, 1), nn.Sigmoid())
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        found = self.conv(batch)
        return self.head(found * self.gate(found))


def encoder(norm: str, channels: int = 1, **options: Any) -> nn.Module:
    return Encoder(norm, channels, **options).eval()


def halved(values: Any) -> Any:
    """A function as normalisation, or as activation."""
    return values * 0.5 - 0.25


def enlarged(scores: Any) -> Any:
    """An activation whose results lose something as integers."""
    return scores * 100


# Everything lies in the current folder, which is a scratch folder.


def scan(shape: tuple[int, ...] = SHAPE, seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).random(shape, "float32") + np.float32(0.1)


def columns() -> np.ndarray[Any, Any]:
    """The volume as NIfTI holds it: ``xyz``, 16 bit."""
    return np.ascontiguousarray((scan() * 1000).astype("int16").transpose(2, 1, 0))


def stored(name: str, values: Any, **options: Any) -> Any:
    """A volume in small chunks and shards; made once."""
    if Path(name).exists():
        return vf.open(name)
    return vf.convert(values, name, **({"chunk": 8, "shard": 16} | options), **QUIET)


def nifti(name: str, values: np.ndarray[Any, Any], codes: str = "LPS", tilt: float = 0.0) -> str:
    """A file as scanners write them: xyz, an affine with directions of its own."""
    if Path(name).exists():
        return name
    axes = nibabel.orientations.axcodes2ornt(tuple(codes))
    affine = np.zeros((4, 4))
    for axis, (place, sign) in enumerate(axes):
        affine[int(place), axis] = sign * (0.7, 0.8, 2.5)[axis]
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    affine = turn @ affine
    affine[:, 3] = (10, -20, 30, 1)
    nibabel.save(nibabel.Nifti1Image(values, affine), name)
    return name


def labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    """Blobs of three classes."""
    z, y, x = (np.arange(n) for n in shape)
    wave = np.sin(z[:, None, None] / 3) + np.cos(y[:, None] / 4) + np.sin(x / 5)
    return np.digitize(wave, [-0.5, 0.8, 1.8]).astype("uint8")


_numbers = itertools.count()


def unused(kind: str, suffix: str = ".zarr") -> str:
    """A name that no other result has."""
    return f"{kind}-{next(_numbers)}{suffix}"
