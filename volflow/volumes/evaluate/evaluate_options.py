"""The options of `evaluate`; what each means stands in that function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from volflow.engine.run_options import RunOptions
from volflow.errors import InvalidInput
from volflow.option import option

if TYPE_CHECKING:
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["EvaluateOptions", "class_list"]

CASES = "Many cases"
PICTURES = "Pictures"


def class_list(name: str, text: str) -> tuple[int, ...]:
    """Return numbers of classes with commas between, as typed.

    Raises
    ------
    InvalidInput
        Where they are not whole numbers.

    Examples
    --------
    >>> class_list("classes", "1, 2")
    (1, 2)
    """
    try:
        return tuple(int(one) for one in text.split(","))
    except ValueError:
        raise InvalidInput(
            f"{name} must be whole numbers with commas, given {text!r}; write for example 1,2"
        ) from None


@dataclass(frozen=True)
class EvaluateOptions(RunOptions):
    """The options of `evaluate`."""

    classes: Sequence[int] | None = option(
        None,
        "Only these classes, such as 1,2. Default: all but 0 that occur in one of the two.",
        read=class_list,
    )
    distances: bool = option(
        True,
        "Measure surface distances, too (needs the extra 'evaluate'), or count voxels only.",
        names=("--distances/--counts",),
    )
    tolerance: float = option(
        1.0,
        "Up to which distance surfaces agree, for the surface Dice, in the unit of the spacing.",
        read=lambda name, text: _length(name, text),
    )
    max_distance: float | None = option(
        None, "Look for no larger distances, in the unit of the spacing. Default: no bound."
    )
    csv: str | os.PathLike[str] | None = option(
        None, "Write the table, a row for each case and class, to a .csv file."
    )
    skip_bad: bool = option(False, "Go on without cases that cannot be compared.", CASES)
    pictures: str | os.PathLike[str] | None = option(
        None, "Draw the worst cases, where they are worst, into a folder.", PICTURES
    )
    over: VolumeLike | None = option(
        None, "The scan underneath; of many cases a pattern with {case}.", PICTURES
    )


def _length(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInput(f"{name} must be a number, given {text!r}; such as 1.5") from None
