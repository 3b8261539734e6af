"""Where the coarser levels of a volume and their journals lie, and which its metadata list.

::

    out.zarr/0/               the full resolution
    out.zarr/1/, 2/, …        coarser levels
    out.zarr.volflow/         the journal of the run that wrote level 0
        levels/1/, 2/, …      a journal for each coarser level

Of a volume inside a store, such as an output by name, ``seg/1`` takes the place of ``1``.
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
    """Where a volume lies: the outermost store around it, and its name in there.

    Parameters
    ----------
    store
        A path; the journals lie beside it.
    name
        ``""`` where the volume is the store.
    """

    store: Path
    name: str = ""

    @property
    def run(self) -> Journal:
        """The journal of the run that wrote the volume; its lock holds the whole store."""
        return Journal(journal_dir(self.store))

    def array(self, level: int) -> str:
        """The array of a level, below the store."""
        return f"{self.name}/{level}".lstrip("/")

    def path(self, level: int) -> Path:
        """The folder of that array."""
        return self.store / self.array(level)

    def journal(self, level: int) -> Journal:
        """The journal of a coarser level."""
        return Journal(_levels(self.run) / self.array(level))

    def surplus(self, count: int) -> list[int]:
        """Levels beyond ``count`` that have a journal."""
        found = _levels(self.run).joinpath(self.name).glob("[0-9]*")
        numbers = (int(path.name) for path in found if path.name.isdecimal())
        return sorted(number for number in numbers if number > count)


def place_of(volume: Volume) -> Place:
    """The place of a volume that may be given levels.

    Raises
    ------
    InvalidInput
        If it is not one that volflow wrote to a local path.
    """
    if volume.path is None:
        raise InvalidInput("a volume in memory has no place for levels; store it with vf.write")
    journal_dir(volume.path)  # refuses a URL
    path = Path(volume.path)
    if not volume.levels[0].path and is_zarr(path.parent):
        raise InvalidInput(f"{path} is an array of the volume {path.parent}; give that one")
    ours = volume.array.metadata.zarr_format == 3 and volume.levels[0].path == "0"
    if not ours or "volflow" not in zarr.open_group(path, mode="r").attrs:
        raise InvalidInput(
            f"{volume.path} is no volume that volflow wrote, and its levels are the business of"
            " what did; copy it with vf.convert (volflow convert) and give the copy levels"
        )
    # Without a run that wrote it, the outermost, as no journal may lie inside a store.
    store = begun_store(path)
    return Place(store, "/".join(path.relative_to(store).parts))


def finest_of(volume: Any) -> tuple[Volume, Place]:
    """The full resolution of a volume that may be given levels, opened anew, and its place.

    Raises
    ------
    InvalidInput
        As `place_of`.
    """
    opened = open_volume(volume)
    place = place_of(opened)
    return open_volume(str(opened.path)), place


def level_journals(run: Journal) -> dict[str, Journal]:
    """The journals of the coarser levels in a store, by the array below it."""
    base = _levels(run)
    folders = [p.parent for p in base.rglob("plan.json") if p.parent.name.isdecimal()]
    folders.sort(key=lambda folder: (folder.parent, int(folder.name)))
    return {folder.relative_to(base).as_posix(): Journal(folder) for folder in folders}


def drop_levels(run: Journal) -> None:
    """Forget the levels of a store that is written anew."""
    shutil.rmtree(_levels(run), ignore_errors=True)


def list_levels(finest: Volume, levels: tuple[Level, ...]) -> None:
    """Write a volume's list of levels, unless it is this one already."""
    if levels != finest.levels:
        group = zarr.open_group(str(finest.path), mode="r+", use_consolidated=False)
        write_levels(group, finest.meta, levels)


def _levels(run: Journal) -> Path:
    return run.directory / "levels"
