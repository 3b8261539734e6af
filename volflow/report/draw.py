"""Drawing of a preview with matplotlib: panels to one scale, layers, letters, scale bar, legend."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from volflow.report.slices import MANY_CLASSES, Array, View
from volflow.report.units import length_of_bar

__all__ = ["Layer", "Scene", "class_layer", "draw", "grey_layer", "heat_layer"]

BACKGROUND, INK, MUTED = "#0d1117", "#e6edf3", "#8b98a9"
# Okabe and Ito's palette, told apart with any colour vision; first what shows best on grey.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
FILL, HEAT, DIMMED = 0.36, 0.85, 0.8
OUTLINE = withStroke(linewidth=2.5, foreground="black", alpha=0.75)

# Inches.
WIDTH, TALLEST, MARGIN, GAP, CAPTION, HEADER, FOOTER = 12.8, 7.5, 0.35, 0.3, 0.3, 0.72, 0.5


@dataclass(frozen=True)
class Layer:
    """One picture per plane, with what the legend says of it.

    Parameters
    ----------
    pictures
        Rows, columns, RGBA from 0 to 1.
    labels
        Class numbers per plane, for the outlines; () for other layers.
    legend
        Colour by name.
    heat
        Name, lowest and highest value of a heat scale; None for other layers.
    """

    pictures: tuple[Array, ...]
    labels: tuple[Array, ...] = ()
    colors: Mapping[int, str] = field(default_factory=dict)
    legend: Mapping[str, str] = field(default_factory=dict)
    heat: tuple[str, float, float] | None = None


@dataclass(frozen=True)
class Scene:
    """What a preview says beside its pictures.

    Parameters
    ----------
    title, subtitle
        Two lines at the top.
    size, unit
        Of the volume along z, y, x.
    where, index
        Position of the planes along z, y, x: from 0 to 1, and as voxels.
    """

    title: str
    subtitle: str
    size: tuple[float, ...]
    unit: str | None
    where: tuple[float, ...]
    index: tuple[int, ...]


class Preview(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def grey_layer(
    planes: Sequence[Array], percentiles: tuple[float, float], white: float = 1.0
) -> Layer:
    """A scan in grey between two percentiles of the voxels shown; ``white`` dims it."""
    voxels = _finite(planes)
    low, high = np.percentile(voxels, percentiles) if voxels.size else (0.0, 1.0)
    high = high if high > low else low + 1
    pictures = []
    for plane in planes:
        grey = white * _scaled(plane, low, high)
        pictures.append(np.stack([grey, grey, grey, np.ones_like(grey)], axis=-1))
    return Layer(tuple(pictures))


def heat_layer(planes: Sequence[Array], name: str) -> Layer:
    """Scores as heat: the higher, the brighter and the less transparent."""
    voxels = _finite(planes)
    low, high = (min(0.0, voxels.min()), voxels.max()) if voxels.size else (0.0, 1.0)
    high = high if high > low else low + 1
    pictures = []
    for plane in planes:
        scaled = _scaled(plane, low, high)
        picture = matplotlib.colormaps["inferno"](scaled)
        picture[..., 3] = HEAT * np.clip(scaled * 1.6, 0, 1)
        pictures.append(picture)
    return Layer(tuple(pictures), heat=(name, float(low), float(high)))


def _finite(planes: Sequence[Array]) -> Array:
    voxels = np.concatenate([plane.ravel() for plane in planes]).astype(np.float64)
    return voxels[np.isfinite(voxels)]


def _scaled(plane: Array, low: float, high: float) -> Array:
    """From 0 at ``low`` to 1 at ``high``; 0 where a voxel is no number."""
    numbers = np.nan_to_num(plane.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.clip((numbers - low) / (high - low), 0, 1)


def class_layer(
    planes: Sequence[Array], names: Mapping[int, str], colors: Sequence[str] = ()
) -> Layer:
    """Classes as translucent colours with an outline; 0 is left clear."""
    labels = tuple(np.asarray(plane).astype(np.int64) for plane in planes)
    present = [int(v) for v in np.unique(np.concatenate([p.ravel() for p in labels])) if v != 0]
    chosen = {value: _class_color(value, colors) for value in present}
    pictures = []
    for plane in labels:
        picture = np.zeros((*plane.shape, 4))
        for value in present if len(present) <= MANY_CLASSES else np.unique(plane[plane != 0]):
            picture[plane == value] = (*to_rgb(chosen[int(value)]), FILL)
        pictures.append(picture)
    if len(present) > MANY_CLASSES:
        return Layer(tuple(pictures), legend={f"{len(present)} labels": MUTED})
    legend = {names.get(value, f"class {value}"): color for value, color in chosen.items()}
    return Layer(tuple(pictures), labels, chosen, legend)


def _class_color(value: int, colors: Sequence[str]) -> str:
    if value < len(colors) and colors[value]:
        return f"#{colors[value].lstrip('#')}"
    return PALETTE[(value - 1) % len(PALETTE)]


def draw(planes: Sequence[View], layers: Sequence[Layer], scene: Scene) -> Figure:
    """Draw the planes to one scale, with their layers.

    Parameters
    ----------
    planes
        What each panel shows.
    layers
        From the bottom to the top; each has one picture per plane.
    scene
        Title, scale and position.
    """
    sizes = [(scene.size[view.columns], scene.size[view.rows]) for view in planes]
    boxes, height = _arrange(sizes, FOOTER if layers[-1].legend or layers[-1].heat else MARGIN)
    figure = Preview(figsize=(WIDTH, height), facecolor=BACKGROUND)
    _header(figure, scene, height)
    for n, (view, (left, bottom, wide, high)) in enumerate(zip(planes, boxes, strict=True)):
        axes = figure.add_axes(
            (left / WIDTH, bottom / height, wide / WIDTH, high / height), label=view.name
        )
        _panel(axes, view, [(layer, n) for layer in layers], scene)
        axes.set_title(
            _caption(view, scene), loc="left", fontsize=9, color=MUTED, pad=5,
        )  # fmt: skip
        if n == 0:
            _scale_bar(axes, scene, wide)
    _legend(figure, layers, height)
    return figure


def _arrange(
    sizes: Sequence[tuple[float, float]], footer: float
) -> tuple[list[tuple[float, float, float, float]], float]:
    """Left, bottom, width and height of each panel in inches, and the height of the figure.

    In a row; or the first beside the others, where that makes them much larger.
    """
    wide, high = ([size[n] for size in sizes] for n in (0, 1))
    free = WIDTH - 2 * MARGIN - GAP
    row = min((free - GAP * (len(sizes) - 2)) / sum(wide), TALLEST / max(high))
    if len(sizes) == 3:
        column = min(
            free / (wide[0] + max(wide[1:])),
            TALLEST / high[0],
            (TALLEST - CAPTION) / (high[1] + high[2]),
        )
        if column > 1.3 * row:
            tall = max(high[0] * column, (high[1] + high[2]) * column + CAPTION)
            height = tall + HEADER + CAPTION + footer
            left = (WIDTH - GAP - (wide[0] + max(wide[1:])) * column) / 2
            top = height - HEADER - CAPTION
            right = left + wide[0] * column + GAP
            panels = [(left, top, 0), (right, top, 1)]
            panels.append((right, top - high[1] * column - CAPTION, 2))
            return [_box(x, y, wide[n] * column, high[n] * column) for x, y, n in panels], height
    tall = max(high) * row
    height = tall + HEADER + CAPTION + footer
    left = (WIDTH - sum(wide) * row - GAP * (len(sizes) - 1)) / 2
    boxes = []
    for w, h in sizes:
        boxes.append(_box(left, footer + tall, w * row, h * row))
        left += w * row + GAP
    return boxes, height


def _box(left: float, top: float, wide: float, high: float) -> tuple[float, float, float, float]:
    return (left, top - high, wide, high)


def _header(figure: Figure, scene: Scene, height: float) -> None:
    left = MARGIN / WIDTH
    figure.text(
        left, 1 - 0.2 / height, scene.title, fontsize=14, weight="bold", color=INK, va="top"
    )
    figure.text(left, 1 - 0.5 / height, scene.subtitle, fontsize=9.5, color=MUTED, va="top")


def _caption(view: View, scene: Scene) -> str:
    """Name and position of a plane; which way its axes run, where no letters say so."""
    text = f"{view.name}   {'zyx'[view.normal]} = {scene.index[view.normal]}"
    return text if any(view.edges) else f"{text}   {view.name[0]} →  {view.name[1]} ↓"


def _panel(axes: Axes, view: View, layers: Sequence[tuple[Layer, int]], scene: Scene) -> None:
    """Pictures, outlines, crosshair and letters of one plane, in the volume's unit."""
    wide, high = scene.size[view.columns], scene.size[view.rows]
    for layer, n in layers:
        axes.imshow(
            layer.pictures[n],
            extent=(0, wide, high, 0),
            interpolation="nearest" if layer.labels or layer.legend else "bicubic",
            interpolation_stage="rgba",
        )
        if layer.labels:
            _outlines(axes, layer.labels[n], layer.colors, (wide, high))
    axes.set(xlim=(0, wide), ylim=(high, 0), xticks=[], yticks=[], aspect="auto")
    axes.set_facecolor("black")
    for spine in axes.spines.values():
        spine.set(color="#2d333b", linewidth=0.8)
    right, down = (scene.where[axis] for axis in (view.columns, view.rows))
    line: dict[str, Any] = {"color": "white", "alpha": 0.22, "lw": 0.7, "ls": (0, (5, 4))}
    axes.axvline((1 - right if view.flip_columns else right) * wide, **line)
    axes.axhline((1 - down if view.flip_rows else down) * high, **line)
    box = axes.get_window_extent()
    # A tenth of an inch from the edge.
    dx, dy = (0.1 * axes.figure.dpi / side for side in (box.width, box.height))
    places = (
        (dx, 0.5, "left", "center"),
        (1 - dx, 0.5, "right", "center"),
        (0.5, 1 - dy, "center", "top"),
        (0.5, dy, "center", "bottom"),
    )
    for letter, (x, y, across, along) in zip(view.edges, places, strict=True):
        axes.text(
            x, y, letter, transform=axes.transAxes, ha=across, va=along,
            fontsize=11, weight="bold", color=INK, path_effects=[OUTLINE],
        )  # fmt: skip


def _outlines(
    axes: Axes, labels: Array, colors: Mapping[int, str], size: tuple[float, float]
) -> None:
    rows, columns = labels.shape
    if min(rows, columns) < 2:
        return
    x = (np.arange(columns) + 0.5) * size[0] / columns
    y = (np.arange(rows) + 0.5) * size[1] / rows
    for value, color in colors.items():
        mask = labels == value
        if mask.any() and not mask.all():
            axes.contour(x, y, mask, levels=[0.5], colors=[color], linewidths=0.9, alpha=0.95)


def _scale_bar(axes: Axes, scene: Scene, wide_in: float) -> None:
    low, high = axes.get_xlim()
    bottom, _ = axes.get_ylim()
    length, text = length_of_bar(high - low, scene.unit)
    per_inch = (high - low) / wide_in
    x, y = low + 0.14 * per_inch, bottom - 0.16 * per_inch
    axes.plot(
        [x, x + length], [y, y], color=INK, linewidth=2.6, solid_capstyle="butt",
        path_effects=[OUTLINE],
    )  # fmt: skip
    axes.text(
        x + length / 2, y - 0.06 * per_inch, text, color=INK, fontsize=9, ha="center", va="bottom",
        path_effects=[OUTLINE],
    )  # fmt: skip


def _legend(figure: Figure, layers: Sequence[Layer], height: float) -> None:
    """Names of the classes, or the scale of the heat, below the panels."""
    top = layers[-1]
    if top.legend:
        handles = [
            Patch(facecolor=(*to_rgb(color), 0.8), edgecolor=color, label=name)
            for name, color in top.legend.items()
        ]
        figure.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0.018, 0), frameon=False,
            ncols=8, fontsize=10, labelcolor=INK, handlelength=1.1, handleheight=1.1,
            columnspacing=1.8,
        )  # fmt: skip
    if top.heat is not None:
        name, low, high = top.heat
        ramp = np.linspace(0, 1, 128)[None]
        axes = figure.add_axes((MARGIN / WIDTH, 0.2 / height, 2.4 / WIDTH, 0.12 / height))
        axes.imshow(matplotlib.colormaps["inferno"](ramp), aspect="auto", extent=(0, 1, 0, 1))
        axes.set_axis_off()
        text: dict[str, Any] = {"fontsize": 9.5, "color": INK, "va": "center"}
        axes.text(1.03, 0.4, f"{low:.3g} … {high:.3g}   {name}", transform=axes.transAxes, **text)
