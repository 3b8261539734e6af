"""U-Nets of every kind take the step of plain autograd, in blocks of any size."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from partition_oracle import UNDONE, Apply, enlarged, image
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from training_oracle import (
    DiceEntropy,
    assert_same_step,
    blocked_step,
    check_step,
    masked_step,
    plain_step,
    target_of,
)

from volflow.model.unet import UNet

SIZE = (8, 12, 16)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


NORMS = ("none", "batch", "instance", "group")


def conv(inputs: int = 2, outputs: int = 2, kernel: int = 3, **options) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, kernel, padding=kernel // 2, **options)


def unets():
    """Two levels daily, with every norm; up to five levels in CI."""
    for levels, norm, up in itertools.product((2, 3, 4, 5), NORMS, ("transposed", "linear")):
        daily = levels == 2 or (levels, norm, up) == (3, "batch", "linear")
        yield pytest.param(levels, norm, up, marks=() if daily else pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "norm", "up"), [*unets()])
def test_unets(levels, norm, up):
    net = UNet(1, 2, features=(2, 2, 4, 4, 4)[:levels], norm=norm, up=up)
    side = 2 ** (levels - 1)
    # The last level has more than one voxel, so that norms have something to measure.
    sizes = tuple(max(2, -(-n // side)) * side for n in (8, 12, 12))
    # Before four levels of norms, terms cancel that are a thousand times as large as their sum.
    check_step(net, sizes, undone=UNDONE if levels == 5 else 0)


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_a_volume_that_is_padded(norm, training):
    net = UNet(1, 2, features=(2, 4), norm=norm)
    check_step(net, (7, 10, 11), (8, 10, 12), training=training)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
def test_a_batch_of_two(norm):
    check_step(UNet(1, 2, features=(2, 4), norm=norm), SIZE, batch=2)


def residual(self, x):
    x = self.stem(x)
    y = self.second(F.relu(self.norm(self.first(x))))
    gate = self.excite(F.relu(self.squeeze(y.mean((2, 3, 4), keepdim=True)))).sigmoid()
    down = F.elu(self.down(x + y * gate))
    return self.head(self.up(down) + x)


def residual_layers(norm: nn.Module) -> dict[str, nn.Module]:
    return {
        "stem": conv(1), "first": conv(), "second": conv(), "norm": norm, "squeeze": conv(kernel=1),
        "excite": conv(kernel=1), "down": nn.Conv3d(2, 4, 3, 2, 1),
        "up": nn.ConvTranspose3d(4, 2, 2, 2), "head": conv(kernel=1),
    }  # fmt: skip


BLOCK_NORMS = {
    "none": nn.Identity(),
    "batch": nn.BatchNorm3d(2),
    "instance": nn.InstanceNorm3d(2, affine=True),
    "group": nn.GroupNorm(1, 2),
}


@pytest.mark.parametrize("norm", BLOCK_NORMS)
@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_residual_blocks_with_squeeze_and_excitation(norm, training):
    check_step(Apply(residual, **residual_layers(BLOCK_NORMS[norm])), SIZE, training=training)


class Cropped(nn.Sequential):
    """Layers whose result is cut to the size of the image."""

    def forward(self, x):
        return super().forward(x)[(..., *(slice(0, n) for n in x.shape[2:]))]


@pytest.mark.parametrize("norm", [nn.BatchNorm3d, nn.InstanceNorm3d])
@pytest.mark.parametrize("batch", [1, 2])
def test_strides_down_and_up(norm, batch):
    net = Cropped(
        nn.Conv3d(1, 4, 3, 2, 1), norm(4), nn.PReLU(4), nn.Conv3d(4, 4, (2, 3, 1), (1, 3, 2)),
        norm(4), nn.SiLU(), nn.ConvTranspose3d(4, 4, (2, 3, 4), (1, 3, 4), (0, 0, 1), (0, 0, 1)),
        norm(4), nn.ConvTranspose3d(4, 2, 4, 2, 1),
    )  # fmt: skip
    check_step(net, (8, 12, 16), batch=batch)


def coarse_and_fine(self, x):
    x = self.first(x)
    y = self.second(F.max_pool3d(x.relu(), 2))
    return {"fine": self.fine(x + self.up(y)), "coarse": self.coarse(y)}


class Half(nn.Module):
    """A loss sees all outputs at the same size: the coarse one is enlarged."""

    def __init__(self, net: nn.Module, kind: type) -> None:
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, x):
        found = self.net(x)
        found["coarse"] = F.interpolate(found["coarse"], scale_factor=2)
        return found if self.kind is dict else self.kind(found.values())


@pytest.mark.parametrize("kind", [dict, tuple, list])
def test_several_outputs(kind):
    layers = {
        "first": conv(1), "second": conv(), "up": nn.ConvTranspose3d(2, 2, 2, 2),
        "fine": conv(kernel=1), "coarse": conv(kernel=1),
    }  # fmt: skip
    check_step(Half(Apply(coarse_and_fine, **layers), kind), SIZE)


def test_outputs_that_others_read():
    """The raw output of a convolution is kept for its readers, and returned as well."""

    def both(self, x):
        x = self.first(x)
        return x, self.second(x.tanh()), self.second(x)

    check_step(Apply(both, first=conv(1), second=conv()), SIZE)


def dropping(self, x):
    x = self.norm(self.voxels(self.first(x)))
    x = self.second(F.relu(self.channels(x)))
    return self.last(x * F.dropout(x.mean((2, 3, 4), keepdim=True), 0.4, self.training))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_dropout_with_the_same_masks(batch, seed):
    """Plain autograd is given the masks of the whole; those of blocks are parts of them."""
    net = Apply(
        dropping, first=conv(1, 4), voxels=nn.Dropout(0.3), norm=nn.BatchNorm3d(4),
        channels=nn.Dropout3d(0.3), second=conv(4, 4), last=conv(4, 2),
    )  # fmt: skip
    net = enlarged(net, 1.5).train()
    x = torch.cat([image(SIZE, 1, n) for n in range(batch)])
    loss = DiceEntropy(target_of(SIZE, 2, batch))
    assert_same_step(masked_step(net, x, SIZE, loss), blocked_step(net, x, SIZE, loss, seed))


class Standardised(nn.Conv3d):
    """Its weights are computed from its parameters."""

    def forward(self, x):
        centred = self.weight - self.weight.mean((1, 2, 3, 4), keepdim=True)
        scale = centred.flatten(1).std(1).reshape(-1, 1, 1, 1, 1)
        return F.conv3d(x, centred / scale, self.bias, padding=1)


class Squared(nn.Module):
    """A parametrization: weights are squares."""

    def forward(self, weight):
        return weight.square() - 0.1


def with_squares() -> nn.Module:
    layer = conv()
    parametrize.register_parametrization(layer, "weight", Squared())
    return layer


COMPUTED = {
    "standardised": lambda: Standardised(2, 2, 3),
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "orthogonal": lambda: parametrizations.orthogonal(conv()),
    "parametrization": with_squares,
}


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_that_are_computed(name):
    layers = conv(1), nn.InstanceNorm3d(2), nn.ReLU(), COMPUTED[name](), nn.Tanh(), conv()
    check_step(nn.Sequential(*layers), SIZE)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_weight_norm_by_a_hook():
    """Its module cannot be copied, so it is made twice."""
    steps = []
    for step in (plain_step, blocked_step):

        class Made(nn.Module):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                layers = conv(1), nn.ReLU(), nn.utils.weight_norm(conv()), nn.Tanh(), conv()
                self.net = nn.Sequential(*layers).double()

            def __deepcopy__(self, memory):
                return Made()

            def forward(self, x):
                return self.net(x)

        steps.append(step(Made(), image(SIZE, 1), SIZE, DiceEntropy(target_of(SIZE))))
    assert_same_step(*steps)


@pytest.mark.slow
def test_frozen_weights_have_no_gradient():
    net = UNet(1, 2, features=(2, 4), norm="batch")
    for n, p in enumerate(net.parameters()):
        p.requires_grad_(n % 3 == 1)
    check_step(net, SIZE)
    check_step(net.requires_grad_(False), SIZE)


def test_a_frozen_norm_among_others():
    net = nn.Sequential(conv(1), nn.BatchNorm3d(2), nn.ReLU(), conv(), nn.BatchNorm3d(2), conv())

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def train(self, mode: bool = True):
            super().train(mode)
            self.net[1].eval()
            return self

        def forward(self, x):
            return self.net(x)

    check_step(Frozen(), SIZE)


def test_one_module_called_twice():
    def shared(self, x):
        x = self.norm(self.inner(self.first(x)))
        return self.first(self.norm(self.inner(x.relu()))[:, :1])

    layers = {"first": conv(1), "inner": conv(), "norm": nn.BatchNorm3d(2, momentum=None)}
    check_step(Apply(shared, **layers), SIZE)


def test_planes_and_lines():
    check_step(UNet(1, 2, features=(2, 4, 4), norm="batch", dims=2), (20, 28))
    line = nn.Conv1d(1, 4, 5, 2, 2), nn.BatchNorm1d(4), nn.GELU(), nn.ConvTranspose1d(4, 2, 2, 2)
    check_step(nn.Sequential(*line), (38,))
