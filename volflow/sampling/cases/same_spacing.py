"""One spacing for the cases of a stream: a network that learns sizes must not see two by chance."""

from __future__ import annotations

from collections.abc import Sequence

from volflow.errors import InvalidInput
from volflow.sampling.cases.find_cases import listed
from volflow.sampling.cases.named_arrays import Case
from volflow.volumes.arrays.grids import same_spacing, spacing_text

__all__ = ["refuse_mixed_spacing"]

MOST_SPACINGS = 5  # in the message


def refuse_mixed_spacing(cases: Sequence[Case]) -> None:
    """Refuse cases of different spacing; an unknown one, such as that of a bare array, fits any.

    Raises
    ------
    InvalidInput
        Naming the spacings, and the cases that have them.
    """
    known = [(case.name, meta) for case in cases if (meta := case.meta).knows_spacing]
    names: dict[str, list[str]] = {}
    for name, meta in known:
        first = known[0][1]
        spacing = spacing_text(first if same_spacing(first, meta) else meta)
        names.setdefault(spacing, []).append(name)
    if len(names) < 2:
        return
    told = [f"{listed(those)}: {spacing}" for spacing, those in names.items()]
    more = len(told) - MOST_SPACINGS
    raise InvalidInput(
        "the cases of a stream share one spacing, but these have different ones: "
        + "; ".join([*told[:MOST_SPACINGS], *([f"and {more} more"] if more > 0 else [])])
        + "; resample them to one, or take them as they are with allow_mixed_spacing=True"
        " (--allow-mixed-spacing)"
    )
