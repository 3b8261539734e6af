"""How a picture is drawn: its panels, scale bar and legends on a page of matplotlib."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
from volflow.report.pictures.scene import (
    MARGIN,
    BarChart,
    Box,
    Foot,
    Panel,
    Places,
    Scene,
    Table,
    place,
)

__all__ = ["BACKGROUND", "FRAME", "INK", "MUTED", "Preview", "draw", "fitted", "text_width"]

BACKGROUND, INK, MUTED, FRAME = "#0d1117", "#e6edf3", "#8b98a9", "#2d333b"
OUTLINE = withStroke(linewidth=2.5, foreground="black", alpha=0.75)
PIXELS_PER_INCH = 110  # of the picture that a notebook shows
TEXT, SMALL = 9.5, 8.5  # points
ROW, FOOT = 0.25, 0.15  # height of a row below the panels, space around the rows
SWATCH, LONGEST_NAME = 0.15, 3.6  # width of a colour and, at most, of its name in a legend
LEAST_NAME = 0.3  # of a case that still says something
RAMP, NUMBER, BAR = 1.7, 1.1, 1.6  # widths of the colours of numbers, of a number, of a share
HISTOGRAM = 0.95


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
    page, places = _Canvas(), place(scene)
    page.figure.facts = dict(scene.facts)
    _panels(page, scene, places)
    _captions(page, scene, places)
    wide, bottom = _feet(page, scene, places)
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


def _panels(page: _Canvas, scene: Scene, places: Places) -> None:
    """Draw all panels, row by row."""
    for n in range(max(map(len, scene.columns))):
        for column, boxes in zip(scene.columns, places.boxes, strict=True):
            if n < len(column):
                _panel(page.axes(boxes[n], column[n].view.name), column[n], scene.size, boxes[n])


def _panel(axes: Axes, panel: Panel, size: Any, box: Box) -> None:
    view = panel.view
    for layer in panel.layers:
        picture = layer.pictures[panel.number]
        axes.imshow(
            picture.pixels,
            extent=picture.extent,
            interpolation="bicubic" if layer.smooth else "nearest",
            interpolation_stage="rgba",
        )
        if panel.outline and picture.labels is not None:
            _outlines(axes, layer, panel)
    wide, high = size[view.columns], size[view.rows]
    axes.set(xlim=(0, wide), ylim=(high, 0), aspect="auto", facecolor="black")
    axes.set(xticks=panel.ticks[0], yticks=panel.ticks[1])
    axes.tick_params(
        top=True, right=True, labelleft=False, labelbottom=False, length=4, width=0.8, color=INK
    )
    axes.spines[:].set(color=FRAME, linewidth=0.8)
    if panel.cross is not None:
        right, down = panel.cross[view.columns], panel.cross[view.rows]
        style: dict[str, Any] = {"color": "white", "alpha": 0.22, "lw": 0.7, "ls": (0, (5, 4))}
        axes.axvline(wide - right if view.flip_columns else right, **style)
        axes.axhline(high - down if view.flip_rows else down, **style)
    if panel.letters and min(box[2:]) >= 0.45:  # else there is no room
        _letters(axes, view, 11 if min(box[2:]) > 1.2 else 8)


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


def _outlines(axes: Axes, layer: Layer, panel: Panel) -> None:
    picture = layer.pictures[panel.number]
    labels = np.asarray(picture.labels)
    left, right, bottom, top = picture.extent
    rows, columns = ((np.arange(n) + 0.5) / n for n in labels.shape)
    x, y = left + columns * (right - left), top + rows * (bottom - top)
    for value in np.unique(labels[labels != 0]):
        mask = labels == value
        if min(labels.shape) > 1 and not mask.all():
            color = layer.colors[int(value)]
            axes.contour(x, y, mask, [0.5], colors=[color], linewidths=panel.outline, alpha=0.95)


def _captions(page: _Canvas, scene: Scene, places: Places) -> None:
    """Write what stands above the panels."""
    panels = [
        (panel, box, room)
        for column, boxes, room in zip(scene.columns, places.boxes, places.rooms, strict=True)
        for panel, box in zip(column, boxes, strict=True)
    ]
    widths = [text_width(f"{panel.caption}  {panel.note}", SMALL) for panel, _, _ in panels]
    fits = all(wide <= box[2] for wide, (_, box, _) in zip(widths, panels, strict=True))
    style = {"fontsize": SMALL, "va": "baseline"}
    for panel, (left, top, across, _), room in panels:
        heading = fitted(panel.heading, room, 11, "bold")
        page.write(left, top - 0.28, heading, fontsize=11, weight="bold", va="baseline")
        caption, note = panel.caption, panel.note if fits or scene.notes_first else ""
        if note:
            room = across - text_width(f"  {note}", SMALL)
            page.write(left + across, top - 0.06, note, color=MUTED, ha="right", **style)
        if room > LEAST_NAME:
            page.write(left, top - 0.06, fitted(caption, room, SMALL), **style)


def _feet(page: _Canvas, scene: Scene, places: Places) -> tuple[float, float]:
    """Draw what stands below the panels; return the width and the height that is needed."""
    right, bottom = places.width - MARGIN, places.bottom
    for band in filter(any, scene.feet):
        begin = bottom + FOOT
        filled = [n for n, feet in enumerate(band) if feet]
        for n, stop in zip(filled, [*filled[1:], len(places.rooms)], strict=True):
            room, y = sum(places.rooms[n:stop]), begin
            for foot in band[n]:
                end, high = _foot(page, foot, places.boxes[n][0][0], y, room)
                right, y = max(right, end), y + high
            bottom = max(bottom, y)
    view, (left, top, across, along) = scene.columns[0][0].view, places.boxes[0][0]
    length, text = length_of_bar(scene.size[view.columns], scene.unit)
    long = length * across / scene.size[view.columns]
    if scene.scale_bar == "inside":
        _bar(page, left + 0.14, top + along - 0.16, long)
        above = {"ha": "center", "va": "bottom", "path_effects": [OUTLINE]}
        page.write(left + 0.14 + long / 2, top + along - 0.22, text, **above)
    elif scene.scale_bar == "below":
        bottom += FOOT + ROW
        _bar(page, left, bottom - ROW / 2, long)
        page.write(left + long + 0.1, bottom - ROW / 2, text)
    return right + MARGIN, bottom


def _bar(page: _Canvas, x: float, y: float, long: float) -> None:
    line = Line2D([x, x + long], [-y, -y], color=INK, lw=2.6, solid_capstyle="butt")
    line.set(transform=page.inches, path_effects=[OUTLINE])
    page.figure.add_artist(line)


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
    # Names of files may hold anything, even what is no text.
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
