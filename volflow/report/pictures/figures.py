"""The three kinds of pictures: orthogonal planes, a contact sheet, two results side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from volflow.report.pictures.arrange import CAPTION, GAP, MARGIN, Box, grid, raised, three_planes
from volflow.report.pictures.draw import (
    INK,
    LEGEND_ROW,
    MUTED,
    Preview,
    fitted,
    legend,
    legend_rows,
    page,
    panel,
    ramp,
    scale_bar,
    text_width,
    write,
)
from volflow.report.pictures.layers import Layer, Ramp
from volflow.report.pictures.slices import Slice

__all__ = [
    "TILE_CAPTION",
    "TILE_GAP",
    "Column",
    "Scene",
    "Table",
    "planes_figure",
    "sheet_figure",
    "side_by_side",
]

FOOT = 0.28  # below and above what stands under the panels
TILE_GAP, TILE_CAPTION = 0.08, 0.22
HEADING = 0.3
MOST_OUTLINES = 600  # of one class in one panel each; more would take many seconds
SCALE = 2.5  # left free for the scale bar of a contact sheet
NUMBER = 1.1  # width of a column of numbers in a table


@dataclass(frozen=True)
class Scene:
    """What a picture says beside its panels.

    Parameters
    ----------
    title, subtitle
        Two lines at the top; of the title each name, and the words between them.
    size, unit
        Of the volume along z, y, x.
    facts
        The same in plain values, and more.
    """

    title: tuple[str, ...]
    subtitle: str
    size: tuple[float, ...]
    unit: str | None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One column of a comparison.

    Parameters
    ----------
    heading
        Above its panels.
    layers
        From the bottom to the top.
    legend, scale, lines
        Below its panels.
    """

    heading: str
    layers: tuple[Layer, ...]
    legend: tuple[tuple[str, str], ...] = ()
    scale: Ramp | None = None
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Numbers below the first two columns of a comparison.

    Parameters
    ----------
    head
        What the rows are, then what each number is.
    rows
        Name, colour, numbers as text.
    note
        A last line, or "".
    """

    head: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[str, ...]], ...]
    note: str = ""


def planes_figure(slices: Sequence[Slice], layers: Sequence[Layer], scene: Scene) -> Preview:
    """Orthogonal planes to one scale, with their layers from the bottom to the top."""
    sizes = [_size(one, scene) for one in slices]
    boxes, (wide, high) = three_planes(sizes)
    rows = legend_rows(layers[-1].legend, wide - 2 * MARGIN)
    footer = _footer(layers, len(rows))
    boxes = raised(boxes, footer)
    figure = page((wide, high + footer), scene.title, scene.subtitle, scene.facts)
    for n, (one, box) in enumerate(zip(slices, boxes, strict=True)):
        _plane(figure, box, slices, n, layers, scene)
        write(figure, box[0], box[1] + box[3] + 0.07, _caption(one), size=9, color=MUTED)
    left, bottom, across, _ = boxes[0]
    scale_bar(figure, left + 0.14, bottom + 0.16, (sizes[0][0], across), scene.unit)
    _foot(figure, layers, rows)
    return figure


def sheet_figure(
    slices: Sequence[Slice],
    captions: Sequence[tuple[str, str]],
    layers: Sequence[Layer],
    scene: Scene,
    columns: int,
) -> Preview:
    """Many planes across one axis, to one scale."""
    size = _size(slices[0], scene)
    places = [range(n, min(n + columns, len(slices))) for n in range(0, len(slices), columns)]
    boxes, (wide, high) = grid(
        [[size] * len(place) for place in places], caption=TILE_CAPTION, gap=TILE_GAP
    )
    rows = legend_rows(layers[-1].legend, wide - 2 * MARGIN - SCALE)
    footer = max(_footer(layers, len(rows)), 2 * FOOT)
    tiles = [box for row in boxes for box in raised(row, footer)]
    figure = page((wide, high + footer), scene.title, scene.subtitle, scene.facts)
    outlines = len(slices) * len(layers[-1].colors) <= MOST_OUTLINES
    placed = all(text_width("  ".join(caption), 8) <= tiles[0][2] for caption in captions)
    for n, box in enumerate(tiles):
        panel(
            figure, box, slices[n].view, [(layer, layer.pictures[n]) for layer in layers],
            scene.size, letters=n == 0, line=0.5 if outlines else 0,
        )  # fmt: skip
        left, bottom, across, along = box
        above = bottom + along + 0.05
        write(figure, left, above, fitted(captions[n][0], across, 8), size=8, color=INK)
        if placed:
            write(figure, left + across, above, captions[n][1], size=8, color=MUTED, ha="right")
    across, end = tiles[0][2], max(left + across for left, _, across, _ in tiles)
    scale_bar(figure, end, FOOT - 0.08, (size[0], across), scene.unit, from_right=True)
    _foot(figure, layers, rows)
    return figure


def side_by_side(
    slices: Sequence[Slice], columns: Sequence[Column], table: Table | None, scene: Scene
) -> Preview:
    """Planes below each other, one column for each thing that is compared."""
    sizes = [[_size(one, scene)] * len(columns) for one in slices]
    boxes, (wide, high) = grid(sizes, caption=CAPTION, gap=GAP)
    pitch = boxes[0][1][0] - boxes[0][0][0]
    legends = [legend_rows(column.legend, pitch - GAP) for column in columns]
    lines = [
        len(rows) + len(column.lines) + (column.scale is not None)
        for rows, column in zip(legends, columns, strict=True)
    ]
    if table is not None:
        lines.append(1 + len(table.rows) + bool(table.note))
    footer = 2 * FOOT + LEGEND_ROW * max(lines)
    boxes = [raised(row, footer) for row in boxes]
    figure = page((wide, high + HEADING + footer), scene.title, scene.subtitle, scene.facts)
    for n, row in enumerate(boxes):
        for column, box in zip(columns, row, strict=True):
            _plane(figure, box, slices, n, column.layers, scene)
        left, bottom, _, along = row[0]
        write(figure, left, bottom + along + 0.07, _caption(slices[n]), size=9, color=MUTED)
    left, bottom, across, _ = boxes[0][0]
    scale_bar(figure, left + 0.14, bottom + 0.16, (sizes[0][0][0], across), scene.unit)
    top = footer - FOOT
    for column, rows, box in zip(columns, legends, boxes[0], strict=True):
        heading = fitted(column.heading, pitch - GAP, 11, "bold")
        above = box[1] + box[3] + CAPTION + 0.06
        write(figure, box[0], above, heading, size=11, color=INK, weight="bold")
        _column_foot(figure, column, rows, box[0], top)
    if table is not None:
        _table(figure, table, left, top, 2 * pitch - GAP)
    return figure


def _column_foot(
    figure: Preview,
    column: Column,
    rows: Sequence[Sequence[tuple[float, str, str]]],
    x: float,
    top: float,
) -> None:
    """Legend, scale and lines below a column."""
    legend(figure, x, top, rows)
    top -= LEGEND_ROW * len(rows)
    if column.scale is not None:
        ramp(figure, x, top - LEGEND_ROW / 2, column.scale)
        top -= LEGEND_ROW
    for line in column.lines:
        _line(figure, x, top, line)
        top -= LEGEND_ROW


def _table(figure: Preview, table: Table, x: float, top: float, wide: float) -> None:
    """Swatches with names, numbers aligned to the right."""
    wide -= NUMBER * (len(table.head) - 1)
    _line(figure, x, top, table.head[0])
    for n, head in enumerate(table.head[1:], 1):
        _line(figure, x + wide + n * NUMBER, top, head, ha="right")
    for name, color, numbers in table.rows:
        top -= LEGEND_ROW
        legend(figure, x, top, legend_rows([(name, color)], wide))
        for n, number in enumerate(numbers, 1):
            _line(figure, x + wide + n * NUMBER, top, number, ha="right", color=INK)
    if table.note:
        _line(figure, x, top - LEGEND_ROW, table.note)


def _line(figure: Preview, x: float, top: float, text: str, **style: Any) -> None:
    style = {"color": MUTED, **style}
    write(figure, x, top - LEGEND_ROW / 2, text, size=9.5, va="center_baseline", **style)


def _plane(
    figure: Preview,
    box: Box,
    slices: Sequence[Slice],
    n: int,
    layers: Sequence[Layer],
    scene: Scene,
) -> None:
    """One of several orthogonal planes, with lines where the others lie."""
    cross = [s / 2 for s in scene.size]
    for one in slices:
        cross[one.view.normal] = one.at
    pictures = [(layer, layer.pictures[n]) for layer in layers]
    panel(figure, box, slices[n].view, pictures, scene.size, cross=cross)


def _size(one: Slice, scene: Scene) -> tuple[float, float]:
    """Width and height of a plane."""
    return scene.size[one.view.columns], scene.size[one.view.rows]


def _caption(one: Slice) -> str:
    """Name and position of a plane; which way its axes run, where no letters say so."""
    view = one.view
    text = f"{view.name}   {view.axis} = {one.index}"
    return text if any(view.edges) else f"{text}   {view.name[0]} →  {view.name[1]} ↓"


def _footer(layers: Sequence[Layer], rows: int) -> float:
    """Height below the panels."""
    if layers[-1].ramp is not None:
        return 0.5
    return MARGIN if rows == 0 else FOOT + LEGEND_ROW * rows


def _foot(
    figure: Preview, layers: Sequence[Layer], rows: Sequence[Sequence[tuple[float, str, str]]]
) -> None:
    """Names of the classes, or the scale of the heat, below the panels."""
    legend(figure, MARGIN, 0.15 + LEGEND_ROW * len(rows), rows)
    if layers[-1].ramp is not None:
        ramp(figure, MARGIN, 0.26, layers[-1].ramp)
