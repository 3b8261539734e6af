"""Locations of the coarser levels of a volume and their journals, and its list of levels.

::

    out.zarr/0/               the full resolution
    out.zarr/1/, 2/, …        coarser levels
    out.zarr.volflow/         the journal of the run that wrote level 0
        levels/1/, 2/, …      a journal for each coarser level

For a volume inside a store, such as a named output, read ``seg/1`` for ``1``.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from volflow.errors import InvalidInput
from volflow.store.journal.complete import begun_store
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Level
from volflow.store.ngff import write_levels
from volflow.store.opening import is_zarr
from volflow.store.volume import Volume, open_volume

__all__ = ["Place", "drop_levels", "finest_of", "level_journals", "list_levels", "place_of"]


@dataclass(frozen=True)
class Place:
    """Location of a volume: the outermost store around it, and its name in that store.

    Parameters
    ----------
    store
        Path of the store; the journals lie beside it.
    name
        ``""`` if the volume is the store.
    """

    store: Path
    name: str = ""

    @property
    def run(self) -> Journal:
        """Return the journal of the run that wrote the volume; its lock covers the whole store."""
        return Journal(journal_dir(self.store))

    def array(self, level: int) -> str:
        """Return the path of a level's array, relative to the store."""
        return f"{self.name}/{level}".lstrip("/")

    def path(self, level: int) -> Path:
        """Return the folder of a level's array."""
        return self.store / self.array(level)

    def journal(self, level: int) -> Journal:
        """Return the journal of a coarser level."""
        return Journal(_levels(self.run) / self.array(level))

    def surplus(self, count: int) -> list[int]:
        """Return the levels beyond ``count`` that have a journal."""
        found = _levels(self.run).joinpath(self.name).glob("[0-9]*")
        numbers = (int(path.name) for path in found if path.name.isdecimal())
        return sorted(number for number in numbers if number > count)


def place_of(volume: Volume) -> Place:
    """Return the location of a volume to which levels can be added.

    Raises
    ------
    InvalidInput
        If volflow did not write it to a local path.
    """
    if volume.path is None:
        raise InvalidInput("levels cannot be added to a volume in memory; store it with vf.write")
    journal_dir(volume.path)  # refuses a URL
    path = Path(volume.path)
    if not volume.levels[0].path and is_zarr(path.parent):
        raise InvalidInput(f"{path} is an array of the volume {path.parent}; give that one")
    ours = volume.array.metadata.zarr_format == 3 and volume.levels[0].path == "0"
    if not ours or "volflow" not in zarr.open_group(path, mode="r").attrs:
        raise InvalidInput(
            f"{volume.path} was not written by volflow, so its levels are not changed; copy it"
            " with vf.convert (volflow convert) and add levels to the copy"
        )
    # If no run wrote it, the outermost store, as no journal may lie inside a store.
    store = begun_store(path)
    return Place(store, "/".join(path.relative_to(store).parts))


def finest_of(volume: Any) -> tuple[Volume, Place]:
    """Return the full resolution of a volume to which levels can be added, and its location.

    Raises
    ------
    InvalidInput
        As `place_of`.
    """
    opened = open_volume(volume)
    place = place_of(opened)
    return open_volume(str(opened.path)), place


def level_journals(run: Journal) -> dict[str, Journal]:
    """Return the journals of the coarser levels in a store, by the array's relative path."""
    base = _levels(run)
    folders = [p.parent for p in base.rglob("plan.json") if p.parent.name.isdecimal()]
    folders.sort(key=lambda folder: (folder.parent, int(folder.name)))
    return {folder.relative_to(base).as_posix(): Journal(folder) for folder in folders}


def drop_levels(run: Journal) -> None:
    """Delete the journals of the levels of a store that is written again."""
    shutil.rmtree(_levels(run), ignore_errors=True)


def list_levels(finest: Volume, levels: tuple[Level, ...]) -> None:
    """Write a volume's list of levels if it has changed."""
    if levels != finest.levels:
        group = zarr.open_group(str(finest.path), mode="r+", use_consolidated=False)
        write_levels(group, finest.meta, levels)


def _levels(run: Journal) -> Path:
    return run.directory / "levels"
