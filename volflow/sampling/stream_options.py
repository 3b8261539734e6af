"""The options of a stream, checked before anything is opened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from volflow.errors import InvalidInput
from volflow.sampling.augment.foreign import adapted
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.cases.shown import Choice, Shown
from volflow.sampling.samplers import GridSampler, Sampler

__all__ = ["SAMPLE_FIELDS", "StreamOptions", "check_fields", "check_seed", "check_whole"]

# What a sample holds beside its arrays.
SAMPLE_FIELDS = ("location", "case", "index", "key")

BatchTransform = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class StreamOptions:
    """The flat options of `PatchStream`, in one object; see there for their meaning.

    Numbers become Python's own, so that the hash of a stream does not depend on their type.

    Raises
    ------
    InvalidInput
        Naming the option, what was given and what is expected.

    Examples
    --------
    >>> from volflow.sampling.samplers import UniformSampler
    >>> StreamOptions(UniformSampler(64), patches_per_epoch=100, reuse=2).lanes
    8
    """

    sampler: Sampler
    patches_per_epoch: int | None = None
    patches_per_case: int | Mapping[str, int] | None = None
    reuse: float = 4
    memory: str | int | None = None
    seed: int = 0
    lanes: int | None = None
    augment: BatchTransform | Sequence[BatchTransform] | None = None
    rank: int | None = None
    world_size: int | None = None
    threads: int | None = None
    classes: Sequence[str] | None = None
    skip_bad: bool = False
    allow_mixed_spacing: bool = False
    frame: str | None = None
    normalize: Choice | Mapping[str, Choice] = None
    padding: float | str = 0
    ignore_label: int = 0

    def __post_init__(self) -> None:
        grid = isinstance(self.sampler, GridSampler)
        given = (self.patches_per_epoch is not None) + (self.patches_per_case is not None)
        if grid and given:
            raise InvalidInput("a GridSampler gives all its patches; leave out how many")
        if not grid and given != 1:
            raise InvalidInput(
                "say how many patches make an epoch: either patches_per_epoch or patches_per_case;"
                f" got {'both' if given else 'neither'}"
            )
        rule = "ignore_label must be a whole number"
        label = check_whole(self.ignore_label, rule, -(2**63), 2**63)
        object.__setattr__(self, "ignore_label", label)
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "reuse", _positive(self.reuse, "reuse"))
        object.__setattr__(self, "augment", _transforms(self.augment))
        if self.lanes is None and not grid:
            object.__setattr__(self, "lanes", 8)
        for name in ("lanes", "threads"):
            if getattr(self, name) is not None:
                number = check_whole(getattr(self, name), f"{name} must be positive and whole")
                object.__setattr__(self, name, number)

    @property
    def shown(self) -> Shown:
        """What a network is to see of stored arrays."""
        return Shown(self.frame, self.normalize, self.padding, self.ignore_label)

    def totals(self, cases: Sequence[Case]) -> tuple[int, ...]:
        """Patches of an epoch: one number, or one of each case; none of a grid, which gives all.

        Raises
        ------
        InvalidInput
            If a case is unknown, or a number is not positive.
        """
        if isinstance(self.sampler, GridSampler):
            return ()
        wanted: tuple[Any, ...] = (self.patches_per_epoch,)
        if isinstance(self.patches_per_case, Mapping):
            names = [case.name for case in cases]
            unknown = sorted(map(str, set(self.patches_per_case) - set(names)))
            if unknown:
                raise InvalidInput(
                    f"patches_per_case names {', '.join(unknown)}, but the cases are"
                    f" {', '.join(names)}"
                )
            wanted = tuple(self.patches_per_case.get(name, 0) for name in names)
        elif self.patches_per_case is not None:
            wanted = (self.patches_per_case,) * len(cases)
        rule = "numbers of patches must be positive whole numbers"
        totals = tuple(check_whole(n, rule, 0) for n in wanted)
        if not sum(totals):
            raise InvalidInput(f"{rule}; got {totals}")
        return totals


def check_fields(names: Iterable[str]) -> None:
    """Refuse arrays and values whose names a sample needs for other things."""
    taken = [name for name in names if name in SAMPLE_FIELDS]
    if taken:
        raise InvalidInput(
            f"a sample holds its {', '.join(SAMPLE_FIELDS)} under these names, which the case gives"
            f" to arrays or values: {', '.join(taken)}; rename them"
        )


def check_whole(value: Any, rule: str, low: int = 1, below: float = math.inf) -> int:
    """Return a whole number of any type as an int.

    Parameters
    ----------
    value
        The number as given.
    rule
        The rule that it must keep, for the message.
    low, below
        Its bounds.

    Raises
    ------
    InvalidInput
        If it is not such a number.

    Examples
    --------
    >>> check_whole(8.0, "lanes must be positive")
    8
    """
    try:
        right = int(value) == value and low <= value < below
    except (TypeError, ValueError, OverflowError):  # no number, NaN, infinite
        right = False
    if not right:
        raise InvalidInput(f"{rule}; got {value!r}")
    return int(value)


def check_seed(value: Any) -> int:
    """Return a seed as an int."""
    return check_whole(value, "seed must be a whole number from 0 on, below 2^64", 0, 2**64)


def _positive(value: Any, name: str) -> float:
    try:
        right = 0 < float(value) < math.inf
    except (TypeError, ValueError):
        right = False
    if not right:
        raise InvalidInput(f"{name} must be positive; got {value!r}")
    return float(value)


def _transforms(augment: Any) -> tuple[BatchTransform, ...]:
    several = isinstance(augment, Sequence) and not isinstance(augment, str)
    given = augment if several else [augment]
    transforms = tuple(one for one in given if one is not None)
    wrong = [one for one in transforms if not callable(one)]
    if wrong:
        raise InvalidInput(
            "augment must be a callable that takes a batch and returns one, or several; got"
            f" {wrong[0]!r}"
        )
    return tuple(adapted(one, place) for place, one in enumerate(transforms))
