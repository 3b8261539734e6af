"""Convolutions of windows and their gradients, computed and unread, equal plain autograd."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.partition_oracle import EXACT, boxes, image, uneven
from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph, Window, read_by
from volflow.partition.rules import onednn
from volflow.partition.rules.convolving import convolve, unread
from volflow.partition.rules.onednn import Form
from volflow.partition.trace import trace

ndims = pytest.mark.parametrize("ndim", [1, 2, 3])
SIZES = {1: (17,), 2: (9, 8), 3: (6, 5, 7)}
FORMS = [
    ("Conv", {"kernel_size": 3, "padding": 1}),
    ("Conv", {"kernel_size": 1}),
    ("Conv", {"kernel_size": 1, "stride": 2, "padding": 1}),
    ("Conv", {"kernel_size": 2, "stride": 3}),
    ("Conv", {"kernel_size": 3, "padding": 4, "stride": 2}),  # windows in the padding alone
    ("Conv", {"kernel_size": 3, "padding": 2, "dilation": 2, "groups": 2, "bias": False}),
    ("Conv", {"kernel_size": 2, "padding": "same"}),
    ("ConvTranspose", {"kernel_size": 2, "stride": 2}),
    ("ConvTranspose", {"kernel_size": 1, "stride": 3, "output_padding": 2}),  # and of no window
    ("ConvTranspose", {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1}),
    ("ConvTranspose", {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
    ("ConvTranspose", {"kernel_size": 5, "padding": 2, "bias": False}),
]
forms = pytest.mark.parametrize(("kind", "named"), FORMS)


def layer(kind: str, ndim: int, named) -> nn.Module:
    torch.manual_seed(3)
    return getattr(nn, f"{kind}{ndim}d")(2, 4, **named).double()


def by_blocks(graph: Graph, leaves, gradient, method: str) -> list[torch.Tensor]:
    """The gradients of all blocks of the one convolution of a graph, added up."""
    node, x = graph.nodes[1], leaves[0]
    total = [torch.zeros_like(leaf) for leaf in leaves]
    sizes = graph.sizes(1)
    for box in boxes(sizes, uneven(sizes, 7)):
        part = read_by(node.reads[0], box)
        window = Window(x[(..., *part.slices())], part)
        result = getattr(node.compute, method)([window], box)
        assert result.shape == (1, 4, *box.shape)
        assert result.dtype == x.dtype
        if result.requires_grad:
            upstream = gradient[(..., *box.slices())]
            found = torch.autograd.grad(result, leaves, upstream, allow_unused=True)
            for one, more in zip(total, found, strict=True):
                one += 0 if more is None else more
    return total


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@ndims
@forms
@pytest.mark.parametrize("method", ["__call__", "unread"])
def test_gradients_of_blocks_add_up_to_those_of_the_whole(ndim, kind, named, method):
    module, x = layer(kind, ndim, named), image(SIZES[ndim], 2).requires_grad_()
    leaves = [x, *module.parameters()]
    result = module(x)
    gradient = torch.randn_like(result)
    wanted = torch.autograd.grad(result, leaves, gradient)
    found = by_blocks(trace(module, 2, SIZES[ndim]), leaves, gradient, method)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=EXACT * float(other.abs().max()))


@forms
def test_what_is_unread_is_not_computed(kind, named):
    module, x = layer(kind, 3, named), image(SIZES[3], 2)
    graph = trace(module, 2, SIZES[3])
    box = Roi.full(graph.sizes(1))
    result = graph.nodes[1].compute.unread([Window(x, Roi.full(SIZES[3]))], box)
    assert result.shape == graph.nodes[1].shape
    assert not any(result.stride())
    assert result.untyped_storage().nbytes() == result.element_size()


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("sizes", [(6, 5, 7), (3, 1, 2)], ids=["some", "few"])
def test_autocast_gives_the_dtype_that_torch_gives(kind, sizes):
    named = {"kernel_size": 3, "padding": 1 if kind == "Conv" else 0}
    module, x = layer(kind, 3, named).float(), image(sizes, 2).float().requires_grad_()
    leaves, graph = [x, *module.parameters()], trace(module, 2, sizes)
    box = Roi.full(graph.sizes(1))
    windows = [Window(x, Roi.full(sizes))]
    compute = graph.nodes[1].compute
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = [module(x), compute(windows, box), compute.unread(windows, box)]
        nothing = Window(x[:, :, :0], Roi.full((0, *sizes[1:])))
        assert compute([nothing], box).dtype == torch.bfloat16
    assert {result.dtype for result in results} == {torch.bfloat16}
    gradient = torch.randn_like(results[0])
    wanted, *others = (torch.autograd.grad(result, leaves, gradient) for result in results)
    for found in others:
        for one, other in zip(found, wanted, strict=True):
            assert one.dtype == other.dtype == torch.float32
            torch.testing.assert_close(one, other, rtol=0, atol=2e-2 * float(other.abs().max()))


# Sizes of windows, channels, kernel, stride, padding, dilation, groups: those that torch unfolds,
# and two larger ones.
FLOAT32 = [
    ((7, 6, 9), (4, 6), 3, 1, 1, 1, 1),
    ((7, 6, 9), (1, 4), 3, 1, 0, 1, 1),
    ((7, 6, 9), (4, 4), 3, 2, 1, 1, 2),
    ((9, 8, 7), (4, 4), 3, 1, 2, 2, 1),
    ((9, 9, 9), (4, 4), 2, 3, 0, 1, 1),
    ((3, 1, 1), (4, 4), 1, 4, 0, 1, 1),
    ((7, 6, 9), (8, 3), 1, 1, 0, 1, 1),
    ((5, 5, 6), (4, 4), 5, 1, 2, 1, 1),
    ((11, 12), (4, 4), 3, 2, 1, 1, 1),
    ((1, 9), (4, 2), 3, 1, 2, 2, 1),
    ((60, 22, 8), (16, 8), 3, 1, 1, 1, 1),
    ((90, 90), (8, 8), 3, 1, 1, 1, 1),
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("sizes", "channels", "kernel", "stride", "padding", "step", "groups"), FLOAT32
)
def test_float32_is_float64_to_rounding(
    sizes, channels, kernel, stride, padding, step, groups, transposed
):
    torch.manual_seed(5)
    n, (before, after) = len(sizes), channels
    if before % groups or (transposed and min(sizes) < 2):
        pytest.skip("no such convolution")
    form = Form((stride,) * n, (0 if transposed else padding,) * n, (step,) * n, groups, transposed)
    shape = (before, after // groups) if transposed else (after, before // groups)
    exact = [
        torch.randn(1, before, *sizes, dtype=torch.float64),
        torch.randn(*shape, *(kernel,) * n, dtype=torch.float64),
        torch.randn(after, dtype=torch.float64),
    ]
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = [one.to(dtype).requires_grad_() for one in exact]
        value = convolve(*leaves, form)
        gradient = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).reshape(value.shape)
        apart = unread(*leaves, form, tuple(value.shape))
        results.append(
            [value]
            + [
                found
                for result in (value, apart)
                for found in torch.autograd.grad(result, leaves, gradient.to(dtype))
            ]
        )
    for wanted, found in zip(*results, strict=True):
        assert wanted.shape == found.shape
        assert found.dtype == torch.float32
        torch.testing.assert_close(
            found.detach().double(),
            wanted.detach(),
            rtol=0,
            atol=1e-5 * float(wanted.detach().abs().max()),
        )


def operations(run) -> set[str]:
    with torch.profiler.profile() as profile:
        run()
    return {event.name for event in profile.events()}


@pytest.mark.slow
def test_small_windows_are_not_unfolded(monkeypatch):
    x, weight = torch.randn(1, 16, 10, 10, 10), torch.randn(16, 16, 3, 3, 3)
    form = Form((1,) * 3, (1,) * 3, (1,) * 3, 1)
    assert "aten::slow_conv3d" in operations(lambda: torch.conv3d(x, weight, padding=1))
    found = operations(lambda: convolve(x, weight, None, form))
    assert "aten::mkldnn_convolution" in found
    assert not any("slow" in name for name in found)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert "aten::slow_conv3d" in operations(lambda: convolve(x, weight, None, form))


def test_results_lie_channels_last_and_are_taken_as_they_are():
    form = Form((1,) * 3, (1,) * 3, (1,) * 3, 1)
    first = convolve(torch.randn(1, 1, 6, 6, 6), torch.randn(4, 1, 3, 3, 3), None, form)
    assert first.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.profiler.profile(record_shapes=True) as profile:
        convolve(first, torch.randn(4, 4, 3, 3, 3), None, form)
    copied = [event.input_shapes[0] for event in profile.events() if event.name == "aten::copy_"]
    assert list(first.shape) not in copied


def test_only_the_input_and_the_weight_are_kept():
    x, weight = torch.randn(1, 4, 6, 6, 6), torch.randn(4, 4, 3, 3, 3, requires_grad=True)
    bias, form = torch.randn(4, requires_grad=True), Form((1,) * 3, (1,) * 3, (1,) * 3, 1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()), lambda t: t):
        convolve(x, weight, bias, form)
        unread(x, weight, bias, form, (1, 4, 6, 6, 6))
    assert kept == 2 * [x.data_ptr(), weight.data_ptr()]


@pytest.mark.parametrize("due", ["x", "weight", "bias"])
@pytest.mark.parametrize("function", [convolve, unread])
def test_gradients_are_computed_of_what_needs_them(monkeypatch, due, function):
    tensors = {"x": torch.randn(1, 4, 6, 6, 6), "weight": torch.randn(4, 4, 3, 3, 3)}
    tensors["bias"] = torch.randn(4)
    tensors[due].requires_grad_()
    called = []
    for name in ("of_input", "of_weight"):
        rule = getattr(onednn, name)
        monkeypatch.setattr(
            onednn, name, lambda *a, rule=rule, name=name: called.append(name) or rule(*a)
        )
    form = Form((1,) * 3, (1,) * 3, (1,) * 3, 1)
    shape = ((1, 4, 6, 6, 6),) if function is unread else ()
    function(*tensors.values(), form, *shape).sum().backward()
    assert called == {"x": ["of_input"], "weight": ["of_weight"], "bias": []}[due]
    assert tensors[due].grad is not None


@pytest.fixture(params=["library", "op", "signature"])
def lacking(request, monkeypatch):
    """A torch without oneDNN, of a version without one of its ops, or with another form of it."""
    if request.param == "library":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    else:
        ops = SimpleNamespace()
        if request.param == "signature":
            ops._convolution_transpose_pointwise = lambda x, weight: x
        monkeypatch.setattr(torch.ops, "mkldnn", ops)
    onednn.is_there.cache_clear()
    yield
    onednn.is_there.cache_clear()


@pytest.mark.parametrize("function", [convolve, unread])
@pytest.mark.parametrize("transposed", [False, True])
def test_torch_convolves_where_onednn_is_lacking(lacking, monkeypatch, function, transposed):
    x = torch.randn(1, 4, 6, 6, 6, requires_grad=True)
    weight, bias = torch.randn(4, 4, 3, 3, 3, requires_grad=True), torch.randn(4)
    form = Form((1,) * 3, (0,) * 3, (1,) * 3, 1, transposed)
    expected = (F.conv_transpose3d if transposed else F.conv3d)(x, weight, bias)
    assert not onednn.is_taken(x, weight)
    for name in ("convolved", "spread", "of_input", "of_weight"):
        monkeypatch.delattr(onednn, name)
    found = function(x, weight, bias, form, *((expected.shape,) if function is unread else ()))
    if function is convolve:
        torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    gradients = (torch.autograd.grad(y, (x, weight), upstream) for y in (found, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
