"""A picture as data: panels in columns, what stands below them, and two lines of text above.

Lengths of the page are inches, measured from its upper left corner to the right and downwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from volflow.geometry.views import View
from volflow.report.pictures.layers import Layer, Ramp
from volflow.report.pictures.slices import Slice

__all__ = [
    "GAP",
    "MARGIN",
    "SMALL_GAP",
    "WIDTH",
    "BarChart",
    "Foot",
    "Panel",
    "Places",
    "Scene",
    "Table",
    "beside",
    "best_columns",
    "place",
    "plane_name",
    "plane_panels",
    "tile_panels",
]

Size = tuple[float, float]  # width and height of a panel, in the unit of the volume
Box = tuple[float, float, float, float]  # left, top, width and height, in inches

WIDTH, NARROWEST = 12.8, 8.0  # of the widest page, and of one with little on it
MARGIN, HEADER, HEADING, CAPTION = 0.35, 0.72, 0.27, 0.23
GAP, SMALL_GAP = 0.3, 0.08  # between columns of panels, and of tiles
TALLEST, TALLEST_GRID = 7.5, 10.4  # of up to three panels, of more
MOST_OUTLINES = 600  # of one class in one tile each; more would take many seconds
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
    letters
        Whether the edges carry their letters.
    outline
        Width of the outlines of classes; 0 for none.
    ticks
        Along the columns and along the rows, in the unit of the volume.
    """

    view: View
    layers: tuple[Layer, ...]
    number: int = 0
    heading: str = ""
    caption: str = ""
    note: str = ""
    cross: Sequence[float] | None = None
    letters: bool = True
    outline: float = 0.9
    ticks: tuple[Sequence[float], Sequence[float]] = ((), ())


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


# A line of text, a legend of names and colours, or one of the above.
Foot = str | tuple[tuple[str, str], ...] | Ramp | Table | BarChart


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
    gap
        Between columns.
    notes_first
        Whether a caption is shortened in favour of the note beside it. Otherwise all notes are
        left out if one of them has no room.
    scale_bar
        In the first panel, below all panels, or none.
    """

    title: tuple[str, ...]
    subtitle: str
    size: Sequence[float]
    unit: str | None
    facts: Mapping[str, Any]
    columns: Sequence[Sequence[Panel]]
    feet: Sequence[Sequence[Sequence[Foot]]] = ()
    gap: float = GAP
    notes_first: bool = False
    scale_bar: Literal["inside", "below", "none"] = "inside"


def plane_panels(
    slices: Sequence[Slice],
    layers: tuple[Layer, ...],
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
        name = plane_name(one.view, f"   {one.view.axis} = {one.index}")
        caption = name if captioned else ""
        panels.append(Panel(one.view, layers, n, "" if n else heading, caption, cross=cross))
    return panels


def plane_name(view: View, index: str = "") -> str:
    """Return name and index of a plane, with the direction of its axes if no letters show it."""
    name = f"{view.name}{index}"
    return name if any(view.edges) else f"{name}   {view.name[0]} →  {view.name[1]} ↓"


def tile_panels(
    view: View, layers: tuple[Layer, ...], captions: Sequence[tuple[str, str]], columns: int
) -> list[Sequence[Panel]]:
    """Return columns of tiles that show planes across one axis, with their captions and notes."""
    outline = 0.5 if len(captions) * len(layers[-1].colors) <= MOST_OUTLINES else 0.0
    tiles = [
        Panel(view, layers, n, caption=caption, note=note, letters=n == 0, outline=outline)
        for n, (caption, note) in enumerate(captions)
    ]
    return [tiles[n::columns] for n in range(columns)]


def beside(panels: Sequence[Panel], size: Sequence[float]) -> list[Sequence[Panel]]:
    """Arrange up to three panels in columns: in a row, or the first beside the two others.

    The second arrangement is taken if it makes them much larger, as for thin slabs.
    """
    row = [[panel] for panel in panels]
    if len(panels) == 3:
        stacked = [panels[:1], panels[1:]]
        if _fit(_sizes(stacked, size), [CAPTION] * 2, GAP) > SIDE_BY_SIDE * _fit(
            _sizes(row, size), [CAPTION], GAP
        ):
            return list(stacked)
    return list(row)


def best_columns(count: int, size: Size) -> int:
    """Return in how many columns tiles are largest; places that stay empty count against it.

    Examples
    --------
    >>> best_columns(24, (197, 233)), best_columns(24, (500, 20))
    (6, 2)
    """

    def worth(columns: int) -> float:
        rows = -(-count // columns)
        sizes = [[size] * rows] * columns
        return count / (rows * columns) * _fit(sizes, [CAPTION] * rows, SMALL_GAP)

    return max(range(1, count + 1), key=worth)


@dataclass(frozen=True)
class Places:
    """Where panels lie on a page: their boxes column by column.

    ``rooms`` are the widths that columns have for texts, ``width`` is that of the page, and
    ``bottom`` where the lowest panel ends.
    """

    boxes: list[list[Box]]
    rooms: list[float]
    width: float
    bottom: float


def place(scene: Scene) -> Places:
    """Place panels to one scale, as large as the page allows."""
    above = [
        CAPTION + HEADING * any(bool(column[n].heading) for column in scene.columns if column[n:])
        for n in range(max(map(len, scene.columns)))
    ]
    sizes = _sizes(scene.columns, scene.size)
    scale = _fit(sizes, above, scene.gap)
    wide = [scale * max(w for w, _ in column) for column in sizes]
    # A page with little on it leaves room for the captions.
    gap = max(scene.gap, (NARROWEST - 2 * MARGIN - sum(wide)) / len(wide))
    boxes, left = [], MARGIN
    for column, across in zip(sizes, wide, strict=True):
        top, placed = HEADER, []
        for (w, h), caption in zip(column, above, strict=False):
            placed.append((left, top + caption, w * scale, h * scale))
            top += caption + h * scale
        boxes.append(placed)
        left += across + gap
    rooms = [across + gap - min(gap, 0.15) for across in wide]
    rooms[-1] = max(wide[-1], max(NARROWEST, left - gap + MARGIN) - MARGIN - boxes[-1][0][0])
    bottom = max(top + high for column in boxes for _, top, _, high in column)
    return Places(boxes, rooms, max(NARROWEST, left - gap + MARGIN), bottom)


def _sizes(columns: Sequence[Sequence[Panel]], size: Sequence[float]) -> list[list[Size]]:
    return [[(size[p.view.columns], size[p.view.rows]) for p in column] for column in columns]


def _fit(sizes: Sequence[Sequence[Size]], above: Sequence[float], gap: float) -> float:
    """Return the inches per unit at which columns of panels fit the page."""
    tallest = TALLEST if sum(map(len, sizes)) <= 3 else TALLEST_GRID
    across = (WIDTH - 2 * MARGIN - gap * (len(sizes) - 1)) / sum(
        max(w for w, _ in column) for column in sizes
    )
    down = min(
        (tallest - sum(above[: len(column)])) / sum(h for _, h in column) for column in sizes
    )
    return max(min(across, down), 1e-9)
