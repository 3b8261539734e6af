"""One channel of a source that has several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.store.formats.taken.derived import Derived
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source

__all__ = ["one_channel"]


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
    source = source.by_channel()
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

    @property
    def together(self) -> int:
        """One channel."""
        return 1

    def once(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels as `slabs`."""
        return self.slabs(depth)

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels of ``depth`` z-planes at a time."""
        if not self.sequential:
            return super().slabs(depth)
        own = (slab for slab in self.source.slabs(depth) if slab[0].start[0] == self.channel)
        return ((Roi(roi.start[1:], roi.stop[1:]), voxels[0]) for roi, voxels in own)
