"""A whole volume resampled at once by scipy, in the world: what `resample` must equal."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import ndimage

from volflow.geometry.affine import affine_between

EDGE = 1e-4  # of a voxel: centres so near the outer edge lie on it


def world(meta):
    """The affine x, y, z to the world; of a volume without orientation along its own axes."""
    if meta.affine is not None:
        return np.array(meta.affine)
    return affine_between(meta.spacing, meta.orientation or "SAR", meta.translation)


def coordinates(source_affine, target_affine, shape):
    """Where the voxels ``zyx`` of a target lie in the source, counted in its voxels ``zyx``."""
    matrix = np.linalg.inv(source_affine) @ target_affine
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    points = np.stack([x, y, z, np.ones_like(x)]).reshape(4, -1).astype(float)
    return (matrix @ points)[2::-1].reshape(3, *shape)


def resampled_whole(voxels, points, order, fill=None):
    """Values in float64 at points; beyond the outermost centres those there, further out a fill.

    Of two that are nearest, the upper one in the direction in which the target grows.
    """
    last = np.array(voxels.shape).reshape(3, 1, 1, 1) - 1
    outside = ((points < -0.5 - EDGE) | (points > last + 0.5 + EDGE)).any(axis=0)
    # What rounding alone keeps from a centre lies there, as the nearest of two may not.
    close = np.rint(2 * points) / 2
    points = np.where(abs(points - close) < 1e-9, close, points)
    points = np.clip(points, 0, last)
    if order == 0:
        falls = np.array(
            [any((np.diff(p, axis=n) < 0).any() for n in range(3)) for p in points]
        ).reshape(3, 1, 1, 1)
        near = np.where(falls, np.ceil(points - 0.5), np.floor(points + 0.5))
        z, y, x = np.clip(near.astype(int), 0, last)
        found = voxels[z, y, x].astype(float)
    else:
        found = ndimage.map_coordinates(voxels.astype(float), points, order=order, mode="mirror")
    return found if fill is None else np.where(outside, fill, found)


def likeliest_whole(labels, points, fill=None):
    """The class of the largest linear one-hot value, the smallest of several."""
    classes = np.unique(labels)
    values = np.stack([resampled_whole(labels == one, points, 1) for one in classes])
    best = values.max(axis=0)
    # Sums of the same weights in another order differ by rounding.
    found = classes[np.argmax(values >= best - 1e-9, axis=0)]
    if fill is None:
        return found
    outside = np.isnan(resampled_whole(labels, points, 0, np.nan))
    return np.where(outside, fill, found)


def corners(meta, shape):
    """The outer corners of a volume in the world."""
    ends = itertools.product(*((-0.5, n - 0.5) for n in reversed(shape)))
    return np.array([world(meta) @ (*end, 1) for end in ends])[:, :3]
