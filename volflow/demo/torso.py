"""The torso of the huge demo as geometric shapes: an invented chest and upper belly.

Lengths are in mm and values in HU. Coordinates are those of a CT: z grows upwards, y towards the
back, x towards the patient's left. The field of view is 320.7 × 337.9 × 337.9 mm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from volflow.demo.phantom import AIR, Ellipsoid, Point, Rod, Shape

__all__ = ["FAT", "LUNG", "MARROW", "SHAPE", "spacing_of", "torso"]

Array = npt.NDArray[np.float64]

# Voxels and field of view: 1.04 GiB as float32.
SHAPE = (1069, 512, 512)
FIELD_MM = (320.7, 337.92, 337.92)

# HU, as of a scan without contrast.
LUNG, FAT, MUSCLE, BLOOD, LIVER, MARROW, BONE = -850.0, -100.0, 50.0, 42.0, 60.0, 240.0, 700.0

X, Y = FIELD_MM[2] / 2, 168.0  # the middle of the body
SPINE_Y = Y + 52
RIB_ACROSS, RIB_DEEP, RIB_DROP = 127.0, 88.0, 42.0
VESSELS = 384  # ends of a lung's tree


def spacing_of(shape: Sequence[int]) -> tuple[float, float, float]:
    """Return the voxel size in mm along z, y, x with which a shape shows the whole torso.

    Examples
    --------
    >>> spacing_of(SHAPE)
    (0.3, 0.66, 0.66)
    """
    z, y, x = (round(side / n, 6) for side, n in zip(FIELD_MM, shape, strict=True))
    return z, y, x


@cache
def torso(seed: int = 0) -> tuple[Shape, ...]:
    """Return all shapes, in the order in which they are painted.

    Parameters
    ----------
    seed
        Seed of the vessels of the lungs; all other shapes do not depend on it.

    Examples
    --------
    >>> shapes = torso()
    >>> len(shapes) > 500, shapes == torso(seed=0)
    (True, True)
    """
    return (
        *_wall(),
        *_lungs(np.random.default_rng(seed)),
        *_chest(),
        *_belly(),
        *_spine(),
        *_ribs(),
        *_airways(),
    )


def _wall() -> Iterator[Shape]:
    """Yield skin and fat, muscle, and the fat inside; they become narrower towards the neck."""
    center = (110.0, Y, X)
    yield Ellipsoid(center, (460.0, 106.0, 152.0), FAT)
    yield Ellipsoid(center, (450.0, 95.0, 139.0), MUSCLE)
    yield Ellipsoid((20.0, Y - 6, X), (110.0, 78.0, 116.0), FAT)


def _lungs(rng: np.random.Generator) -> Iterator[Shape]:
    for side in (-1, 1):
        center, radii = np.array([196.0, Y - 2, X + side * 68]), np.array([104.0, 78.0, 47.0])
        yield Ellipsoid(_point(center), _point(radii), LUNG)
        ends = rng.normal(size=(VESSELS, 3))
        ends *= (rng.random((VESSELS, 1)) ** (1 / 3)) / np.linalg.norm(ends, axis=1, keepdims=True)
        hilum = np.array([210.0, Y + 4, X + side * 28])
        yield from _tree(hilum, center + 0.95 * radii * ends, 6.5)


def _tree(start: Array, ends: Array, radius: float) -> Iterator[Shape]:
    """Yield a vessel towards the middle of its ends, and one for each half of them."""
    stop = start + 0.55 * (ends.mean(axis=0) - start)
    yield Rod(_point(start), _point(stop), (radius, 0.85 * radius), BLOOD)
    if len(ends) == 1:
        return
    axis = int(np.ptp(ends, axis=0).argmax())
    ordered = ends[ends[:, axis].argsort()]
    for half in np.array_split(ordered, 2):
        yield from _tree(stop, half, 0.82 * radius)


def _point(values: Array) -> Point:
    z, y, x = (float(v) for v in values)
    return z, y, x


def _chest() -> Iterator[Shape]:
    """Yield heart, aorta and what else lies between the lungs, and a nodule in the right one."""
    yield Ellipsoid((215.0, Y - 8, X), (110.0, 48.0, 24.0), MUSCLE)  # what lies between the lungs
    yield Ellipsoid((240.0, Y - 48, X), (60.0, 16.0, 14.0), FAT)
    yield Ellipsoid((163.0, Y - 32, X + 26), (52.0, 46.0, 50.0), BLOOD)  # the heart
    yield Rod((10.0, SPINE_Y - 30, X + 16), (252.0, SPINE_Y - 28, X + 18), (10.0, 12.0), BLOOD)
    yield Rod((252.0, SPINE_Y - 28, X + 18), (262.0, Y - 24, X - 8), (12.0, 14.0), BLOOD)
    yield Rod((262.0, Y - 24, X - 8), (180.0, Y - 26, X - 2), (14.0, 15.0), BLOOD)
    yield Ellipsoid((224.0, Y + 22, X - 96), (7.0, 7.0, 7.0), MUSCLE)  # a nodule


def _belly() -> Iterator[Shape]:
    """Yield liver and spleen, on whose domes the lungs rest, stomach with gas, kidneys, gut."""
    yield Ellipsoid((72.0, Y - 10, X - 62), (82.0, 74.0, 64.0), LIVER)
    yield Ellipsoid((78.0, Y - 24, X + 6), (42.0, 44.0, 52.0), LIVER)
    yield Ellipsoid((84.0, Y - 14, X + 66), (56.0, 60.0, 50.0), MUSCLE)
    yield Ellipsoid((98.0, Y - 46, X + 66), (20.0, 16.0, 28.0), AIR)
    yield Ellipsoid((66.0, Y + 42, X + 84), (44.0, 34.0, 26.0), LIVER - 8)
    for side in (-1, 1):
        yield Ellipsoid((22.0, SPINE_Y - 14, X + side * 56), (46.0, 25.0, 26.0), MUSCLE - 15)
        yield Ellipsoid((22.0, SPINE_Y - 18, X + side * 46), (18.0, 10.0, 14.0), FAT)
        low, high = (0.0, SPINE_Y - 6, X + side * 30), (70.0, SPINE_Y - 6, X + side * 24)
        yield Rod(low, high, (17.0, 8.0), MUSCLE)
    for n in range(7):
        angle = n * math.pi / 6
        place = (10.0 + 5 * (n % 3), Y - 20 - 44 * math.sin(angle), X + 8 - 74 * math.cos(angle))
        yield Ellipsoid(place, (22.0, 17.0, 16.0), MUSCLE - 20)
        if n % 2:
            yield Ellipsoid((place[0], place[1] - 6, place[2]), (12.0, 8.0, 10.0), AIR)


def _bone(paths: Sequence[Sequence[Point]], radius: float, wall: float) -> Iterator[Shape]:
    """Yield rods along some paths: a hard shell around all of them, then the marrow of all."""
    for thick, value in ((radius, BONE), (radius - wall, MARROW)):
        for path in paths:
            for start, stop in pairwise(path):
                yield Rod(start, stop, (thick, thick), value)


def _spine() -> Iterator[Shape]:
    """Yield vertebrae, the discs between them, the canal behind them, and the processes."""
    for n in range(14):
        z, size = 2.0 + 25.5 * n, 1.0 - 0.022 * n
        yield Ellipsoid((z + 12.7, SPINE_Y, X), (7.0, 16.0 * size, 21.0 * size), MUSCLE + 40)
        wide, depths = 9 * size, (SPINE_Y - 7 * size, SPINE_Y, SPINE_Y + 7 * size)
        plates = [[(z, y, X - wide), (z, y, X + wide)] for y in depths]
        yield from _bone(plates, 11.0, 2.0)
        back = SPINE_Y + 21 * size
        for side in (-1, 1):
            root = (z + 1, back - 8, X + side * 15 * size)
            yield Rod(root, (z - 3, back + 17, X + side * 4), (4.2, 4.0), BONE)
            yield Rod(root, (z + 3, back + 8, X + side * 38 * size), (4.2, 3.2), BONE)
        yield from _bone([[(z - 2, back + 14, X), (z - 12, SPINE_Y + 54 * size, X)]], 3.8, 1.8)
    yield Rod((-20.0, SPINE_Y + 23, X), (345.0, SPINE_Y + 21, X), (9.0, 8.0), MUSCLE - 25)


def _ribs() -> Iterator[Shape]:
    """Yield twelve pairs of ribs, most of which cartilage joins to the sternum in front."""
    for n in range(12):
        top, floating = 34.0 + 25.5 * n, n < 2
        narrow = 1.0 - 0.0015 * max(0.0, top - 200)
        for side in (-1, 1):
            path = list(_arc(top, side, narrow, 0.55 if floating else 0.84))
            yield from _bone([path], 5.2, 2.3)
            if not floating and top < 300:
                sternum = (max(path[-1][0] + 14, 150.0), Y - 88 * narrow, X + side * 15)
                yield Rod(path[-1], sternum, (5.0, 4.5), MUSCLE + 55)
    plates = [[(150.0, Y - 87, X + s), (262.0, Y - 84, X + 1.4 * s)] for s in (-7, 0, 7)]
    yield from _bone(plates, 7.0, 2.0)


def _arc(top: float, side: int, narrow: float, share: float) -> Iterator[Point]:
    for angle in np.linspace(0.16, share * math.pi, 15):
        down = RIB_DROP * (1 - math.cos(angle)) / 2
        across, deep = RIB_ACROSS * narrow * math.sin(angle), RIB_DEEP * narrow * math.cos(angle)
        yield (top - down, float(Y + deep), float(X + side * across))


def _airways() -> Iterator[Shape]:
    """Yield the windpipe and its branches: first their walls, then the air inside."""
    split = (232.0, Y + 14, X)
    ways = [((345.0, Y - 2, X), split, 8.5)]
    for side in (-1, 1):
        hilum = (205.0, Y + 12, X + side * 34)
        ways.append((split, hilum, 6.5))
        ways.append((hilum, (160.0, Y + 34, X + side * 66), 4.2))
        ways.append((hilum, (232.0, Y - 14, X + side * 66), 3.8))
    for wall, value in ((1.8, MUSCLE), (0.0, AIR)):
        for start, stop, radius in ways:
            yield Rod(start, stop, (radius + wall, 0.8 * radius + wall), value)
