"""Boxes of volumes as a network sees them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.normalize import Normalization
from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec
from volflow.volumes.arrays.inputs import open_input
from volflow.volumes.convert import convert
from volflow.volumes.framed import FramedImage

HALVED = Normalization((10.0,), (0.5,), (None,), (None,))


@pytest.fixture
def volumes(tmp_path):
    """Two volumes on one grid, of one channel and of two."""
    rng = np.random.default_rng(0)
    made = []
    for name, shape in (("a", (9, 10, 11)), ("b", (2, 9, 10, 11))):
        meta = Meta(("c", "z", "y", "x")[-len(shape) :])
        volume = create(
            tmp_path / f"{name}.zarr", VolumeSpec.of(shape, "uint8", meta, chunk=4, shard=8)
        )
        volume.write(Roi.full(shape), rng.integers(0, 200, shape, "uint8"))
        made.append(volume)
    return tuple(made)


def image_of(volumes, *normalize, frame=None, **options):
    specs = tuple(volume.spec for volume in volumes)
    scaled = normalize or (None,) * len(volumes)
    return FramedImage(specs, volumes, scaled, frame or Frame(), **options)


def test_channels_are_joined_scaled_and_zero_beyond_the_volume(volumes):
    image = image_of(volumes, HALVED, None)
    box = Roi((-2, 3, 4), (5, 12, 9))
    found = image.read(box, "float32")
    assert found.dtype == "float32"
    assert found.shape == (3, *box.shape)
    first, others = (volume[:].astype("float32") for volume in volumes)
    assert np.array_equal(found[0, 2:, :7], (first[:5, 3:, 4:9] - 10) / 2)
    assert np.array_equal(found[1:, 2:, :7], others[:, :5, 3:, 4:9])
    assert not found[:, :2].any()
    assert not found[:, :, 7:].any()


def test_a_box_beyond_the_volume_is_zero(volumes):
    assert not image_of(volumes).read(Roi((20, 0, 0), (24, 4, 4)), "float64").any()


def test_boxes_lie_in_the_frame(volumes):
    frame = Frame((2, 0, 1), (True, False, True))
    image = image_of(volumes[:1], frame=frame)
    assert image.shape == (11, 9, 10)
    box = Roi((1, 2, 3), (7, 8, 9))
    shown = frame.show(volumes[0][:])
    assert np.array_equal(image.read(box, "float32")[0], shown[box.slices()])


def test_a_function_sees_the_dtype_of_the_network(volumes):
    seen = []

    def root(values):
        seen.append(values.dtype)
        return np.sqrt(values)

    found = image_of(volumes[:1], root).read(Roi((0, 0, 0), (4, 4, 4)), "float64")
    assert seen == [np.dtype("float64")]
    assert np.array_equal(found[0], np.sqrt(volumes[0][:4, :4, :4].astype("float64")))


def test_a_function_must_keep_the_shape(volumes):
    image = image_of(volumes[:1], lambda values: values[:, :1])
    with pytest.raises(InvalidInput, match="normalize must keep the shape of its block"):
        image.read(Roi((0, 0, 0), (4, 4, 4)), "float32")


def test_what_is_worth_computing_is_of_stored_values(volumes):
    image = image_of(volumes[:1], HALVED, mask=volumes[0], skip_below=100)
    voxels, active = image.read_stored(Roi((0, 0, 0), (4, 5, 6)), "float32")
    assert np.array_equal(voxels[0][0], volumes[0][:4, :5, :6])
    assert np.array_equal(active, volumes[0][:4, :5, :6] >= 100)
    assert image_of(volumes).read_stored(Roi((0, 0, 0), (4, 5, 6)), "float32")[1] is None


def test_it_travels_to_workers(volumes):
    image = pickle.loads(pickle.dumps(image_of(volumes)))
    box = Roi((0, 0, 0), (3, 3, 3))
    assert np.array_equal(image.read(box, "float32"), image_of(volumes).read(box, "float32"))


@pytest.mark.parametrize(("channels", "shape"), [(1, (40, 50, 60)), (2, (2, 40, 50, 60))])
def test_a_source_has_the_spec_of_what_it_is_converted_to(tmp_path, channels, shape):
    source = open_input(np.zeros(shape, "uint16"))
    made = convert(source, tmp_path / "a.zarr", progress=False)
    before, after = source.spec, made.spec
    assert (before.shape, before.dtype, before.chunk) == (after.shape, after.dtype, after.chunk)
    assert (before.meta.axes, before.meta.spacing) == (after.meta.axes, after.meta.spacing)
    assert (before.channels, before.voxel_bytes) == (channels, 2 * channels)
