"""Colours of classes: those of the volume's metadata, else of one palette."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PALETTE", "class_color"]

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color), told apart with any colour vision;
# first what shows best on grey.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
# How far each further round of the palette is mixed with white (above 0) or black (below).
_ROUNDS = (0.0, 0.5, -0.42, 0.78, -0.64)


def class_color(value: int, colors: Sequence[str] = ()) -> str:
    """The colour of a class, the same in every picture.

    Parameters
    ----------
    value
        Number of the class; 0 is the background and left clear by those who draw.
    colors
        Of the volume's metadata ("RRGGBB"), by class number, or none.

    Examples
    --------
    >>> class_color(1), class_color(1, ["000000", "ff0000"]), class_color(8)
    ('#E69F00', '#ff0000', '#F2CF7F')
    """
    if 0 <= value < len(colors) and colors[value]:
        return f"#{colors[value].lstrip('#')}"
    turn, place = divmod(value - 1, len(PALETTE))
    mix = _ROUNDS[turn % len(_ROUNDS)]
    toward = 255 if mix > 0 else 0
    parts = bytes.fromhex(PALETTE[place][1:])
    return "#" + "".join(f"{int(p + (toward - p) * abs(mix)):02X}" for p in parts)
