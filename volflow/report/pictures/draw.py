"""What every picture is drawn with: page, panels, letters, scale bar, legend; in inches."""

from __future__ import annotations

import io
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.textpath import text_to_path

from volflow.geometry.units import length_of_bar
from volflow.geometry.views import View
from volflow.report.pictures.arrange import MARGIN, Box
from volflow.report.pictures.layers import Layer, Picture, Ramp, painted

__all__ = [
    "INK",
    "MUTED",
    "PIXELS_PER_INCH",
    "Preview",
    "fitted",
    "legend",
    "legend_rows",
    "page",
    "panel",
    "ramp",
    "scale_bar",
    "text_width",
    "write",
]

BACKGROUND, INK, MUTED, FRAME = "#0d1117", "#e6edf3", "#8b98a9", "#2d333b"
OUTLINE = withStroke(linewidth=2.5, foreground="black", alpha=0.75)
PIXELS_PER_INCH = 110  # of the picture that a notebook shows
SWATCH, LEGEND_SIZE, LEGEND_ROW, LEGEND_GAP = 0.15, 10.0, 0.25, 0.32
LONGEST_NAME = 3.6  # of a class, in a legend
RAMP = 1.7  # width of the colours of numbers


class Preview(Figure):
    """A picture that notebooks show without pyplot.

    ``facts`` says in plain values what it shows.
    """

    facts: dict[str, Any]

    def savefig(self, *args: Any, **options: Any) -> None:
        """Write the picture, as every figure does."""
        with _boxes_for_unknown_signs():
            super().savefig(*args, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=PIXELS_PER_INCH)
        return buffer.getvalue()


def page(
    size: tuple[float, float], title: Sequence[str], subtitle: str, facts: Mapping[str, Any]
) -> Preview:
    """An empty picture with its two lines at the top.

    Parameters
    ----------
    size
        Width and height in inches.
    title
        A name, or several with a word between each two; long names are shortened.
    subtitle, facts
        Of the picture.
    """
    figure = Preview(figsize=size, facecolor=BACKGROUND)
    figure.facts = dict(facts)
    wide, top = size[0] - 2 * MARGIN, size[1]
    room = (wide - sum(text_width(word, 14, "bold") for word in title[1::2])) / len(title[::2])
    if text_width("".join(title), 14, "bold") > wide:
        title = [part if n % 2 else fitted(part, room, 14, "bold") for n, part in enumerate(title)]
    line = fitted("".join(title), wide, 14, "bold")
    write(figure, MARGIN, top - 0.2, line, size=14, weight="bold", va="top")
    line = fitted(subtitle, wide, 9.5)
    write(figure, MARGIN, top - 0.5, line, size=9.5, color=MUTED, va="top")
    return figure


def write(
    figure: Figure, x: float, y: float, text: str, *, size: float, color: str = INK, **style: Any
) -> None:
    """A line of text at a place in inches from the lower left."""
    wide, high = figure.get_size_inches()
    # Names are not mathematics, whatever signs they hold.
    figure.text(x / wide, y / high, text, fontsize=size, color=color, parse_math=False, **style)


def panel(
    figure: Figure,
    box: Box,
    view: View,
    layers: Sequence[tuple[Layer, Picture]],
    size: Sequence[float],
    *,
    cross: Sequence[float] | None = None,
    letters: bool = True,
    line: float = 0.9,
) -> Axes:
    """One plane with its layers.

    Parameters
    ----------
    box
        Where, in inches.
    view
        Which plane.
    layers
        From the bottom to the top, with the picture of this plane.
    size
        Of the volume along z, y, x.
    cross
        Position of the other planes along z, y, x, shown as fine lines; None for none.
    letters
        Whether the edges carry their letters.
    line
        Width of the outlines of classes; 0 for none.
    """
    (left, bottom, across, along), (page_wide, page_high) = box, figure.get_size_inches()
    axes = figure.add_axes(
        (left / page_wide, bottom / page_high, across / page_wide, along / page_high),
        label=view.name,
    )
    wide, high = size[view.columns], size[view.rows]
    for layer, picture in layers:
        axes.imshow(
            picture.pixels,
            extent=picture.extent,
            interpolation="bicubic" if layer.smooth else "nearest",
            interpolation_stage="rgba",
        )
        if line and picture.labels is not None:
            _outlines(axes, picture, layer.colors, line)
    axes.set(xlim=(0, wide), ylim=(high, 0), xticks=[], yticks=[], aspect="auto")
    axes.set_facecolor("black")
    for spine in axes.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
    if cross is not None:
        right, down = cross[view.columns], cross[view.rows]
        style: dict[str, Any] = {"color": "white", "alpha": 0.22, "lw": 0.7, "ls": (0, (5, 4))}
        axes.axvline(wide - right if view.flip_columns else right, **style)
        axes.axhline(high - down if view.flip_rows else down, **style)
    if letters:
        _letters(axes, view, across, along)
    return axes


def _letters(axes: Axes, view: View, across: float, along: float) -> None:
    """The letters of the edges, a tenth of an inch inside."""
    font = 11 if min(across, along) > 1.2 else 8
    dx, dy = 0.009 * font / across, 0.009 * font / along
    places = (
        (dx, 0.5, "left", "center"),
        (1 - dx, 0.5, "right", "center"),
        (0.5, 1 - dy, "center", "top"),
        (0.5, dy, "center", "bottom"),
    )
    if min(across, along) < 0.45:  # no room
        return
    for letter, (x, y, horizontal, vertical) in zip(view.edges, places, strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, ha=horizontal, va=vertical,
            fontsize=font, weight="bold", color=INK, path_effects=[OUTLINE],
        )  # fmt: skip


def _outlines(axes: Axes, picture: Picture, colors: Mapping[int, str], line: float) -> None:
    labels = picture.labels
    if labels is None or min(labels.shape) < 2:
        return
    left, right, bottom, top = picture.extent
    rows, columns = ((np.arange(n) + 0.5) / n for n in labels.shape)
    x, y = left + columns * (right - left), top + rows * (bottom - top)
    for value in np.unique(labels):
        mask = labels == value
        if value != 0 and not mask.all():
            axes.contour(
                x, y, mask, levels=[0.5], colors=[colors[int(value)]], linewidths=line, alpha=0.95
            )


def scale_bar(
    figure: Figure,
    x: float,
    y: float,
    wide: tuple[float, float],
    unit: str | None,
    *,
    from_right: bool = False,
) -> None:
    """A bar of a round length of about a quarter of a panel.

    Parameters
    ----------
    x, y
        Of its left end, or of its right one.
    wide
        Width of the panel in the unit of the volume, and in inches.
    unit
        Of the volume.
    from_right
        Whether the place is that of the right end.
    """
    length, text = length_of_bar(wide[0], unit)
    long = length * wide[1] / wide[0]
    x = x - long if from_right else x
    page_wide, page_high = figure.get_size_inches()
    ends = [x / page_wide, (x + long) / page_wide]
    bar = Line2D(ends, [y / page_high] * 2, color=INK, linewidth=2.6, solid_capstyle="butt")
    bar.set_path_effects([OUTLINE])
    figure.add_artist(bar)
    middle, side = (x + long, "right") if from_right else (x + long / 2, "center")
    write(figure, middle, y + 0.06, text, size=9, ha=side, va="bottom", path_effects=[OUTLINE])


def legend_rows(
    entries: Sequence[tuple[str, str]], wide: float
) -> list[list[tuple[float, str, str]]]:
    """Names and colours in rows that fit a width: position, name, colour.

    Several rows have their entries below each other.

    Examples
    --------
    >>> [[name for _, name, _ in row] for row in legend_rows([("a", ""), ("b", "")], wide=0.5)]
    [['a'], ['b']]
    """
    names = [fitted(name, min(wide, LONGEST_NAME), LEGEND_SIZE) for name, _ in entries]
    needs = [1.6 * SWATCH + text_width(name, LEGEND_SIZE) + LEGEND_GAP for name in names]
    columns = len(entries)
    if sum(needs) > wide + LEGEND_GAP:
        needs = [max(needs)] * len(entries)
        columns = max(1, int((wide + LEGEND_GAP) / needs[0]))
    rows: list[list[tuple[float, str, str]]] = []
    for number, (name, need) in enumerate(zip(names, needs, strict=True)):
        if number % columns == 0:
            rows.append([])
            x = 0.0
        rows[-1].append((x, name, entries[number][1]))
        x += need
    return rows


def legend(
    figure: Figure, x: float, top: float, rows: Sequence[Sequence[tuple[float, str, str]]]
) -> None:
    """Swatches with their names, from a place in inches downwards."""
    wide, high = figure.get_size_inches()
    for number, row in enumerate(rows):
        y = top - (number + 0.5) * LEGEND_ROW
        for begin, name, color in row:
            corner = ((x + begin) / wide, (y - SWATCH / 2) / high)
            swatch = Rectangle(corner, SWATCH / wide, SWATCH / high, edgecolor=color, linewidth=1)
            swatch.set_facecolor((*to_rgb(color), 0.8))
            figure.add_artist(swatch)
            place = x + begin + 1.6 * SWATCH
            write(figure, place, y - 0.005, name, size=LEGEND_SIZE, va="center_baseline")


def ramp(figure: Figure, x: float, y: float, scale: Ramp) -> None:
    """The colours of numbers, what they stand for and their ends."""
    wide, high = figure.get_size_inches()
    axes = figure.add_axes(
        (x / wide, (y - 0.06) / high, RAMP / wide, 0.12 / high), label=f"scale of {scale.name}"
    )
    pixels = painted(np.linspace(0, 1, 256)[None], scale.colors)
    axes.imshow(pixels, aspect="auto", extent=(0, 1, 0, 1))
    axes.set_axis_off()
    ends = f"{scale.low:.3g} … {scale.high:.3g}".replace("-", "−")
    text = fitted(f"{ends}   {scale.name}", wide - x - RAMP - 0.1 - MARGIN, 9.5)
    write(figure, x + RAMP + 0.1, y - 0.005, text, size=9.5, va="center_baseline")


def fitted(text: str, wide: float, size: float, weight: str = "normal") -> str:
    """A text as one line no wider than ``wide`` inches, shortened in its middle.

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
    """Of a text in inches."""
    prop = FontProperties(size=size, weight=weight)
    with _boxes_for_unknown_signs():
        across, _, _ = text_to_path.get_text_width_height_descent(text, prop, ismath=False)
    return float(across) / 72


@contextmanager
def _boxes_for_unknown_signs() -> Iterator[None]:
    """A name may hold signs that the font has not; the picture shows that, no warning need."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        yield
