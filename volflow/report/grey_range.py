"""Which values are shown black and white: a window of values, by its ends or by its name."""

from __future__ import annotations

import math
from typing import Any

from volflow.errors import InvalidInput
from volflow.option import nearest

__all__ = ["CT_WINDOWS", "WINDOW", "Window", "typed_window", "window_ends"]

WINDOW = (
    "The values shown black and white, such as -160,240, or of a CT brain, stroke, temporal-bone,"
    " lung, mediastinum, soft-tissue, abdomen, liver or bone."
)

Window = str | tuple[float, float] | None

# Centre and width in Hounsfield units, as A. Murphy, M. Wilczek et al., Windowing (CT),
# Radiopaedia.org, https://doi.org/10.53347/rID-52108, list what is generally used.
CT_WINDOWS = {
    "brain": (40, 80),
    "stroke": (40, 40),
    "temporal bone": (600, 2800),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "soft tissue": (50, 400),
    "abdomen": (50, 400),
    "liver": (30, 150),
    "bone": (400, 1800),
}


def window_ends(window: Any) -> tuple[float, float] | None:
    """Return the values shown black and white; None for None.

    Parameters
    ----------
    window
        Two numbers, or the name of a window for CT.

    Raises
    ------
    InvalidInput
        For anything else.

    Examples
    --------
    >>> window_ends("lung"), window_ends("Soft-tissue"), window_ends((-160, 240))
    ((-1350.0, 150.0), (-150.0, 250.0), (-160.0, 240.0))
    """
    if window is None:
        return None
    if isinstance(window, str):
        name = " ".join(window.lower().replace("-", " ").replace("_", " ").split())
        if name not in CT_WINDOWS:
            known = nearest(name, list(CT_WINDOWS), "such as -160,240; names are")
            raise InvalidInput(f"window {window!r} is neither two numbers nor a name; {known}")
        centre, width = CT_WINDOWS[name]
        return centre - width / 2, centre + width / 2
    try:
        low, high = (float(end) for end in window)
        right = math.isfinite(low) and math.isfinite(high) and low < high
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InvalidInput(
            "window must be two numbers, shown black and white, the lower first, or the name of a"
            f" window for CT, given {window!r}; such as (-160, 240) or 'lung'"
        )
    return low, high


def typed_window(name: str, text: str) -> Window:
    """A window as typed on a command line: two numbers with a comma, or a name.

    Examples
    --------
    >>> typed_window("window", "-160,240"), typed_window("window", "lung")
    ((-160.0, 240.0), 'lung')
    """
    ends = text.split(",")
    try:
        given: Window = (float(ends[0]), float(ends[1])) if len(ends) == 2 else text
    except ValueError:
        given = text
    window_ends(given)
    return given
