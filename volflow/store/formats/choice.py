"""Which image of a file that holds several, and which of its channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.option import option
from volflow.store.derived import Derived
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source

__all__ = ["ImageChoice", "one_channel"]

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


def one_channel(source: Source, channel: str | int | None) -> Source:
    """Return one channel of a source as a source without channels; None leaves all of them.

    Raises
    ------
    InvalidInput
        If there is no such channel, listing those that are there.

    Examples
    --------
    >>> import numpy as np
    >>> from volflow.store.formats.sources import open_source
    >>> two = open_source(np.stack([np.zeros((4, 5, 6)), np.ones((4, 5, 6))]))
    >>> one_channel(two, 1).read(Roi((0, 0, 0), (1, 1, 2))).tolist()
    [[[1.0, 1.0]]]
    """
    if channel is None:
        return source
    names, count = source.meta.channels, source.channels_count
    if isinstance(channel, str):
        if channel not in names:
            known = f"are {', '.join(names)}" if names else "have no names; give a number"
            raise InvalidInput(f"{_name(source)} has no channel {channel!r}; its channels {known}")
        channel = names.index(channel)
    if not 0 <= channel < count:
        raise InvalidInput(
            f"{_name(source)} has {count} channel{'s' * (count > 1)}, given channel {channel};"
            f" choose 0 to {count - 1}"
        )
    return source if source.ndim == 3 else OneChannel(source, channel)


def _name(source: Source) -> str:
    return source.path or "the array"


@dataclass(frozen=True, eq=False, repr=False)
class OneChannel(Derived):
    """One channel of a source with several."""

    channel: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along z, y, x."""
        return self.source.shape[1:]

    @property
    def meta(self) -> Meta:
        """Metadata of the source, of this channel."""
        whole, own = super().meta, slice(self.channel, self.channel + 1)
        colors = whole.colors[own] if whole.kind == "image" else whole.colors
        names = whole.channels[own] if whole.kind == "image" else whole.channels
        return replace(whole, axes=whole.axes[1:], channels=names, colors=colors)

    @property
    def decoded(self) -> tuple[int, ...]:
        """What the source decodes as a whole, of this channel."""
        return self.source.decoded[1:]

    @property
    def piece(self) -> tuple[int, ...]:
        """The piece of the source, of this channel."""
        return self.source.piece[1:]

    def identity(self) -> str:
        """Return the identity of the source, with the channel."""
        return f"{self.source.identity()}-channel-{self.channel}"

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box."""
        box = Roi((self.channel, *roi.start), (self.channel + 1, *roi.stop))
        voxels: Array = self.source.read(box)[0]
        return voxels

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels of ``depth`` z-planes at a time."""
        if not self.sequential:
            yield from super().slabs(depth)
            return
        for roi, voxels in self.source.slabs(depth):
            if roi.start[0] == self.channel:
                yield Roi(roi.start[1:], roi.stop[1:]), voxels[0]
