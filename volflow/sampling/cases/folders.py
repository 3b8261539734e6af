"""A folder of cases: ``images/``, ``labels/`` and further folders with equal file names."""

from __future__ import annotations

import os
import re
from pathlib import Path

from volflow.errors import InvalidInput
from volflow.store.opening import is_url, is_zarr

__all__ = ["is_folder_of_cases", "list_cases", "stem"]

_SUFFIX = re.compile(r"(\.ome)?\.zarr$|\.nii(\.gz)?$|\.npy$", re.IGNORECASE)


def stem(name: str) -> str:
    """A file's name without the suffix of its format.

    Examples
    --------
    >>> stem("p01.nii.gz"), stem("p02.ome.zarr"), stem("p03.v2")
    ('p01', 'p02', 'p03.v2')
    """
    return _SUFFIX.sub("", name)


def is_folder_of_cases(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a local folder that is no Zarr."""
    text = os.fspath(path)
    local = Path(text).expanduser()
    return not is_url(text) and local.is_dir() and not is_zarr(local)


def list_cases(path: str | os.PathLike[str]) -> list[tuple[str, dict[str, Path]]]:
    """The cases of a folder, by name, each with its files: the image first, then the label.

    Parameters
    ----------
    path
        Folder that holds ``images/`` and, of the same file names, ``labels/`` and others. A
        folder's name without its s names the array.

    Raises
    ------
    InvalidInput
        Where there is no ``images/``, or a file is missing in one of the folders.
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
    """Whether it is a volume, or what volflow keeps beside one."""
    return is_zarr(path) or path.name.endswith(".volflow")


def _volumes(folder: Path) -> dict[str, Path]:
    """Volumes by stem; a ``.nii.gz`` gives way to what was made of it."""
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
