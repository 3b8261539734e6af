"""The three orthogonal planes of a volume as displayed: their axes and directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from volflow.geometry.frame import Frame

__all__ = ["View", "views"]


@dataclass(frozen=True)
class View:
    """One of the three orthogonal planes, as displayed.

    Parameters
    ----------
    name
        Name of the plane, such as "axial".
    normal, rows, columns
        Stored axes across the plane, downwards and to the right.
    flip_rows, flip_columns
        Whether the picture's axis runs against the stored index.
    edges
        Letters at the left, right, top and bottom edge, or empty.
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
        """Stored axis across the plane: "z", "y" or "x"."""
        return "zyx"[self.normal]

    def turn(self, plane: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a plane, its two axes in stored order, as rows and columns of the picture."""
        if self.rows > self.columns:
            plane = plane.T
        down, right = (-1 if flip else 1 for flip in (self.flip_rows, self.flip_columns))
        return plane[::down, ::right]

    def is_area(self, shape: Sequence[int]) -> bool:
        """Return True if the plane is more than a line; a single slice has one such view."""
        return shape[self.rows] > 1 and shape[self.columns] > 1


def views(orientation: str | None) -> tuple[View, View, View]:
    """Return the axial, coronal and sagittal plane of a volume in radiological convention.

    The patient's right is on the left, anterior is up or on the left, superior is up. Without an
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
