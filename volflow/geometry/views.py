"""The three planes of a volume as people look at them: which axes, which way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from volflow.geometry.frame import Frame

__all__ = ["View", "views"]


@dataclass(frozen=True)
class View:
    """One of three orthogonal planes, as it is displayed.

    Parameters
    ----------
    name
        Such as "axial".
    normal, rows, columns
        Stored axes: across the plane, downwards, to the right.
    flip_rows, flip_columns
        Whether the picture runs against the stored index.
    edges
        Letters for the left, right, top and bottom edge, or none.
    """

    name: str
    normal: int
    rows: int
    columns: int
    flip_rows: bool = False
    flip_columns: bool = False
    edges: tuple[str, str, str, str] = ("", "", "", "")

    @property
    def axis(self) -> str:
        """The stored axis across the plane: "z", "y" or "x"."""
        return "zyx"[self.normal]

    def turn(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A plane with its two axes in stored order, as rows and columns of the picture."""
        if self.rows > self.columns:
            plane = plane.T
        down, right = (-1 if flip else 1 for flip in (self.flip_rows, self.flip_columns))
        return plane[::down, ::right]

    def is_area(self, shape: Sequence[int]) -> bool:
        """Whether the plane is more than a line; a single slice has one view worth showing."""
        return shape[self.rows] > 1 and shape[self.columns] > 1


def views(orientation: str | None) -> tuple[View, View, View]:
    """The planes of a volume: axial, coronal, sagittal as a radiologist sees them.

    The patient's right is on the left, anterior is up or on the left, superior is up. Without
    orientation the planes are shown as stored and named by their axes.

    Examples
    --------
    >>> [view.name for view in views("SAR")], views("SAR")[0].edges
    (['axial', 'coronal', 'sagittal'], ('R', 'L', 'A', 'P'))
    >>> [view.name for view in views(None)]
    ['xy', 'xz', 'yz']
    """
    if orientation is None:
        return (View("xy", 0, 1, 2), View("xz", 1, 0, 2), View("yz", 2, 0, 1))
    # Downwards and to the right of the picture: inferior, posterior, left.
    frame = Frame.between(orientation, "IPL")
    planes = (
        ("axial", 0, 1, 2, "RLAP"),
        ("coronal", 1, 0, 2, "RLSI"),
        ("sagittal", 2, 0, 1, "APSI"),
    )
    made = [
        View(
            name,
            frame.axes[normal],
            frame.axes[rows],
            frame.axes[columns],
            frame.flips[rows],
            frame.flips[columns],
            (edges[0], edges[1], edges[2], edges[3]),
        )
        for name, normal, rows, columns, edges in planes
    ]
    return made[0], made[1], made[2]
