"""Chains of ops computed in one place are the same ops, and touch nobody else's values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.partition_oracle import Apply, blocked, enlarged, image, named
from volflow.model.unet import UNet
from volflow.partition.draws import Draws
from volflow.partition.fusion import fused
from volflow.partition.trace import trace


def names(graph) -> list[str]:
    return [node.name for node in graph.nodes]


def traced(module: nn.Module, channels: int = 2, sizes=(7, 6, 8)):
    return trace(enlarged(module), channels, sizes)


def same(module: nn.Module, x: Tensor, joined: list[str]) -> None:
    """The fused graph, block by block, and the module; some names of nodes that must be there."""
    module = enlarged(module)
    graph = trace(module, x.shape[1], x.shape[2:], x.dtype)
    short = fused(graph)
    assert set(joined) <= set(names(short)), names(short)
    before = x.clone()
    ours = blocked(short, x)
    assert torch.equal(x, before)
    with torch.inference_mode():
        whole = named(module(x.clone()))
    for name, value in whole.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch", "instance", "group"])
def test_unets(norm):
    joined = {
        "none": ["conv3d, relu"],
        "batch": ["conv3d, batch_norm, relu"],
        "instance": ["instance_norm, relu"],
        "group": ["group_norm, relu"],
    }[norm]
    same(UNet(2, 2, features=(3, 4), norm=norm), image((8, 6, 10), 2), joined)


ACTIVATIONS = {
    "relu": F.relu,
    "relu ": torch.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "elu": lambda x: F.elu(x, alpha=0.7),
    "silu": lambda x: F.silu(x, inplace=True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "_threshold": lambda x: F.threshold(x, 0.1, -3.0),
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "mish": F.mish,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    function = ACTIVATIONS[name]
    module = Apply(lambda m, x: function(m.conv(x)), conv=nn.Conv2d(2, 3, 3, padding=1))
    same(module, image((9, 8), 2), [f"conv2d, {name.strip()}"])


def test_sums_and_poolings_are_overwritten_too():
    def residual(m, x):
        y = m.conv(x)
        return F.relu(F.max_pool2d(F.relu(y + x), 2))

    found = ["add, relu", "max_pool2d, relu"]
    same(Apply(residual, conv=nn.Conv2d(2, 2, 3, padding=1)), image((8, 10), 2), found)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_parts_of_what_a_window_spreads_over_are_overwritten(ndim):
    spread = getattr(nn, f"ConvTranspose{ndim}d")(2, 3, 3, stride=2, padding=1, output_padding=1)
    norm = getattr(nn, f"BatchNorm{ndim}d")(3)
    module = nn.Sequential(spread, norm, nn.LeakyReLU())
    joined = f"conv_transpose{ndim}d, batch_norm, leaky_relu"
    same(module, image((7, 5, 6)[:ndim], 2), [joined])


def test_float32_is_float64_to_rounding():
    module = UNet(2, 2, features=(3, 4), norm="batch").eval()
    x = image((8, 6, 10), 2)
    graph = fused(trace(module, 2, (8, 6, 10), torch.float32))
    found = blocked(graph, x.float())[""]
    with torch.inference_mode():
        wanted = module.double()(x)
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-5)


def twice(m, x):
    y = m.conv(x)
    return F.relu(y) + y


def returned(m, x):
    y = m.conv(x)
    return {"raw": y, "active": F.relu(y)}


def of_image(m, x):
    return F.relu(x) + x


def of_view(m, x):
    y = m.conv(x)
    z = F.dropout(y, training=False)  # which is the tensor itself
    return F.relu(z) + y


def of_part(m, x):
    return F.relu(m.conv(x)[:, :1]) + m.conv(x)


@pytest.mark.parametrize("function", [twice, returned, of_image, of_view, of_part])
def test_what_others_read_is_left_as_it_is(function):
    module = Apply(function, conv=nn.Conv2d(2, 2, 3, padding=1))
    assert not any(", " in name for name in names(fused(traced(module, sizes=(6, 5)))))
    same(module, image((6, 5), 2), [])


def test_windows_in_the_padding_alone_leave_the_weights_as_they_are():
    module = nn.Sequential(nn.Conv1d(2, 2, 1, stride=2, padding=3), nn.ReLU()).eval()
    with torch.no_grad():
        module[0].bias.fill_(-1.0)
    same(module, image((4,), 2), ["conv1d, relu"])
    assert (module[0].bias == -1).all()


def test_graphs_for_training_are_left_as_they_are():
    module = UNet(1, 2, features=(3, 4), norm="batch").train()
    graph = trace(module, 1, (8, 8, 8), training=Draws(0, 0))
    assert fused(graph) is graph


def test_a_fused_graph_has_the_outputs_statistics_and_work_of_the_other():
    graph = traced(UNet(2, 2, features=(3, 4), norm="instance"), sizes=(8, 6, 10))
    short = fused(graph)
    assert len(short.nodes) < len(graph.nodes)
    assert len(short.statistics) == len(graph.statistics)
    assert short.outputs.keys() == graph.outputs.keys()
    work = [sum(node.flops * node.depth for node in one.nodes) for one in (short, graph)]
    assert work[0] == work[1]
