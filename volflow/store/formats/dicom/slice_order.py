"""The order of slices and the grid that they form, by their positions in the patient alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.affine import from_lps
from volflow.store.formats.dicom.image_file import DicomSlice
from volflow.store.meta import Vector

__all__ = ["SliceGrid", "grid_of", "same_size"]

# What scanners round: cosines to 1e-4, positions to 1e-3 mm, or to a hundredth of a step.
COSINES, POSITION_MM, OF_STEP = 2e-4, 2e-3, 0.01
TILT = 1e-3  # radians from the normal; the gantry is tilted by half a degree or more
MOST_NAMED = 3
MOST_DEEP = 2**16

_APART = "copy the slices of one scan into a folder of their own"

Matrix = np.ndarray[Any, np.dtype[Any]]


class SliceGrid(NamedTuple):
    """Where slices lie.

    Parameters
    ----------
    places
        Of each slice, its number along z.
    depth
        How many slices the grid has.
    spacing
        Along z, y, x.
    affine
        None if their positions are not known.
    """

    places: tuple[int, ...]
    depth: int
    spacing: Vector | None
    affine: Matrix | None


def grid_of(slices: Sequence[DicomSlice], name: str, *, gaps: bool = False) -> SliceGrid:
    """Return the grid of slices that are given in any order.

    Neither their names nor their numbers say it, nor does SliceThickness, which is not the step:
    only of a single slice, where nothing else is known.

    Parameters
    ----------
    slices
        Of one size.
    name
        Of what they are of, for messages.
    gaps
        Whether slices may be missing, or several lie at one position, as in segmentations.

    Raises
    ------
    InvalidInput
        If they do not form a grid, naming the positions.
    """
    first = slices[0]
    if len(slices) == 1 and not (first.position and first.orientation and first.spacing):
        return SliceGrid((0,), 1, _lone_spacing(first), None)
    _refuse_unplaced(slices, name)
    along_x, along_y, normal = _axes(first, name)
    positions = np.array([one.position for one in slices])
    heights = positions @ normal
    order = np.argsort(heights, kind="stable")
    if gaps:
        step, places = _sparse(heights, first, name)
    else:
        step = _even_step([slices[n] for n in order], heights[order], name)
        places = np.empty(len(slices), int)
        places[order] = range(len(slices))
    start, depth = positions[order[0]], int(places.max()) + 1
    across = normal * step
    if depth > 1:  # as the slices lie, not as their cosines were rounded
        across = (positions[order[-1]] - start) / (depth - 1)
        _refuse_tilted(across, normal, name)
        _refuse_strays(positions - start - places[:, None] * across, heights, step, name)
    size_y, size_x = first.spacing
    affine = from_lps([along_x * size_x, along_y * size_y, across], start)
    spacing = (float(f"{np.linalg.norm(across):.9g}"), size_y, size_x)
    return SliceGrid(tuple(places.tolist()), depth, spacing, affine)


def same_size(slices: Sequence[DicomSlice], name: str) -> None:
    """Refuse slices of different sizes or voxel sizes.

    Raises
    ------
    InvalidInput
        Naming two of them.
    """

    def size(one: DicomSlice) -> str:
        rows, columns, samples = one.stored[:3]
        return f"{rows} × {columns} voxels" + (f" of {samples} samples" if samples > 1 else "")

    def spacing(one: DicomSlice) -> str:
        return "×".join(f"{length:.6g}" for length in one.spacing) + " mm"

    for what, of in (("sizes", size), ("voxel sizes", spacing)):
        different = next((one for one in slices if of(one) != of(slices[0])), None)
        if different is not None:
            raise InvalidInput(
                f"{name} has slices of different {what}: {of(slices[0])} in {_file(slices[0])},"
                f" {of(different)} in {_file(different)}; {_APART}"
            )


def _lone_spacing(only: DicomSlice) -> Vector | None:
    if not only.spacing or min(only.spacing) <= 0:
        return None
    return (_lone_step(only), only.spacing[0], only.spacing[1])


def _lone_step(only: DicomSlice) -> float:
    """Return how far the next slice would be, of which nothing else is known."""
    return abs(only.between) or abs(only.thickness) or 1.0


def _refuse_unplaced(slices: Sequence[DicomSlice], name: str) -> None:
    """Refuse slices without a place in the patient, or in different orientations."""
    bare = [one for one in slices if not (one.position and one.orientation and one.spacing)]
    if bare:
        parts = ("position", "orientation", "spacing")
        lacking = " and ".join(part for part in parts if not getattr(bare[0], part))
        raise InvalidInput(
            f"{name} has {len(slices)} slices, and {len(bare)} of them no {lacking} in the patient,"
            f" such as in {_file(bare[0])}; without it, as in films of ultrasound, they are no"
            " volume"
        )
    first = slices[0]
    turned = abs(np.array([one.orientation for one in slices]) - first.orientation).max(axis=1)
    if turned.max() > COSINES:
        other = slices[int(turned.argmax())]
        raise InvalidInput(
            f"{name} has slices in different orientations: {_cosines(first)} in {_file(first)},"
            f" {_cosines(other)} in {_file(other)}; {_APART}"
        )


def _axes(first: DicomSlice, name: str) -> tuple[Matrix, Matrix, Matrix]:
    """Return unit vectors along x and y of a slice, and its normal."""
    along_x, along_y = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    lengths = [np.linalg.norm(along_x), np.linalg.norm(along_y), 1 + along_x @ along_y]
    if not np.allclose(lengths, 1, rtol=0, atol=10 * COSINES) or min(first.spacing) <= 0:
        raise InvalidInput(
            f"{name} has no grid: orientation {_cosines(first)} and spacing {first.spacing} in"
            f" {_file(first)}, expected two perpendicular unit vectors and two lengths; repair its"
            " header"
        )
    normal = np.cross(along_x, along_y)
    return along_x / lengths[0], along_y / lengths[1], normal / np.linalg.norm(normal)


def _even_step(ordered: Sequence[DicomSlice], heights: Matrix, name: str) -> float:
    """Return the step between slices, of which none may be missing or lie where another does."""
    steps = np.diff(heights)
    double = np.flatnonzero(steps < POSITION_MM / 20)
    if len(double):
        pairs = [
            f"{_file(ordered[n])} and {_file(ordered[n + 1])} at {heights[n]:.6g} mm"
            for n in double[:MOST_NAMED]
        ]
        raise InvalidInput(
            f"{name} has {len(ordered)} slices, {len(double) + 1} or more of them where another"
            f" lies: {_listed(pairs, len(double))}; copy those of one time, echo or weighting into"
            " a folder of their own"
        )
    step = float(np.median(steps)) if len(steps) else _lone_step(ordered[0])
    wide = np.flatnonzero(abs(steps - step) > _tolerance(step))
    if len(wide):
        between = [f"{heights[n]:.6g} and {heights[n + 1]:.6g} mm" for n in wide[:MOST_NAMED]]
        raise InvalidInput(
            f"{name} has slices {step:.6g} mm apart, but not between"
            f" {_listed(between, len(wide))}; add the slices that are missing, or {_APART}"
        )
    return step


def _sparse(heights: Matrix, first: DicomSlice, name: str) -> tuple[float, Matrix]:
    """Return the step of a grid with gaps, as stated if that fits, and the places of slices."""
    levels = np.unique(heights)
    steps = np.diff(levels)
    steps = steps[steps > POSITION_MM / 20]
    least = float(steps.min()) if len(steps) else _lone_step(first)
    for step in (abs(first.between) or least, least):
        away = (heights - levels[0]) / max(step, POSITION_MM / 20)
        places = np.rint(away)
        if places.max() < MOST_DEEP and (abs(away - places) * step <= _tolerance(step)).all():
            return step, places.astype(int)
    raise InvalidInput(
        f"{name} has slices at uneven distances, from {least:.6g} to {steps.max():.6g} mm; resample"
        " it with the software that made it"
    )


def _refuse_tilted(across: Matrix, normal: Matrix, name: str) -> None:
    height = across @ normal
    tilt = np.arctan2(np.linalg.norm(across - height * normal), height)
    if tilt > TILT:
        raise InvalidInput(
            f"{name} has slices that are tilted by {np.degrees(tilt):.3g}° against their stack, as"
            " with a tilted gantry; resample it first, e.g. with dcm2niix"
        )


def _refuse_strays(offsets: Matrix, heights: Matrix, step: float, name: str) -> None:
    far = np.linalg.norm(offsets, axis=1)
    if (far > _tolerance(step)).any():
        raise InvalidInput(
            f"{name} has slices beside the line of the others: the one at"
            f" {heights[far.argmax()]:.6g} mm by {far.max():.3g} mm; {_APART}"
        )


def _tolerance(step: float) -> float:
    return max(POSITION_MM, OF_STEP * step)


def _listed(parts: Sequence[str], count: int) -> str:
    more = f" and {count - len(parts)} more" if count > len(parts) else ""
    return "; ".join(parts) + more


def _file(one: DicomSlice) -> str:
    return "/".join(Path(one.path).parts[-2:])


def _cosines(one: DicomSlice) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in one.orientation) + ")"
