"""The networks that ``training.py`` trains, and the volumes that it trains them on."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CLASSES = 3


class Up(nn.Module):
    """A transposed convolution to a finer level, the skip of which joins, and its convolutions."""

    def __init__(self, coarse: int, fine: int, norm: str, p: float) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.ConvTranspose3d(coarse, fine, 2, stride=2), *dropout(p))
        self.convs = nn.Sequential(*unit(2 * fine, fine, norm, p), *unit(fine, fine, norm, p))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        found: Tensor = self.convs(torch.cat([self.up(x), skip], 1))
        return found


class PaperNet(nn.Module):
    """The 3-D U-Net of Hou et al. 2019, as their published code has it.

    Two convolutions per level, each followed by a batch norm, a leaky ReLU and, but for the first,
    dropout; so are transposed convolutions, by dropout alone. With ``checkpointed``, blocks are
    computed again backward, instead of being kept.
    """

    def __init__(
        self, features: Sequence[int] = (32, 64, 128, 256), norm: str = "batch", p: float = 0.5
    ) -> None:
        super().__init__()
        self.checkpointed = False
        first = [*unit(1, features[0], norm, 0.0), *unit(features[0], features[0], norm, p)]
        self.down = nn.ModuleList([nn.Sequential(*first)])
        for fine, coarse in itertools.pairwise(features):
            layers = [*unit(fine, coarse, norm, p), *unit(coarse, coarse, norm, p)]
            self.down.append(nn.Sequential(nn.MaxPool3d(2), *layers))
        self.up = nn.ModuleList(
            Up(coarse, fine, norm, p) for fine, coarse in itertools.pairwise(features)
        )
        self.head = nn.Conv3d(features[0], CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        skips, x = list[Tensor](), image
        for down in self.down:
            x = self._run(down, x)
            skips.append(x)
        for up, skip in zip(reversed(self.up), reversed(skips[:-1]), strict=True):
            x = self._run(up, x, skip)
        scores: Tensor = self.head(x)
        return scores

    def _run(self, block: nn.Module, *given: Tensor) -> Tensor:
        found: Tensor = (
            checkpoint(block, *given, use_reentrant=False) if self.checkpointed else block(*given)
        )
        return found


def unit(before: int, after: int, norm: str, p: float) -> list[nn.Module]:
    """A convolution and what follows it."""
    norms = {"batch": nn.BatchNorm3d(after), "instance": nn.InstanceNorm3d(after, affine=True)}
    return [
        nn.Conv3d(before, after, 3, padding=1, bias=False), norms[norm],
        nn.LeakyReLU(0.1, inplace=True), *dropout(p),
    ]  # fmt: skip


def dropout(p: float) -> list[nn.Module]:
    return [nn.Dropout(p)] if p else []


def network(net: str, features: Sequence[int]) -> nn.Module:
    """A network in training mode: ``batch`` or ``instance``, as in the paper, or a ``plane``'s."""
    torch.manual_seed(0)
    if net == "plane":
        from volflow.model.unet import UNet

        return UNet(1, CLASSES, tuple(features), norm="batch", dims=2).train()
    return PaperNet(features, net, 0.5 if net == "batch" else 0.0).train()


def make_images(image: Path, labels: Path, sides: Sequence[int]) -> None:
    """Store noise and random labels, a slab at a time, so that neither is ever in memory."""
    import numpy as np

    from volflow.geometry.roi import Roi
    from volflow.store.create import create
    from volflow.store.meta import Meta, VolumeSpec

    shape: Any = (1,) * (3 - len(sides)) + tuple(sides)
    draw, along = np.random.default_rng(0), 3 - len(sides)
    for path, dtype in ((image, "float32"), (labels, "uint8")):
        if path.exists():
            continue
        part = path.with_suffix(".part.zarr")
        volume = create(part, VolumeSpec.of(shape, dtype, Meta()), overwrite=True)
        step = (volume.shards or volume.chunks)[along]
        for low in range(0, shape[along], step):
            start, stop = [0, 0, 0], list(shape)
            start[along], stop[along] = low, min(shape[along], low + step)
            box = Roi(tuple(start), tuple(stop))
            if dtype == "uint8":
                volume.write(box, draw.integers(CLASSES, size=box.shape, dtype="uint8"))
            else:
                volume.write(box, draw.standard_normal(box.shape, "float32"))
        part.rename(path)


def saved_bytes(module: nn.Module, sides: Sequence[int], dtype: torch.dtype | None = None) -> int:
    """Bytes that plain autograd saves for the backward half, counted without computing anything."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    saved: dict[int, Tensor] = {}
    own = {p.shape for p in (*module.parameters(), *module.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.shape not in own:
            saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    cast = torch.autocast("cpu", dtype=dtype) if dtype else torch.autocast("cpu", enabled=False)
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        cast, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):  # fmt: skip
        module(torch.empty(1, 1, *sides))
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def forward_flops(module: nn.Module, sides: Sequence[int]) -> float:
    """Floating-point operations of the convolutions of one forward."""
    from torch.utils.flop_counter import FlopCounterMode

    small = [32] * len(sides)
    with FlopCounterMode(display=False) as counted:
        module.to("meta")(torch.empty(1, 1, *small, device="meta"))
    scale = 1.0
    for side, little in zip(sides, small, strict=True):
        scale *= side / little
    return scale * counted.get_total_flops()


def widest(module: nn.Module, sides: Sequence[int]) -> tuple[nn.Module, tuple[int, ...]]:
    """The convolution with the most operations in a forward, and the shape of its input."""
    best: tuple[float, nn.Module, tuple[int, ...]] = (0.0, module, ())

    def see(part: nn.Module, given: Any, result: Any) -> None:
        nonlocal best
        work = float(part.weight[0].numel() * result.numel())  # type: ignore[operator,index]
        best = max(best, (work, part, tuple(given[0].shape)), key=lambda one: one[0])

    hooks = [
        part.register_forward_hook(see)
        for part in module.modules()
        if isinstance(part, nn.Conv2d | nn.Conv3d)
    ]
    with torch.no_grad():
        module(torch.empty(1, 1, *sides))
    for hook in hooks:
        hook.remove()
    return best[1], best[2]
