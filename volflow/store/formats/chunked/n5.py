"""N5 containers as sources: a dataset, or a pyramid of datasets named s0, s1 and so on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from volflow.errors import Damaged, InvalidInput
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.chunked.n5_grid import grid_of_n5
from volflow.store.formats.chunked.tensorstore_source import (
    TensorStoreSource,
    below,
    chunked_source,
    json_object,
)

__all__ = ["holds_n5", "open_n5"]

ATTRIBUTES = "attributes.json"
MOST_FOLDERS = 1000  # that are looked into for datasets
MOST_LEVELS = 64
MOST_NAMED = 12  # in a message
_LEVEL = re.compile(r"s(\d+)")


def holds_n5(folder: Path) -> bool:
    """Return True if a folder is an N5 container, or a group or dataset in one."""
    return (folder / ATTRIBUTES).is_file() or folder.suffix.lower() == ".n5"


def open_n5(path: str, choice: ImageChoice) -> TensorStoreSource:
    """Open a dataset of an N5 container, or a level of a pyramid; reads no voxel.

    Raises
    ------
    InvalidInput
        If there is no such dataset, several of which none was chosen, or a volume cannot hold it.
    Damaged
        If its metadata are damaged.
    """
    root = Path(path)
    folder = below(root, choice.dataset) if choice.dataset else root
    if choice.dataset is None and not _is_image(folder):
        folder = root / _only(root)
    if not _is_image(folder):
        known = _listed(_images(root))
        raise InvalidInput(
            f"{path} has no dataset {choice.dataset}; {known or 'it has none at all'}"
        )
    level, data = _level(path, folder, choice)
    group = data.parent if _LEVEL.fullmatch(data.name) else None
    outer = {} if group is None else json_object(group / ATTRIBUTES)
    own = json_object(data / ATTRIBUTES)
    if own.get("isLabelMultiset"):
        raise InvalidInput(
            f"{data} holds several labels for a voxel (a label multiset); write it as plain labels"
        )
    try:
        axes, meta = grid_of_n5(own, outer, level)
    except InvalidInput as error:
        raise type(error)(f"{data}: {error}") from None
    except Exception as error:  # any value may have any type
        raise Damaged(
            f"{data}: damaged N5 attributes ({type(error).__name__}: {error!s:.200}); restore them"
        ) from error
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{data}/"}}
    return chunked_source(path, spec, data, axes, choice, meta)


def _is_dataset(folder: Path) -> bool:
    said = json_object(folder / ATTRIBUTES)
    return "dimensions" in said and "dataType" in said


def _is_image(folder: Path) -> bool:
    """Return True of a dataset, or of a pyramid."""
    return _is_dataset(folder) or _is_dataset(folder / "s0")


def _level(path: str, folder: Path, choice: ImageChoice) -> tuple[int, Path]:
    """Return the level that is meant, and its folder."""
    if _is_dataset(folder):
        named = _LEVEL.fullmatch(folder.name)
        own = int(named[1]) if named else 0
        if choice.level not in (None, own):
            raise InvalidInput(
                f"{folder} is one level of a pyramid, or none; leave level {choice.level} out"
            )
        return own, folder
    missing = (n for n in range(MOST_LEVELS) if not _is_dataset(folder / f"s{n}"))
    level = choice.at_level(next(missing, MOST_LEVELS), path)
    return level, folder / f"s{level}"


def _only(root: Path) -> str:
    """Return the one image of a container."""
    found = _images(root)
    if not found:
        raise InvalidInput(f"{root} is no N5 container: no dataset lies in it; check the path")
    if len(found) > 1:
        raise InvalidInput(
            f"{root} holds several images; choose one, as {root.name}::{found[0]} or by dataset="
            f" (--dataset); {_listed(found)}"
        )
    return found[0]


def _listed(names: list[str]) -> str:
    more = ", …" if len(names) > MOST_NAMED else ""
    return f"there are {', '.join(names[:MOST_NAMED])}{more}" if names else ""


def _images(root: Path) -> list[str]:
    """Return the paths of datasets and pyramids in a container, sorted."""
    return sorted(str(folder.relative_to(root)) for folder in _walk(root))


def _walk(root: Path) -> Iterator[Path]:
    pending, seen = [root], 0
    while pending and seen < MOST_FOLDERS:
        folder, seen = pending.pop(), seen + 1
        if _is_image(folder):
            yield folder
        elif folder.is_dir():
            pending += [one for one in folder.iterdir() if one.is_dir() and not one.is_symlink()]
