"""Open the arrays of cases and find what is wrong with them; only headers are read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput, VolflowError
from volflow.sampling.cases.case_faults import CaseFault
from volflow.sampling.cases.case_folders import is_case_folder, unpaired
from volflow.sampling.cases.drafts import Draft, drafts_of
from volflow.sampling.cases.named_arrays import check_grid
from volflow.sampling.cases.values import check_values
from volflow.store.formats.sources import stem
from volflow.store.slabs import Source
from volflow.volumes.arrays.inputs import open_input

__all__ = ["Opened", "look_at"]

PAIR = (
    "add it, move what is left over elsewhere, or name the folder of what is for training, such as"
    " imagesTr/"
)


@dataclass(frozen=True)
class Opened:
    """A case whose arrays are open."""

    name: str
    sources: Mapping[str, Source]
    draft: Draft


def look_at(x: Any) -> tuple[list[Opened], list[CaseFault], int]:
    """Return the cases that can be used together, what is wrong with others, and how many all are.

    Parameters
    ----------
    x
        As `open_cases` takes it.
    """
    drafts = drafts_of(x)
    if not drafts:
        raise InvalidInput("there are no cases; give at least one volume")
    faults = _faults_of_folders(x)
    bad = {fault.case for fault in faults}
    left_out = bad - {draft.name for draft in drafts}
    opened: list[Opened] = []
    for number, draft in enumerate(drafts):
        if draft.name in bad:
            continue
        sources: dict[str, Source] = {}
        try:
            for key, array in draft.arrays.items():
                sources[key] = open_input(array)
            check_grid(_name(draft, sources, number), sources)
        except (VolflowError, OSError) as error:
            faults.append(CaseFault.of(_name(draft, sources, number), error))
        else:
            opened.append(Opened(_name(draft, sources, number), sources, draft))
    _refuse_repeated(opened)
    good, unlike = _alike(opened)
    faults = sorted([*faults, *unlike], key=lambda fault: fault.case)
    return good, faults, len(drafts) + len(left_out)


def _faults_of_folders(x: Any) -> list[CaseFault]:
    """Return what has no pair in folders that are given as cases."""
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [fault for one in x for fault in _faults_of_folders(one)]
    if not isinstance(x, str | os.PathLike) or not is_case_folder(os.fspath(x)):
        return []
    found = unpaired(Path(x).expanduser())
    return [CaseFault(case, what, PAIR) for case, what in found.items()]


def _name(draft: Draft, sources: Mapping[str, Source], number: int) -> str:
    """Return the name of a case; of one that was given none that of its first array, or a number.

    Parameters
    ----------
    draft, number
        The case, and its place among all.
    sources
        Those of its arrays that could be opened.
    """
    key, given = next(iter(draft.arrays.items()))
    path = sources[key].path if key in sources else given
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else ""
    return draft.name or (stem(Path(text).name) if text else f"case{number}")


def _refuse_repeated(opened: Iterable[Opened]) -> None:
    names = [one.name for one in opened]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidInput(
            f"case names must differ, given {', '.join(repeated)} more than once; name the cases:"
            ' {"a": {"image": …}, "b": {"image": …}}'
        )


def _alike(opened: Sequence[Opened]) -> tuple[list[Opened], list[CaseFault]]:
    """Return the cases that can share a batch, and why others cannot."""
    if not opened:
        return [], []
    first = max(opened, key=lambda one: len(one.sources))  # the first of the fullest
    good, faults = [], []
    for one in opened:
        try:
            _check_alike(first.name, first.sources, one.name, one.sources)
            check_values(first.name, first.draft.values, one.name, one.draft.values)
        except InvalidInput as error:
            faults.append(CaseFault.of(one.name, error))
        else:
            good.append(one)
    return good, faults


def _check_alike(
    first: str, expected: Mapping[str, Source], name: str, sources: Mapping[str, Source]
) -> None:
    """Refuse cases that cannot share a batch: of other arrays or other channels."""
    if set(sources) != set(expected):
        raise InvalidInput(
            f'cases must hold the same arrays, but "{first}" holds {", ".join(expected)} and'
            f' "{name}" {", ".join(sources)}; add what is missing, or leave the case out'
        )
    for key, source in expected.items():
        here, there = source.channels_count, sources[key].channels_count
        if here != there:
            raise InvalidInput(
                f"cases must agree in channels to share a batch, but {key} holds {here} channels in"
                f' "{first}" and {there} channels in "{name}"; pick the same ones'
            )
