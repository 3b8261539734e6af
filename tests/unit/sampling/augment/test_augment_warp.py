"""Motions against scipy's interpolation, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from volflow.sampling.augment.augment import Augment
from volflow.sampling.augment.separable import spline
from volflow.sampling.augment.warp import affine, signed_turn

MOTIONS = {"rotate": 25, "scale": (0.2, 0.1, 0.3), "shear": 0.2, "translate": 2, "elastic": 3}
# patch, probability of a turn, spacing
CASES = [
    ((9, 9, 9), 0.5, 1),
    ((7, 12, 12), 0.5, (2.5, 1, 1)),
    ((8, 5, 11), 0, (2.5, 1, 1.5)),
    ((1, 14, 14), 0.5, 1),
    ((13, 1, 10), 0, 1),
    ((6, 9, 1), 0, (1, 2, 1)),
    ((1, 1, 8), 0.5, 1),
]


def weights_by_scipy(side, step):
    """Uniform cubic B-spline on knots 0, ±step, …; control point k at (k − 1) · step."""
    used = math.ceil((side - 1) / step) + 3
    points = max(used, 4)  # fewer are no cubic for scipy
    knots = step * (np.arange(points + 4) - 3.0)
    return BSpline(knots, np.eye(points), 3)(np.arange(side))[:, :used]


def places(motion, patch):
    """Where voxels come from, written out: turned and centred, bent, shifted, transformed."""
    voxels = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij")).astype(float)
    if motion.displacement is not None:
        z, y, x = (weights_by_scipy(n, s) for n, s in zip(patch, motion.step, strict=True))
        still = np.array(patch).reshape(3, 1, 1, 1) == 1
        bent = np.einsum("ai,bj,ck,dijk->dabc", z, y, x, motion.displacement)
        voxels += np.where(still, 0, bent)
    centre = (np.array(patch) - 1).reshape(3, 1, 1, 1) / 2
    moved = voxels - centre - motion.shift.reshape(3, 1, 1, 1)
    return centre + np.einsum("ij,jabc->iabc", motion.matrix, moved)


@pytest.mark.parametrize("side", [1, 2, 9, 20])
@pytest.mark.parametrize("step", [1.0, 3.7, 8.0])
def test_spline_is_scipys(side, step):
    assert np.allclose(spline(side, step), weights_by_scipy(side, step), rtol=0, atol=1e-13)
    assert np.allclose(spline(side, step).sum(1), 1)


@pytest.mark.parametrize(("patch", "turn", "spacing"), CASES)
@pytest.mark.parametrize(("outside", "mode"), [("zeros", "grid-constant"), ("edge", "nearest")])
def test_one_interpolation_as_scipy_does_it(patch, turn, spacing, outside, mode):
    augment = Augment(**MOTIONS, elastic_spacing=8, turn=turn, spacing=spacing, outside=outside)
    rng = np.random.default_rng(1)
    image = rng.standard_normal((3, 2, *patch))
    label = rng.integers(1, 5, (3, 1, *patch))
    moved = augment(
        {"image": torch.tensor(image), "label": torch.tensor(label), "key": torch.arange(3)}
    )
    for key in range(3):
        where = places(augment._motion(key, patch), patch)
        for channel in range(2):
            expected = map_coordinates(image[key, channel], where, order=1, mode=mode)
            assert np.abs(moved["image"][key, channel].numpy() - expected).max() < 1e-10
        expected = map_coordinates(label[key, 0], where, order=0, mode=mode)
        assert (moved["label"][key, 0].numpy() == expected).all()


@pytest.mark.parametrize("axis", range(3))
def test_a_slice_never_leaves_its_plane(axis):
    patch = [16, 16, 16]
    patch[axis] = 1
    slices = torch.ones(20, 1, *patch)
    moved = Augment(**MOTIONS, turn=0.5, elastic_spacing=8, outside="edge")(
        {"image": slices, "key": torch.arange(20)}
    )
    assert torch.allclose(moved["image"], slices, rtol=0, atol=1e-6)
    inside = Augment(**MOTIONS, elastic_spacing=8)({"image": slices, "key": torch.arange(20)})
    assert inside["image"].mean() > 0.7


def test_float32_is_as_exact_as_it_can_be():
    augment = Augment(**MOTIONS, elastic_spacing=8)
    image = torch.rand(4, 1, 48, 48, 48, generator=torch.Generator().manual_seed(0))
    keys = torch.arange(4)
    narrow = augment({"image": image, "key": keys})["image"]
    wide = augment({"image": image.double(), "key": keys})["image"]
    assert (narrow - wide).abs().max() < 1e-4


def test_rotations_are_those_of_the_world():
    size = np.array([3.0, 0.8, 1.2])
    augment = Augment(flip=0, rotate=40, spacing=size)
    for key in range(10):
        world = np.diag(size) @ augment._motion(key, (9, 9, 9)).matrix @ np.diag(1 / size)
        assert np.allclose(world @ world.T, np.eye(3))
        assert np.isclose(np.linalg.det(world), 1)


def test_affine_is_scipys_rotation_after_shear_and_scale():
    angles, factors, shears = (0.3, -0.5, 0.9), (1.1, 0.8, 1.3), (0.1, -0.2, 0.3)
    found = affine(angles, factors, shears)
    # (z, y, x) are the first, second and third axis; in the plane (z, x) we turn z towards x.
    rotation = Rotation.from_euler("XYZ", (0.3, 0.5, 0.9)).as_matrix()
    sheared = np.array([[1, 0.3, -0.2], [0, 1, 0.1], [0, 0, 1]])
    assert np.allclose(found, rotation @ sheared @ np.diag(factors))
    assert np.isclose(np.linalg.det(found), np.prod(factors))


def test_quarter_turns_are_numpys():
    volume = np.arange(27).reshape(3, 3, 3)
    places = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij")) - 1
    for axis in range(3):
        plane = [other for other in range(3) if other != axis]
        for count in range(4):
            quarters = np.where(np.arange(3) == axis, count, 0)
            where = np.einsum("ij,jabc->iabc", signed_turn(quarters, (0, 0, 0)), places) + 1
            assert (volume[tuple(where)] == np.rot90(volume, -count, plane)).all()


@pytest.mark.slow
def test_elastic_never_folds_nor_exceeds_its_bound():
    augment = Augment(flip=0, elastic=0.4 * 6, elastic_spacing=6)
    patch = (19, 20, 21)
    voxels = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij"))
    for key in range(20):
        where = places(augment._motion(key, patch), patch)
        assert np.abs(where - voxels).max() <= 2.4
        jacobian = np.stack([np.stack(np.gradient(where[i])) for i in range(3)])
        assert (np.linalg.det(jacobian.transpose(2, 3, 4, 0, 1)) > 0).all()


def test_scale_keeps_proportions_where_one_number_is_given():
    for key in range(5):
        one = np.diag(Augment(flip=0, scale=0.3)._motion(key, (8, 8, 8)).matrix)
        three = np.diag(Augment(flip=0, scale=(0.3, 0.3, 0.3))._motion(key, (8, 8, 8)).matrix)
        assert len(set(one)) == 1
        assert len(set(three)) == 3
        assert (three >= 1 / 1.3).all()
        assert (three <= 1 / 0.7).all()
