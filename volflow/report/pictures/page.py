"""How a picture is drawn: its panels, scale bar and legends on a page of matplotlib."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import ge
from typing import Any, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D, ScaledTranslation

from volflow.geometry.units import length_of_bar
from volflow.geometry.views import View
from volflow.report.pictures.layers import HEAT, Layer, Ramp, painted
from volflow.report.pictures.scene import MARGIN, BarChart, Box, Foot, Panel, Scene, Table, place

__all__ = ["BACKGROUND", "FRAME", "INK", "MUTED", "Preview", "draw", "fitted", "text_width"]

BACKGROUND, INK, MUTED, FRAME = "#0d1117", "#e6edf3", "#8b98a9", "#2d333b"
OUTLINE = withStroke(linewidth=2.5, foreground="black", alpha=0.75)
PIXELS_PER_INCH = 110  # of the picture that a notebook shows
TEXT, SMALL = 9.5, 8.5  # points
ROW, FOOT = 0.25, 0.15  # height of a row below the panels, space around the rows
SWATCH, LONGEST_NAME = 0.15, 3.6  # width of a colour and, at most, of its name in a legend
LEAST_NAME = 0.5  # of a caption beside a note
RAMP, NUMBER, BAR = 1.7, 1.1, 1.6  # widths of the colours of numbers, of a number, of a share
HISTOGRAM, SPACE = 0.95, 0.15  # height of a chart; between what stands below columns
MOST_OUTLINES = 600  # of one class in one panel each; more would take many seconds
CAPTIONS = {"fontsize": SMALL, "va": "baseline"}


class Preview(Figure):
    """A picture that notebooks show without pyplot; ``facts`` has in plain values what it shows."""

    facts: dict[str, Any]

    def savefig(self, *args: Any, **options: Any) -> None:
        """Write the picture, as every figure does."""
        with _boxes_for_unknown_signs():
            super().savefig(*args, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=PIXELS_PER_INCH)
        return buffer.getvalue()


def draw(scene: Scene) -> Preview:
    """Draw a picture."""
    page, (boxes, wide) = _Canvas(), place(scene)
    page.figure.facts = dict(scene.facts)
    edges = [column[0][0] for column in boxes] + [wide - MARGIN + SPACE]
    placed = [
        (panel, box, max(right - left - SPACE, box[2]))
        for column, lines, left, right in zip(scene.columns, boxes, edges, edges[1:], strict=False)
        for panel, box in zip(column, lines, strict=True)
    ]
    placed.sort(key=lambda one: one[1][1])  # row by row
    _panels(page, scene, placed)
    lowest = max(top + high for _, (_, top, _, high), _ in placed)
    right, bottom = _feet(page, scene.feet, edges, lowest)
    if scene.scale_bar:
        bottom = _scale_bar(page, scene, boxes[0][0], bottom)
    wide = max(wide, right + MARGIN)
    _header(page, scene, wide - 2 * MARGIN)
    page.finish(wide, bottom + FOOT)
    return page.figure


class _Canvas:
    """A figure on which things are placed in inches from its upper left corner.

    Its size is set in the end, when everything has its place.
    """

    def __init__(self) -> None:
        self.figure = Preview(facecolor=BACKGROUND)
        corner = ScaledTranslation(0, 1, cast(Affine2D, self.figure.transFigure))
        self.inches = self.figure.dpi_scale_trans + corner
        self.boxes: list[tuple[Axes, Box]] = []

    def write(self, x: float, y: float, text: str, **style: Any) -> float:
        """Write a line, by default in the middle of a row; return where it ends on the right."""
        style = {"fontsize": TEXT, "color": INK, "va": "center_baseline", **style}
        # Names are not mathematics, whatever signs they hold.
        self.figure.text(x, -y, text, transform=self.inches, parse_math=False, **style)
        return x + text_width(text, style["fontsize"])

    def paint(self, box: Box, color: Any, **style: Any) -> None:
        """Fill a rectangle."""
        left, top, wide, high = box
        style = {"fc": color, "lw": 0, "transform": self.inches} | style
        self.figure.add_artist(Rectangle((left, -top - high), wide, high, **style))

    def axes(self, box: Box, label: str) -> Axes:
        """Add axes."""
        axes = self.figure.add_axes((0, 0, 1, 1), label=label)
        self.boxes.append((axes, box))
        return axes

    def finish(self, wide: float, high: float) -> None:
        """Set the size of the page, and give the axes their places."""
        self.figure.set_size_inches(wide, high)
        for axes, (left, top, across, along) in self.boxes:
            box = (left / wide, 1 - (top + along) / high, across / wide, along / high)
            axes.set_position(box)


def _header(page: _Canvas, scene: Scene, wide: float) -> None:
    """Write title and subtitle; long names are shortened, the words between them are not."""
    parts = list(scene.title)
    if text_width("".join(parts), 14, "bold") > wide:
        room = wide - sum(text_width(word, 14, "bold") for word in parts[1::2])
        parts[::2] = [fitted(name, room / len(parts[::2]), 14, "bold") for name in parts[::2]]
    title = fitted("".join(parts), wide, 14, "bold")
    page.write(MARGIN, 0.2, title, fontsize=14, weight="bold", va="top")
    page.write(MARGIN, 0.5, fitted(scene.subtitle, wide, TEXT), color=MUTED, va="top")


def _panels(page: _Canvas, scene: Scene, placed: Sequence[tuple[Panel, Box, float]]) -> None:
    """Draw all panels, with what stands above them."""
    one_view = len({panel.view for panel, _, _ in placed}) == 1
    left_of_note = [box[2] - text_width(f"  {panel.note}", SMALL) for panel, box, _ in placed]
    captions = [min(LEAST_NAME, text_width(panel.caption, SMALL)) for panel, _, _ in placed]
    # All notes are left out if one of them has no room.
    noted = all(map(ge, left_of_note, captions)) and any(panel.note for panel, _, _ in placed)
    for n, (panel, box, room) in enumerate(placed):
        left, top, across, along = box
        axes = page.axes(box, panel.view.name)
        _planes(axes, panel, scene.size, len(placed))
        # Panels that are all seen alike have their letters once.
        if min(across, along) >= 0.45 and not (one_view and n):  # else there is no room
            _letters(axes, panel.view, 11 if min(across, along) > 1.2 else 8)
        heading = fitted(panel.heading, room, 11, "bold")
        page.write(left, top - 0.28, heading, fontsize=11, weight="bold", va="baseline")
        if noted:
            page.write(left + across, top - 0.06, panel.note, color=MUTED, ha="right", **CAPTIONS)
        caption = fitted(panel.caption, left_of_note[n] if noted else room, SMALL)
        page.write(left, top - 0.06, caption, **CAPTIONS)


def _planes(axes: Axes, panel: Panel, size: Sequence[float], count: int) -> None:
    """Draw the layers of one of ``count`` panels, and fine lines where the other planes lie."""
    view, (wide, high) = panel.view, panel.extent(size)
    for layer in panel.layers:
        picture = layer.pictures[panel.number]
        axes.imshow(
            picture.values,
            extent=picture.extent,
            interpolation="bicubic" if layer.smooth else "nearest",
            interpolation_stage="rgba",
        )
        if layer.labels and count * len(layer.colors) <= MOST_OUTLINES:
            _outlines(axes, layer, panel.number, 0.9 if count <= 9 else 0.5)
    axes.set(xlim=(0, wide), ylim=(high, 0), aspect="auto", facecolor="black", xticks=[], yticks=[])
    axes.spines[:].set(color=FRAME, linewidth=0.8)
    if panel.cross is not None:
        right, down = panel.cross[view.columns], panel.cross[view.rows]
        style: dict[str, Any] = {"color": "white", "alpha": 0.22, "lw": 0.7, "ls": (0, (5, 4))}
        axes.axvline(wide - right if view.flip_columns else right, **style)
        axes.axhline(high - down if view.flip_rows else down, **style)


def _letters(axes: Axes, view: View, font: float) -> None:
    """Write the letters of the edges, a tenth of an inch inside."""
    edges = (0.0, 0.5, "left", "center"), (1.0, 0.5, "right", "center")
    ends = (0.5, 1.0, "center", "top"), (0.5, 0.0, "center", "bottom")
    for letter, (x, y, ha, va) in zip(view.edges, (*edges, *ends), strict=True):
        inwards = (1.3 * font * (0.5 - x), 1.3 * font * (0.5 - y))
        axes.annotate(
            letter, (x, y), inwards, "axes fraction", "offset points", ha=ha, va=va,
            fontsize=font, weight="bold", color=INK, path_effects=[OUTLINE],
        )  # fmt: skip


def _outlines(axes: Axes, layer: Layer, number: int, width: float) -> None:
    labels, (left, right, bottom, top) = layer.labels[number], layer.pictures[number].extent
    rows, columns = ((np.arange(n) + 0.5) / n for n in labels.shape)
    x, y = left + columns * (right - left), top + rows * (bottom - top)
    for value in np.unique(labels[labels != 0]):
        mask = labels == value
        if min(labels.shape) > 1 and not mask.all():
            color = layer.colors[int(value)]
            axes.contour(x, y, mask, [0.5], colors=[color], linewidths=width, alpha=0.95)


def _feet(
    page: _Canvas, feet: Sequence[Sequence[Sequence[Foot]]], edges: Sequence[float], bottom: float
) -> tuple[float, float]:
    """Draw what stands below the panels; return where it ends on the right and below."""
    right = 0.0
    for band in feet:
        filled = [n for n, things in enumerate(band) if any(things)]
        begin = bottom + FOOT
        for n, stop in zip(filled, [*filled[1:], -1], strict=False):
            y = begin
            for foot in band[n]:
                end, high = _foot(page, foot, edges[n], y, edges[stop] - edges[n] - SPACE)
                right, y = max(right, end), y + high
            bottom = max(bottom, y)
    return right, bottom


def _scale_bar(page: _Canvas, scene: Scene, box: Box, bottom: float) -> float:
    """Draw the scale of the first panel, in it or, of tiles, below all; return where that ends."""
    left, top, across, along = box
    wide, _ = scene.columns[0][0].extent(scene.size)
    length, text = length_of_bar(wide, scene.unit)
    long = length * across / wide
    if scene.tiles:
        y = bottom + FOOT + ROW / 2
        page.write(left + long + 0.1, y, text)
    else:
        left, y = left + 0.14, top + along - 0.16
        style = {"ha": "center", "va": "bottom", "path_effects": [OUTLINE]}
        page.write(left + long / 2, y - 0.06, text, **style)
    line = Line2D([left, left + long], [-y, -y], color=INK, lw=2.6, solid_capstyle="butt")
    line.set(transform=page.inches, path_effects=[OUTLINE])
    page.figure.add_artist(line)
    return max(bottom, y + ROW / 2)


def _foot(page: _Canvas, foot: Foot, x: float, y: float, room: float) -> tuple[float, float]:
    """Draw one thing below the panels; return where it ends on the right, and its height."""
    match foot:
        case str():
            return page.write(x, y + ROW / 2, foot, color=MUTED), ROW
        case Ramp():
            return _ramp(page, foot, x, y), ROW
        case Table():
            return _table(page, foot, x, y, room), ROW * (1 + len(foot.rows))
        case BarChart():
            return _bar_chart(page, foot, (x, y, room, HISTOGRAM)), HISTOGRAM + 2 * ROW
    names = [fitted(name, min(room, LONGEST_NAME), TEXT) for name, _ in foot]
    pitch = max((text_width(name, TEXT) for name in names), default=0) + 4 * SWATCH
    columns = max(1, int((room + SWATCH) / pitch))
    for n, (name, (_, color)) in enumerate(zip(names, foot, strict=True)):
        row, column = divmod(n, columns)
        _named(page, x + column * pitch, y + row * ROW, name, color)
    return x, -(-len(foot) // columns) * ROW


def _named(page: _Canvas, x: float, y: float, name: str, color: str) -> None:
    """Draw a colour with its name."""
    box = (x, y + (ROW - SWATCH) / 2, SWATCH, SWATCH)
    page.paint(box, (*to_rgb(color), 0.8), ec=color, lw=1)
    page.write(x + 1.6 * SWATCH, y + ROW / 2, name)


def _ramp(page: _Canvas, ramp: Ramp, x: float, y: float) -> float:
    """Draw the colours of numbers, what they stand for and their ends."""
    axes = page.axes((x, y + ROW / 2 - 0.06, RAMP, 0.12), f"scale of {ramp.name}")
    axes.imshow(painted(np.linspace(0, 1, 256)[None], ramp.colors), aspect="auto")
    axes.set_axis_off()
    ends = f"{ramp.low:.3g} … {ramp.high:.3g}".replace("-", "−")
    return page.write(x + RAMP + 0.1, y + ROW / 2, f"{ends}   {fitted(ramp.name, 4, TEXT)}")


def _table(page: _Canvas, table: Table, x: float, y: float, room: float) -> float:
    """Draw colours with their names, and their numbers or shares beside them."""
    count = len(table.head) - 1
    shares = any(isinstance(cell, float) for _, _, cells in table.rows for cell in cells)
    wide, side = (BAR + 1.0, "left") if shares else (NUMBER, "right")
    names = min(max(room - count * wide, 1.0), LONGEST_NAME)
    edges = [x + names + (n if shares else n + 1) * wide for n in range(count)]
    page.write(x, y + ROW / 2, fitted(table.head[0], names, TEXT), color=MUTED)
    for edge, head in zip(edges, table.head[1:], strict=True):
        page.write(edge, y + ROW / 2, head, color=MUTED, ha=side)
    for name, color, cells in table.rows:
        y += ROW
        _named(page, x, y, fitted(name, names - 2 * SWATCH, TEXT), color)
        for edge, cell in zip(edges, cells, strict=True):
            if isinstance(cell, str):
                page.write(edge, y + ROW / 2, cell, ha=side)
                continue
            for long, paint in ((BAR, FRAME), (BAR * cell, color)):
                page.paint((edge, y + ROW / 2 - 0.055, long, 0.11), paint)
            page.write(edge + BAR + 0.08, y + ROW / 2, f"{100 * cell:.3g} %")
    return x + names + count * wide


def _bar_chart(page: _Canvas, chart: BarChart, box: Box) -> float:
    """Draw counts over an extent, named below."""
    left, top, wide, high = box
    axes = page.axes((left, top, wide, high), chart.name)
    edges = np.linspace(0, 1, len(chart.counts) + 1)
    axes.stairs(chart.counts, edges, fill=True, color=HEAT[-3])
    axes.set(xlim=(0, 1), ylim=(0, 1.08 * chart.highest), yticks=[], facecolor="none")
    axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    axes.tick_params(colors=MUTED, labelsize=8, length=2)
    axes.spines[:].set(visible=False)
    axes.spines["bottom"].set(color=FRAME, visible=True)
    place = (left + wide / 2, top + high + 1.5 * ROW)
    page.write(*place, f"centre {chart.name}, of the extent", color=MUTED, ha="center")
    return left + wide


def fitted(text: str, wide: float, size: float, weight: str = "normal") -> str:
    """Return a text as one line no wider than ``wide`` inches, shortened in its middle.

    Examples
    --------
    >>> fitted("a name on" + chr(10) + "two lines", 9, 10), len(fitted("long" * 99, 1, 10)) < 20
    ('a name on two lines', True)
    """
    # File names may hold anything, even bytes that are not text.
    text = text.encode("utf-8", "replace").decode()
    text = "".join(" " if unicodedata.category(sign) == "Cc" else sign for sign in text)
    keep, short = len(text), text
    while keep > 1 and (long := text_width(short, size, weight)) > wide:
        keep = min(keep - 1, int(keep * wide / long) + 1)
        short = f"{text[: keep // 2]}…{text[len(text) - (keep - keep // 2) :]}"
    return short


def text_width(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a text in inches."""
    prop = FontProperties(size=size, weight=weight)
    with _boxes_for_unknown_signs():
        across, _, _ = text_to_path.get_text_width_height_descent(text, prop, ismath=False)
    return float(across) / 72


@contextmanager
def _boxes_for_unknown_signs() -> Iterator[None]:
    """Hide the warning that the font lacks a sign of a name; the picture shows a box there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield
