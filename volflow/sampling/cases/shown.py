"""Cases as a network is to see them: images normalised, and what lies outside of the volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from typing import Any

import numpy as np

from volflow.engine.cluster import Cluster, connect
from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.normalize import check_normalization
from volflow.geometry.outside import Padding
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.cases.same_spacing import sampler_in_voxels
from volflow.sampling.samplers import Sampler, guide_of
from volflow.volumes.arrays.turned import TurnedSource
from volflow.volumes.fold import in_memory
from volflow.volumes.normalizing import Normalize, constants_of

__all__ = ["Choice", "Shown", "shown_cases"]

Choice = str | Callable[[Any], Any] | None

# Smaller volumes are measured without a word, unless progress is asked for.
SILENT_VOXELS = 2**28


@dataclass(frozen=True)
class Shown:
    """The options of `PatchStream` that say what a network is to see of stored arrays."""

    frame: str | None = None
    normalize: Choice | Mapping[str, Choice] = None
    padding: float | str = 0
    ignore_label: int = 0


def shown_cases(
    cases: tuple[Case, ...],
    sampler: Sampler,
    shown: Shown,
    *,
    mixed: bool = False,
    cluster: Cluster = None,
    **options: Any,
) -> tuple[tuple[Case, ...], Sampler]:
    """Return cases as a network sees them, and their sampler, whose patch is in voxels.

    They are turned into its frame, and images normalised when they are read, each by its own
    statistics.

    Parameters
    ----------
    cases
        As they are stored, or of another stream: what is not asked for is as there.
    sampler
        The law of the patches. An array that holds weights of it is no image.
    shown
        How.
    mixed
        Take cases of different spacing.
    cluster, **options
        The cluster that measures statistics where they are not known, and its ``memory`` and
        ``progress``.

    Raises
    ------
    InvalidInput
        If a case lacks an orientation, spacings differ or are not known to a patch in lengths, a
        name is unknown, or an array cannot hold what is to lie outside.
    """
    cases = _turned(cases, shown.frame)
    sampler = sampler_in_voxels(sampler, cases, mixed=mixed)
    first = cases[0]
    images = [name for name in first.sources if name not in (*first.classes, guide_of(sampler))]
    choices = _choices(shown.normalize, images, first)
    kept = _kept(cases, images) if shown.normalize is None else [{} for _ in cases]
    outside = [_outside(case, images, shown) for case in cases]
    for name, one in outside[0].items():
        if name not in choices and name not in kept[0]:
            _check_holds(first, name, one, "padding" if name in images else "ignore_label")
    with ExitStack() as stack:
        client = cache(lambda: stack.enter_context(connect(cluster)))
        constants = partial(_constants, client=client, options=options)
        seen = tuple(
            replace(
                case,
                normalize={
                    **before,
                    **{name: constants(case, name, by) for name, by in choices.items()},
                },
                padding=beyond,
            )
            for case, before, beyond in zip(cases, kept, outside, strict=True)
        )
    return seen, sampler


def _kept(cases: tuple[Case, ...], images: list[str]) -> list[dict[str, Normalize]]:
    """Return how cases of another stream are normalised there; {} for all that are of none."""
    kept = [{name: by for name, by in case.normalize.items() if name in images} for case in cases]
    for case, before in zip(cases, kept, strict=True):
        if set(before) != set(kept[0]):
            raise InvalidInput(
                f"cases of another stream are normalised as there, but {cases[0].name}"
                f" ({', '.join(kept[0]) or 'nothing'}) and {case.name}"
                f" ({', '.join(before) or 'nothing'}) differ; say it for all: normalize="
            )
    return kept


def _outside(case: Case, images: list[str], shown: Shown) -> dict[str, Padding]:
    """Return what arrays hold outside of the volume: what is asked for, else as of its stream."""
    asked = dict.fromkeys(images, shown.padding) | dict.fromkeys(case.classes, shown.ignore_label)
    before = case.padding
    return {
        name: before[name] if value == 0 and name in before else Padding(value)
        for name, value in asked.items()
    }


def _turned(cases: tuple[Case, ...], frame: str | None) -> tuple[Case, ...]:
    """Return cases in a frame; as they are without one."""
    if frame is None:
        return cases
    turned = []
    for case in cases:
        try:
            mapping, letters = Frame.between(case.meta.orientation, frame), frame.upper()
        except InvalidInput as error:
            raise InvalidInput(f"case {case.name}: {error}") from None
        sources = {
            name: TurnedSource(source, mapping, letters) for name, source in case.sources.items()
        }
        turned.append(replace(case, sources=sources))
    return tuple(turned)


def _choices(
    normalize: Choice | Mapping[str, Choice], images: list[str], first: Case
) -> dict[str, str | Callable[[Any], Any]]:
    """Return what is asked for of each image that is normalised; refuses unknown words."""
    asked = normalize if isinstance(normalize, Mapping) else dict.fromkeys(images, normalize)
    wrong = [str(name) for name in asked if name not in images]
    if wrong:
        raise InvalidInput(
            f"normalize names {', '.join(wrong)}, but the images are {', '.join(images)}; arrays"
            " of classes and weights stay as they are"
        )
    chosen = {name: by for name, by in asked.items() if by not in (None, "none")}
    for by in chosen.values():
        check_normalization(by)
    return chosen


def _check_holds(case: Case, name: str, padding: Padding, option: str) -> None:
    """Refuse a number that the dtype of an array cannot hold."""
    dtype, number = case.dtype(name), padding.number
    if number is None or dtype.kind == "f":
        return
    limits = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not (number.is_integer() and limits[0] <= number <= limits[1]):
        remedy = (
            "give another one, or normalise the array (normalize=)"
            if option == "padding"
            else "give a label that it can hold, such as 255 in uint8"
        )
        raise InvalidInput(
            f'{option} {number:g} does not fit in array "{name}" of {dtype}; {remedy}'
        )


def _constants(
    case: Case,
    name: str,
    choice: str | Callable[[Any], Any],
    *,
    client: Callable[[], Any],
    options: Mapping[str, Any],
) -> Normalize:
    """Return the constants of one array; an error names it, as many may be measured."""
    source = case.sources[name]
    if isinstance(source, TurnedSource):  # the statistics are the same, and kept beside what it is
        source = source.source
    if options.get("progress") is None and prod(case.shape) < SILENT_VOXELS:
        options = {**options, "progress": False}
    try:
        return constants_of(
            choice, source, cluster=None if in_memory(source) else client, **options
        )
    except InvalidInput as error:
        raise InvalidInput(f"case {case.name}, {name}: {error}") from error
