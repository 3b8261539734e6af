"""A volume as the subject of a picture: opened, named, read at the level that fits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput
from volflow.geometry.views import View, views
from volflow.report.colors import FEW_VALUES
from volflow.report.facts.grid_facts import lengths, short_name, times
from volflow.report.facts.run_state import unfinished
from volflow.report.level_choice import at_level, fitting_level, level_like, low_edge
from volflow.report.pictures.slices import Cut, Slice, busiest, class_maps, cut, scan
from volflow.report.planes import steps
from volflow.store.formats.sources import open_source
from volflow.store.opening import is_zarr
from volflow.store.slabs import Source
from volflow.store.volume import Volume, open_volume

if TYPE_CHECKING:
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = [
    "Names",
    "Subject",
    "check_channel",
    "check_tiles",
    "class_names",
    "few_values",
    "open_subject",
    "open_together",
    "same_box",
    "view_across",
]

Names = Sequence[str] | Mapping[int, str] | None
Array = npt.NDArray[Any]

MOST_TILES = 200  # of a page
COARSE = 128  # voxels along the longest side that still show where things are


@dataclass(frozen=True)
class Subject:
    """A volume of a picture.

    Parameters
    ----------
    name
        Its name in the picture and in messages.
    finest
        Level 0, or the one that was given; a file or array has no other. Positions count in it.
    level
        The one that is read.
    channel
        The channel shown; None for the number of the highest one.
    folder
        The folder in which it lies, "" if that is not known.
    pixels
        The number of pixels that the picture can show along an axis.
    """

    name: str
    finest: Source
    level: Source
    channel: int | None = 0
    folder: str = ""
    pixels: int = 2**31

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along z, y, x."""
        return self.finest.shape[-3:]

    @property
    def size(self) -> tuple[float, ...]:
        """Size of its box along z, y, x, in its unit."""
        return tuple(n * s for n, s in zip(self.shape, self.finest.meta.spacing, strict=True))

    @property
    def voxel(self) -> str:
        """The size of the voxels read with its unit, as text."""
        return lengths(self.level.meta.spacing, self.level.meta.unit)

    def at_level(self, level: int | None, pixels: int, axes: Sequence[int] = (0, 1, 2)) -> Subject:
        """Choose a level; by default the finest that ``pixels`` along these axes can show."""
        if not is_whole(0 if level is None else level):
            raise InvalidInput(f"level must be a whole number, given {level!r}")
        if isinstance(self.finest, Volume) and level is not None:
            return replace(self, level=at_level(self.finest, level), pixels=pixels)
        if level:
            raise InvalidInput(f"{self.name} has no levels, given level {level}; leave it out")
        return replace(self, level=fitting_level(self.finest, pixels, axes), pixels=pixels)

    def like(self, other: Subject) -> Subject:
        """Choose the level whose voxels are most like those read of another subject."""
        level = level_like(self.finest, other.level.meta.spacing)
        return replace(self, level=level, pixels=other.pixels)

    def cut(self, slices: Sequence[Slice], *, average: bool = False) -> list[Cut]:
        """Read slices."""
        how: dict[str, Any] = {"pixels": self.pixels, "channel": self.channel, "average": average}
        shift = np.subtract(low_edge(self.level), low_edge(self.finest))
        return cut(self.level, slices, self.size, shift=shift.tolist(), **how)

    def scan(self) -> list[Array]:
        """Read a few planes along z of the coarsest level that still shows where things are."""
        volume = self.finest
        if isinstance(volume, Volume):
            for level in range(len(volume.levels) - 1, volume.level, -1):
                coarse = at_level(volume, level)
                if max(coarse.spatial_shape) >= COARSE:
                    return scan(coarse, self.channel)
        return scan(volume, self.channel)

    def slices(
        self, at: str | Sequence[int], weights: Sequence[Array] | None = None
    ) -> list[Slice]:
        """Return three orthogonal planes, or the only one of a single slice.

        Parameters
        ----------
        at
            ``"center"``, ``"content"`` or a voxel z, y, x.
        weights
            What counts as content, as `busiest` takes it; by default what is not background.
        """
        planes = [view for view in views(self.finest.meta.orientation) if view.is_area(self.shape)]
        if not planes:
            raise InvalidInput(
                f"{self.name} is {self.shape} voxels, so that no plane of it is more than a line;"
                " there is nothing to draw"
            )
        index = self._voxel(at, weights)
        return [self.slice(view, index[view.normal]) for view in planes]

    def slice(self, view: View, index: int) -> Slice:
        """Return one plane."""
        return Slice(view, index, (index + 0.5) * self.finest.meta.spacing[view.normal])

    def _voxel(self, at: str | Sequence[int], weights: Sequence[Array] | None) -> tuple[int, ...]:
        if isinstance(at, str) and at in ("center", "content"):
            place = (0.5, 0.5, 0.5)
            if at == "content":
                seen = map(class_maps, self.scan()) if weights is None else weights
                place = busiest(list(seen))
            return tuple(int(part * n) for part, n in zip(place, self.shape, strict=True))
        try:
            voxel = tuple(int(i) if is_whole(i) else -1 for i in at)
        except TypeError:  # no sequence
            voxel = ()
        if len(voxel) != 3 or any(not 0 <= i < n for i, n in zip(voxel, self.shape, strict=True)):
            raise InvalidInput(
                f'at must be "center", "content" or a voxel z, y, x inside {self.shape}, '
                f"given {at!r}"
            )
        return voxel

    def named_classes(self, classes: Names) -> bool:
        """Return True if this shows classes, by its metadata or because names are given."""
        several = self.channel is None and len(self.finest.shape) == 4
        return self.finest.meta.kind == "classes" or classes is not None or several

    @property
    def whole(self) -> bool:
        """Whether its voxels are whole numbers, which may be classes and are not averaged then."""
        return self.finest.dtype.kind in "biu"

    def channel_name(self) -> str:
        """Return the name of the channel that is shown."""
        names = self.finest.meta.channels
        return names[self.channel or 0] if names else "score"

    def facts(self) -> str:
        """Return shape, voxel size, orientation and data type in one line."""
        meta = self.finest.meta
        voxel = lengths(meta.spacing, meta.unit)
        facts = [f"{times(self.finest.shape)} voxels", voxel, meta.orientation or ""]
        return "   ·   ".join(filter(None, [*facts, str(self.finest.dtype)]))

    def lacking(self) -> str:
        """Return how much of it is there where its run has not ended; "" of what is whole."""
        path = self.finest.path if isinstance(self.finest, Volume) else None
        text = unfinished(path) if path else ""
        return text and f"{self.name} is {text}"

    def shown(self, average: bool = False) -> str:
        """Return which level is read and how it is thinned; "" for all voxels of the only level.

        Examples
        --------
        >>> open_subject(np.zeros((4, 9000, 9000), "u1")).at_level(None, 1600).shown()
        'one of 1 × 6 × 6 voxels'
        """
        parts, level = [], self.level
        if isinstance(level, Volume) and len(level.levels) > 1:
            parts.append(f"level {level.level}" + (f", {self.voxel}" if level.level else ""))
        step = steps(self.level, self.pixels)
        if max(step) > 1:
            parts.append(f"{'mean' if average else 'one'} of {times(step)} voxels")
        return ", ".join(parts)


def few_values(cuts: Sequence[Cut]) -> bool:
    """Return True if slices of whole numbers hold so few that they are taken for classes."""
    return len(np.unique(np.concatenate([cut.values.ravel() for cut in cuts]))) <= FEW_VALUES


def class_names(classes: Names, known: Sequence[str]) -> dict[int, str]:
    """Return names by class number: those given by a user, otherwise those known."""
    if isinstance(classes, Mapping):
        return dict(classes)
    return dict(enumerate(known if classes is None else classes))


def view_across(axis: str, orientation: str | None) -> View:
    """Return the plane across an axis, given by its letter or by the name of the plane.

    Raises
    ------
    InvalidInput
        If there is no such axis or plane.
    """
    found = views(orientation)
    for view in found:
        if axis in (view.axis, view.name):
            return view
    names = ", ".join(view.name for view in found)
    raise InvalidInput(f"axis must be z, y or x, or one of {names}; given {axis!r}")


def check_channel(channel: Any, count: int) -> None:
    """Refuse a channel that is not one of ``count``."""
    if not is_whole(channel) or not 0 <= channel < count:
        raise InvalidInput(f"channel must be 0 … {count - 1}, given {channel!r}")


def check_tiles(tiles: Any) -> None:
    """Refuse a number of tiles that no page can show."""
    if not is_whole(tiles) or not 1 <= tiles <= MOST_TILES:
        raise InvalidInput(f"tiles must be 1 to {MOST_TILES}, given {tiles!r}")


def is_whole(number: object) -> bool:
    """Return True for a whole number of Python or NumPy."""
    return isinstance(number, Integral)


def open_subject(x: VolumeLike, channel: int | None = None, *, merge: bool = False) -> Subject:
    """Open a volume, file or array for a picture; no voxel is read.

    Parameters
    ----------
    x
        What to show.
    channel
        Which one to show.
    merge
        Whether several channels, where none is chosen, show the number of the highest; else the
        first is shown.

    Raises
    ------
    InvalidInput
        If it cannot be opened, or has no such channel.
    """
    finest = _open(x)
    count = finest.channels_count
    if channel is None:
        scores = merge and count > 1 and finest.meta.kind == "image"
        channel = None if scores else 0
    else:
        check_channel(channel, count)
    path = finest.path if isinstance(finest, Volume) else x
    if isinstance(path, str | os.PathLike):
        name, folder = short_name(os.fspath(path)) or str(path), Path(path).absolute().parent.name
    else:
        name, folder = "volume" if isinstance(finest, Volume) else "array", ""
    return Subject(name, finest, finest, channel, folder)


def open_together(
    volumes: Sequence[VolumeLike], over: VolumeLike | None, channel: int | None
) -> tuple[list[Subject], Subject | None]:
    """Open volumes of one box, and the scan underneath if one is given; no voxel is read.

    Equal names are told apart by their folders. One volume alone shows its first channel; over a
    scan, or beside others, several channels are taken for scores of classes.

    Raises
    ------
    InvalidInput
        If one cannot be opened, has no such channel, or does not cover the box of the first.
    """
    merge = over is not None or len(volumes) > 1
    opened = [open_subject(x, channel, merge=merge) for x in volumes]
    opened += [] if over is None else [open_subject(over)]
    named = [
        replace(one, name=f"{one.folder}/{one.name}")
        if any(one.name == other.name and one.folder != other.folder for other in opened)
        else one
        for one in opened
    ]
    for other in named[1:]:
        same_box(named[0], other)
    return named[: len(volumes)], None if over is None else named[-1]


def same_box(a: Subject, b: Subject) -> None:
    """Refuse two volumes that do not cover the same box in the same directions."""
    first, second = a.finest.meta, b.finest.meta
    for what in ("unit", "orientation"):
        mine, theirs = getattr(first, what), getattr(second, what)
        if mine and theirs and mine != theirs:
            raise InvalidInput(
                f"{a.name} and {b.name} must have the same {what} to be shown as one;"
                f" got {mine} and {theirs}; give volumes of one scan"
            )
    voxel = np.maximum(first.spacing, second.spacing)
    if np.any(np.abs(np.subtract(a.size, b.size)) > voxel):
        boxes = " and ".join(times(one.size) for one in (a, b))
        raise InvalidInput(
            f"{a.name} and {b.name} must cover the same box to be shown as one; got {boxes};"
            " give volumes of one scan"
        )


def _open(x: VolumeLike) -> Source:
    """Open the finest level of a volume, or a file or array."""
    if isinstance(x, Volume):
        return x
    if isinstance(x, str | os.PathLike):
        local = "://" not in os.fspath(x) and not is_zarr(Path(x).expanduser())
        # A volume that is still being written can be looked at, too.
        return open_source(x) if local else open_volume(x)
    # It loads Dask, which pictures of files do without.
    from volflow.volumes.arrays.inputs import open_input

    return open_input(x)
