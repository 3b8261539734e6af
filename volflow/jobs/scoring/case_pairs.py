"""The label maps and truths of cases, paired by name, with what is wrong with them in one table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from volflow.errors import InvalidInput, VolflowError
from volflow.sampling.cases.case_faults import CaseFault, CaseFaults
from volflow.sampling.cases.find_cases import CASE, find_cases, names_cases
from volflow.sampling.cases.names import check_names, names_classes
from volflow.volumes.evaluate.label_pair import LabelPair, open_pair

__all__ = ["CasePairs", "are_cases", "images_of", "pair_cases"]


@dataclass(frozen=True)
class CasePairs:
    """Pairs that can be compared, by case, and the faults of all others.

    Parameters
    ----------
    pairs
        In the order of their names.
    faults
        A row for each case that has none.
    """

    pairs: Mapping[str, LabelPair]
    faults: CaseFaults


def are_cases(x: Any) -> bool:
    """Return True for what names many cases: a pattern, a folder, a table or a mapping."""
    return isinstance(x, Mapping) or names_cases(x)


def pair_cases(pred: Any, truth: Any) -> CasePairs:
    """Pair label maps and truths by the names of their cases; only headers are read.

    Parameters
    ----------
    pred, truth
        Each a pattern with ``{case}``, a folder, a table, or a mapping of volumes by case.

    Raises
    ------
    InvalidInput
        Where one of the two names one volume only, or no case has both.
    """
    for name, x in (("pred", pred), ("truth", truth)):
        if not are_cases(x):
            raise InvalidInput(
                f"pred and truth must both be one volume, or both many cases, but {name} is one"
                f" volume; write a pattern with {CASE}, such as labels/{CASE}.nii.gz"
            )
    one, other = _volumes(pred), _volumes(truth)
    faults = [
        *_unpaired(one.keys() - other.keys(), "truth", truth),
        *_unpaired(other.keys() - one.keys(), "pred", pred),
    ]
    pairs: dict[str, LabelPair] = {}
    for case in sorted(one.keys() & other.keys()):
        try:
            pairs[case] = open_pair(one[case], other[case])
        except (VolflowError, OSError) as error:
            faults.append(CaseFault.of(case, error))
    rows = tuple(sorted(faults, key=lambda fault: fault.case))
    return CasePairs(pairs, CaseFaults(rows, len(one.keys() | other.keys())))


def _unpaired(cases: Iterable[str], lacking: str, where: Any) -> list[CaseFault]:
    place = where if isinstance(where, str | os.PathLike) else "the mapping"
    return [CaseFault(case, f"has no {lacking} in {place}", "add it") for case in cases]


def _volumes(x: Any) -> dict[str, Any]:
    """Return one volume for each case."""
    found: Mapping[Any, Any] = x if isinstance(x, Mapping) else find_cases(x)
    check_names(map(str, found))
    return {
        str(case): _label_of(case, one) if isinstance(one, Mapping) else one
        for case, one in found.items()
    }


def images_of(x: Any) -> dict[str, Any]:
    """Return the first volume of each case that is not one of classes: its scan."""
    return {
        case: next((one for name, one in named.items() if not names_classes(name)), None)
        for case, named in find_cases(x).items()
    }


def _label_of(case: str, volumes: Mapping[str, Any]) -> Any:
    """Return the volume of classes of a case, or its only one."""
    paths = {name: one for name, one in volumes.items() if isinstance(one, str | os.PathLike)}
    named = [name for name in paths if names_classes(name)]
    if len(named) == 1 or len(paths) == 1:
        return paths[named[0] if named else next(iter(paths))]
    raise InvalidInput(
        f'case {case} has the volumes {", ".join(volumes)}; name the one of classes "label"'
    )
