"""Small networks for tests; they travel to worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

# Batch sizes of the forwards of this process that saw any data: trial forwards see zeros.
calls: list[int] = []


def random_net(channels_in: int = 1, channels_out: int = 2, seed: int = 0) -> nn.Module:
    """A net whose zero padding makes patches disagree at their borders."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(channels_in, 4, 3, padding=1),
        nn.GELU(),
        nn.Conv3d(4, channels_out, 3, padding=1),
    ).eval()


def slice_net(channels_in: int = 1, channels_out: int = 2, seed: int = 0) -> nn.Module:
    """The same in 2-D."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels_in, 4, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(4, channels_out, 3, padding=1),
    ).eval()


def smooth(net: Any) -> Any:
    """A U-Net without kinks, at which rounding moves a gradient by all that a voxel gives."""
    for block in (*net.encode, *net.decode):
        for name, layer in block.named_children():
            if isinstance(layer, nn.ReLU):
                setattr(block, name, nn.SiLU())
    net.pool = nn.AvgPool3d(2)
    return net


class Counted(nn.Module):
    """Counts the forwards that see data."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if bool(batch.any()):
            calls.append(len(batch))
        return self.net(batch)


class Named(nn.Module):
    """Two outputs by name."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"seg": self.first(batch), "edge": self.second(batch)}


class Paired(Named):
    """The same without names."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(super().forward(batch).values())


class Shaped(nn.Module):
    """Returns zeros of a shape, whatever it sees."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(batch), *self.shape)


class Greedy(nn.Module):
    """Has memory for so many patches at a time; asks for more on data only, or always."""

    def __init__(self, net: nn.Module, most: int, *, always: bool = False) -> None:
        super().__init__()
        self.net, self.most, self.always = net, most, always

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > self.most and (self.always or bool(batch.any())):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.99 GiB.")
        if bool(batch.any()):
            calls.append(len(batch))
        return self.net(batch)


class Breaking(nn.Module):
    """Fails where it sees a value above a limit."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if float(batch.max()) > self.limit:
            raise ArithmeticError("too bright")
        return batch


class Tiring(nn.Module):
    """Fails after so many forwards on data; ``most`` is shared by all, and no part of the model."""

    most: ClassVar[list[float]] = [float("inf")]

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        if bool(batch.any()):
            if len(calls) >= self.most[0]:
                raise ConnectionError("too tired")
            calls.append(len(batch))
        return self.net(batch)


class NotANumber(nn.Module):
    """Divides 0 by 0 where it sees data."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch * float("nan") if bool(batch.any()) else batch


class Slow(nn.Module):
    """Sleeps for each patch that holds data, as long as the environment says.

    The time is no part of the model, so that a run may be finished faster than it was begun.
    Where the environment names a folder, each process leaves its number there.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        seconds = float(os.environ.get("VOLFLOW_TEST_SLEEP", "0"))
        time.sleep(seconds * sum(bool(patch.any()) for patch in batch))
        if folder := os.environ.get("VOLFLOW_TEST_PIDS"):
            (Path(folder) / str(os.getpid())).touch()
        return self.net(batch)


class Faulty(nn.Module):
    """Meets a fault where it sees a value above a limit, as long as the environment names a file.

    What the file says is done, by the process that meets it: it is killed by a signal, or takes
    memory until it is killed. The fault is no part of the model, so it can be mended.
    """

    def __init__(self, net: nn.Module, limit: float) -> None:
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        file = Path(os.environ.get("VOLFLOW_TEST_FAULT", "no fault"))
        if file.exists() and float(batch.max()) > self.limit:
            what = file.read_text()
            with (file.parent / "met").open("a") as met:
                met.write(f"{os.getpid()}\n")
            if what == "once hungry":
                file.unlink()
            if what == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            taken = []
            while True:  # until its nanny ends it
                taken.append(torch.ones(2**22))
                time.sleep(0.005)
        return self.net(batch)


def slow() -> nn.Module:
    """For the command line."""
    return Slow(random_net())


def mirrored(net: nn.Module, batch: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """What a net says of a mirrored batch, mirrored back."""
    dims = [2 + axis for axis in axes]
    return net(batch.flip(dims)).flip(dims)
