"""The chart of patches: projections and histograms of their centres, a table of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from volflow.geometry.views import views
from volflow.report.colors import class_color
from volflow.report.pictures.arrange import GAP, MARGIN, raised, three_planes
from volflow.report.pictures.draw import (
    FRAME,
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
    write,
)
from volflow.report.pictures.layers import HEAT, Layer, Picture, Ramp, painted
from volflow.report.pictures.patch_counts import PatchCounts, leading_classes, percent

__all__ = ["Scene", "chart"]

HISTOGRAM, UNDER = 0.95, 0.62  # height of the histograms, of what stands below them
SCALE = 0.42  # height of the line that says what the colours mean
NAME, COLUMN = 2.4, 2.6  # widths in the table of classes


@dataclass(frozen=True)
class Scene:
    """Two lines at the top, and what they and the chart say in plain values."""

    title: tuple[str, ...]
    subtitle: str
    facts: Mapping[str, Any]


def chart(
    counts: PatchCounts,
    orientation: str | None,
    size: Sequence[float],
    classes: tuple[Mapping[int, str], Sequence[str]],
    scene: Scene,
) -> Preview:
    """Where centres fall on the three planes and along the three axes, and what patches hold.

    Parameters
    ----------
    counts
        Of the patches.
    orientation
        That the cases share; None where they do not.
    size
        Of a case along z, y, x, which gives the planes their shape.
    classes
        Names by class number, colours of the label's metadata.
    scene
        The words.
    """
    planes = views(orientation)
    boxes, (wide, high) = three_planes([(size[v.columns], size[v.rows]) for v in planes])
    shown = leading_classes(counts.facts()["classes"])
    table = LEGEND_ROW * (1 + len(shown)) + MARGIN if shown else 0.0
    foot = SCALE + HISTOGRAM + UNDER + table
    figure = page((wide, high + foot), scene.title, scene.subtitle, scene.facts)
    largest = max(int(counts.projection(axis).max()) for axis in range(3))
    for view, box in zip(planes, raised(boxes, foot), strict=True):
        pixels = painted(view.turn(counts.projection(view.normal)) / largest, HEAT)
        picture = Picture(pixels, (0.0, size[view.columns], size[view.rows], 0.0))
        panel(figure, box, view, [(Layer((picture,), smooth=False), picture)], size)
        said = view.name if any(view.edges) else f"{view.name[0]} →  {view.name[1]} ↓"
        write(figure, box[0], box[1] + box[3] + 0.07, said, size=9, color=MUTED)
    scale = Ramp("patches by where their centre falls", 0, largest, HEAT)
    ramp(figure, MARGIN, foot - 0.2, scale)
    _histograms(figure, counts, table + UNDER)
    if shown:
        _table(figure, counts, shown, classes, table)
    return figure


def _histograms(figure: Preview, counts: PatchCounts, bottom: float) -> None:
    """Centres along z, y and x, to one scale."""
    wide, high = figure.get_size_inches()
    across = (wide - 2 * MARGIN - 2 * GAP) / 3
    bars = [counts.histogram(axis) for axis in range(3)]
    for axis, numbers in enumerate(bars):
        left = MARGIN + axis * (across + GAP)
        place = (left / wide, bottom / high, across / wide, HISTOGRAM / high)
        axes = figure.add_axes(place, label=f"along {'zyx'[axis]}")
        edges = np.linspace(0, 1, len(numbers) + 1)
        axes.stairs(numbers, edges, fill=True, color=HEAT[-3])
        axes.set(xlim=(0, 1), ylim=(0, 1.08 * max(n.max() for n in bars)), yticks=[])
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
        axes.set_facecolor("none")
        axes.tick_params(colors=MUTED, labelsize=8, length=2)
        for side, spine in axes.spines.items():
            spine.set(color=FRAME, visible=side == "bottom")
        said = f"centre along {'zyx'[axis]}, of the extent"
        write(figure, left + across / 2, bottom - 0.34, said, size=9, color=MUTED, ha="center")


def _table(
    figure: Preview,
    counts: PatchCounts,
    shown: Sequence[Mapping[str, Any]],
    classes: tuple[Mapping[int, str], Sequence[str]],
    top: float,
) -> None:
    """One line per class: its share of voxels, of centres, of patches that hold it."""
    names, colors = classes
    top -= 0.05
    heads = ("share of voxels", "share of centres", "patches that hold it")
    every = len(counts.voxels | counts.centres)
    more = f": {len(shown)} of {every} classes" if every > len(shown) else ""
    head = f"{counts.label}{more}"
    _line(figure, MARGIN, top, fitted(head, NAME, 9.5))
    for n, said in enumerate(heads):
        _line(figure, MARGIN + NAME + n * COLUMN, top, said)
    for one in shown:
        top -= LEGEND_ROW
        value = one["class"]
        color = class_color(value, colors) if value else MUTED
        name = names.get(value) or ("background" if value == 0 else f"class {value}")
        legend(figure, MARGIN, top, legend_rows([(name, color)], NAME))
        shares = (one["voxels"], one["centres"], one["patches"] / counts.total)
        for n, share in enumerate(shares):
            _bar(figure, MARGIN + NAME + n * COLUMN, top, share, color)


def _bar(figure: Preview, x: float, top: float, share: float, color: str) -> None:
    """A share as a bar, with its number."""
    wide, high = figure.get_size_inches()
    long, tall = COLUMN - 1.0, 0.11
    corner = (x / wide, (top - LEGEND_ROW / 2 - tall / 2) / high)
    for width, paint in ((long, FRAME), (long * share, color)):
        figure.add_artist(Rectangle(corner, width / wide, tall / high, color=paint, linewidth=0))
    _line(figure, x + long + 0.08, top, percent(share), color=INK)


def _line(figure: Preview, x: float, top: float, text: str, color: str = MUTED) -> None:
    y = top - LEGEND_ROW / 2
    write(figure, x, y, text, size=9.5, color=color, va="center_baseline")
