"""Names of cases and of their arrays: what they may be, what they mean, and in a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from volflow.errors import InvalidInput

__all__ = ["check_channels", "check_names", "listed", "names_classes"]

MOST_NAMED = 8  # in a message
CLASS_PREFIXES = ("label", "mask", "seg")


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first few, and how many more there are.

    Examples
    --------
    >>> listed(["b", "a"]), listed(str(n) for n in range(10))
    ('a, b', '0, 1, 2, 3, 4, 5, 6, 7 and 2 more')
    """
    shown = sorted(names)
    more = len(shown) - MOST_NAMED
    return ", ".join(shown[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_names(names: Iterable[str]) -> None:
    """Refuse names of cases that cannot be part of a file's name.

    Raises
    ------
    InvalidInput
        Naming them.
    """
    wrong = [
        name
        for name in names
        if not name.isprintable() or not name.strip() or "/" in name or name.startswith(".")
    ]
    if wrong:
        raise InvalidInput(
            f"results are named by their cases, which {listed(map(repr, wrong))} cannot be; use"
            " names that are printed, without a slash and without a dot in front"
        )


def check_channels(
    found: Mapping[str, Mapping[str, Any]], channels: Iterable[str], where: str = ""
) -> None:
    """Refuse cases that lack a channel.

    Parameters
    ----------
    found
        The volumes of each case by channel.
    channels
        What each needs.
    where
        Where they were found, in words.

    Raises
    ------
    InvalidInput
        Naming them by what they lack.
    """
    lacking = {
        channel: [case for case, volumes in found.items() if channel not in volumes]
        for channel in channels
    }
    named = [f"{channel} of {listed(cases)}" for channel, cases in lacking.items() if cases]
    if named:
        raise InvalidInput(
            f"each case{where} needs all its channels; missing: {'; '.join(named)}; add their"
            " files, or list the other cases in a table"
        )


def names_classes(array: str) -> bool:
    """Return True for the name of an array whose voxels are classes.

    Examples
    --------
    >>> names_classes("Label2"), names_classes("image")
    (True, False)
    """
    return array.lower().startswith(CLASS_PREFIXES)
