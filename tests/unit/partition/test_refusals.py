"""What has no exact rule is refused by name; a refused model is left as it was."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.partition_oracle import Apply, difference, image
from volflow.errors import InvalidInput, NoExactRule
from volflow.partition.trace import trace

SIZES = (4, 6, 5)


class Host(nn.Module):
    """Holds the op that is refused, two modules deep."""

    def __init__(self, function) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(2, 4, 1), Apply(function))

    def forward(self, x):
        return self.body(x)


def refusal(function, sizes=SIZES) -> str:
    """The message about an op called on the four channels of an image."""
    with pytest.raises(NoExactRule) as caught:
        trace(Host(function).eval(), 2, sizes)
    return str(caught.value)


def gate(x):
    return x.mean((2, 3, 4), keepdim=True)


REFUSED = {
    # every voxel with every other
    "attention": ("matmul", lambda x: x.movedim(1, -1) @ x.movedim(1, 3), "every other"),
    "products": ("matmul", lambda x: torch.matmul(x, x.transpose(3, 4)), "every other"),
    "weights first": ("matmul", lambda x: torch.ones(6, 6) @ x, "every other"),
    "einsum": ("einsum", lambda x: torch.einsum("bcdhw,bcdhw->bc", x, x), "table"),
    "sdpa": ("scaled_dot_product_attention", lambda x: F.scaled_dot_product_attention(x, x, x),
             "table"),
    "linear over an axis": ("linear", lambda x: F.linear(x, torch.ones(3, 5)), "dim 4"),
    "linear by the image": ("linear", lambda x: F.linear(x.movedim(1, -1), gate(x)[0, :, :, 0, 0].T
                                                         .repeat(3, 1)), "weights depend"),
    "conv by the image": ("conv3d", lambda x: F.conv3d(x, gate(x).repeat(3, 1, 1, 1, 1)),
                          "weights depend"),
    "norm by the image": ("instance_norm", lambda x: F.instance_norm(x, weight=gate(x).flatten()),
                          "weights depend"),
    # transforms of functions
    "vmap": ("cumsum", lambda x: torch.vmap(lambda part: part.cumsum(0))(x), "torch.vmap"),
    "vmap beside it": ("mul", lambda x: torch.vmap(lambda n: x * n)(torch.ones(2))[0], "copies"),
    "gradient": ("requires_grad_", lambda x: torch.func.grad(torch.sum)(x), "torch.func"),
    # axes mixed, lost or made
    "flatten": ("flatten", lambda x: x.flatten(2), "mixes axes"),
    "reshape": ("reshape", lambda x: x.reshape(1, 4, 6, 4, 5), "mixes axes"),
    "patches": ("unfold", lambda x: x.unfold(2, 2, 2), "table"),
    "bytes": ("view", lambda x: x.view(torch.int32), "bytes"),
    "plane": ("__getitem__", lambda x: x[:, :, 2], "plane"),
    "select": ("select", lambda x: x.select(2, 1), "table"),
    "squeezed axis": ("squeeze", lambda x: x[..., :1].squeeze(-1), "axis"),
    "repeated axis": ("repeat", lambda x: x.repeat(1, 1, 2, 1, 1), "axis"),
    "expanded axis": ("expand", lambda x: x[..., :1].expand(1, 4, 4, 6, 5), "axis"),
    "joined along an axis": ("cat", lambda x: torch.cat([x, x], 2), "dim 2"),
    "joined with a constant": ("cat", lambda x: torch.cat([x, torch.zeros(1, 1, 4, 6, 5)], 1),
                               "not computed from it"),
    "joined across": ("cat", lambda x: torch.cat([x[..., :4], x[..., :4].transpose(2, 4)
                                                  .expand(1, 4, 4, 6, -1)[:, :, :4]], 1), "axes"),
    "stacked with a constant": ("stack", lambda x: torch.stack([x, torch.zeros(1, 4, 4, 6, 5)]),
                                "axes"),
    "transposed sum": ("add", lambda x: x[..., :4] + x[..., :4].transpose(2, 4), "different dims"),
    "positions": ("add", lambda x: x + torch.arange(5), "axis of the volume"),
    "a map of weights": ("mul", lambda x: x * torch.ones(4, 6, 5), "axis of the volume"),
    "cut to nothing": ("__getitem__", lambda x: x[..., 5:], "whole volume"),
    # along an axis
    "mean": ("mean", lambda x: x.mean(2), "keeps others"),
    "max": ("max", lambda x: x.max(2), "positions"),
    "amax": ("amax", lambda x: x.amax((3, 4)), "keeps others"),
    "argmax": ("argmax", lambda x: x.argmax(), "merge"),
    "median": ("median", lambda x: x.median(), "merge"),
    "norm": ("norm", lambda x: x.norm(), "merge"),
    "cumsum": ("cumsum", lambda x: torch.cumsum(x, 3), "dim 3"),
    "softmax": ("softmax", lambda x: x.softmax(-1), "dim 4"),
    "softmax of nothing": ("softmax", lambda x: F.softmax(x, _stacklevel=5), "dim is not given"),
    "chunk": ("chunk", lambda x: x.chunk(2, 2), "dim 2"),
    "flipped channels": ("flip", lambda x: x.flip(1), "channels"),
    "rolled channels": ("roll", lambda x: x.roll(1, 1), "not an axis"),
    "rolled in all": ("roll", lambda x: x.roll(1), "not an axis"),
    "reflected channels": ("pad", lambda x: F.pad(x.movedim(1, 3), (0, 0, 1, 1, 0, 0), "reflect"),
                           "channels"),
    "layer norm": ("layer_norm", lambda x: F.layer_norm(x, (4, 6, 5)), "every voxel"),
    "shuffled axis": ("channel_shuffle", lambda x: F.channel_shuffle(x.transpose(1, 2), 2),
                      "dim 1"),
    "prelu along an axis": ("prelu", lambda x: F.prelu(x.transpose(1, 2), torch.ones(4)),
                            "per channel"),
    "norms of what is no image": ("batch_norm", lambda x: F.batch_norm(
        x.movedim(1, -1).transpose(1, 3), None, None, training=True), "not an image"),
    # values
    "bool": ("__bool__", lambda x: x if x.mean() > 0 else -x, "values"),
    "item": ("item", lambda x: x * x.max().item(), "values"),
    "float": ("__float__", lambda x: x * float(x.max()), "values"),
    "tolist": ("tolist", lambda x: x.tolist(), "values"),
    "numpy": ("numpy", lambda x: x.numpy(), "values"),
    "asarray": ("__array__", lambda x: np.asarray(x), "values"),
    "equal": ("equal", lambda x: torch.equal(x, x), "values"),
    "nonzero": ("nonzero", lambda x: x.nonzero(), "values"),
    "masked": ("__getitem__", lambda x: x[x > 0], "values"),
    "gathered": ("__getitem__", lambda x: x[:, torch.tensor([1, 0])], "slices"),
    "moved": ("to", lambda x: x.to("meta"), "moves the image"),
    "data": ("data", lambda x: x.data, "table"),
    # written
    "set": ("__setitem__", lambda x: x.__setitem__((slice(None), 0), 0.0), "writes"),
    "copied": ("copy_", lambda x: x.copy_(x * 2), "writes"),
    "zeroed": ("zero_", lambda x: x.zero_(), "writes"),
    "out": ("add", lambda x: torch.add(x, 1, out=x), "out="),
    "another": ("mul", lambda x: torch.ones(1, 4, 1, 1, 1).mul_(gate(x)), "another tensor"),
    "reshaped": ("squeeze", lambda x: x.squeeze_(0), "shape"),
    # random
    "dropout": ("dropout", lambda x: F.dropout(x), "random"),
    "channel dropout": ("dropout3d", lambda x: F.dropout3d(x, inplace=True), "random"),
    "dropout of a gate": ("dropout", lambda x: x * F.dropout(gate(x), 0.3, True), "random"),
    "torch.dropout": ("alpha_dropout", lambda x: torch.alpha_dropout(x, p=0.5, train=True),
                      "random"),
    "rrelu": ("rrelu", lambda x: F.rrelu(x, training=True), "random"),
    "noise": ("randn_like", lambda x: x + torch.randn_like(x), "random"),
    "drawn gate": ("bernoulli", lambda x: x * gate(x).sigmoid().bernoulli(), "random"),
    # others
    "indices": ("max_pool3d_with_indices", lambda x: F.max_pool3d(x, 2, return_indices=True),
                "table"),
    "adaptive": ("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, 3), "evenly"),
    "adaptive indices": ("adaptive_max_pool3d_with_indices",
                         lambda x: F.adaptive_max_pool3d(x, 2, return_indices=True), "table"),
    "fft": ("fft_fftn", lambda x: torch.fft.fftn(x), "table"),
    "sort": ("sort", lambda x: x.sort(2), "table"),
    "grid": ("grid_sample", lambda x: F.grid_sample(x, torch.zeros(1, 2, 2, 2, 3)), "table"),
    "a constant": ("zeros", lambda x: x + torch.zeros(1, 1, 200, 200, 200), "8,000,000"),
    "many": ("randn", lambda x: x + torch.randn((1000, 2000)), "2,000,000"),
    "made elsewhere": ("add", lambda x: x + torch.ones(1, device="meta"), "without values"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of misuse, which is what is refused
@pytest.mark.parametrize("case", REFUSED)
def test_no_rule_no_result(case):
    op, function, why = REFUSED[case]
    message = refusal(function)
    assert message.startswith(f"{op} in body.1 has no exact rule: ")
    assert why in message
    assert "blend='gaussian'" in message


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda x: F.interpolate(x, size=9, mode="bicubic"), "'bicubic' is not among"),
        (lambda x: F.interpolate(x, size=9, mode="bilinear", antialias=True), "'bilinear'"),
        (lambda x: F.conv2d(x[0], torch.ones(2, 4, 1, 1)), "dims are not batch"),
        (lambda x: F.avg_pool1d(x[0], 2), "2 axes of the image"),
        (lambda x: F.pixel_shuffle(x.transpose(2, 3), 2), "not a plane"),
    ],
)
def test_planes(function, why):
    with pytest.raises(NoExactRule, match=why):
        trace(Apply(function), 4, (6, 7))


class TestInPlace:
    @pytest.mark.parametrize(
        "view",
        [
            lambda x: x.view(4, -1)[:2],
            lambda x: x[:, :2],
            lambda x: x.chunk(2, 1)[0],
            lambda x: x.transpose(0, 1),
            lambda x: x.contiguous(),
            lambda x: x.detach(),
            lambda x: x.to(x.dtype),
            lambda x: F.dropout(x, training=False),
            lambda x: x[..., 1:-1],
        ],
    )
    def test_the_other_view_is_not_to_be_read_again(self, view):
        def function(x):
            y = view(x)
            y += 1
            return x * 2

        with pytest.raises(NoExactRule, match="changed in place through another view"):
            trace(Apply(function), 4, (9,))

    def test_nor_is_a_view_of_what_was_changed(self):
        def function(x):
            y = x[:, :2]
            x.mul_(2)
            return y

        with pytest.raises(NoExactRule, match="return a copy"):
            trace(Apply(function), 4, (9,))

    def test_two_names_of_one_tensor_are_one(self):
        def function(x):
            y = x
            y += 1
            return x * y

        assert difference(Apply(function), image((9,), 2)) == 0


@pytest.mark.parametrize(
    "layer",
    [nn.BatchNorm3d(2), nn.InstanceNorm3d(2, track_running_stats=True), nn.Dropout3d(), nn.RReLU()],
    ids=str,
)
def test_training_mode_is_refused_and_nothing_is_changed(layer):
    net = nn.Sequential(nn.Conv3d(1, 2, 1), layer).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(NoExactRule, match=r"in 1 has no exact rule: .*call model\.eval\(\)"):
        trace(net, 1, SIZES)
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def hooks(module: nn.Module) -> list[list[int]]:
    return [
        [*child._forward_hooks, *child._forward_pre_hooks, *child._backward_hooks]
        for child in module.modules()
    ]


@pytest.mark.parametrize("function", [torch.relu, lambda x: x.flatten(2), lambda x: 1 / 0])
def test_hooks_and_state_are_as_before(function):
    net = Host(function).train()
    net.body[0].register_forward_hook(lambda *_: None)
    before = hooks(net), {name: value.clone() for name, value in net.state_dict().items()}
    grads = torch.is_grad_enabled()
    with contextlib.suppress(NoExactRule, ZeroDivisionError):
        trace(net, 2, SIZES)
    assert hooks(net) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in net.state_dict().items())
    assert net.training
    assert torch.is_grad_enabled() == grads
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert torch.equal(torch.ones(2) + 1, torch.full((2,), 2.0))  # no mode is left behind


class Keeper(nn.Module):
    """Keeps its image in an attribute, in lists and in dicts that are there, and in new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.list, self.dict, self.inner = [1], {"one": 1}, ({"one": [1]}, 2)

    def forward(self, x):
        self.last = x
        self.list.append(x)
        self.dict[tuple(x.shape)] = {"image": [x]}
        self.dict["calls"] = self.dict.get("calls", 0) + 1
        self.inner[0][tuple(x.shape)] = x
        self.inner[0]["one"].append((x, x))
        return x + 1


def test_what_a_module_keeps_is_as_before():
    net = Keeper()
    trace(net, 1, SIZES)
    assert "last" not in vars(net)
    assert net.list == [1]
    assert net.dict == {"one": 1, "calls": 1}  # what is no image stays
    assert net.inner == ({"one": [1]}, 2)


def test_a_module_of_its_own_error():
    with pytest.raises(ZeroDivisionError):
        trace(Apply(lambda x: 1 / 0), 1, (3,))
    with pytest.raises(RuntimeError, match="broadcast"):
        trace(Apply(lambda x: x + x[..., 1:]), 1, (5,))
    with pytest.raises(RuntimeError, match="channel"):
        trace(nn.Conv3d(3, 1, 1), 1, SIZES)


@pytest.mark.parametrize("raw", [None, 3, [], {}, [None], torch.zeros(3), {"a": "b"}])
def test_outputs_are_tensors_that_depend_on_the_image(raw):
    with pytest.raises(NoExactRule, match="must return a tensor"):
        trace(Apply(lambda x: raw), 1, (3,))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_what_is_compiled_shows_no_ops():
    scripted = torch.jit.script(nn.Sequential(nn.Conv1d(1, 1, 1)))
    with pytest.raises(NoExactRule):
        trace(nn.Sequential(scripted, nn.ReLU()), 1, (5,))


def test_a_traced_tensor_holds_no_values():
    seen = []

    class Peek(nn.Module):
        def forward(self, x):
            seen.append((x.shape, x.dtype, x.device.type, x.ndim, len(x), x.numel(), x.is_cuda))
            seen.append(torch.is_tensor(x))
            seen.append(x)
            return x * 1

    trace(Peek(), 3, (4, 5), torch.float16)
    assert seen[0] == ((1, 3, 4, 5), torch.float16, "cpu", 4, 1, 60, False)
    assert seen[1]
    with pytest.raises(NoExactRule, match="values"):
        seen[2].sum().item()
    assert seen[2].meta.is_meta


def test_the_error_is_an_invalid_input():
    assert issubclass(NoExactRule, InvalidInput)
