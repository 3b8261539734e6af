"""Scores become what is stored on the device where they are, without a wait for it.

Why it is written twice: on the CPU NumPy gives an element the same bits wherever it lies and
reuses what is in its cache (`volflow.infer.finish`), while each of its steps on a GPU would be a
copy. The values are the same but for the last bits of ``exp``.
"""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["cast", "classes", "filled"]

# Torch takes few operations on unsigned integers of several bytes; on their bits it takes all.
SIGNED = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def classes(scores_CZYX: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return the first channel of the highest score; of a single channel, where it exceeds 0.5.

    Examples
    --------
    >>> classes(torch.tensor([0.1, 0.7]).reshape(2, 1, 1, 1), "uint8")
    tensor([[[1]]], dtype=torch.uint8)
    """
    found = scores_CZYX[0] > 0.5 if len(scores_CZYX) == 1 else scores_CZYX.argmax(0)
    return found.to(_torch(dtype))


def cast(values: torch.Tensor, dtype: str) -> torch.Tensor:
    """Return values in a dtype; integers round, halves to even, and clip.

    Examples
    --------
    >>> cast(torch.tensor([-3.0, 1.5, 300.0]), "uint8")
    tensor([  0,   2, 255], dtype=torch.uint8)
    """
    wanted = np.dtype(dtype)
    if wanted.kind not in "iu":
        return values.to(_torch(dtype))
    limits, exact = np.iinfo(wanted), (torch.float32, torch.float64)
    # The largest of 64 bits is no float: one step below it, lest it wrap.
    top = limits.max if wanted.itemsize < 8 else float(np.nextafter(float(limits.max), 0))
    rounded = (values if values.dtype in exact else values.double()).round()
    if wanted.itemsize > 2:  # whose limits float32 does not know
        rounded = rounded.double()
    return rounded.clamp_(limits.min, top).to(_torch(dtype))


def filled(rows: torch.Tensor, covered_ZYX: torch.Tensor, fill: float, dtype: str) -> torch.Tensor:
    """Return rows of a dtype with a value where no patch was.

    Examples
    --------
    >>> filled(torch.tensor([[[1, 2]]]), torch.tensor([[[True, False]]]), 7, "int64")
    tensor([[[1, 7]]])
    """
    value = np.empty(1, dtype)
    value[:] = fill
    if value.dtype.kind != "u" or value.itemsize == 1:
        return rows.masked_fill(~covered_ZYX, value.item())
    signed = SIGNED[value.itemsize]
    bits = int(value.view(f"i{value.itemsize}")[0])
    return rows.view(signed).masked_fill(~covered_ZYX, bits).view(rows.dtype)


def _torch(dtype: str) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype
