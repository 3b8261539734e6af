"""Signs that an image is a label map, although its metadata do not say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.errors import VolflowError
from volflow.report.colors import FEW_VALUES
from volflow.report.facts.value_counts import SAMPLE_BYTES, sample_boxes
from volflow.store.slabs import Source

__all__ = ["label_hint"]

Array = npt.NDArray[Any]

FLAT = 0.8  # of the voxels beside another that is not 0 have its value
STREAM_PLANES = 8  # held at a time of a file that is read from front to back


def label_hint(image: Source) -> str | None:
    """Say the signs of classes: few different whole numbers, or large regions of one of them.

    At most 64 MiB of the voxels are read, and much less of most images: reading ends when the
    values are many and unlike. The result is the second half of a sentence about the image; None
    if it does not look like a label map, or is declared to be one.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> ramp = np.arange(8**3).reshape(8, 8, 8)
    >>> label_hint(open_source(ramp)), label_hint(open_source(ramp // 64))
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
    except (VolflowError, OSError):  # damaged, which others report
        return None
    if len(values) < 2:
        return None
    if len(values) > FEW_VALUES:
        return "it holds whole numbers that are alike over large regions"
    where = "it holds only" if read == np.prod(image.shape) else "what was looked at holds only"
    return f"{where} {len(values)} different whole numbers"


def _parts(image: Source) -> Iterator[Array]:
    """Yield voxels of a few places, or the beginning of a file that is read from front to back."""
    if not image.sequential:
        yield from (image.read(box) for box in sample_boxes(image))
        return
    left = SAMPLE_BYTES
    for _, voxels in image.slabs(STREAM_PLANES):
        yield voxels
        left -= voxels.nbytes
        if left <= 0:
            return
