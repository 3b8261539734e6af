"""Whether an image looks like a label map that does not say so."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import VolflowError
from volflow.report.facts.value_counts import SAMPLE_BYTES, sample_boxes
from volflow.store.formats.sources import Source
from volflow.store.volume import Volume

__all__ = ["LabelHint", "label_hint"]

Array = npt.NDArray[Any]

FEW_VALUES = 32
FLAT = 0.8  # of the voxels beside another that is not 0 have its value
STREAM_PLANES = 8  # held at a time of a file that is read from front to back


@dataclass(frozen=True)
class LabelHint:
    """How many different values were seen; ``all_read`` where these are all there are."""

    values: int
    all_read: bool

    def __str__(self) -> str:
        """Half a sentence."""
        if self.values <= FEW_VALUES:
            where = "it holds only" if self.all_read else "what was looked at holds only"
            return f"{where} {self.values} different whole numbers"
        return "it holds whole numbers that are alike over large regions"


def label_hint(image: Source | Volume) -> LabelHint | None:
    """What speaks for classes: few different whole numbers, or large regions of one of them.

    A part of the voxels is read, at most 64 MiB, and of most images much less: it ends where the
    values are many and unlike. None for an image, and for what is a label map already.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> ramp = np.arange(8**3).reshape(8, 8, 8)
    >>> label_hint(open_source(ramp)), str(label_hint(open_source(ramp // 64)))
    (None, 'it holds only 8 different whole numbers')
    """
    single = len(image.shape) == 3 or image.shape[0] == 1
    if image.meta.kind == "classes" or image.dtype.kind == "b" or not single:
        return None
    values: Array = np.empty(0, image.dtype)
    beside = alike = read = 0
    try:
        for voxels in _parts(image):
            if image.dtype.kind == "f" and not (voxels == np.rint(voxels)).all():
                return None
            values = np.union1d(values, voxels)
            a, b = voxels[..., 1:], voxels[..., :-1]
            beside += int(np.count_nonzero((a != 0) | (b != 0)))
            alike += int(np.count_nonzero((a == b) & (a != 0)))
            read += voxels.size
            if len(values) > FEW_VALUES and alike < FLAT * beside:
                return None
    except (VolflowError, OSError):  # damaged: others say so
        return None
    return LabelHint(len(values), read == np.prod(image.shape)) if len(values) > 1 else None


def _parts(image: Source | Volume) -> Iterator[Array]:
    """Voxels of a few places, or of the beginning where a file is read from front to back."""
    if isinstance(image, Volume):
        yield from (image.read(box) for box in sample_boxes(image))
        return
    left = SAMPLE_BYTES
    for _, voxels in image.slabs(STREAM_PLANES):
        yield voxels
        left -= voxels.nbytes
        if left <= 0:
            return
