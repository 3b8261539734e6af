"""Sources that change what another source says or gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.slabs import Array, Source
from volflow.store.volume import described

__all__ = ["Derived"]


@dataclass(frozen=True, eq=False, repr=False)
class Derived(Source):
    """A source made from another, whose facts it has where it states none of its own."""

    source: Source

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the source."""
        return self.source.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the source."""
        return self.source.dtype

    @property
    def meta(self) -> Meta:
        """Metadata of the source."""
        return described(self.source)

    @property
    def path(self) -> str | None:
        """Path of the source."""
        return self.source.path

    @property
    def sequential(self) -> bool:
        """Whether the source can be read only from front to back."""
        return self.source.sequential

    @property
    def decoded(self) -> tuple[int, ...]:
        """What the source decodes as a whole."""
        return self.source.decoded

    @property
    def piece(self) -> tuple[int, ...]:
        """The piece of the source."""
        return self.source.piece

    @property
    def unidentified(self) -> str:
        """Why the identity of the source holds for this process only."""
        return self.source.unidentified

    def identity(self) -> str:
        """Return the identity of the source."""
        return self.source.identity()

    def changed(self, voxels: Array, corner: Sequence[int]) -> Array:
        """Return voxels of the source as this one gives them, given the first of their box."""
        return voxels

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box, ``zyx`` or ``czyx``."""
        return self.changed(self.source.read(roi), roi.start)

    def slabs(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels of ``depth`` z-planes of one channel at a time, in C order."""
        if not self.sequential:
            return super().slabs(depth)
        # With map(), not a loop, which would hold each slab while the next is read.
        return map(self._changed, self.source.slabs(depth))

    @property
    def together(self) -> int:
        """Number of channels that the source unpacks together."""
        return self.source.together

    def once(self, depth: int) -> Iterator[tuple[Roi, Array]]:
        """Yield box and voxels as the source unpacks them once."""
        return map(self._changed, self.source.once(depth)) if self.sequential else self.slabs(depth)

    def _changed(self, slab: tuple[Roi, Array]) -> tuple[Roi, Array]:
        roi, voxels = slab
        return roi, self.changed(voxels, roi.start)
