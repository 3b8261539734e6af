"""A step in blocks with MONAI's and nnU-Net's networks is the step of plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.partition_oracle import UNDONE
from tests.peers import peer
from tests.training_oracle import check_step

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:::monai")]
pytest.importorskip("monai", reason="MONAI comes with the extra peers")

SIZE = (16, 16, 24)
# The coarsest level of five has three voxels: of two, norms leave but the signs.
DEEP = (16, 16, 48)
# A norm undoes the weight of a convolution of a single channel.
SINGLE = ("deep supervision", "attention")
LEVELS = (2, 4, 4)
NETS = {
    "unet": ("UNet", {"num_res_units": 2}),
    "batch norm": ("UNet", {"norm": "batch"}),
    "segresnet": ("SegResNet", {}),
    "dynunet": ("DynUNet", {}),
    "deep supervision": (
        "DynUNet", {"deep_supervision": True, "deep_supr_num": 1, "res_block": True}),
    "basic": ("BasicUNet", {}),
    "vnet": ("VNet", {}),
    "attention": ("AttentionUnet", {}),
    "plain": ("PlainConvUNet", {}),
    "residual encoder": ("ResidualEncoderUNet", {}),
}  # fmt: skip


class Separate(nn.Module):
    """Deep supervision's outputs, which lie in one dim, one by one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        found = self.net(x)
        if isinstance(found, torch.Tensor):
            return found.unbind(1) if found.ndim == x.ndim + 1 else found
        return found


def made(name: str) -> nn.Module:
    """A network as it is trained."""
    kind, options = NETS[name]
    return Separate(peer(kind, LEVELS, **options))


@pytest.mark.parametrize("name", NETS)
def test_the_step_is_that_of_plain_autograd(name):
    size = DEEP if name in ("basic", "vnet") else SIZE
    check_step(made(name), size, undone=UNDONE if name in SINGLE else 0)


def test_a_batch():
    check_step(made("batch norm"), (16, 16, 16), batch=2)
