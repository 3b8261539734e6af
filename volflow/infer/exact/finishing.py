"""Scores of a box become what is stored: on the CPU at once, on a GPU before they leave it.

There they are finished where they are, and copied to this machine once, in their stored dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from volflow.infer.finish import Finish
from volflow.model.copies import Copies
from volflow.model.device import on_device
from volflow.passes.peaks import FINISHED_VALUES
from volflow.passes.pipeline import Launched

__all__ = ["Finished", "finished", "joined", "leaving"]

Array = npt.NDArray[Any]
# Rows in this machine's memory; or tensors on a GPU, and the extremes that tell of errors.
Finished = Array | tuple[Tensor, Tensor]

# Values of a channel that the CPU finishes at once.
CPU_VALUES = 2**22


def finished(finish: Finish, scores_CZYX: Tensor, dtype: torch.dtype) -> Finished:
    """Return the voxels of scores, which were computed in a dtype; nobody waits for a GPU."""
    if scores_CZYX.device.type == "cpu":
        scores = scores_CZYX.to(dtype).numpy(force=True)
        step = max(1, CPU_VALUES // max(1, scores[:, :1].size))
        # A copy: it may be finished in place, and outputs may share their memory.
        lows = range(0, scores.shape[1], step)
        return np.concatenate([finish(scores[:, n : n + step].copy()) for n in lows], axis=-3)
    with on_device(scores_CZYX.device):
        return _on_gpu(finish, scores_CZYX, dtype)


def _on_gpu(finish: Finish, scores: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    step = max(1, FINISHED_VALUES // max(1, scores[:, :1].numel()))
    # A function of the user's may work in place.
    own, parts = callable(finish.activation), []
    rows: Tensor | None = None
    for low in range(0, scores.shape[1], step):
        part, extremes = finish.launch(scores[:, low : low + step].to(dtype, copy=own))
        if rows is None:
            rows = part.new_empty((*part.shape[:-3], *scores.shape[1:]))
        rows[..., low : low + step, :, :] = part
        parts.append(extremes)
    assert rows is not None
    return rows, torch.stack(parts)


def joined(parts: Sequence[Finished], axis: int) -> Finished:
    """Return the voxels of boxes that lie one behind the other along an axis."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate([part for part in parts if isinstance(part, np.ndarray)], axis)
    rows, extremes = zip(*parts, strict=True)
    return torch.cat(rows, axis), torch.cat(extremes)


def leaving(
    finish: Finish, found: Mapping[str, Finished], copies: Copies
) -> Launched[dict[str, Array]]:
    """Begin to copy the voxels of all outputs from a GPU; raises errors when they have come."""
    if copies.device.type == "cpu":
        rows = {name: part for name, part in found.items() if isinstance(part, np.ndarray)}
        return lambda: rows
    tensors = [tensor for pair in found.values() for tensor in pair]
    download = copies.download(tensors)
    names = tuple(found)

    def arrived() -> dict[str, Array]:
        arrays = iter(download.wait())
        pairs = {name: (next(arrays), next(arrays)) for name in names}
        for part, extremes in pairs.values():
            for one in extremes:
                finish.arrived(part, one)
        return {name: part for name, (part, _) in pairs.items()}

    return arrived
