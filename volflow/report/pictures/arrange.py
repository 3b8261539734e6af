"""Where panels lie on the page: pure arithmetic, in inches from the lower left.

What stands below the panels has a place of its own: it raises them by its height.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "CAPTION",
    "GAP",
    "HEADER",
    "MARGIN",
    "NARROWEST",
    "WIDTH",
    "Box",
    "best_columns",
    "grid",
    "raised",
    "three_planes",
]

# Left, bottom, width, height.
Box = tuple[float, float, float, float]

WIDTH, NARROWEST = 12.8, 8.0  # of a page: of the widest, of one with little on it
MARGIN, GAP, CAPTION, HEADER = 0.35, 0.3, 0.3, 0.72
TALLEST, TALLEST_GRID = 7.5, 10.4  # of a row of panels, of several
SIDE_BY_SIDE = 1.3  # how much larger panels must become to be arranged other than in a row


def three_planes(
    sizes: Sequence[tuple[float, float]],
) -> tuple[list[Box], tuple[float, float]]:
    """Boxes of up to three panels to one scale, and the size of the page.

    In a row; or the first beside the others, where that makes them much larger.

    Parameters
    ----------
    sizes
        Width and height of each panel in the unit of the volume.

    Examples
    --------
    >>> boxes, (width, height) = three_planes([(60, 50), (60, 40), (50, 40)])
    >>> [round(wide / tall, 3) for _, _, wide, tall in boxes], round(width, 2)
    ([1.2, 1.5, 1.25], 11.8)
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
        if column > SIDE_BY_SIDE * row:
            return _beside(wide, high, column)
    tall = max(high) * row
    width = _width(sum(wide) * row + GAP * (len(sizes) - 1))
    boxes, left = [], MARGIN
    for w, h in sizes:
        boxes.append(_box(left, tall, w * row, h * row))
        left += w * row + GAP
    return boxes, (width, tall + HEADER + CAPTION)


def _beside(
    wide: Sequence[float], high: Sequence[float], scale: float
) -> tuple[list[Box], tuple[float, float]]:
    """The first panel on the left, the two others above each other on the right."""
    tall = max(high[0] * scale, (high[1] + high[2]) * scale + CAPTION)
    width = _width((wide[0] + max(wide[1:])) * scale + GAP)
    right = MARGIN + wide[0] * scale + GAP
    corners = [(MARGIN, tall), (right, tall), (right, tall - high[1] * scale - CAPTION)]
    boxes = [_box(*corner, wide[n] * scale, high[n] * scale) for n, corner in enumerate(corners)]
    return boxes, (width, tall + HEADER + CAPTION)


def raised(boxes: Sequence[Box], footer: float) -> list[Box]:
    """Boxes with room below."""
    return [(left, bottom + footer, wide, tall) for left, bottom, wide, tall in boxes]


def _width(content: float) -> float:
    """Of the page for a content of this width."""
    return max(NARROWEST, content + 2 * MARGIN)


def best_columns(count: int, size: tuple[float, float], caption: float, gap: float) -> int:
    """In how many columns tiles are largest, given that few places should stay empty.

    Examples
    --------
    >>> best_columns(24, (197, 233), 0.22, 0.1), best_columns(24, (500, 20), 0.22, 0.1)
    (6, 2)
    """
    wide, high = size

    def worth(columns: int) -> float:
        rows = -(-count // columns)
        used = count / (rows * columns)
        return used * _scale([wide] * columns, [high] * rows, caption, gap)

    return max(range(1, count + 1), key=worth)


def grid(
    sizes: Sequence[Sequence[tuple[float, float]]], *, caption: float, gap: float
) -> tuple[list[list[Box]], tuple[float, float]]:
    """Boxes of rows of panels, all to one scale, and the size of the page.

    Columns are as wide as their widest panel, rows as high as their highest.

    Parameters
    ----------
    sizes
        Width and height of each panel in the unit of the volume, row by row.
    caption, gap
        Height above each row for its captions; between columns.

    Examples
    --------
    >>> boxes, page = grid([[(4, 2), (4, 2)], [(2, 2)]], caption=0.2, gap=0.1)
    >>> [len(row) for row in boxes], [round(side, 2) for side in page]
    ([2, 1], [12.8, 7.12])
    """
    widest = [max(row[n][0] for row in sizes if n < len(row)) for n in range(max(map(len, sizes)))]
    highest = [max(high for _, high in row) for row in sizes]
    scale = _scale(widest, highest, caption, gap)
    tall = sum(highest) * scale + caption * len(sizes)
    width = _width(sum(widest) * scale + gap * (len(widest) - 1))
    boxes, top = [], tall
    for row, high in zip(sizes, highest, strict=True):
        top -= caption
        left, placed = MARGIN, []
        for (w, h), column in zip(row, widest, strict=False):
            placed.append(_box(left, top, w * scale, h * scale))
            left += column * scale + gap
        boxes.append(placed)
        top -= high * scale
    return boxes, (width, tall + HEADER)


def _scale(widest: Sequence[float], highest: Sequence[float], caption: float, gap: float) -> float:
    """Inches per unit at which a grid fits the page."""
    across = WIDTH - 2 * MARGIN - gap * (len(widest) - 1)
    down = TALLEST_GRID - caption * len(highest)
    return max(min(across / sum(widest), down / sum(highest)), 1e-9)


def _box(left: float, top: float, wide: float, high: float) -> Box:
    return (left, top - high, wide, high)
