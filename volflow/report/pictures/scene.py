"""A picture as data: panels in columns, what stands below them, and two lines of text above.

Lengths of the page are inches, measured from its upper left corner to the right and downwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from volflow.geometry.views import View
from volflow.report.pictures.layers import Layer, Legend, Ramp
from volflow.report.pictures.slices import Slice

__all__ = [
    "BarChart",
    "Foot",
    "Panel",
    "Scene",
    "Table",
    "beside",
    "in_columns",
    "place",
    "plane_name",
    "plane_panels",
]

Columns = Sequence[Sequence["Panel"]]
Box = tuple[float, float, float, float]  # left, top, width and height, in inches

WIDTH, NARROWEST = 12.8, 8.0  # of the widest page, and of one with little on it
MARGIN, HEADER, HEADING, CAPTION = 0.35, 0.72, 0.27, 0.23
GAP, SMALL_GAP = 0.3, 0.08  # between columns of panels, and of tiles
TALLEST, TALLEST_GRID = 7.5, 10.4  # of up to three panels, of more
SIDE_BY_SIDE = 1.3  # how much larger three panels must become to be arranged other than in a row


@dataclass(frozen=True)
class Panel:
    """One plane with its layers.

    Parameters
    ----------
    view
        How the plane is displayed.
    layers
        From the bottom to the top.
    number
        Which of each layer's pictures is shown.
    heading, caption, note
        Above the panel: a bold line; below it a text on the left and another on the right.
    cross
        Position of the other planes along z, y, x, shown as fine lines; None for none.
    """

    view: View
    layers: Sequence[Layer]
    number: int = 0
    heading: str = ""
    caption: str = ""
    note: str = ""
    cross: Sequence[float] | None = None

    def extent(self, size: Sequence[float]) -> tuple[float, float]:
        """Return width and height of the plane in a box of a size along z, y, x."""
        return size[self.view.columns], size[self.view.rows]


@dataclass(frozen=True)
class Table:
    """Rows of a name, its colour and its cells; a cell is a text, or a share drawn as a bar."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str | float, ...]], ...]


@dataclass(frozen=True)
class BarChart:
    """Counts over equal parts of an extent, drawn to a common ``highest`` count."""

    name: str
    counts: Sequence[int]
    highest: int


Foot = str | Legend | Ramp | Table | BarChart  # a line of text, or one of the others


@dataclass(frozen=True)
class Scene:
    """All that a page shows.

    Parameters
    ----------
    title, subtitle
        Two lines at the top; of the title each name, and the words between them.
    size, unit
        Of the box shown, along z, y, x.
    facts
        The same in plain values, and more.
    columns
        Panels from top to bottom, all of them to one scale.
    feet
        Bands below the panels. A band has for each column the things that stand in it; one
        reaches over the columns to its right that have none.
    tiles
        Whether panels are many, close together, with the scale bar below.
    scale_bar
        Whether there is one.
    """

    title: tuple[str, ...]
    subtitle: str
    size: Sequence[float]
    unit: str | None
    facts: Mapping[str, Any]
    columns: Columns
    feet: Sequence[Sequence[Sequence[Foot]]] = ()
    tiles: bool = False
    scale_bar: bool = True


def plane_panels(
    slices: Sequence[Slice],
    layers: Sequence[Layer],
    size: Sequence[float],
    heading: str = "",
    *,
    captioned: bool = True,
) -> list[Panel]:
    """Return a panel per slice, with lines where the others lie; the first carries the heading."""
    cross = [s / 2 for s in size]
    for one in slices:
        cross[one.view.normal] = one.at
    panels = []
    for n, one in enumerate(slices):
        caption = plane_name(one.view, f"   {one.view.axis} = {one.index}") if captioned else ""
        panels.append(Panel(one.view, layers, n, "" if n else heading, caption, cross=cross))
    return panels


def plane_name(view: View, index: str = "") -> str:
    """Return name and index of a plane, with the direction of its axes if no letters show it."""
    name = f"{view.name}{index}"
    return name if any(view.edges) else f"{name}   {view.name[0]} →  {view.name[1]} ↓"


def beside(panels: Sequence[Panel], size: Sequence[float]) -> Columns:
    """Arrange up to three panels in columns: in a row, or the first beside the two others.

    The second arrangement is taken if it makes them much larger, as for thin slabs.
    """
    row, stacked = [[panel] for panel in panels], [panels[:1], panels[1:]]
    if len(panels) == 3 and _scale(stacked, size) > SIDE_BY_SIDE * _scale(row, size):
        return stacked
    return row


def in_columns(panels: Sequence[Panel], size: Sequence[float]) -> Columns:
    """Arrange panels row by row in as many columns as make them largest.

    Places that stay empty count against an arrangement.
    """

    def worth(columns: Columns) -> float:
        filled = len(panels) / (len(columns) * len(columns[0]))
        return filled * _scale(columns, size, SMALL_GAP)

    counts = range(1, len(panels) + 1)
    return max(([panels[n::count] for n in range(count)] for count in counts), key=worth)


def place(scene: Scene) -> tuple[list[list[Box]], float]:
    """Return the boxes of all panels, column by column, and the width of their page.

    They have one scale and are as large as the page allows.
    """
    least = SMALL_GAP if scene.tiles else GAP
    scale, above = _scale(scene.columns, scene.size, least), _above(scene.columns)
    sizes = [[panel.extent(scene.size) for panel in column] for column in scene.columns]
    wide = [scale * max(w for w, _ in column) for column in sizes]
    # A page with little on it leaves room for the captions.
    gap = max(least, (NARROWEST - 2 * MARGIN - sum(wide)) / len(wide))
    boxes, left = [], MARGIN
    for column, across in zip(sizes, wide, strict=True):
        top, placed = HEADER, []
        for (w, h), caption in zip(column, above, strict=False):
            placed.append((left, top + caption, w * scale, h * scale))
            top += caption + h * scale
        boxes.append(placed)
        left += across + gap
    return boxes, max(NARROWEST, left - gap + MARGIN)


def _above(columns: Columns) -> list[float]:
    """Return the heights above the rows of panels, for their captions and headings."""
    rows = zip_longest(*columns)
    return [CAPTION + HEADING * any(panel and panel.heading for panel in row) for row in rows]


def _scale(columns: Columns, size: Sequence[float], gap: float = GAP) -> float:
    """Return the inches per unit at which columns of panels fit the page."""
    tallest = TALLEST if sum(map(len, columns)) <= 3 else TALLEST_GRID
    above = _above(columns)
    sizes = [[panel.extent(size) for panel in column] for column in columns]
    across = WIDTH - 2 * MARGIN - gap * (len(columns) - 1)
    down = ((tallest - sum(above[: len(column)])) / sum(h for _, h in column) for column in sizes)
    return max(min(across / sum(max(w for w, _ in column) for column in sizes), *down), 1e-9)
