"""A source as a network sees its axes: reordered and flipped when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source

__all__ = ["TurnedSource"]

T = TypeVar("T")


@dataclass(frozen=True, eq=False, repr=False)
class TurnedSource(Source):
    """Another source in a frame.

    Parameters
    ----------
    source
        As it is stored.
    frame
        From the frame's axes to the stored ones.
    letters
        The frame's directions, such as ``"RAS"``.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> stored = open_source(np.arange(24).reshape(2, 3, 4))
    >>> turned = TurnedSource(stored, Frame((2, 1, 0), (True, False, False)), "RAS")
    >>> turned.shape, turned[0, 1].tolist()
    ((4, 3, 2), [7, 19])
    """

    source: Source
    frame: Frame
    letters: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels per axis, those of the frame last."""
        return self._turn(self.source.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the voxels."""
        return self.source.dtype

    @property
    def meta(self) -> Meta:
        """The metadata along the frame's axes; where the volume lies is known to its source."""
        meta = self.source.meta
        z, y, x = self.frame.axes
        return replace(
            meta,
            spacing=(meta.spacing[z], meta.spacing[y], meta.spacing[x]),
            translation=Meta.translation,
            orientation=self.letters,
            affine=None,
        )

    @property
    def path(self) -> str | None:
        """Path of the source."""
        return self.source.path

    @property
    def unidentified(self) -> str:
        """Why `identity` holds for this process only."""
        return self.source.unidentified

    @property
    def sequential(self) -> bool:
        """Whether the voxels can be read only from front to back."""
        return self.source.sequential

    @property
    def decoded(self) -> tuple[int, ...]:
        """Voxels per axis of what is decoded as a whole."""
        return self._turn(self.source.decoded)

    @property
    def piece(self) -> tuple[int, ...]:
        """Voxels per axis of a box that is read without much waste."""
        return self._turn(self.source.piece)

    @property
    def shards(self) -> tuple[int, ...] | None:
        """The stored object that holds chunks, per axis."""
        shards = self.source.shards
        return None if shards is None else self._turn(shards)

    def identity(self) -> str:
        """Return a hash that changes when the voxels do, or the frame."""
        return f"{self.source.identity()} {self.frame.axes} {self.frame.flips}"

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box in the frame."""
        lead = roi.ndim - 3
        box = Roi(roi.start[lead:], roi.stop[lead:])
        stored = self.frame.stored_roi(box, self.source.shape[-3:])
        whole = Roi((*roi.start[:lead], *stored.start), (*roi.stop[:lead], *stored.stop))
        return self.frame.show(self.source.read(whole))

    def _turn(self, per_axis: Sequence[T]) -> tuple[T, ...]:
        return (*per_axis[:-3], *self.frame.reorder(per_axis[-3:]))
