"""A picture of resident memory against time: what ran, its cap, and the size of the volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from volflow.demo.steps import Watched
from volflow.geometry.budget import format_bytes
from volflow.report.pictures.page import BACKGROUND, FRAME, INK, MUTED

__all__ = ["draw_memory"]

MIB = 2**20
WIDTH, HEIGHT = 12.8, 6.2  # inches
LEFT, RIGHT, BOTTOM, TOP = 0.075, 0.975, 0.1, 0.84
MARGIN, MOST_TICKS = 0.023, 8
LETTER, LINE = 0.1, 0.14  # inches that names take
RED, OUTLINE = "#F0603A", withStroke(linewidth=3, foreground=BACKGROUND)
ENDS = {"stopped": "killed at half"}


def draw_memory(
    seen: Sequence[tuple[str, float, Watched]],
    colors: Mapping[str, str],
    cap_bytes: int,
    volume_bytes: int,
    title: str,
    subtitle: str,
) -> Figure:
    """Draw the resident memory of processes against time.

    Parameters
    ----------
    seen
        For each process its name, when it started in seconds, and what was seen of it; one after
        the other, or from the same start.
    colors
        The colours of curves by name; others are grey.
    cap_bytes
        The memory at which a process was killed.
    volume_bytes
        The size of the volume that went through the processes.
    title, subtitle
        Two lines at the top.

    Examples
    --------
    >>> one = Watched("done", 9.0, 2**29, ((0.0, 2**28), (9.0, 2**29)), "")
    >>> figure = draw_memory(
    ...     [("predict", 0.0, one)], {}, 768 * 2**20, 2**30, "a title", "and more"
    ... )
    >>> [text.get_text() for text in figure.axes[0].texts][:2]
    ['the volume alone: 1 GiB', 'cap: 768 MiB, killed above']
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=BACKGROUND)
    axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))
    seen = [one for one in seen if one[2].curve]
    right = 1.01 * max(start_s + watched.curve[-1][0] for _, start_s, watched in seen)
    _, start_s, highest = max(seen, key=lambda one: one[2].peak_bytes)
    _frame(axes, right, 1.12 * max(cap_bytes, volume_bytes, highest.peak_bytes) / MIB)
    for size, text, color, style, up in (
        (volume_bytes, f"the volume alone: {format_bytes(volume_bytes)}", INK, (0, (2, 3)), 5),
        (cap_bytes, f"cap: {format_bytes(cap_bytes)}, killed above", RED, "-", -5),
    ):
        axes.axhline(size / MIB, color=color, linewidth=1.3, linestyle=style)
        side = "bottom" if up > 0 else "top"
        _write(axes, text, (right, size / MIB), -2, up, ha="right", va=side, color=color)
    for one in seen:
        _area(axes, *one, colors.get(one[0], MUTED))
    when = start_s + max(highest.curve, key=lambda point: point[1])[0]
    axes.plot(when, highest.peak_bytes / MIB, "o", color=INK, markersize=4.5)
    _write(
        axes, f"peak {format_bytes(highest.peak_bytes)}", (when, highest.peak_bytes / MIB), up=8,
        ha="right" if when > 0.9 * right else "center", va="baseline", color=INK, fontsize=10,
        weight="bold",
    )  # fmt: skip
    figure.text(MARGIN, 0.955, title, fontsize=15, weight="bold", color=INK, va="top")
    figure.text(MARGIN, 0.895, subtitle, fontsize=9.5, color=MUTED, va="top")
    return figure


def _frame(axes: Axes, last_s: float, highest_mib: float) -> None:
    axes.set(xlim=(0, last_s), ylim=(0, highest_mib), facecolor=BACKGROUND)
    step = 256
    while highest_mib / step > MOST_TICKS:
        step *= 2
    axes.set_yticks(range(0, int(highest_mib) + 1, step))
    axes.yaxis.set_major_formatter(lambda mib, _: format_bytes(mib * MIB) if mib else "0")
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:.0f} s")
    axes.tick_params(colors=MUTED, labelsize=9, length=0, pad=6)
    axes.grid(axis="y", color=FRAME, linewidth=0.7, alpha=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=FRAME)


def _area(axes: Axes, name: str, start_s: float, watched: Watched, color: str) -> None:
    """Draw a curve over its area, its name where there is room for it, and how it ended."""
    seconds = [start_s + second for second, _ in watched.curve]
    mib = [resident / MIB for _, resident in watched.curve]
    axes.fill_between(seconds, mib, color=color, alpha=0.22, linewidth=0)
    axes.plot(seconds, mib, color=color, linewidth=1.4)
    middle, half = (seconds[0] + seconds[-1]) / 2, sorted(mib)[len(mib) // 2] / 2
    wide = (seconds[-1] - seconds[0]) / axes.get_xlim()[1] * WIDTH * (RIGHT - LEFT)
    roomy = wide > LETTER * len(name)
    if wide > LINE:
        size, turn = (10.5, 0) if roomy else (8.5, 90)
        _write(axes, name, (middle, half), ha="center", color=INK, fontsize=size, rotation=turn)
    if end := ENDS.get(watched.ended):
        axes.plot(seconds[-1], mib[-1], "x", color=RED, markersize=9, markeredgewidth=2.4)
        if wide > LETTER * (len(name) + 2 * len(end)):
            _write(axes, end, (seconds[-1], half), right=-6, ha="right", color=RED)
        else:
            _write(axes, end, (seconds[-1], mib[-1]), right=9, ha="left", color=RED)


def _write(
    axes: Axes, text: str, at: tuple[float, float], right: float = 0, up: float = 0, **style: Any
) -> None:
    """Write a text at a point, moved by a number of typographic points, with an outline."""
    style = {"va": "center", "fontsize": 9.5, "path_effects": [OUTLINE], **style}
    axes.annotate(text, at, xytext=(right, up), textcoords="offset points", **style)
