"""Open cases: volumes, mappings of arrays, folders, or several of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.sampling.cases.case_faults import CaseFaults
from volflow.sampling.cases.look import Opened, look_at
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.cases.names import names_classes
from volflow.sampling.cases.values import alike
from volflow.store.slabs import Source
from volflow.volumes.arrays.inputs import VolumeLike, refuse_sequential

__all__ = ["CasesLike", "is_of_classes", "open_cases"]

CasesLike = VolumeLike | Case | Mapping[str, Any] | Sequence[Any]


def open_cases(
    x: CasesLike, *, classes: Iterable[str] | None = None, skip_bad: bool = False
) -> tuple[Case, ...]:
    """Open the cases that patches are taken from; no voxel is read.

    Parameters
    ----------
    x
        One `VolumeLike`, which is then called ``"image"``; a mapping of array names to volumes
        (also an ``xarray.Dataset``), with the case's own name under ``"name"`` if it has one, and
        values that its samples carry along: numbers, and texts that name no file; a mapping of
        case names to such mappings; a sequence of any of these; or a folder, a pattern or a table
        of cases, as `find_cases` takes them.
    classes
        Names of the arrays whose voxels are classes. By default those whose names begin with
        label, mask or seg, and those whose files say so.
    skip_bad
        Leave out cases that cannot be used, instead of refusing all.

    Returns
    -------
    tuple of Case
        In the order given; of a folder, by name.

    Raises
    ------
    InvalidInput
        If a file cannot be read by parts, arrays of a case do not lie on one grid, names repeat,
        or cases differ in their arrays, channels or values: one error of all faults. If they
        differ in dtype, all are read in one that holds them all.

    Examples
    --------
    >>> scan = np.zeros((20, 30, 40), "int16")
    >>> open_cases([{"image": scan, "label": scan > 0}, {"image": scan, "label": scan > 1}])
    (Case(case0, 20×30×40, image int16, label bool), Case(case1, 20×30×40, image int16, label bool))
    """
    good, faults, count = look_at(x)
    packed = [one for one in good if any(source.sequential for source in one.sources.values())]
    if packed and not (skip_bad and len(packed) < len(good)):
        _refuse_packed(packed, count)
    good = [one for one in good if one not in packed]
    found = CaseFaults(tuple(faults), count)
    if not skip_bad or not good:
        found.refuse()
    first = good[0].sources
    selected = _classes(good, classes)
    dtypes = {key: np.result_type(*(one.sources[key].dtype for one in good)) for key in first}
    values = alike([one.draft.values for one in good])
    return tuple(
        Case(
            one.name,
            {key: one.sources[key] for key in first},
            selected,
            dtypes,
            carried,
            one.draft.normalize,
            one.draft.padding,
        )
        for one, carried in zip(good, values, strict=True)
    )


def is_of_classes(name: str, source: Source) -> bool:
    """Return True for an array whose voxels are classes, by its name or by what its file says."""
    return names_classes(name) or source.meta.kind == "classes"


def _refuse_packed(cases: Sequence[Opened], count: int) -> None:
    """Refuse cases with files of which no part can be read alone, naming how all are converted."""
    if len(cases) == 1:
        for name, source in cases[0].sources.items():
            refuse_sequential(source, labels=names_classes(name))
    raise InvalidInput(
        f"{len(cases)} of {count} cases hold files that are compressed as a whole and cannot be"
        " read by parts; convert all first: volflow convert CASES CACHE, or"
        ' convert_cases(cases, "cache")'
    )


def _classes(opened: Sequence[Opened], classes: Iterable[str] | None) -> frozenset[str]:
    """Names of arrays of classes: one that holds classes in one of the cases does so in all."""
    if classes is None:
        return frozenset(
            name
            for one in opened
            for name, source in one.sources.items()
            if (
                name in one.draft.classes
                if one.draft.classes is not None
                else is_of_classes(name, source)
            )
        )
    selected = frozenset([classes] if isinstance(classes, str) else classes)
    unknown = sorted(selected - set(opened[0].sources))
    if unknown:
        raise InvalidInput(
            f"classes names {', '.join(unknown)}, but the arrays are {', '.join(opened[0].sources)}"
        )
    return selected
