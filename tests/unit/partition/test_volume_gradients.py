"""Gradients of what depends on the whole volume, in blocks, against plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.partition_oracle import Apply, enlarged, image
from tests.pulled import check_gradients
from volflow.geometry.roi import Roi
from volflow.partition.extremes import Extreme
from volflow.partition.reductions import MeanVariance
from volflow.partition.rules.norming.normalized import normalized

SIZES = (6, 5, 7)
AXES = (2, 3, 4)


def conv(channels_in: int = 2, channels_out: int = 4, stride: int = 1) -> nn.Module:
    torch.manual_seed(channels_in + channels_out)
    return nn.Conv3d(channels_in, channels_out, 3, stride, padding=1)


NORMS = {
    "instance": lambda c: nn.InstanceNorm3d(c),
    "instance with weights": lambda c: nn.InstanceNorm3d(c, affine=True),
    "group": lambda c: nn.GroupNorm(2, c),
    "layer": lambda c: nn.GroupNorm(1, c, affine=False),
    "batch": lambda c: nn.BatchNorm3d(c),
    "batch without weights": lambda c: nn.BatchNorm3d(c, affine=False),
    "batch without buffers": lambda c: nn.BatchNorm3d(c, track_running_stats=False),
    "batch averaged": lambda c: nn.BatchNorm3d(c, momentum=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("norm", NORMS)
def test_norms_of_the_volume(norm, batch):
    make = NORMS[norm]
    net = nn.Sequential(conv(), make(4), nn.ReLU(), conv(4, 4, 2), make(4), nn.GELU(), conv(4, 2))
    check_gradients(net, (6, 5, 8), batch=batch)


@pytest.mark.parametrize("ndim", [1, 2])
def test_norms_of_lines_and_planes(ndim):
    layer = getattr(nn, f"Conv{ndim}d")(2, 4, 3)
    # A norm undoes the weights of one before it but for its eps: a small one would leave of their
    # gradient little more than rounding.
    norms = [nn.GroupNorm(2, 4), getattr(nn, f"BatchNorm{ndim}d")(4, eps=0.5)]
    check_gradients(nn.Sequential(layer, *norms), (17, 9)[:ndim], batch=2)


def test_a_norm_in_eval_mode_has_constants():
    net = nn.Sequential(conv(), nn.BatchNorm3d(4), nn.InstanceNorm3d(4, track_running_stats=True))
    check_gradients(enlarged(net), SIZES, batch=2, training=False)


def test_a_norm_of_the_image_itself():
    net = nn.Sequential(nn.InstanceNorm3d(2), conv(), nn.BatchNorm3d(4))
    check_gradients(net, SIZES, batch=2)


def test_a_norm_used_twice_updates_its_buffers_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(2, 2), nn.BatchNorm3d(2, momentum=None)

        def forward(self, x):
            return self.norm(self.conv(self.norm(x)))

    check_gradients(Twice(), SIZES, batch=2)


REDUCED = {
    "mean": lambda x: x - x.mean(AXES, keepdim=True) ** 2,
    "mean of all": lambda x: x * x.mean(),
    "sum": lambda x: x * x.sum((1, *AXES), keepdim=True),
    "variance": lambda x: x / x.var(AXES, keepdim=True),
    "variance, biased": lambda x: x * x.var(AXES, keepdim=True, unbiased=False),
    "variance of all": lambda x: x * x.var(),
    "deviation": lambda x: x / x.std((1, *AXES), keepdim=True),
    "deviation of nothing": lambda x: x + (x * 0).std(AXES, keepdim=True),
    "of the batch": lambda x: (
        x - x.mean((0, *AXES), keepdim=True) * x.var((0, *AXES), keepdim=True)
    ),
    "squares": lambda x: x * (x * x).mean(AXES, keepdim=True).rsqrt(),
    "maximum": lambda x: x / x.amax(AXES, keepdim=True),
    "minimum": lambda x: x * x.amin(AXES, keepdim=True),
    "maximum of all": lambda x: x * x.max() + x.amax(),
    "minimum of all": lambda x: x * x.min() - x.amin((0, 1, *AXES)),
    "pooled": lambda x: x * F.adaptive_max_pool3d(x, 1) + F.adaptive_avg_pool3d(x, 1),
    "pooled at once": lambda x: x + F.avg_pool3d(x, x.shape[2:]),
    "of what is reduced": lambda x: x * (x - x.mean(AXES, keepdim=True)).amax(AXES, keepdim=True),
    "outputs": lambda x: {"mean": x.mean(AXES), "max": x.amax(AXES), "x": x * 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", REDUCED)
def test_reductions_of_the_volume(kind, batch):
    check_gradients(nn.Sequential(conv(2, 3), Apply(REDUCED[kind])), SIZES, batch=batch)


TIES = {
    "maximum": lambda x: x * x.amax(AXES, keepdim=True),
    "minimum": lambda x: x * x.amin(AXES, keepdim=True),
    "maximum of all": lambda x: x * x.max(),
    "of some channels": lambda x: x * x.amax((1, *AXES), keepdim=True),
    "of the batch": lambda x: x * x.amin((0, *AXES), keepdim=True),
    "pooled": lambda x: x * F.adaptive_max_pool3d(x, 1),
}


@pytest.mark.parametrize("kind", TIES)
def test_equal_voxels_share_a_gradient_as_torch_has_it(kind):
    """All of them alike; a pooling gives it to the first alone."""

    def levelled(x):
        return TIES[kind](x.clamp(-0.6, 0.7))

    check_gradients(Apply(levelled), SIZES, batch=2)
    check_gradients(Apply(lambda x: TIES[kind](x * 0)), SIZES)


def test_squeeze_and_excitation():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.down, self.up = conv(2, 4), nn.Linear(4, 2), nn.Linear(2, 4)

        def forward(self, x):
            x = self.conv(x)
            gate = self.up(F.relu(self.down(x.mean(AXES)))).sigmoid()
            return x * gate[..., None, None, None]

    check_gradients(Gated(), SIZES, batch=2)


def moments_of(x, dims):
    kept = tuple(n for n, axis in zip(x.shape, dims, strict=True) if axis is None)
    return MeanVariance(dims, kept), Roi.full([x.shape[dims.index(a)] for a in range(3)])


DIMS = {
    "image": (None, None, 0, 1, 2),
    "channels last": (None, 0, 1, 2, None),
    "axes turned": (None, 2, None, 0, 1),
    "axes alone": (0, 1, 2),
}


@pytest.mark.parametrize("dims", DIMS.values(), ids=DIMS)
@pytest.mark.parametrize("last", [False, True], ids=["", "channels last in memory"])
def test_moments_and_their_pull(dims, last):
    sides = iter((5, 6, 7))
    shape = [{0: 4, 1: 3, 2: 5}[a] if a is not None else next(sides) for a in dims]
    x = torch.randn(shape, dtype=torch.float64) + 3
    if last:
        if len(shape) < 5:
            pytest.skip("no channels")
        x = x.to(memory_format=torch.channels_last_3d)
    rule, box = moments_of(x, dims)
    axes = [d for d, axis in enumerate(dims) if axis is not None]
    merged = rule.merged([rule.partial(x, box).numpy()])
    value = rule.finish(merged, torch.device("cpu"))
    leaf = x.clone().requires_grad_()
    expected = torch.stack([leaf.mean(axes), leaf.var(axes, unbiased=False)])
    torch.testing.assert_close(value, expected.detach(), rtol=1e-13, atol=1e-13)
    upon = torch.randn_like(value)
    expected.backward(upon)
    pulled = rule.pulled(x, box, merged, upon)
    assert pulled.stride() == x.stride()
    torch.testing.assert_close(pulled, leaf.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [False, True])
def test_moments_are_summed_in_float32_or_better(dtype, last):
    x = (torch.randn(2, 3, 20, 21, 22) + 5).to(dtype)
    if last:
        x = x.to(memory_format=torch.channels_last_3d)
    rule, box = moments_of(x, DIMS["image"])
    _, mean, squares = rule.partial(x, box)
    wide = x.double().flatten(2)
    torch.testing.assert_close(mean, wide.mean(2).flatten(), rtol=1e-6, atol=0)
    var = wide.var(2, unbiased=False).flatten()
    torch.testing.assert_close(squares / wide.shape[2], var, rtol=1e-5, atol=0)
    upon = torch.randn(2, 2, 3, dtype=torch.float64)
    merged = rule.partial(x, box).numpy()
    pulled = rule.pulled(x, box, merged, upon)
    exact = rule.pulled(x.double(), box, merged, upon)
    assert pulled.dtype == dtype
    largest = float(exact.abs().max())
    assert float((pulled.double() - exact).abs().max()) <= 2 * torch.finfo(dtype).eps * largest


def test_an_empty_share_adds_nothing():
    rule, box = moments_of(torch.zeros(1, 2, 4, 3, 5), DIMS["image"])
    x = image((4, 3, 5), 2)
    none = rule.partial(x[:, :, :0], Roi((0, 0, 0), (0, 3, 5))).numpy()
    part = rule.partial(x, box).numpy()
    for parts in ([none, part], [part, none], [none, part, none]):
        assert (rule.merged(parts) == part).all()
    for ties in ("", "all", "first"):
        extreme = Extreme(DIMS["image"], (1, 2), True, ties, (4, 3, 5))
        none = extreme.partial(x[:, :, :0], Roi((0, 0, 0), (0, 3, 5))).numpy()
        part = extreme.partial(x, box).numpy()
        assert (extreme.merged([none, part]) == part).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("dims", [(None, None, 0, 1, 2), (2, None, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("ties", ["all", "first"])
def test_extremes_are_found_again_where_they_differ_by_rounding(dims, largest, ties, dtype):
    """Other blocks compute the same voxels with other last bits; those clipped are alike."""
    sizes, sides = (4, 3, 5), {None: 2, 0: 4, 1: 3, 2: 5}
    x = image([sides[a] for a in dims], 1)[0, 0].to(dtype)
    over = [d for d, a in enumerate(dims) if a is not None]
    order = [d for d, a in enumerate(dims) if a is None] + sorted(over, key=lambda d: dims[d])
    kept = tuple(2 for a in dims if a is None)
    rows = x.permute(order).reshape(*kept, -1)
    some = rows.reshape(-1, rows.shape[-1])[:1]
    some.clamp_(-0.5, 0.5)  # of the first value several are as extreme
    rows.reshape(-1, rows.shape[-1])[:1] = some
    x = rows.reshape([*kept, *sizes]).permute([order.index(d) for d in range(len(order))])
    rule = Extreme(dims, kept, largest, ties, sizes)

    def cut(box):
        return tuple(slice(None) if a is None else box.slices()[a] for a in dims)

    def noisy(box, seed):
        bits = torch.randint(-2, 3, x.shape, generator=torch.Generator().manual_seed(seed))
        bits[x.abs() == 0.5] = 0
        return (x * (1 + torch.finfo(dtype).eps * bits).to(dtype))[cut(box)]

    halves = [Roi((0, 0, 0), (1, 3, 5)), Roi((1, 0, 0), (4, 3, 5))]
    others = [Roi((0, 0, 0), (4, 3, 2)), Roi((0, 0, 2), (4, 3, 5))]
    merged = rule.merged([rule.partial(x[cut(box)], box).numpy() for box in halves])
    upon = torch.stack([torch.randn(kept, dtype=torch.float64), torch.zeros(kept)])
    found = torch.zeros_like(x)
    for n, box in enumerate(others):
        found[cut(box)] = rule.pulled(noisy(box, n), box, merged, upon)

    leaf = x.clone().requires_grad_()
    if ties == "all":
        best = leaf.amax(over) if largest else leaf.amin(over)
    else:
        flat = leaf.permute(order).reshape(*kept, -1)
        best = (flat.max(-1) if largest else flat.min(-1)).values
    best.backward(upon[0].to(dtype))
    torch.testing.assert_close(found, leaf.grad, rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_a_first_extreme_that_is_no_number_has_its_gradient():
    x = torch.tensor([[[1.0, math.nan, 2.0, math.nan]]], dtype=torch.float64)
    rule = Extreme((None, None, 0), (1, 1), True, "first", (4,))
    halves = [Roi((0,), (1,)), Roi((1,), (4,))]
    parts = [rule.partial(x[(..., *box.slices())], box).numpy() for box in halves]
    upon = torch.ones(2, 1, 1, dtype=torch.float64)
    found = rule.pulled(x, Roi((0,), (4,)), rule.merged(parts), upon)
    assert found.flatten().tolist() == [0, 1, 0, 0]


@pytest.mark.slow
def test_the_normalized_image_has_gradients_of_everything():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    for shape in ((3,), (2, 3)):
        mean = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        var = (torch.rand(shape, dtype=torch.float64) + 0.5).requires_grad_()
        weight, bias = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
        given = (x, mean, var, weight, bias, 1e-3)
        assert torch.autograd.gradcheck(normalized, given)
        assert torch.autograd.gradcheck(normalized, (x, mean, var, None, None, 1e-3))
        assert torch.autograd.gradcheck(normalized, (x.detach(), mean, var, weight, None, 1e-3))
        plain = (x - mean.view(-1, 3, 1, 1, 1)) / (var.view(-1, 3, 1, 1, 1) + 1e-3).sqrt()
        plain = plain * weight.view(3, 1, 1, 1) + bias.view(3, 1, 1, 1)
        torch.testing.assert_close(normalized(*given), plain, rtol=1e-12, atol=1e-12)


def laid_out(shape, layout):
    """Noise that lies in the order of its dims, backwards, channels last, or in a larger tensor."""
    if layout == "backwards":
        return torch.randn(shape[::-1], dtype=torch.float64).permute(*reversed(range(len(shape))))
    if layout == "channels last":
        rest = (shape[0], *shape[2:], shape[1])
        return torch.randn(rest, dtype=torch.float64).movedim(-1, 1)
    larger = torch.randn([n + (layout == "a part") for n in shape], dtype=torch.float64)
    return larger[tuple(slice(0, n) for n in shape)]


LAID_OUT = ("in order", "backwards", "channels last", "a part")


@pytest.mark.parametrize("shape", [(1, 3, 1), (2, 3, 2, 1), (1, 3, 1, 4, 1), (2, 3, 2, 3, 2)])
@pytest.mark.parametrize("kept", LAID_OUT)
def test_a_norm_of_tensors_however_they_lie(shape, kept):
    """Torch's own kernel takes tensors that lie differently for alike where a side is 1."""
    strided = torch.randn(3, 4, dtype=torch.float64)[:, 0]
    mean, var = (torch.full((1,), v, dtype=torch.float64).expand(3) for v in (1.0, 2.0))
    for upon in (laid_out(shape, layout) for layout in LAID_OUT):
        given = [
            one.detach().requires_grad_() for one in (laid_out(shape, kept), mean, var, strided)
        ]
        found = torch.autograd.grad(normalized(*given, None, 1e-3), given, upon)
        x, mean, var, weight = given
        sides = (3, *(1,) * (len(shape) - 2))
        plain = (x - mean.view(sides)) * (var.view(sides) + 1e-3).rsqrt() * weight.view(sides)
        for one, other in zip(found, torch.autograd.grad(plain, given, upon), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_normalized_image_in_low_precision(dtype):
    """Statistics and weights are wider than the image, and so are their gradients."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 7, 8).to(dtype).requires_grad_()
    moments = torch.rand(2, 2, 3, dtype=torch.float64) + 0.5
    leaves = [moments.requires_grad_(), torch.randn(3).requires_grad_(), torch.randn(3)]
    upon = torch.randn_like(x)

    def gradients(x, moments, weight, bias):
        y = normalized(x, moments[0], moments[1], weight, bias, 1e-5)
        return torch.autograd.grad(y, [x, moments, weight], upon.to(x.dtype))

    found = gradients(x, *leaves)
    assert [g.dtype for g in found] == [dtype, torch.float64, torch.float32]
    wide = gradients(*(t.double().detach().requires_grad_() for t in (x, *leaves)))
    for one, other in zip(found, wide, strict=True):
        eps = torch.finfo(dtype if one is found[0] else torch.float32).eps
        assert float((one.double() - other).abs().max()) <= 20 * eps * float(other.abs().max())


def test_only_the_image_is_kept_for_the_backward_of_a_norm():
    x = torch.randn(1, 3, 8, 9, 10, requires_grad=True)
    moments = (torch.rand(2, 3, dtype=torch.float64) + 0.5).requires_grad_()
    weight = torch.randn(3, requires_grad=True)
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        normalized(x, moments[0], moments[1], weight, None, 1e-5)
    assert sorted(sizes, reverse=True)[:2] == [x.numel(), 3]
