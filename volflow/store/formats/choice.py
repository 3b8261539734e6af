"""Which image of a file that holds several is meant."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from volflow.errors import InvalidInput
from volflow.option import option

__all__ = ["ImageChoice"]

_PANEL = "Of a source that holds several images"


def _name_or_number(name: str, text: str) -> str | int:
    return int(text) if text.lstrip("-").isdigit() else text


@dataclass(frozen=True)
class ImageChoice:
    """One image of a file or folder that holds several.

    Parameters
    ----------
    series
        Number, name or UID of a DICOM series, or of an image in a TIFF file.
    dataset
        Path of a dataset in an HDF5 file or an N5 container.
    level
        Level of a pyramid; 0 is the finest.
    timepoint
        The timepoint, from 0.
    channel
        Number or name of the one channel to take; by default all of them.
    """

    series: str | int | None = option(
        None,
        "A DICOM series, or an image in a TIFF file: its number, name or UID.",
        _PANEL,
        read=_name_or_number,
    )
    dataset: str | None = option(None, "Path of a dataset in an HDF5 or N5 container.", _PANEL)
    level: int | None = option(None, "Level of a pyramid; 0 is the finest.", _PANEL)
    timepoint: int | None = option(None, "Timepoint, from 0.", _PANEL)
    channel: str | int | None = option(
        None, "Only this channel: its number or name. Default: all.", _PANEL, read=_name_or_number
    )

    @classmethod
    def among(cls, options: Any) -> ImageChoice:
        """Return the choice among the fields of the options of a journey."""
        return cls(**{one.name: getattr(options, one.name) for one in fields(cls)})

    def within(self, part: str, name: str) -> ImageChoice:
        """Return the choice completed by what a path named behind ``::``, the field ``name``.

        Raises
        ------
        InvalidInput
            If both name one, and not the same.

        Examples
        --------
        >>> ImageChoice(channel=1).within("volumes/raw", "dataset").dataset
        'volumes/raw'
        """
        value = _name_or_number(name, part) if name == "series" else part
        given = getattr(self, name)
        if given not in (None, value):
            raise InvalidInput(
                f"the path names {name} {part} and the option {given}; give only one of them"
            )
        named: dict[str, Any] = {name: value}
        return replace(self, **named)

    def refuse_but(self, takes: tuple[str, ...], path: str, kind: str) -> None:
        """Refuse what a format does not have several of; every one may have channels.

        Raises
        ------
        InvalidInput
            Naming what was chosen in vain.

        Examples
        --------
        >>> ImageChoice(level=1).refuse_but((), "scan.nrrd", "NRRD")
        Traceback (most recent call last):
        volflow.errors.InvalidInput: scan.nrrd is NRRD, of which no level can be chosen, given
        level 1; leave it out
        """
        for one in fields(self):
            value = getattr(self, one.name)
            if value is not None and one.name not in (*takes, "channel"):
                raise InvalidInput(
                    f"{path} is {kind}, of which no {one.name} can be chosen, given {one.name}"
                    f" {value}; leave it out"
                )

    def at_level(self, count: int, path: str) -> int:
        """Return the level of ``count`` that is meant, the finest if none is named.

        Raises
        ------
        InvalidInput
            If there is no such level.

        Examples
        --------
        >>> ImageChoice(level=3).at_level(2, "cells.ims")
        Traceback (most recent call last):
        volflow.errors.InvalidInput: cells.ims has 2 levels, given level 3; choose 0 to 1
        """
        level = self.level or 0
        if not 0 <= level < count:
            levels = f"{count} level{'s' * (count != 1)}"
            raise InvalidInput(
                f"{path} has {levels}, given level {level}; choose 0 to {max(0, count - 1)}"
            )
        return level

    def at_time(self, count: int, path: str) -> int:
        """Return the timepoint of ``count`` that is meant, which must be named if there are more.

        Raises
        ------
        InvalidInput
            If there is no such timepoint, or none was named.

        Examples
        --------
        >>> ImageChoice().at_time(9, "cells.ims")
        Traceback (most recent call last):
        volflow.errors.InvalidInput: cells.ims has 9 timepoints; choose one of 0 to 8 with
        timepoint= (--timepoint)
        """
        timepoint = 0 if count == 1 and self.timepoint is None else self.timepoint
        if timepoint is None or not 0 <= timepoint < count:
            given = "" if timepoint is None else f", given timepoint {timepoint}"
            times = f"{count} timepoint{'s' * (count != 1)}"
            raise InvalidInput(
                f"{path} has {times}{given}; choose one of 0 to {max(0, count - 1)} with timepoint="
                " (--timepoint)"
            )
        return timepoint
