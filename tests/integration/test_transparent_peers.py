"""MONAI's losses and Lightning's loops train a whole volume as they train the network itself."""

from __future__ import annotations

import copy
import importlib.metadata
import logging
import sys
from contextlib import closing

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import volflow as vf
from tests.peers import peer
from volflow.training import planned

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:::monai"),
    pytest.mark.filterwarnings("ignore:::pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:::lightning_fabric"),
]
monai_losses = pytest.importorskip("monai.losses", reason="MONAI comes with the extra peers")

SIZES, STEPS = (8, 12, 20), 5
EXACT = 1e-12


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(planned, "SIDES", (12,))


def unet(norm: str, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    net = vf.UNet(1, 2, features=(2, 4), norm=norm)
    return nn.Sequential(net, nn.Dropout(dropout)).double().train()


def of_monai() -> nn.Module:
    return peer("UNet", (2, 4)).double().train()


def cases(count: int = STEPS) -> DataLoader:
    """Images and labels, in batches of one, in their order."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, *SIZES, generator=generator, dtype=torch.float64)
    noise = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    return DataLoader(TensorDataset(images, (images + 0.5 * noise > 0.3).long()))


def criterion() -> nn.Module:
    loss: nn.Module = monai_losses.DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    return loss


def assert_same_state(expected: nn.Module, found: nn.Module) -> None:
    """Weights and buffers are equal to rounding."""
    states = expected.state_dict(), found.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        scale = float(value.double().abs().max())
        assert float((states[1][name] - value).abs().max()) <= EXACT * scale, name


def loop(net: nn.Module, trained: nn.Module) -> None:
    """A user's own loop over a network, or over what stands for it."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loss_of = criterion()
    for image, label in cases():
        optimizer.zero_grad()
        loss_of(trained(image), label).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: unet("batch"), id="UNet with batch norm"),
        pytest.param(of_monai, id="UNet of MONAI"),
    ],
)
def test_a_loop_with_the_loss_of_monai(make):
    plain = make()
    begun, net = copy.deepcopy(plain), copy.deepcopy(plain)
    loop(plain, plain)
    with pytest.raises(AssertionError):
        assert_same_state(begun, plain)
    with closing(vf.WholeVolume(net, "1GiB", device="cpu")) as whole:
        loop(net, whole)
    assert_same_state(plain, net)


@pytest.fixture
def no_torchvision(monkeypatch):
    """Makes torchvision look as if it were not installed.

    Lightning's metrics import it wherever it is, though nothing here needs it. It comes from PyPI
    with nnU-Net's networks, and PyPI's does not load beside a torch that is for CPUs only.
    """
    installed = importlib.metadata.distribution

    def distribution(name: str) -> importlib.metadata.Distribution:
        if name == "torchvision":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setitem(sys.modules, "torchvision", None)


@pytest.fixture
def lightning(no_torchvision):
    found = pytest.importorskip("pytorch_lightning", reason="Lightning comes with the extra peers")
    for name in ("pytorch_lightning", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return found


@pytest.fixture
def fit(lightning, tmp_path):
    """Trains a network in a module and by a trainer of theirs."""

    class Segmentation(lightning.LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.criterion = net, criterion()

        def training_step(self, batch, index):
            image, label = batch
            return self.criterion(self.net(image), label)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.net.parameters(), lr=1e-2)

    def fit(net: nn.Module, images: int, epochs: int = 1, begun=None):
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            accumulate_grad_batches=2,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(Segmentation(net), cases(images), ckpt_path=begun)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return fit


def test_a_loop_of_lightning(fit):
    """Gradients are accumulated and clipped by Lightning, which knows nothing of blocks."""
    plain, net = unet("batch"), unet("batch")
    fit(plain, 2 * STEPS)
    with closing(vf.WholeVolume(net, "1GiB", device="cpu")) as whole:
        fit(whole, 2 * STEPS)
    assert whole.steps == 2 * STEPS
    assert_same_state(plain, net)


def test_a_checkpoint_of_lightning_holds_where_dropout_was(fit):
    """Weights, moments and masks go on, at the end of an epoch, as if nothing had happened."""

    def whole():
        return vf.WholeVolume(unet("none", dropout=0.5), "1GiB", device="cpu")

    through, resumed = whole(), whole()
    fit(through, 2, epochs=2)
    fit(resumed, 2, epochs=2, begun=fit(whole(), 2))
    assert resumed.steps == through.steps == 4
    for name, value in through.net.state_dict().items():
        assert torch.equal(resumed.net.state_dict()[name], value), name
