"""One spacing for the cases of a stream: a network that learns sizes must not see two by chance.

By it a patch that is given in lengths becomes one in voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from volflow.errors import InvalidInput
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.cases.names import listed
from volflow.sampling.patch_size import (
    checked_size,
    has_lengths,
    in_voxels,
    knows_lengths,
    size_text,
)
from volflow.sampling.samplers import Sampler
from volflow.store.meta import Meta
from volflow.volumes.arrays.grids import same_spacing, spacing_text

__all__ = ["sampler_in_voxels"]

MOST_SPACINGS = 5  # in a message


def sampler_in_voxels(sampler: Sampler, cases: Sequence[Case], *, mixed: bool) -> Sampler:
    """Return a sampler whose patch is in voxels; refuse cases of different spacing.

    Parameters
    ----------
    sampler, cases
        The law of the patches, and what they are cut from.
    mixed
        Take cases of different spacing. An unknown one, as that of a bare array, fits any.

    Raises
    ------
    InvalidInput
        Naming the spacings, and the cases that have them; or the cases whose spacing is unknown,
        though a patch is given in lengths.
    """
    metas = {case.name: case.meta for case in cases}
    sides = checked_size(sampler.patch) if hasattr(sampler, "patch") else ()
    lengths = has_lengths(sides)
    told = _different(metas) if lengths or not mixed else ""
    if told and not mixed:
        raise InvalidInput(
            f"the cases of a stream share one spacing, but these have different ones: {told};"
            " resample them to one (vf.resample), or take them as they are with"
            " allow_mixed_spacing=True (--allow-mixed-spacing)"
        )
    if not lengths:
        return sampler
    if told:
        raise InvalidInput(
            f"a patch of {size_text(sides)} would differ in voxels between cases, whose spacings"
            f" are {told}; give the patch in voxels, or resample the cases to one spacing"
        )
    unknown = [name for name, meta in metas.items() if not knows_lengths(meta)]
    if unknown:
        raise InvalidInput(
            f"a patch of {size_text(sides)} becomes voxels by the spacing of the cases, which has"
            f" no unit of length in {listed(unknown)}; store them with spacing= and unit="
            " (volflow convert --spacing --unit), or give the patch in voxels"
        )
    return replace(sampler, patch=in_voxels(sides, next(iter(metas.values()))))


def _different(metas: dict[str, Meta]) -> str:
    """Return the spacings of cases and who has them, if there are several; else an empty text."""
    known = [(name, meta) for name, meta in metas.items() if meta.knows_spacing]
    names: dict[str, list[str]] = {}
    for name, meta in known:
        first = known[0][1]
        spacing = spacing_text(first if same_spacing(first, meta) else meta)
        names.setdefault(spacing, []).append(name)
    if len(names) < 2:
        return ""
    told = [f"{listed(those)}: {spacing}" for spacing, those in names.items()]
    more = len(told) - MOST_SPACINGS
    return "; ".join([*told[:MOST_SPACINGS], *([f"and {more} more"] if more > 0 else [])])
