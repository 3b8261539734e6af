"""Open cases: volumes, mappings of arrays, folders, or several of these."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.sampling.cases.named_arrays import Case
from volflow.store.formats.sources import stem
from volflow.store.opening import is_url, is_zarr
from volflow.store.slabs import Source
from volflow.volumes.arrays.inputs import VolumeLike, open_input

__all__ = ["CasesLike", "open_cases"]

CasesLike = VolumeLike | Case | Mapping[str, Any] | Sequence[Any]

CLASS_PREFIXES = ("label", "mask", "seg")


@dataclass(frozen=True)
class _Draft:
    """A case before its sources are opened."""

    name: str | None
    arrays: Mapping[str, Any]
    classes: frozenset[str] | None = None  # known of a case that is open already


def open_cases(x: CasesLike, *, classes: Iterable[str] | None = None) -> tuple[Case, ...]:
    """Open the cases that patches are taken from; no voxel is read.

    Parameters
    ----------
    x
        One `VolumeLike`, which is then called ``"image"``; a mapping of array names to volumes
        (also an ``xarray.Dataset``), with the case's own name under
        ``"name"`` if it has one; a mapping of case names to such mappings; a sequence of any of
        these; or a folder that holds ``images/``, ``labels/`` and further folders such as
        ``weights/``, in which equal file names make a case with the arrays ``"image"``,
        ``"label"``, ``"weight"``.
    classes
        Names of the arrays whose voxels are classes. By default those whose names begin with
        label, mask or seg, and those whose files say so.

    Returns
    -------
    tuple of Case
        In the order given; of a folder, by name.

    Raises
    ------
    InvalidInput
        If a file cannot be read by parts, arrays of a case do not lie on one grid, names repeat,
        or cases differ in their arrays or channels. If they differ in dtype, all are read in one
        that holds them all.

    Examples
    --------
    >>> scan = np.zeros((20, 30, 40), "int16")
    >>> open_cases([{"image": scan, "label": scan > 0}, {"image": scan, "label": scan > 1}])
    (Case(case0, 20×30×40, image int16, label bool), Case(case1, 20×30×40, image int16, label bool))
    """
    drafts = _drafts(x)
    if not drafts:
        raise InvalidInput("there are no cases; give at least one volume")
    names, opened = [], []
    for number, draft in enumerate(drafts):
        sources = {name: open_input(array) for name, array in draft.arrays.items()}
        path = next(iter(sources.values())).path
        names.append(draft.name or (stem(Path(path).name) if path else f"case{number}"))
        opened.append(sources)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InvalidInput(
            f"case names must differ, given {', '.join(repeated)} more than once; name the cases:"
            ' {"a": {"image": …}, "b": {"image": …}}'
        )
    first = opened[0]
    selected = _classes(opened, drafts, classes)
    for name, sources in zip(names[1:], opened[1:], strict=True):
        _check_alike(names[0], first, name, sources)
    dtypes = {key: np.result_type(*(sources[key].dtype for sources in opened)) for key in first}
    return tuple(
        Case(name, {key: sources[key] for key in first}, selected, dtypes)
        for name, sources in zip(names, opened, strict=True)
    )


def _drafts(x: Any) -> list[_Draft]:
    if isinstance(x, Case):
        return [_Draft(x.name, x.sources, x.classes)]
    if isinstance(x, Mapping):
        return _drafts_of_mapping(x)
    if isinstance(x, str | os.PathLike) and _is_folder_of_cases(x):
        return [_Draft(name, arrays) for name, arrays in _list_cases(x)]
    if isinstance(x, Sequence) and not isinstance(x, str):
        return [draft for one in x for draft in _drafts(one)]
    return [_Draft(None, {"image": x})]


def _drafts_of_mapping(x: Mapping[str, Any]) -> list[_Draft]:
    nested = [key for key, value in x.items() if isinstance(value, Mapping)]
    if nested and len(nested) == len(x):
        return [replace(draft, name=key) for key in x for draft in _drafts(x[key])]
    if nested:
        raise InvalidInput(
            f"a mapping names either the arrays of one case or cases, given both:"
            f" {', '.join(map(str, x))}"
        )
    name = x.get("name")
    named = isinstance(name, str)
    arrays = {key: value for key, value in x.items() if not (named and key == "name")}
    if not arrays:
        raise InvalidInput('a case holds at least one array, given none; name one: {"image": …}')
    return [_Draft(name if named else None, arrays)]


def _classes(
    opened: Sequence[Mapping[str, Source]],
    drafts: Sequence[_Draft],
    classes: Iterable[str] | None,
) -> frozenset[str]:
    """Names of arrays of classes: one that holds classes in one of the cases does so in all."""
    if classes is None:
        return frozenset(
            name
            for draft, sources in zip(drafts, opened, strict=True)
            for name, source in sources.items()
            if (
                name in draft.classes
                if draft.classes is not None
                else name.lower().startswith(CLASS_PREFIXES) or source.meta.kind == "classes"
            )
        )
    selected = frozenset([classes] if isinstance(classes, str) else classes)
    unknown = sorted(selected - set(opened[0]))
    if unknown:
        raise InvalidInput(
            f"classes names {', '.join(unknown)}, but the arrays are {', '.join(opened[0])}"
        )
    return selected


def _check_alike(
    first: str, expected: Mapping[str, Source], name: str, sources: Mapping[str, Source]
) -> None:
    """Refuse cases that cannot share a batch: of other arrays or other channels."""
    if set(sources) != set(expected):
        raise InvalidInput(
            f'cases must hold the same arrays, but "{first}" holds {", ".join(expected)} and'
            f' "{name}" {", ".join(sources)}'
        )
    for key, source in expected.items():
        here, there = source.channels_count, sources[key].channels_count
        if here != there:
            raise InvalidInput(
                f"cases must agree in channels to share a batch, but {key} holds {here} channels in"
                f' "{first}" and {there} channels in "{name}"; pick the same ones'
            )


def _is_folder_of_cases(path: str | os.PathLike[str]) -> bool:
    """Return True for a local folder that is not a Zarr."""
    text = os.fspath(path)
    local = Path(text).expanduser()
    return not is_url(text) and local.is_dir() and not is_zarr(local)


def _list_cases(path: str | os.PathLike[str]) -> list[tuple[str, dict[str, Path]]]:
    """List the cases of a folder, by name, each with its files: the image first, then the label.

    The name of a folder in it, without its s, names the array.
    """
    folder = Path(path).expanduser()
    parts = {
        entry.name: _volumes(entry)
        for entry in sorted(folder.iterdir())
        if entry.is_dir() and not entry.name.startswith(".") and not _is_ours(entry)
    }
    order = sorted(parts, key=lambda name: (name != "images", name != "labels", name))
    if not parts.get("images"):
        raise InvalidInput(
            f"{folder} is neither a Zarr nor a folder of cases: those hold images/ and, of the"
            " same file names, labels/; volumes are .zarr, .nii and .npy"
        )
    every = set().union(*parts.values())
    missing = [
        f"{_listed(every - set(parts[name]))} in {name}/"
        for name in order
        if every - set(parts[name])
    ]
    if missing:
        raise InvalidInput(
            f"{folder}: each case needs a file in every folder; missing are {'; '.join(missing)}"
        )
    return [
        (case, {name.removesuffix("s"): parts[name][case] for name in order})
        for case in sorted(every)
    ]


def _is_ours(path: Path) -> bool:
    """Return True for a volume, and for what volflow keeps beside one."""
    return is_zarr(path) or path.name.endswith(".volflow")


def _volumes(folder: Path) -> dict[str, Path]:
    """List the volumes of a folder by stem; a ``.nii.gz`` gives way to its conversion."""
    found: dict[str, Path] = {}
    for entry in sorted(folder.iterdir()):
        name = stem(entry.name)
        if entry.name.startswith(".") or not (name != entry.name or is_zarr(entry)):
            continue
        other = found.get(name)
        if other is None or other.name.lower().endswith(".gz"):
            found[name] = entry
        elif not entry.name.lower().endswith(".gz"):
            raise InvalidInput(
                f"{folder} holds two volumes of one case, {other.name} and {entry.name}; move one"
                " elsewhere"
            )
    return found


def _listed(names: set[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
