"""Check all cases before a training: pairs, files, grids and, if asked, the values of labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from volflow.errors import InvalidInput, VolflowError
from volflow.sampling.cases.case_faults import CaseFault, CaseFaults
from volflow.sampling.cases.data_set import CARD, classes_named
from volflow.sampling.cases.look import Opened, look_at
from volflow.sampling.cases.open_cases import CasesLike, is_of_classes
from volflow.store.slabs import Source

__all__ = ["check_cases", "checked_classes", "voxels_of_classes"]

MOST_CLASSES = 2**16
SLAB_BYTES = 2**24  # held at a time of what is read from front to back


def check_cases(cases: CasesLike, *, labels: bool = False) -> CaseFaults:
    """Say what is wrong with cases, all of it in one table; only headers are read.

    Found are images without labels and the other way round, files that cannot be opened, arrays of
    a case that differ in shape, spacing or orientation, and cases that differ in their arrays or
    channels. What must be converted first (``.nii.gz``) is no fault;
    nor is a spacing of its own, which a stream refuses.

    Parameters
    ----------
    cases
        As `open_cases` takes them.
    labels
        Also read each array of classes once, and name values that are not whole numbers, or none of
        the classes that the ``dataset.json`` of its folder names.

    Returns
    -------
    CaseFaults
        A row of case, what and remedy for each fault; ``faults.ok`` where there is none,
        ``faults.names`` are the cases to leave out.

    Raises
    ------
    InvalidInput
        If there are no cases. What uses cases refuses all where one has a fault, unless its
        ``skip_bad`` is True.

    Examples
    --------
    >>> scan = np.zeros((20, 30, 40), "int16")
    >>> found = check_cases({"a": {"image": scan, "label": scan}, "b": {"image": scan}})
    >>> found[0].case, found[0].what
    ('b', 'cases must hold the same arrays, but "a" holds image, label and "b" image')
    >>> found.heading()
    '1 of 2 cases has faults'
    """
    good, faults, count = look_at(cases)
    for case in good if labels else ():
        for name, source in case.sources.items():
            if is_of_classes(name, source):
                faults += checked_classes(case, name, source)[1]
    return CaseFaults(tuple(sorted(faults, key=lambda fault: fault.case)), count)


def voxels_of_classes(source: Source) -> dict[int, int]:
    """Return how many voxels each class has; the voxels are read once, some planes at a time.

    Raises
    ------
    InvalidInput
        If there are other than whole numbers, or more than 65536 different ones.
    """
    plane = int(np.prod(source.shape[-2:])) * source.dtype.itemsize
    found: dict[int, int] = {}
    for _, voxels in source.slabs(max(1, SLAB_BYTES // max(1, plane))):
        values, counts = np.unique(voxels, return_counts=True)
        whole = np.isfinite(values) & (values == np.rint(values))
        if not whole.all():
            raise InvalidInput(
                f"it holds {values[~whole][0]:.6g}, and classes are whole numbers; it may"
                " be an image, or was resampled with interpolation: do so with order=0"
            )
        for value, number in zip(values.tolist(), counts.tolist(), strict=True):
            found[int(value)] = found.get(int(value), 0) + number
        if len(found) > MOST_CLASSES:
            raise InvalidInput(f"it holds more than {MOST_CLASSES} values; it may be an image")
    return found


def checked_classes(
    case: Opened, name: str, source: Source
) -> tuple[dict[int, int], list[CaseFault]]:
    """Return how many voxels each class has, and what is wrong with them."""
    try:
        counts = voxels_of_classes(source)
        return counts, _wrong_values(case, name, source, counts)
    except (VolflowError, OSError) as error:
        fault = CaseFault.of(case.name, error)
        return {}, [CaseFault(case.name, f"{name}: {fault.what}", fault.remedy, error)]


def _wrong_values(
    case: Opened, name: str, source: Source, counts: Mapping[int, int]
) -> list[CaseFault]:
    """Return the fault of values that are none of the classes of a data set, if there are some."""
    folder = Path(source.path).parent if source.path and "://" not in source.path else None
    named = frozenset[int]() if folder is None else classes_named(folder)
    wrong = sorted(value for value in counts if named and value not in named)
    if not wrong:
        return []
    shown = ", ".join(map(str, wrong[:5])) + (" and more" if len(wrong) > 5 else "")
    known = ", ".join(map(str, sorted(named)))
    what = f"{name} holds {shown}, and {CARD} names the classes {known}"
    return [CaseFault(case.name, what, f"correct the label, or {CARD}")]
