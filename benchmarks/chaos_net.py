"""The networks of the chaos series; workers find them by name."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import nn

import volflow as vf


class Logged(nn.Module):
    """Notes each forward on data in a folder, takes as long as told, and may meet a fault.

    Time, notes and fault come from the environment and are no part of the model: a run may be
    finished without them.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """Return two channels."""
        if bool(batch.any()):
            if folder := os.environ.get("CHAOS_NOTES"):
                with (Path(folder) / f"{os.getpid()}").open("a") as notes:
                    notes.write(f"{float(batch.mean()):.9f}\n")
            time.sleep(float(os.environ.get("CHAOS_SLEEP", "0")))
            hungry = Path(os.environ.get("CHAOS_HUNGRY", "not at all"))
            if hungry.exists() and float(batch.max()) > 5:
                hungry.unlink()
                taken = []
                while True:  # until its nanny ends it
                    taken.append(torch.ones(2**22))
                    time.sleep(0.005)
        return self.net(batch)


def logged() -> nn.Module:
    """For the command line."""
    return Logged().eval()


def unet() -> nn.Module:
    """A network that takes memory."""
    torch.manual_seed(0)
    return vf.UNet(1, 2, features=(16, 32)).eval()
