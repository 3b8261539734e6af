"""A picture of resident memory against time: what ran, its cap, and the volume's own size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from volflow.geometry.budget import format_bytes
from volflow.report.pictures.page import BACKGROUND, FRAME, INK, MUTED

__all__ = ["Stretch", "draw_memory"]

MIB = 2**20
WIDTH, HEIGHT = 12.8, 6.2  # inches
LEFT, RIGHT, BOTTOM, TOP = 0.075, 0.975, 0.1, 0.84
MARGIN, MOST_TICKS = 0.023, 8
LETTER, LINE = 0.1, 0.14  # inches that names take
RED, OUTLINE = "#F0603A", withStroke(linewidth=3, foreground=BACKGROUND)


@dataclass(frozen=True)
class Stretch:
    """The memory of one process.

    Parameters
    ----------
    name
        What it did.
    start_s
        When it started.
    curve
        Seconds since then, and bytes.
    peak_bytes
        The most it held, between two points of the curve perhaps.
    color
        Of its curve; None for what matters less.
    end
        What befell it, where it did not simply end.
    """

    name: str
    start_s: float
    curve: Sequence[tuple[float, int]]
    peak_bytes: int
    color: str | None = None
    end: str = ""


def draw_memory(
    stretches: Sequence[Stretch], cap_bytes: int, volume_bytes: int, title: str, subtitle: str
) -> Figure:
    """Draw memory against time.

    Parameters
    ----------
    stretches
        One after the other, or from the same start.
    cap_bytes
        What the processes were held to.
    volume_bytes
        The size of the volume that went through them.
    title, subtitle
        Two lines at the top.

    Examples
    --------
    >>> one = Stretch("predict", 0, [(0.0, 2**28), (9.0, 2**29)], 2**29)
    >>> figure = draw_memory([one], 768 * 2**20, 2**30, "a title", "and more")
    >>> [text.get_text() for text in figure.axes[0].texts][:2]
    ['the volume alone: 1 GiB', 'cap: 768 MiB, killed above']
    """
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=BACKGROUND)
    axes = figure.add_axes((LEFT, BOTTOM, RIGHT - LEFT, TOP - BOTTOM))
    stretches = [stretch for stretch in stretches if stretch.curve]
    last = max(stretch.start_s + stretch.curve[-1][0] for stretch in stretches)
    highest = max(cap_bytes, volume_bytes, *(each.peak_bytes for each in stretches))
    _frame(axes, 1.01 * last, 1.12 * highest / MIB)
    _line(axes, volume_bytes, f"the volume alone: {format_bytes(volume_bytes)}", INK, above=True)
    _line(axes, cap_bytes, f"cap: {format_bytes(cap_bytes)}, killed above", RED, above=False)
    for stretch in stretches:
        _area(axes, stretch)
    _name_peak(axes, max(stretches, key=lambda each: each.peak_bytes))
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


def _line(axes: Axes, at_bytes: int, text: str, color: str, above: bool) -> None:
    """A level, named at its right end."""
    axes.axhline(
        at_bytes / MIB, color=color, linewidth=1.3, linestyle=(0, (2, 3)) if above else "-"
    )
    axes.annotate(
        text, (axes.get_xlim()[1], at_bytes / MIB), xytext=(-2, 5 if above else -5),
        textcoords="offset points", ha="right", va="bottom" if above else "top", color=color,
        fontsize=9.5, path_effects=[OUTLINE],
    )  # fmt: skip


def _area(axes: Axes, stretch: Stretch) -> None:
    """A curve over its area, its name in it where there is room, and how it ended."""
    color = stretch.color or MUTED
    seconds = [stretch.start_s + second for second, _ in stretch.curve]
    mib = [resident / MIB for _, resident in stretch.curve]
    axes.fill_between(seconds, mib, color=color, alpha=0.22, linewidth=0)
    axes.plot(seconds, mib, color=color, linewidth=1.4)
    middle, half = (seconds[0] + seconds[-1]) / 2, sorted(mib)[len(mib) // 2] / 2
    wide = (seconds[-1] - seconds[0]) / axes.get_xlim()[1] * WIDTH * (RIGHT - LEFT)
    roomy = wide > LETTER * len(stretch.name)
    if wide > LINE:
        axes.annotate(
            stretch.name, (middle, half), rotation=0 if roomy else 90, ha="center", va="center",
            color=INK, fontsize=10.5 if roomy else 8.5, path_effects=[OUTLINE],
        )  # fmt: skip
    if stretch.end:
        axes.plot(seconds[-1], mib[-1], "x", color=RED, markersize=9, markeredgewidth=2.4)
        inside = wide > LETTER * (len(stretch.name) + 2 * len(stretch.end))
        axes.annotate(
            stretch.end, (seconds[-1], half if inside else mib[-1]),
            xytext=(-6 if inside else 9, 0), textcoords="offset points", color=RED, fontsize=9.5,
            ha="right" if inside else "left", va="center", path_effects=[OUTLINE],
        )  # fmt: skip


def _name_peak(axes: Axes, stretch: Stretch) -> None:
    when = stretch.start_s + max(stretch.curve, key=lambda point: point[1])[0]
    axes.plot(when, stretch.peak_bytes / MIB, "o", color=INK, markersize=4.5)
    late = when > 0.9 * axes.get_xlim()[1]
    axes.annotate(
        f"peak {format_bytes(stretch.peak_bytes)}", (when, stretch.peak_bytes / MIB),
        xytext=(0, 8), textcoords="offset points", ha="right" if late else "center", color=INK,
        fontsize=10, weight="bold", path_effects=[OUTLINE],
    )  # fmt: skip
