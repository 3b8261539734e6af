"""The image of an exact prediction: what the network sees of the stored volumes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.normalize import Normalization
from volflow.geometry.roi import Roi
from volflow.infer.patches.feed import Inputs, apply_function

__all__ = ["read_image"]

Array = npt.NDArray[Any]


def read_image(inputs: Inputs, box: Roi, dtype: str) -> Array:
    """Return a box ``(C, *box.shape)`` as the network sees it: scaled, zeros beyond the volume."""
    frame = inputs.frame
    inside = box.clip(inputs.shape)
    result = np.zeros((inputs.channels, *box.shape), dtype)
    if not inside.size:
        return result
    stored = frame.stored_roi(inside, inputs.volumes[0].spatial_shape)
    z, y, x = inside.relative_to(box.start).slices()
    first = 0
    for volume, normalize in zip(inputs.volumes, inputs.normalize, strict=True):
        raw = volume.read(stored)
        part = result[first : first + volume.channels_count, z, y, x]
        shown = frame.show(raw if raw.ndim == 4 else raw[None])
        if isinstance(normalize, Normalization):
            normalize.apply(shown, part)
        elif callable(normalize):
            part[...] = apply_function(normalize, shown.astype(dtype))
        else:
            part[...] = shown
        first += volume.channels_count
    return result
