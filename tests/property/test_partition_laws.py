"""Any network of known ops, on any volume, cut anywhere: the blocks are the whole."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from tests.partition_oracle import EXACT, UNDONE, difference, enlarged, image
from tests.pulled import assert_gradients, cut_gradients, plain_gradients
from volflow.geometry.roi import Roi
from volflow.partition.ranges import Slide, Spread
from volflow.partition.reductions import MeanVariance

CHANNELS = 2


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def like(function):
    """A layer of a function of the tensor."""

    class Plain(nn.Module):
        def forward(self, x):
            return function(x)

    return Plain()


class Sized(nn.Module):
    """A branch, resampled to the size of its input and added to it or joined with it."""

    def __init__(self, branch: nn.Module, mode: str, *, join: bool) -> None:
        super().__init__()
        self.branch, self.mode, self.join = branch, mode, join

    def forward(self, x):
        y = self.branch(x)
        mode = self.mode
        if mode == "linear":
            mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[x.ndim]
        y = F.interpolate(y, size=x.shape[2:], mode=mode)
        if not self.join:
            return x + y
        return torch.cat([x, y], 1)[:, 1 : 1 + CHANNELS] * torch.cat([y, x], 1).mean(1, True)


class Gated(nn.Module):
    """Squeeze and excitation by any reduction of the volume."""

    def __init__(self, reduce) -> None:
        super().__init__()
        self.reduce = reduce
        self.mix = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        found = self.reduce(x, tuple(range(2, x.ndim)))
        return x * self.mix(found).sigmoid().reshape(-1, CHANNELS, *(1,) * (x.ndim - 2))


REDUCTIONS = (
    lambda x, axes: x.mean(axes),
    lambda x, axes: x.amax(axes),
    lambda x, axes: x.var(axes, unbiased=False) / (1 + x.square().sum(axes)),
)


def conv(draw, ndim):
    kernel = [draw(st.integers(1, 4)) for _ in range(ndim)]
    dilation = [draw(st.integers(1, 2)) for _ in range(ndim)]
    reach = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
    padding = [draw(st.integers((r + 1) // 2, r + 1)) for r in reach]
    stride = [draw(st.integers(1, 2)) for _ in range(ndim)]
    groups = draw(st.sampled_from((1, CHANNELS)))
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
    return kind(CHANNELS, CHANNELS, kernel, stride, padding, dilation, groups)


def up(draw, ndim):
    kernel = [draw(st.integers(1, 3)) for _ in range(ndim)]
    stride = [draw(st.integers(1, 2)) for _ in range(ndim)]
    padding = [draw(st.integers(0, (k - 1) // 2)) for k in kernel]
    more = [draw(st.integers(0, s - 1)) for s in stride]
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[ndim - 1]
    return kind(CHANNELS, CHANNELS, kernel, stride, padding, more)


def pool(draw, ndim):
    kernel = draw(st.integers(1, 3))
    padding, stride = draw(st.integers(0, kernel // 2)), draw(st.integers(1, 3))
    given = {"ceil_mode": draw(st.booleans())}
    kinds = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
    if draw(st.booleans()):
        kinds = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
        given["count_include_pad"] = draw(st.booleans())
    grown = like(lambda x: F.pad(x, (0, kernel) * (x.ndim - 2)))  # torch takes none below a window
    return nn.Sequential(grown, kinds[ndim - 1](kernel, stride, padding, **given))


def resize(draw, ndim):
    mode = draw(st.sampled_from(("nearest", "nearest-exact", "linear")))
    corners = draw(st.booleans()) if mode == "linear" else None
    mode = ("linear", "bilinear", "trilinear")[ndim - 1] if mode == "linear" else mode
    if draw(st.booleans()):
        size = [draw(st.integers(1, 9)) for _ in range(ndim)]
        return nn.Upsample(size, mode=mode, align_corners=corners)
    factor = draw(st.floats(1.0, 1.6))
    return nn.Upsample(scale_factor=factor, mode=mode, align_corners=corners)


def moved(draw, ndim):
    return draw(
        st.sampled_from(
            (
                like(lambda x: x.flip(2)),
                like(lambda x: x.roll(2, -1)),
                like(lambda x: F.pad(x, (1, 2) * (x.ndim - 2), value=0.5)),
                like(lambda x: F.pad(x, (1, 0) * (x.ndim - 2), mode="replicate")),
                like(lambda x: F.pad(x, (1, 1) * (x.ndim - 2), mode="circular")),
                like(lambda x: x[:, :, x.shape[2] // 3 :]),
                like(lambda x: x[..., ::2]),
                like(lambda x: x.movedim(1, -1).cumsum(-1).movedim(-1, 1)),
                like(lambda x: torch.stack(x.chunk(2, 1), 1).flatten(1, 2)),
            )
        )
    )


def local(draw, ndim):
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[ndim - 1](CHANNELS)
    plain = (nn.ReLU(inplace=True), nn.ELU(), nn.PReLU(), nn.Softmax(1), norm)
    return draw(st.sampled_from(plain))


def statistic(draw, ndim):
    if draw(st.booleans()):
        return Gated(draw(st.sampled_from(REDUCTIONS)))
    # Noise of what is constant is not to be enlarged into a result.
    norm = nn.GroupNorm(draw(st.sampled_from((1, CHANNELS))), CHANNELS, eps=0.1)
    nn.init.ones_(norm.bias)
    # torch takes no statistics of a single value
    return nn.Sequential(like(lambda x: F.pad(x, (0, 1) * (x.ndim - 2))), norm)


LEAVES = (conv, conv, up, pool, resize, moved, local, local, statistic)


@st.composite
def networks(draw, ndim: int, depth: int = 2):
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        if depth and draw(st.integers(0, 3)) == 0:
            branch, mode = (
                draw(networks(ndim, depth - 1)),
                draw(st.sampled_from(("nearest", "linear"))),
            )
            layers.append(Sized(branch, mode, join=draw(st.booleans())))
        else:
            layers.append(draw(st.sampled_from(LEAVES))(draw, ndim))
    return nn.Sequential(*layers)


@st.composite
def cases(draw):
    ndim, seed = draw(st.integers(1, 3)), draw(st.integers(0, 999))
    sizes = tuple(draw(st.integers(1, (17, 9, 6)[ndim - 1])) for _ in range(ndim))
    torch.manual_seed(seed)
    return draw(networks(ndim)), sizes, seed


@pytest.mark.slow
@settings(suppress_health_check=list(HealthCheck))
@given(cases())
def test_any_network_block_by_block(case):
    net, sizes, seed = case
    assert difference(enlarged(net), image(sizes, CHANNELS, seed), seed) <= EXACT


def smooth(net: nn.Module, ndim: int) -> nn.Module:
    """The network without what makes a gradient of rounding.

    Which of equal voxels is the largest is rounding, and so is which one is the nearest: torch's
    own gradient of it goes to other voxels than those that it reads.
    """
    for part in net.modules():
        if isinstance(part, Sized):
            part.mode = "linear"
        if isinstance(part, nn.Upsample):
            part.mode = ("linear", "bilinear", "trilinear")[ndim - 1]
        if isinstance(part, nn.ReLU):
            part.inplace = False
        if isinstance(part, Gated) and part.reduce is REDUCTIONS[1]:
            part.reduce = REDUCTIONS[0]
    return net


@pytest.mark.slow
@settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(cases(), st.integers(1, 2))
def test_any_network_has_the_gradients_of_the_whole(case, batch):
    net, sizes, seed = case
    net = smooth(enlarged(net, 1.0), len(sizes)).train(seed % 2 == 0)
    x = torch.cat([image(sizes, CHANNELS, seed + n) for n in range(batch)])
    try:
        expected = plain_gradients(copy.deepcopy(net), x)
    except ValueError:  # torch takes no statistics of a single value
        reject()
    assert_gradients(cut_gradients(net, x, seed), expected, 1e-10, UNDONE)


windows = st.tuples(*[st.integers(1, 5)] * 3, st.integers(0, 6), st.integers(1, 30))


@given(windows, st.data())
def test_a_slide_reads_what_its_taps_touch(window, data):
    kernel, stride, dilation, padding, size = window
    slide = Slide(kernel, stride, padding, dilation, size)
    low = data.draw(st.integers(0, 20))
    high = data.draw(st.integers(low + 1, 25))
    taps = [o * stride - padding + j * dilation for o in range(low, high) for j in range(kernel)]
    inside = [tap for tap in taps if 0 <= tap < size]
    start, stop = slide.reads(low, high)
    assert all(start <= tap < stop for tap in inside)
    assert 0 <= start <= stop <= size
    if min(taps) >= 0 and max(taps) < size:
        assert (start, stop) == (min(taps), max(taps) + 1)
    before, behind = slide.overhang(low, high)
    assert before + (stop - start) + behind == max(taps) + 1 - min(taps)


@given(windows, st.data())
def test_a_spread_reads_all_that_lands(window, data):
    kernel, stride, dilation, padding, size = window
    spread = Spread(kernel, stride, padding, dilation, size)
    low = data.draw(st.integers(0, 20))
    high = data.draw(st.integers(low + 1, 25))
    hits = [
        i
        for i in range(size)
        if any(low <= i * stride - padding + j * dilation < high for j in range(kernel))
    ]
    start, stop = spread.reads(low, high)
    assert all(start <= i < stop for i in hits)
    if hits and dilation == 1:
        assert (start, stop) == (hits[0], hits[-1] + 1)


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=9), min_size=1, max_size=6))
def test_moments_of_parts_are_those_of_all(parts):
    moments = MeanVariance((None, None, 0), (1, 1))
    partials = [
        moments.partial(torch.tensor([[part]], dtype=torch.float64), Roi((0,), (len(part),)))
        for part in parts
    ]
    merged = moments.merged(partials)
    every = torch.tensor(list(itertools.chain(*parts)), dtype=torch.float64)
    mean, var = moments.finish(merged, torch.device("cpu")).flatten()
    assert merged[0] == len(every)
    assert abs(mean - every.mean()) <= 1e-12 * every.abs().max()
    assert abs(var - every.var(unbiased=False)) <= 1e-12 * every.square().max()
