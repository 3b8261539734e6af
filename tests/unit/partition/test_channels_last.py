"""What lies channels last in memory is measured, padded and projected as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from volflow.geometry.roi import Roi
from volflow.model.unet import UNet
from volflow.partition.footprint import live_bytes
from volflow.partition.fusion import fused
from volflow.partition.graph import needed
from volflow.partition.reductions import MeanVariance
from volflow.partition.rules.kernels import _padded
from volflow.partition.trace import trace
from volflow.passes.profile import measured


def last(x: torch.Tensor) -> torch.Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("shape", [(1, 5, 9, 8, 11), (2, 3, 300, 7), (1, 4, 1, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_the_same_in_both_layouts(shape, dtype):
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0)) + 10
    rule = MeanVariance((None, None, *range(len(shape) - 2)), shape[:2])
    first, other = (rule.partial(one, Roi.full(shape[2:])).numpy() for one in (x, last(x)))
    near = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(other, first, rtol=near, atol=near)
    flat = x.double().flatten(2).flatten(0, 1)
    exact = [flat.mean(1).numpy(), flat.var(1, correction=0).numpy() * flat.shape[1]]
    np.testing.assert_allclose(other[1:], exact, rtol=near, atol=near)


sides = st.tuples(st.integers(-1, 3), st.integers(-1, 3))


@given(st.lists(sides, min_size=2, max_size=3), st.booleans(), st.booleans())
def test_what_is_padded_or_cut_is_what_torch_pads(overhang, channels_last, graded):
    x = torch.randn(1, 3, *(4,) * len(overhang))
    x = last(x) if channels_last else x
    flat = [side for pair in reversed(overhang) for side in pair]
    with torch.set_grad_enabled(graded):
        found = _padded(x, overhang, -2.0)
    assert torch.equal(found, F.pad(x, flat, value=-2.0))
    if any(side > 0 for side in flat):
        assert (found.stride(1) == 1) == channels_last


def of(module: nn.Module, box: Roi, copied: bool) -> float:
    graph = trace(module, 4, (16, 16, 16))
    boxes = needed(graph, {1: box}, (0,))
    return live_bytes(graph, boxes, (0,), copied=copied) / 4


def test_convolutions_copy_what_is_padded_unevenly():
    whole, part = Roi.full((16, 16, 16)), Roi((0, 4, 4), (8, 12, 12))
    plain, point = nn.Conv3d(4, 6, 3, padding=1), nn.Conv3d(4, 6, 1)
    assert of(plain, whole, copied=False) == (4 + 6) * whole.size
    assert of(plain, part, copied=False) == 2 * 4 * 9 * 10 * 10 + 6 * part.size
    assert of(point, part, copied=False) == (4 + 6) * part.size
    uneven = nn.Conv3d(4, 6, 3, padding=1, stride=2)
    assert of(uneven, Roi.full((8, 8, 8)), copied=False) == 2 * 4 * whole.size + 6 * 8**3
    assert (
        of(plain, whole, copied=True) > of(plain, part, copied=True) > of(point, part, copied=False)
    )


def test_ops_are_timed_as_they_will_run():
    graph = fused(trace(UNet(1, 2, features=(3, 4), norm="batch").eval(), 1, (16, 16, 16)))
    seen = {}

    def spied(number, node):
        def spy(windows, box):
            seen[number] = [window.values for window in windows]
            return node.compute(windows, box)

        return node if node.compute is None else replace(node, compute=spy)

    spies = replace(graph, nodes=tuple(map(spied, range(len(graph.nodes)), graph.nodes)))
    with torch.inference_mode():
        measured(spies, torch.device("cpu"), 2**20)
    for number, windows in seen.items():
        for source, values in zip(graph.nodes[number].inputs, windows, strict=True):
            if source:
                assert values.stride(1) == 1
                whole = values.movedim(1, -1).is_contiguous()
                assert whole == (graph.readers[source] == 1), number
