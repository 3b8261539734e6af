"""Every op of the tables, computed block by block, equals torch on the whole volume."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.partition_oracle import EXACT, Apply, difference, enlarged, image
from tests.pulled import check_gradients
from volflow.partition.trace import trace

SIZES = {1: (23,), 2: (11, 9), 3: (7, 6, 8)}
TINY = {1: [(n,) for n in range(1, 10)], 2: [(1, 9), (2, 3), (5, 1)], 3: [(1, 2, 3), (4, 1, 9)]}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def layer(name: str, ndim: int, *arguments, **named) -> nn.Module:
    torch.manual_seed(1)
    return getattr(nn, f"{name}{ndim}d")(*arguments, **named)


def agrees(
    module: nn.Module, sizes, channels: int = 2, grids: int = 2, *, gradients: bool = True
) -> None:
    """Values agree, and gradients on a volume of some voxels."""
    module = enlarged(module)
    assert difference(module, image(sizes, channels), grids=grids) <= EXACT
    if gradients and sizes == SIZES[len(sizes)]:
        check_gradients(module, sizes, channels, grids=1, training=False)


def everywhere(
    module: nn.Module, ndim: int, channels: int = 2, fits=lambda side: True, gradients: bool = True
) -> None:
    """On a volume of some voxels and on tiny ones, where torch itself takes them."""
    for sizes in (SIZES[ndim], *TINY[ndim]):
        if all(fits(side) for side in sizes):
            grids = 2 if sizes == SIZES[ndim] else 1
            agrees(module, sizes, channels, grids, gradients=gradients)


def applied(
    function, ndim: int, channels: int = 2, fits=lambda side: True, gradients=True, **layers
) -> None:
    everywhere(Apply(function, **layers), ndim, channels, fits, gradients)


ndims = pytest.mark.parametrize("ndim", [1, 2, 3])

CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": 1, "stride": 2, "padding": 1},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 4, "stride": 2},
    {"kernel_size": 5, "padding": 2, "stride": 2, "bias": False},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": 4, "padding": "same", "dilation": 3},
    {"kernel_size": 3, "padding": "valid", "dilation": 2},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2, "groups": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "reflect", "stride": 2},
    {"kernel_size": 3, "padding": "same", "padding_mode": "circular", "dilation": 2},
    {"kernel_size": 4, "padding": "same", "padding_mode": "reflect"},
]

TRANSPOSED = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 1, "stride": 3, "output_padding": 2},
    {"kernel_size": 2, "stride": 3, "output_padding": 2, "bias": False},
    {"kernel_size": 3, "stride": 2, "dilation": 3, "output_padding": 2},
    {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2, "groups": 2},
    {"kernel_size": 5, "stride": 1, "padding": 2},
]

MAXIMA = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
    {"kernel_size": 2, "stride": 2, "dilation": 3, "padding": 1, "ceil_mode": True},
]

AVERAGES = [
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True, "count_include_pad": False},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True},
    {"kernel_size": 5, "stride": 1, "padding": 2},
]


def span(given) -> int:
    return (given["kernel_size"] - 1) * given.get("dilation", 1) + 1


def padding(given) -> int:
    return given["padding"] if isinstance(given.get("padding"), int) else 0


def room(given):
    """Which sides torch takes for a window."""

    def fits(side: int) -> bool:
        kind = given.get("padding_mode", "zeros")
        if kind != "zeros":
            return side > span(given)
        same = given.get("padding") == "same"
        return same or side + 2 * padding(given) >= span(given)

    return fits


@pytest.mark.slow
@ndims
@pytest.mark.filterwarnings("ignore:Using padding=.same")
@pytest.mark.parametrize("given", CONVOLUTIONS, ids=str)
def test_convolutions(ndim, given):
    everywhere(layer("Conv", ndim, 2, 4, **given), ndim, fits=room(given))


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_convolution_of_a_kernel_per_axis(ndim):
    given = {"stride": (1, 3, 2)[:ndim], "padding": (2, 0, 4)[:ndim], "dilation": (1, 1, 3)[:ndim]}
    everywhere(layer("Conv", ndim, 2, 3, (3, 2, 1)[:ndim], **given), ndim, fits=lambda n: n > 1)


@ndims
@pytest.mark.parametrize("given", TRANSPOSED, ids=str)
def test_transposed_convolutions(ndim, given):
    least = 2 if given.get("padding", 0) else 1
    everywhere(layer("ConvTranspose", ndim, 2, 4, **given), ndim, fits=lambda n: n >= least)


@ndims
@pytest.mark.parametrize("given", MAXIMA, ids=str)
def test_max_pooling(ndim, given):
    # Torch's own gradient of a window that lies in the padding alone is written anywhere.
    inside = given.get("dilation", 1) < 3
    everywhere(layer("MaxPool", ndim, **given), ndim, fits=room(given), gradients=inside)


@ndims
@pytest.mark.parametrize("given", AVERAGES, ids=str)
def test_average_pooling(ndim, given):
    least = given["kernel_size"] if ndim == 3 else 1  # torch takes no volume below its window
    fits = room(given)
    everywhere(layer("AvgPool", ndim, **given), ndim, fits=lambda n: n >= least and fits(n))


@pytest.mark.parametrize("ndim", [2, 3])
def test_average_pooling_by_another_divisor(ndim):
    everywhere(layer("AvgPool", ndim, 3, 2, 1, divisor_override=5), ndim, fits=lambda n: n > 2)


@ndims
def test_average_pooling_of_all_is_a_statistic(ndim):
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[ndim - 1]
    applied(lambda x: x * pool(x, tuple(x.shape[2:])), ndim)


@ndims
@pytest.mark.parametrize("kind", ["AdaptiveAvgPool", "AdaptiveMaxPool"])
def test_adaptive_pooling(ndim, kind):
    everywhere(Apply(lambda m, x: x + m.pool(x), pool=layer(kind, ndim, 1)), ndim)
    agrees(layer(kind, ndim, 3), (12, 6, 9)[:ndim])
    if ndim > 1:
        agrees(layer(kind, ndim, (None, 1, 2)[:ndim]), (5, 6, 8)[:ndim])


@ndims
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("sides", [(3, 2), (0, 4), (-2, 3), (-1, -2), (2, -4)])
def test_padding(ndim, mode, sides):
    value = 0.7 if mode == "constant" else None
    module = Apply(lambda x: F.pad(x, sides * ndim, mode, value))
    everywhere(module, ndim, fits=lambda n: n + min(0, *sides) > max(sides) and n + sum(sides) > 0)


@ndims
def test_padding_of_channels_and_nothing(ndim):
    applied(lambda x: F.pad(x, (0, 0) * ndim + (1, 2), value=3.0), ndim)
    applied(lambda x: F.pad(x, (1, 0) * ndim + (2, -1)), ndim)
    applied(lambda x: F.pad(x, (0, 0) * ndim), ndim)


def test_padding_beyond_every_voxel():
    """A box that lies in padding alone, beside one that does not."""
    both = Apply(lambda x: F.pad(x.relu(), (40, 30)) + F.pad(x.relu(), (0, 70)))
    last = Apply(lambda x: F.pad(x.movedim(1, -1), (0, 0, 30, 9), value=1.0).movedim(-1, 1)[..., 9:]
                 + F.pad(x, (0, 30)))  # fmt: skip
    for module in (both, last):
        assert difference(module, image((6,), 3), grids=20) == 0


def test_convolutions_that_see_padding_alone():
    conv = nn.Sequential(nn.Conv1d(2, 2, 3, padding=20), nn.ReLU(), nn.Conv1d(2, 2, 2, padding=9))
    agrees(conv, (5,), grids=20)
    up = nn.Sequential(nn.ConvTranspose1d(2, 2, 1, 7, output_padding=6), nn.Conv1d(2, 2, 2))
    agrees(up, (5,), grids=20)
    planes = nn.Sequential(nn.Conv2d(2, 2, 3, padding=(9, 0)), nn.ConvTranspose2d(2, 2, 3, 2))
    agrees(planes, (5, 6), grids=20)


@pytest.mark.slow
@ndims
@pytest.mark.parametrize(
    "given",
    [{"size": 13}, {"size": 5}, {"size": 1}, {"scale_factor": 2}, {"scale_factor": 0.5},
     {"scale_factor": 1.1}, {"scale_factor": 2.7}, {"scale_factor": 0.7},
     {"scale_factor": 1.7, "recompute_scale_factor": True}],
    ids=str,
)  # fmt: skip
def test_interpolation(ndim, given):
    least = 2 if given.get("scale_factor", 1) < 1 else 1
    modes = [("nearest", None), ("nearest-exact", None)]
    modes += [(LINEAR[ndim], corners) for corners in (False, True)]
    for mode, corners in modes:
        module = Apply(
            lambda x, m=mode, c=corners: F.interpolate(x, mode=m, align_corners=c, **given)
        )
        # Torch's own gradient of the nearest voxel goes to other voxels than those that it reads.
        true = mode == LINEAR[ndim] or given.get("scale_factor") not in (1.1, 2.7)
        everywhere(module, ndim, fits=lambda n: n >= least, gradients=true)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_nearest_neighbours_are_those_of_the_tensors_precision(mode):
    """Rounding decides which voxel is nearest, and differs between float32 and float64."""
    for size, wanted in itertools.product((4, 6, 8), (37, 41, 47, 55)):
        module = Apply(lambda x, n=wanted: F.interpolate(x, size=n, mode=mode))
        assert difference(module, image((size,), 1).float()) == 0
    for sizes in ((16,), (21,), (16, 5), (3, 17), (2, 16, 3)):
        module = Apply(lambda x: F.interpolate(x, scale_factor=3.7, mode=mode))
        assert difference(module, image(sizes, 1).float()) == 0


@ndims
def test_interpolation_per_axis_and_by_area(ndim):
    factors = (2.0, 1.0, 0.6)[:ndim]
    agrees(Apply(lambda x: F.interpolate(x, scale_factor=factors)), SIZES[ndim])
    agrees(Apply(lambda x: F.interpolate(x, scale_factor=factors, mode=LINEAR[ndim])), SIZES[ndim])
    agrees(Apply(lambda x: F.interpolate(x, scale_factor=0.5, mode="area")), (8, 6, 4)[:ndim])
    agrees(nn.Upsample(scale_factor=2, mode=LINEAR[ndim], align_corners=True), SIZES[ndim])


@ndims
def test_what_is_pooled_away_and_interpolated_back(ndim):
    def pyramid(x):
        means = F.relu(x.mean(tuple(range(2, x.ndim)), keepdim=True))
        back = F.interpolate(means, size=x.shape[2:], mode=LINEAR[ndim])
        return torch.cat([x, back, F.interpolate(means, size=x.shape[2:])], 1)

    applied(pyramid, ndim)


@ndims
def test_crops_and_strided_slices(ndim):
    for function, least in [
        (lambda x: x[..., 1:-1], 3),
        (lambda x: x[:, :, ::2], 1),
        (lambda x: x[:, :, 1::3] * 2, 2),
        (lambda x: x[:, 1:, -2:], 1),
        (lambda x: x[:, -1:], 1),
        (lambda x: x[:, 0].unsqueeze(1), 1),
        (lambda x: x[0][None], 1),
        (lambda x: x[:, None, ..., : x.shape[-1] // 2 + 1], 1),
        (lambda x: x.narrow(2, 1, x.shape[2] - 1), 2),
        (lambda x: x.narrow(1, -1, 1), 1),
    ]:
        applied(function, ndim, fits=lambda n, least=least: n >= least)


@ndims
def test_flips_and_rolls(ndim):
    over = tuple(range(2, 2 + ndim))
    applied(lambda x: x.flip(over) + x.flip(2) + torch.flip(x, dims=[-1]), ndim)
    applied(lambda x: x.roll(2, 2) + torch.roll(x, (1,) * ndim, dims=over), ndim)
    applied(lambda x: x.roll((1, 3), (2, 2)), ndim)


@pytest.mark.slow
@ndims
def test_channels_joined_and_cut(ndim):
    conv = layer("Conv", ndim, 12, 6, 3, padding=1)

    def mixed(m, x):
        a, b = x.chunk(2, 1)
        c, d = torch.split(x, [1, 3], dim=1)
        e, f = x.tensor_split(2, dim=1)
        y = torch.cat([a + f, b * e, c, d, x], dim=1)
        p, q, r = torch.stack([*m.conv(y).unbind(1)], dim=-1).movedim(-1, 1).split(2, 1)
        return torch.cat((p, q * r, x.index_select(1, torch.tensor([3, 0]))), -1 - ndim)

    applied(mixed, ndim, channels=4, conv=conv)
    applied(lambda x: torch.stack([x, x * 2], 2).flatten(1, 2), ndim)
    applied(lambda x: x.repeat(1, 3, *(1,) * ndim) + x.repeat_interleave(3, 1), ndim)
    applied(lambda x: torch.tile(x, (2, *(1,) * ndim)), ndim)


@pytest.mark.slow
@ndims
def test_channels_mixed(ndim):
    applied(lambda x: x.softmax(1) + F.log_softmax(x, dim=1), ndim)
    applied(lambda x: F.softmin(x, dim=1) + F.glu(x, 1).repeat(1, 2, *(1,) * ndim), ndim)
    applied(lambda x: F.normalize(x) + x.cumsum(1), ndim)
    applied(lambda x: x.argmax(1, keepdim=True), ndim)
    applied(lambda x: x.amax(1, True) - x.min(1, keepdim=True).values + x.max(1)[0][:, None], ndim)
    applied(lambda x: x.mean(1, keepdim=True) + x.var(1, keepdim=True) + x.std(1)[None], ndim)
    applied(lambda x: x.norm(dim=1, keepdim=True) + x.logsumexp(1, True) + x.prod(1, True), ndim)
    applied(lambda x: x.norm(1, 1, True) + (x > 0).any(1, True) + (x > 0).all(1, True), ndim)
    applied(lambda x: x.sum(1, keepdim=True) / x.count_nonzero(1)[None], ndim)
    if ndim > 1:
        agrees(nn.ChannelShuffle(2), SIZES[ndim], channels=4)


@ndims
def test_arithmetic_and_broadcasting(ndim):
    scale = torch.randn(1, 2, *(1,) * ndim, dtype=torch.float64)
    applied(lambda x: (1 + x) * 2 - x / 3 + (2**x - x**2) % 5, ndim)
    applied(lambda x: (-x).abs() // 2, ndim, gradients=False)  # torch has none
    applied(lambda x: x * scale + scale * x[:, :1] - torch.ones(1), ndim)
    applied(lambda x: torch.where(x > 0, x, x[:, :1]) + x.masked_fill(x < 0, 3.0), ndim)
    applied(lambda x: x[:, :1] + x[:, :, :1] * x, ndim)
    applied(lambda x: torch.maximum(x, x.flip(2)) + torch.max(x, -x) + torch.max(x, scale), ndim)
    applied(lambda x: torch.addcmul(x, x, x, value=0.5) + x.clamp(min=0, max=1).lerp(x, 0.3), ndim)
    applied(lambda x: ((x > 0) & ~(x > 1) | (x == 0)).double(), ndim)
    applied(lambda x: x.to(torch.float32).to(x) + x.half().type_as(x) + x.float().double(), ndim)
    applied(
        lambda x: torch.zeros_like(x) + torch.ones_like(x) + torch.zeros(1, device=x.device), ndim
    )


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.PReLU(), nn.PReLU(2), nn.RReLU(), nn.ELU(),
    nn.SELU(), nn.CELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardtanh(), nn.Hardswish(),
    nn.Hardsigmoid(), nn.Hardshrink(), nn.Softshrink(), nn.Tanhshrink(), nn.Softplus(),
    nn.Softsign(), nn.LogSigmoid(), nn.Threshold(0.1, 2.0), nn.Sigmoid(), nn.Tanh(), nn.Identity(),
    nn.Dropout(), nn.AlphaDropout(), nn.FeatureAlphaDropout(), nn.Softmax(dim=1),
]  # fmt: skip


@pytest.mark.parametrize("module", ACTIVATIONS, ids=str)
def test_activations(module):
    everywhere(module, 1)
    agrees(module, SIZES[3])


@ndims
def test_dropout_does_nothing_in_eval_mode(ndim):
    inside = nn.Sequential(layer("Dropout", ndim), nn.ReLU(inplace=True), nn.Dropout(inplace=True))
    everywhere(inside, ndim)


@ndims
def test_what_works_in_place(ndim):
    def changed(x):
        y = x * 2
        y += x
        y.mul_(3).add_(x, alpha=0.5)
        y -= 1
        F.relu(y, inplace=True)
        y.clamp_(max=7)
        F.leaky_relu_(torch.sub(y, 1), 0.1)
        y **= 2
        return y.sigmoid_() + F.elu_(x - 1)

    applied(changed, ndim, gradients=False)  # torch misses what was overwritten
    for kind in (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.Mish, nn.ReLU6, nn.CELU):
        everywhere(nn.Sequential(layer("Conv", ndim, 2, 2, 1), kind(inplace=True)), ndim)


def test_what_works_in_place_keeps_its_type():
    module = Apply(lambda x: x.float().add_(x.double()))
    assert difference(module, image((9,), 2)) < 1e-6


def test_a_result_shares_nothing_with_what_it_leaves_alone():
    """Ops that change nothing here still make a copy in torch."""

    def copies(x):
        a, b = F.pad(x, (0, 0)), F.interpolate(x, size=x.shape[2:])
        c = x.clone()
        for one in (a, b, c):
            one.add_(1)
        return x + a * b * c

    applied(copies, 1)


def test_what_is_changed_through_its_only_view():
    def viewed(x):
        y = x.relu().contiguous().view(1, 2, -1)[:, :1]
        y += 1
        return y

    applied(viewed, 1, gradients=False)  # torch misses what was overwritten


@ndims
@pytest.mark.parametrize("affine", [False, True])
def test_norms_of_the_volume(ndim, affine):
    """More than one voxel: torch takes no statistics of a single one."""
    for module in (
        layer("InstanceNorm", ndim, 4, affine=affine),
        nn.GroupNorm(2, 4, affine=affine),
        nn.GroupNorm(1, 4, affine=affine),
        layer("BatchNorm", ndim, 4, affine=affine, track_running_stats=False),
    ):
        everywhere(nn.Sequential(layer("Conv", ndim, 2, 4, 1), module), ndim, fits=lambda n: n > 1)


@ndims
@pytest.mark.parametrize("affine", [False, True])
def test_norms_with_running_statistics(ndim, affine):
    for kind in ("BatchNorm", "InstanceNorm"):
        everywhere(layer(kind, ndim, 2, affine=affine, track_running_stats=True), ndim)


@ndims
def test_norms_of_large_means(ndim):
    norm = nn.Sequential(Apply(lambda x: x + 1e3), layer("InstanceNorm", ndim, 2))
    assert difference(norm, image(SIZES[ndim], 2)) < 1e-9


@ndims
def test_norms_in_bfloat16(ndim):
    norm = layer("InstanceNorm", ndim, 2, affine=True).bfloat16().eval()
    assert difference(norm, image(SIZES[ndim], 2).bfloat16()) < 0.02


REDUCTIONS = {
    "mean": lambda x, dims, keep: x.mean(dims, keep),
    "sum": lambda x, dims, keep: x.sum(dims, keepdim=keep),
    "amax": lambda x, dims, keep: x.amax(dims, keep),
    "amin": lambda x, dims, keep: torch.amin(x, dim=dims, keepdim=keep),
    "var": lambda x, dims, keep: x.var(dims, keepdim=keep),
    "biased var": lambda x, dims, keep: torch.var(x, dims, unbiased=False, keepdim=keep),
    "var by place": lambda x, dims, keep: x.var(dims, False, keep),
    "std": lambda x, dims, keep: torch.std(x, dims, keepdim=keep),
    "std by correction": lambda x, dims, keep: x.std(dims, correction=3, keepdim=keep),
    "counts": lambda x, dims, keep: (x > 0).sum(dims, keep),
}


@pytest.mark.slow
@ndims
@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions_over_the_volume(ndim, kind):
    reduce = REDUCTIONS[kind]
    axes = tuple(range(2, 2 + ndim))
    least = 4 if "var" in kind or "std" in kind else 1
    applied(lambda x: reduce(x, axes, False), ndim, fits=lambda n: n >= least)
    applied(lambda x: x * reduce(x, axes, True), ndim, fits=lambda n: n >= least)
    applied(lambda x: x - reduce(x, (1, *axes), True), ndim, fits=lambda n: n >= least)
    applied(lambda x: x - reduce(x, (0, 1, *axes), False), ndim, fits=lambda n: n >= least)


@ndims
def test_reductions_over_everything(ndim):
    applied(lambda x: (x - x.mean()) / (x.max() - x.min() + 1) + x.sum(), ndim)
    applied(lambda x: x / x.std() + x.var(False), ndim, fits=lambda n: n > 1)
    applied(lambda x: x * x.mean(axis=tuple(range(2, x.ndim)), keepdims=True), ndim)
    applied(lambda x: x * (x.amax() - x.var(unbiased=False)), ndim)


def test_deviations_of_one_voxel_are_no_numbers():
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert difference(Apply(lambda x: x.std((2, 3))), image((1, 1), 2)) == 0


@ndims
def test_squeeze_and_excitation(ndim):
    ones = (1,) * ndim

    def gated(m, x):
        means = x.mean(tuple(range(2, x.ndim)))
        gate = m.up(F.relu(m.down(means))).sigmoid()
        return x * gate.view(1, -1, *ones) + x * gate.reshape(1, 2, *ones).expand_as(x)

    def pooled(m, x):
        gate = m.conv(m.pool(x))
        gate += 1
        gate = gate.sigmoid()
        return x * gate.expand(x.shape) + gate * x.relu()

    applied(gated, ndim, down=nn.Linear(2, 3), up=nn.Linear(3, 2))
    pool, conv = layer("AdaptiveAvgPool", ndim, 1), layer("Conv", ndim, 2, 2, 1)
    applied(pooled, ndim, pool=pool, conv=conv)


@ndims
def test_channels_last(ndim):
    def block(m, x):
        y = m.norm(x.movedim(1, -1))
        y = m.two(F.gelu(m.one(y))) + y @ m.two.weight[:, :2]
        return x + y.permute(0, -1, *range(1, 1 + ndim))

    layers = {"norm": nn.LayerNorm(2), "one": nn.Linear(2, 4), "two": nn.Linear(4, 2)}
    conv = layer("Conv", ndim, 2, 2, 3, padding=1)
    everywhere(nn.Sequential(conv, Apply(block, **layers), conv), ndim)
    cropped = lambda x: F.pad(x.movedim(1, -1)[:, 1:], (1, 0, 2, 3)).movedim(-1, 1)  # noqa: E731 - a case
    applied(cropped, ndim, fits=lambda n: n > 1)


@ndims
def test_reshapes_of_channels(ndim):
    applied(lambda x: x.reshape(1, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape), ndim, 4)
    applied(lambda x: x.unflatten(1, (2, -1)).mean(2), ndim, 4)
    applied(lambda x: x.view(4, 1, *x.shape[2:]).flip(2).view_as(x), ndim, 4)
    applied(lambda x: x.squeeze(0).unsqueeze(0).squeeze(1), ndim, 4)
    applied(lambda x: x.squeeze(0).unsqueeze(0)[0].view(1, 1, 4, *x.shape[2:]), ndim, 4)
    applied(lambda x: x[:, :1].expand(-1, 4, *(-1,) * ndim), ndim, 4)


@ndims
def test_channels_as_a_batch(ndim):
    """Each channel through the same convolution, also where it sees padding alone."""
    conv = layer("Conv", ndim, 1, 2, 3, padding=9)
    up = layer("ConvTranspose", ndim, 2, 1, 1, 3, output_padding=2)
    applied(lambda m, x: m.up(m.conv(x.transpose(0, 1))).transpose(0, 1), ndim, conv=conv, up=up)


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle(factor):
    agrees(nn.PixelShuffle(factor), (5, 7), channels=2 * factor**2)
    agrees(nn.PixelUnshuffle(factor), (5 * factor, 2 * factor))
    both = nn.Sequential(nn.PixelShuffle(2), nn.Conv2d(1, 3, 3, 1, 1), nn.PixelUnshuffle(factor))
    agrees(both, (3, 6), channels=4)


def test_outputs_by_name_and_by_number():
    agrees(Apply(lambda x: {"a": x * 2, "b": x[..., ::2], "c": x * 3}), (9, 4))
    agrees(Apply(lambda x: (x, x.mean((2, 3)), F.max_pool2d(x, 2))), (9, 4))


def test_what_torch_compiles_is_traced_as_it_was():
    compiled = Apply(lambda m, x: m.code(x), code=nn.Identity())
    compiled._orig_mod = layer("Conv", 1, 2, 2, 3, padding=1)  # as torch.compile keeps it
    assert [node.name for node in trace(compiled, 2, (9,)).nodes] == ["input", "conv1d"]


def test_a_loop_over_the_batch():
    agrees(Apply(lambda x: torch.stack([one.flip(1) for one in x])), (9, 4))
