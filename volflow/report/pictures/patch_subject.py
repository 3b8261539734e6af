"""The subject of a picture of patches: arrays of cases, their grid, and lines of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from volflow.errors import InvalidInput
from volflow.report.facts.grid_facts import times
from volflow.report.pictures.patch_counts import PatchCounts, from_cases
from volflow.report.pictures.subject import Names, check_channel, class_names
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.cases.open_cases import open_cases
from volflow.store.meta import Meta

__all__ = ["PatchSubject", "open_patches", "subtitle", "title"]


@dataclass(frozen=True)
class PatchSubject:
    """The arrays that are shown, of the cases that patches come from.

    Parameters
    ----------
    cases
        By name.
    image, label
        Names of the arrays shown in grey and in colours; None where there is none.
    grid
        Spacing, unit and orientation that all cases share; where they differ, voxels as stored.
    names, colors
        Of the label's classes, by number.
    """

    cases: Mapping[str, Case]
    image: str | None
    label: str | None
    grid: Meta
    names: Mapping[int, str]
    colors: Sequence[str]


def open_patches(
    samples: Any,
    cases: Any,
    *,
    image: str | None = None,
    label: str | None = None,
    channel: int = 0,
    classes: Names = None,
) -> PatchSubject:
    """Choose the arrays of samples to show.

    Parameters
    ----------
    samples, cases
        A stream, or anything with the cases that its samples come from.
    image, label
        Names of arrays; by default the first that holds no classes, and the first that does.
    channel
        Channel of the image.
    classes
        Names of the classes; by default those of the label's metadata.

    Raises
    ------
    InvalidInput
        If the cases are not known, or have no such array or channel.
    """
    stream = getattr(samples, "stream", samples)  # of a loader
    known = getattr(stream, "cases", None) if cases is None else open_cases(cases)
    if known is None:
        raise InvalidInput(
            "samples do not say which volumes they come from; give the stream itself, or"
            " cases=stream.cases"
        )
    first = known[0]
    for name in (image, label):
        if name is not None and name not in first.sources:
            raise InvalidInput(f"cases hold {', '.join(first.sources)}, given {name!r}")
    if image is None:
        image = next((name for name in first.sources if name not in first.classes), None)
    if label is None:
        label = next((name for name in first.sources if name in first.classes), None)
    check_channel(channel, 1 if image is None else first.channels(image))
    grid = _shared(known)
    if getattr(samples, "stream", None) is not None and stream.augment:
        # A patch that was turned has no left and right of its own.
        grid = replace(grid, orientation=None, affine=None)
    meta = Meta() if label is None else first.sources[label].meta
    names = class_names(classes, meta.channels if meta.kind == "classes" else ())
    return PatchSubject({case.name: case for case in known}, image, label, grid, names, meta.colors)


def _shared(cases: Sequence[Case]) -> Meta:
    grids = {
        (tuple(round(s, 9) for s in case.spacing), case.unit, case.meta.orientation)
        for case in cases
    }
    if len(grids) > 1:
        orientations = {orientation for _, _, orientation in grids}
        return Meta(orientation=orientations.pop() if len(orientations) == 1 else None)
    return cases[0].meta


def title(counts: PatchCounts) -> tuple[str, ...]:
    """Return the number of patches and their origin, as the parts of a title."""
    cases, came = list(counts.cases), len(counts.patches)
    part = f"{came} of " if came < len(cases) else ""
    origin = cases[0] if len(cases) == 1 else f"{part}{len(cases)} cases"
    number = "1 patch" if counts.total == 1 else f"{counts.total} patches"
    return (f"{number} of {times(counts.shape)} voxels", " from ", origin)


def subtitle(samples: Any, counts: PatchCounts, *more: str) -> str:
    """Return the sampler that drew the patches, and how many came from each case."""
    law = _law(getattr(getattr(samples, "stream", samples), "sampler", None))
    origins = from_cases({name: counts.patches[name] for name in counts.cases})
    return "   ·   ".join([*law, *more, *([origins] if len(counts.cases) > 1 else [])])


def _law(sampler: Any) -> list[str]:
    """Return a sampler with its settings; an array with the usual name is left out.

    Examples
    --------
    >>> from volflow.sampling.samplers import LabelSampler, WeightedSampler
    >>> _law(WeightedSampler(64, weight="weight")), _law(WeightedSampler(64, weight="grey"))
    (['WeightedSampler'], ['WeightedSampler, weight grey'])
    >>> _law(LabelSampler(64, probabilities={0: 1, 1: 3}))
    ['LabelSampler, probabilities 0: 1, 1: 3']
    """
    if sampler is None:
        return []
    words = [type(sampler).__name__]
    for field in dataclasses.fields(sampler):
        value = getattr(sampler, field.name)
        if isinstance(value, Mapping):
            value = ", ".join(f"{key}: {share:g}" for key, share in value.items())
        if field.name != "patch" and value not in (field.default, field.name, (0, 0, 0)):
            words.append(f"{field.name} {value}")
    return [", ".join(words)]
