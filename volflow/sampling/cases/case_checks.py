"""What arrays of a case, and cases of a stream, must have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from volflow.errors import InvalidInput
from volflow.geometry.units import unit_sign
from volflow.store.formats.sources import Source
from volflow.store.meta import Meta

__all__ = ["channels_of", "check_alike", "check_grid", "knows_spacing"]


def check_alike(
    first: str, expected: Mapping[str, Source], name: str, sources: Mapping[str, Source]
) -> None:
    """Batches mix cases: refuse what cannot be put into one array."""
    if set(sources) != set(expected):
        raise InvalidInput(
            f'cases must hold the same arrays, but "{first}" holds {", ".join(expected)} and'
            f' "{name}" {", ".join(sources)}'
        )
    for key, source in expected.items():
        here, there = channels_of(source), channels_of(sources[key])
        if here != there:
            raise InvalidInput(
                f"cases must agree in channels to share a batch, but {key} holds {here} channels in"
                f' "{first}" and {there} channels in "{name}"; pick the same ones'
            )


def channels_of(source: Source) -> int:
    """Channels of an array; 1 where it has no axis for them."""
    return source.shape[0] if len(source.shape) == 4 else 1


def check_grid(case: str, sources: Mapping[str, Source]) -> None:
    """Refuse arrays that differ in shape, spacing or orientation; unknown ones fit any."""
    lead = next(iter(sources))
    for name, source in sources.items():
        here, there = source.shape[-3:], sources[lead].shape[-3:]
        if here != there:
            raise InvalidInput(
                f'arrays of a case share one grid, but in "{case}" {lead} has shape {there} and'
                f" {name} {here}; crop or resample one, or make them cases of their own:"
                ' [{"image": …}, {"image": …}]'
            )
    known = [(name, s.meta) for name, s in sources.items() if knows_spacing(s.meta)]
    for name, meta in known[1:]:
        if not _same_spacing(known[0][1], meta):
            raise _differ(
                case, "spacing", (known[0][0], _length(known[0][1])), (name, _length(meta))
            )
    turned = [(name, s.meta.orientation) for name, s in sources.items() if s.meta.orientation]
    for name, orientation in turned[1:]:
        if orientation != turned[0][1]:
            raise _differ(case, "orientation", turned[0], (name, orientation))


def _differ(case: str, what: str, a: tuple[str, Any], b: tuple[str, Any]) -> InvalidInput:
    return InvalidInput(
        f'arrays of a case share one grid, but in "{case}" {a[0]} has {what} {a[1]} and {b[0]}'
        f" {b[1]}; resample one onto the other's grid or mend its metadata"
    )


def knows_spacing(meta: Meta) -> bool:
    """Whether it says more than that of a bare array."""
    return meta.unit is not None or meta.spacing != Meta().spacing


def _same_spacing(a: Meta, b: Meta) -> bool:
    known = a.unit is not None and b.unit is not None
    return (not known or a.unit == b.unit) and all(
        math.isclose(s, t, rel_tol=1e-3) for s, t in zip(a.spacing, b.spacing, strict=True)
    )


def _length(meta: Meta) -> str:
    return "×".join(f"{s:.6g}" for s in meta.spacing) + f" {unit_sign(meta.unit)}".rstrip()
