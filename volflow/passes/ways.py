"""The best ways through stops in order: each label at a stop is one way of coming there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["best_ways"]

Label = TypeVar("Label")


def best_ways(
    count: int,
    start: Label,
    leap: Callable[[Label, int, int], Label | None],
    best: Callable[[list[Label]], list[Label]],
) -> list[Label]:
    """Return the labels of the last stop; empty if no way leads there.

    Parameters
    ----------
    count
        Number of stops.
    start
        The label of the first stop.
    leap
        Returns the label of a later stop from one of an earlier stop and the numbers of both;
        None if there is no such way.
    best
        Returns those labels of a stop, given in the order of the earlier stops, that go on. The
        others are left: none of them may lead to a better end than those that go on.

    Examples
    --------
    The fewest leaps over stones of which every third is loose:

    >>> def leap(leaps, here, there):
    ...     return leaps + 1 if there % 3 and there - here < 4 else None
    >>> best_ways(8, 0, leap, lambda labels: sorted(labels)[:1])
    [3]
    """
    reached = [[start]]
    for there in range(1, count):
        found = []
        for here in range(there):
            for label in reached[here]:
                further = leap(label, here, there)
                if further is not None:
                    found.append(further)
        reached.append(best(found))
    return reached[-1]
