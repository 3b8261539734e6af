"""A synthetic CT: shapes are painted over each other, then noise is added.

The value of a voxel follows from its index, the spacing and the seed alone, so that any box can be
computed by itself, in any order, and the volume is never held whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from volflow.geometry.roi import Roi

__all__ = ["Ellipsoid", "Rod", "Shape", "paint"]

Array = npt.NDArray[np.float32]
Point = tuple[float, float, float]
Corners = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

# Values are in HU: air is -1000, water 0.
AIR = -1000.0
LOWEST = -1024.0
NOISE = 22.0
# Width of an edge: what a scanner's own sharpness leaves of it.
EDGE_MM = 1.0

# Mixes 32 bits so that each depends on all (the finaliser of MurmurHash3, in the public domain).
MIX = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))
STRIDES = (0x9E3779B1, 0x85EBCA77, 1)  # odd and far apart: voxels get numbers of their own
SIGMA_OF_FOUR_BYTES = math.sqrt(4 * (256**2 - 1) / 12)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid whose axes are those of the volume; lengths in mm along z, y, x, value in HU."""

    center: Point
    radii: Point
    value: float

    def box(self) -> Corners:
        """Return the corners of a box around it."""
        return _grown(self.center, self.center, self.radii)

    def distance(self, z: float, y: Array, x: Array) -> Array:
        """Return the distance in mm to the surface, to first order; it is negative inside.

        It is the implicit function over the length of its gradient, of shape (rows, columns).
        """
        cz, cy, cx = np.array(self.center, np.float32)
        rz, ry, rx = np.array(self.radii, np.float32)
        dz, dy, dx = np.float32(z) - cz, y - cy, x - cx
        squares: Array = np.square(dz / rz) + np.square(dy / ry) + np.square(dx / rx)
        slope = np.square(dz / rz**2) + np.square(dy / ry**2) + np.square(dx / rx**2)
        root = np.sqrt(squares)
        squares -= root
        squares /= np.sqrt(slope, out=slope) + np.float32(1e-6)  # it is 0 at the centre
        return squares


@dataclass(frozen=True)
class Rod:
    """A round rod between two points, whose radius changes from one end to the other."""

    start: Point
    stop: Point
    radii: tuple[float, float]
    value: float

    def box(self) -> Corners:
        """Return the corners of a box around it."""
        return _grown(self.start, self.stop, (max(self.radii),) * 3)

    def distance(self, z: float, y: Array, x: Array) -> Array:
        """Return the distance in mm to the nearest point of the axis, less the radius there."""
        along = tuple(b - a for a, b in zip(self.start, self.stop, strict=True))
        length = sum(step * step for step in along)
        dz, dy, dx = z - self.start[0], y - self.start[1], x - self.start[2]
        part = dy * np.float32(along[1] / length) + dx * np.float32(along[2] / length)
        part += np.float32(dz * along[0] / length)
        np.clip(part, 0, 1, out=part)
        squares: Array = np.square(part * np.float32(along[0]) - np.float32(dz))
        squares += np.square(part * np.float32(along[1]) - dy)
        squares += np.square(part * np.float32(along[2]) - dx)
        np.sqrt(squares, out=squares)
        part *= np.float32(self.radii[1] - self.radii[0])
        part += np.float32(self.radii[0])
        squares -= part
        return squares


Shape = Ellipsoid | Rod


def paint(shapes: Sequence[Shape], roi: Roi, spacing: Sequence[float], seed: int = 0) -> Array:
    """Return the voxels of a box: shapes in air, later ones over earlier ones, and noise.

    Parameters
    ----------
    shapes
        What is painted; the centre of the first voxel lies half a voxel from the origin.
    roi
        The box of voxels along z, y, x.
    spacing
        Voxel size in mm along z, y, x.
    seed
        Seed of the noise.

    Returns
    -------
    numpy.ndarray
        float32 ``zyx`` of whole HU, as scanners give them.

    Examples
    --------
    >>> ball = Ellipsoid((8.0, 8.0, 8.0), (6.0, 6.0, 6.0), 40.0)
    >>> whole = paint([ball], Roi.full((16, 16, 16)), (1, 1, 1))
    >>> part = paint([ball], Roi((3, 5, 7), (9, 9, 16)), (1, 1, 1))
    >>> bool((part == whole[3:9, 5:9, 7:16]).all())
    True
    """
    voxels = np.full(roi.shape, AIR, np.float32)
    places = [
        ((np.arange(a, b) + 0.5) * step).astype(np.float32)
        for (a, b), step in zip(roi, spacing, strict=True)
    ]
    parts = _parts(shapes, roi, spacing)
    # Plane by plane: what is worked on stays in the cache.
    for k, plane in enumerate(voxels):
        for shape, (planes, rows, columns) in parts:
            if planes.start <= k < planes.stop:
                y, x = places[1][rows, None], places[2][columns]
                cover = shape.distance(float(places[0][k]), y, x)
                cover *= np.float32(-1 / EDGE_MM)
                cover += np.float32(0.5)
                np.clip(cover, 0, 1, out=cover)
                cover *= np.float32(shape.value) - plane[rows, columns]
                plane[rows, columns] += cover
        plane += _noise(roi.start[0] + k, roi, seed)
        np.rint(plane, out=plane)
        np.maximum(plane, np.float32(LOWEST), out=plane)
    return voxels


def _grown(start: Point, stop: Point, by: Point) -> Corners:
    """Return the corners of a box around two points, with a margin and half an edge."""
    margins = np.add(by, EDGE_MM / 2)
    return np.minimum(start, stop) - margins, np.maximum(start, stop) + margins


def _parts(
    shapes: Sequence[Shape], roi: Roi, spacing: Sequence[float]
) -> list[tuple[Shape, tuple[slice, ...]]]:
    """Return the shapes that reach into a box, and where in it their own boxes lie."""
    corners = np.array([shape.box() for shape in shapes]).reshape(len(shapes), 2, 3) / spacing
    # Voxels whose centres lie inside; the centre of voxel i is at i + 1/2.
    low = np.maximum(np.ceil(corners[:, 0] - 0.5).astype(int), roi.start) - roi.start
    high = np.minimum(np.floor(corners[:, 1] + 0.5).astype(int), roi.stop) - roi.start
    inside = (low < high).all(axis=1)
    return [
        (shape, tuple(slice(a, b) for a, b in zip(start, stop, strict=True)))
        for shape, start, stop, some in zip(shapes, low, high, inside, strict=True)
        if some
    ]


def _noise(z: int, roi: Roi, seed: int) -> Array:
    """Return nearly normal noise of a plane's voxels, from a hash of their indices."""
    y, x = (
        np.arange(a, b, dtype=np.uint32) * np.uint32(stride)
        for (a, b), stride in zip(list(roi)[1:], STRIDES[1:], strict=True)
    )
    bits = y[:, None] + x + np.uint32((z * STRIDES[0] + seed * 0x27D4EB2F) % 2**32)
    for shift, factor in MIX:
        bits ^= bits >> np.uint32(shift)
        bits *= np.uint32(factor)
    bits ^= bits >> np.uint32(16)
    # Four uniform bytes add up to almost a normal number.
    pairs = bits & np.uint32(0x00FF00FF)
    pairs += (bits >> np.uint32(8)) & np.uint32(0x00FF00FF)
    total = (pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))
    noise = total.astype(np.float32)
    noise -= np.float32(510)
    noise *= np.float32(NOISE / SIGMA_OF_FOUR_BYTES)
    return noise
