"""Laws of networks on their own grid: any cut has the same bits, lazily as in one block."""

from __future__ import annotations

import itertools
from dataclasses import replace
from unittest import mock

import dask.array as da
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import volflow as vf
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta, VolumeSpec
from volflow.volumes.arrays.inputs import open_input
from volflow.volumes.framed import FramedImage
from volflow.volumes.resample import model_grid
from volflow.volumes.resample.model_grid import grid_of_model

sizes = st.sampled_from((0.5, 1.0, 1.25, 2.0, 3.0, 7.0))
spacings, near = st.tuples(sizes, sizes, sizes), st.sampled_from((1.0, 1.25, 2.0))
frames = st.builds(
    Frame,
    st.sampled_from(list(itertools.permutations(range(3)))),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
KINDS = ("u1", "i2", "i4", "f2", "f4", "f8", "?")


class Held:
    """An array of which boxes are read."""

    def __init__(self, voxels):
        self.voxels = voxels

    def read(self, roi):
        return self.voxels[(..., *roi.slices())]


@st.composite
def images(draw):
    shape = draw(st.tuples(*[st.integers(1, 24)] * 3))
    channels = draw(st.integers(1, 2))
    meta = Meta(("c", "z", "y", "x"), spacing=draw(spacings), unit="millimeter")
    voxels = np.random.default_rng(0).random((channels, *shape)) * 200
    voxels = voxels.astype(draw(st.sampled_from(KINDS)))
    spec = VolumeSpec(voxels.shape, voxels.dtype, (1, 8, 8, 8), None, meta)
    mask = Held((np.random.default_rng(1).random(shape) > 0.9).astype("u1"))
    return FramedImage((spec,), (Held(voxels),), (None,), draw(frames), mask)


def boxes(data, shape):
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, n - 1)] * 2))) for n in shape]
    return Roi(tuple(a for a, _ in ends), tuple(b + 1 for _, b in ends))


@given(image=images(), wanted=spacings, data=st.data())
def test_any_box_of_what_a_network_sees_has_the_bits_of_the_whole(image, wanted, data):
    grid = grid_of_model(image, wanted, None)
    if grid is None:
        return
    seen = grid.seen(image)
    (spec,), (view,) = seen.specs, seen.volumes
    full, box = Roi.full(spec.spatial_shape), boxes(data, spec.spatial_shape)
    whole, near = view.read(full), seen.mask.read(full)
    assert (whole.shape, whole.dtype) == (spec.shape, spec.dtype)
    with mock.patch.multiple(model_grid, VIEW_BYTES=1, LEAST_SIDE=3):  # part by part
        assert np.array_equal(view.read(box), whole[(..., *box.slices())])
        assert np.array_equal(seen.mask.read(box), near[box.slices()])


@given(image=images(), wanted=spacings, data=st.data())
def test_nothing_is_read_beyond_what_is_said_to_be_read(image, wanted, data):
    grid = grid_of_model(image, wanted, None)
    if grid is None:
        return
    shape, (view,) = grid.stored.shape, grid.seen(image).volumes
    box = boxes(data, image.frame.reorder(shape))
    sides = [grid.read_range(axis, *side) for axis, side in enumerate(box)]
    stored = view.regridding.source(image.frame.stored_roi(box, shape))
    said = image.frame.stored_roi(Roi(*zip(*sides, strict=True)), grid.stored.source_shape)
    assert said.intersect(stored) == stored


@pytest.mark.slow
@settings(max_examples=8)
@given(data=st.data(), spacing=st.tuples(*[near] * 3), wanted=st.tuples(*[near] * 3))
def test_any_slice_is_that_of_one_block(data, spacing, wanted):
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    frame = data.draw(st.sampled_from((None, "RAS", "LPS", "AIL")))
    scan = np.random.default_rng(0).random(shape).astype("f4")
    placed = Meta(spacing=spacing, unit="millimeter", orientation="SAR")
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, 2, 3, padding=1).eval()
    options = {
        "patch": data.draw(st.tuples(*[st.integers(3, 7)] * 3)),
        "overlap": data.draw(st.sampled_from((0, 0.5))),
        "blend": data.draw(st.sampled_from(("gaussian", "crop"))),
        "spacing": wanted,
        "frame": frame,
        "batch_size": 2,
        "output": data.draw(st.sampled_from(("scores", "classes"))),
        "like": replace(open_input(scan), meta=placed),
    }
    chunks = data.draw(st.tuples(*[st.integers(2, 9)] * 3))
    whole = vf.map_model(da.from_array(scan, chunks=shape), net, **options)
    parts = vf.map_model(da.from_array(scan, chunks=chunks), net, **options)
    expected, box = whole.compute(scheduler="sync"), boxes(data, shape)
    assert np.array_equal(parts.compute(scheduler="sync"), expected)
    at = (..., *box.slices())
    assert np.array_equal(parts[at].compute(scheduler="sync"), expected[at])
