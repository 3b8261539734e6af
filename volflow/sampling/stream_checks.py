"""What is asked of a stream, in numbers: refused where they are none, and of one type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from volflow.errors import InvalidInput
from volflow.sampling.cases.cases import Case

__all__ = ["check_names", "count_of", "patch_totals", "positive", "seed_of", "whole"]

WORD = 2**64
# What a sample holds beside its arrays.
OWN_NAMES = ("location", "case", "index", "key")


def whole(value: Any, rule: str, low: int = 1, below: float = math.inf) -> int:
    """A whole number of any type, as an int: what is hashed must not depend on the type.

    Parameters
    ----------
    value
        As given.
    rule
        Says what it must be, for the message.
    low, below
        Its bounds.

    Raises
    ------
    InvalidInput
        Where it is no such number.

    Examples
    --------
    >>> whole(8.0, "lanes must be positive")
    8
    """
    try:
        right = int(value) == value and low <= value < below
    except (TypeError, ValueError, OverflowError):  # no number, NaN, infinite
        right = False
    if not right:
        raise InvalidInput(f"{rule}; got {value!r}")
    return int(value)


def check_names(case: Case) -> None:
    """Refuse arrays whose names a sample needs for other things.

    Raises
    ------
    InvalidInput
        Naming them.
    """
    taken = [name for name in case.sources if name in OWN_NAMES]
    if taken:
        raise InvalidInput(
            f"a sample says its {', '.join(OWN_NAMES)} under these names, which the case gives to"
            f" arrays: {', '.join(taken)}; name them otherwise"
        )


def count_of(value: Any, name: str) -> int:
    """How many there are of something, at least one, as an int.

    Raises
    ------
    InvalidInput
        Where it is no such number.
    """
    return whole(value, f"{name} must be positive and whole")


def positive(value: Any, name: str) -> float:
    """A finite number above zero, as a float.

    Raises
    ------
    InvalidInput
        Where it is none.
    """
    try:
        right = 0 < float(value) < math.inf
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InvalidInput(f"{name} must be positive; got {value!r}")
    return float(value)


def seed_of(value: Any) -> int:
    """A seed, as an int.

    Raises
    ------
    InvalidInput
        Where it is none.
    """
    return whole(value, "seed must be a whole number from 0 on, below 2^64", 0, WORD)


def patch_totals(
    cases: Sequence[Case], per_epoch: int | None, per_case: int | Mapping[str, int] | None
) -> tuple[int, ...]:
    """Patches of an epoch: one number, or one per case.

    Raises
    ------
    InvalidInput
        Where neither or both are given, a case is unknown, or a number is none.
    """
    if (per_epoch is None) == (per_case is None):
        raise InvalidInput(
            "say how many patches make an epoch: either patches_per_epoch or patches_per_case; got "
            f"{'neither' if per_epoch is None else 'both'}"
        )
    asked: tuple[Any, ...] = (per_epoch,)
    if isinstance(per_case, Mapping):
        names = [case.name for case in cases]
        unknown = sorted(map(str, set(per_case) - set(names)))
        if unknown:
            raise InvalidInput(
                f"patches_per_case names {', '.join(unknown)}, but the cases are {', '.join(names)}"
            )
        asked = tuple(per_case.get(name, 0) for name in names)
    elif per_case is not None:
        asked = (per_case,) * len(cases)
    rule = "numbers of patches must be positive whole numbers"
    totals = tuple(whole(n, rule, 0) for n in asked)
    if not sum(totals):
        raise InvalidInput(f"{rule}; got {totals}")
    return totals
