"""Locations of the coarser levels of a volume and their journals, and its list of levels.

::

    out.zarr/0/               the full resolution
    out.zarr/1/, 2/, …        coarser levels
    out.zarr.volflow/         the journal of the run that wrote level 0
        levels/1/, 2/, …      a journal for each coarser level

For a volume inside a store, such as a named output, read ``seg/1`` for ``1``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import zarr

from volflow.errors import Damaged, InvalidInput
from volflow.store.journal.complete import begun_store
from volflow.store.journal.journal import Journal, journal_of
from volflow.store.journal.lease import check_lease
from volflow.store.meta import Level
from volflow.store.ngff import write_levels
from volflow.store.opening import is_zarr, open_node
from volflow.store.remote.address import Location, location, remove_tree
from volflow.store.unfinished.root import settle
from volflow.store.volume import Volume, open_volume

__all__ = [
    "Place",
    "drop_levels",
    "finest_of",
    "level_journals",
    "list_levels",
    "own_group",
    "place_of",
]


@dataclass(frozen=True)
class Place:
    """Location of a volume: the outermost store around it, and its name in that store.

    Parameters
    ----------
    store
        Path or address of the store; the journals lie beside it.
    name
        ``""`` if the volume is the store.
    """

    store: Location
    name: str = ""

    @property
    def run(self) -> Journal:
        """Return the journal of the run that wrote the volume; its lock covers the whole store."""
        return journal_of(self.store)

    def array(self, level: int) -> str:
        """Return the path of a level's array, relative to the store."""
        return f"{self.name}/{level}".lstrip("/")

    def path(self, level: int) -> Location:
        """Return the folder of a level's array."""
        return self.store / self.array(level)

    def journal(self, level: int) -> Journal:
        """Return the journal of a coarser level."""
        return Journal(_levels(self.run) / self.array(level))

    def surplus(self, count: int) -> list[int]:
        """Return the levels beyond ``count`` that have a journal."""
        found = (_levels(self.run) / self.name).glob("[0-9]*")
        numbers = (int(path.name) for path in found if path.name.isdecimal())
        return sorted(number for number in numbers if number > count)


def place_of(volume: Volume) -> Place:
    """Return the location of a volume to which levels can be added.

    Raises
    ------
    InvalidInput
        If volflow did not write it, or it lies where nothing can be written.
    """
    if volume.path is None:
        raise InvalidInput("levels cannot be added to a volume in memory; store it with vf.write")
    path = location(volume.path)
    if not volume.levels[0].path and is_zarr(path.parent):
        raise InvalidInput(f"{path} is an array of the volume {path.parent}; give that one")
    ours = volume.array.metadata.zarr_format == 3 and volume.levels[0].path == "0"
    if not ours or "volflow" not in open_node(str(path))[1].attrs:
        raise InvalidInput(
            f"{volume.path} was not written by volflow, so its levels are not changed; copy it"
            " with vf.convert (volflow convert) and add levels to the copy"
        )
    # If no run wrote it, the outermost store, as no journal may lie inside a store.
    store = begun_store(path)
    return Place(store, "/".join(PurePosixPath(path.relative_to(store)).parts))


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
    folders.sort(key=lambda folder: (str(folder.parent), int(folder.name)))
    return {str(folder.relative_to(base)): Journal(folder) for folder in folders}


def drop_levels(run: Journal) -> None:
    """Delete the journals of the levels of a store that is written again."""
    remove_tree(_levels(run))


def list_levels(finest: Volume, levels: tuple[Level, ...]) -> None:
    """Write a volume's list of levels if it has changed."""
    if levels != finest.levels:
        write_levels(own_group(finest), finest.meta, levels)


def own_group(finest: Volume) -> zarr.Group:
    """Return the group of a volume to which levels can be added, for writing; under the lock.

    Raises
    ------
    Damaged
        If there is an array in its place.
    Superseded
        If another driver took over the output.
    """
    at = location(str(finest.path))
    group = open_node(str(at))[1]
    if not isinstance(group, zarr.Group):
        raise Damaged(f"{at} is an array where a group was; write it again")
    check_lease(at)
    settle(at)
    return group


def _levels(run: Journal) -> Location:
    return run.directory / "levels"
