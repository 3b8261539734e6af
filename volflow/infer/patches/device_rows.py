"""Input rows of a tile on a device: each voxel is sent once, as stored, and scaled there once.

Why it is written twice: a CPU scales the voxels of each patch while it copies them, which costs
nothing, and holds rows as they are stored (`volflow.infer.patches.rows`). A GPU would wait for
either; so the thread that reads sends the rows, they are scaled beside what computes, and a patch
is a slice of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from volflow.errors import MemoryRefused
from volflow.geometry.normalize import Normalization
from volflow.geometry.roi import Roi
from volflow.infer.patches.rows import Held, RowReader
from volflow.model.copies import Copies, Upload
from volflow.model.device import is_out_of_memory, on_device, retried, unless_exhausted
from volflow.volumes.framed import FramedImage

__all__ = ["PIECE_BYTES", "DeviceRows"]

# What is sent at once, and what its voxels take in float64 while they are scaled.
PIECE_BYTES = 64 * 2**20

Array = npt.NDArray[Any]


class DeviceRows(RowReader):
    """Rows of a tile on a device.

    Parameters
    ----------
    image, tile, dtype, turned
        As of `RowReader`.
    copies
        Of the task.
    """

    def __init__(
        self, image: FramedImage, tile: Roi, dtype: str, copies: Copies, *, turned: bool = False
    ) -> None:
        super().__init__(image, tile, dtype, turned=turned)
        self.copies, self.device = copies, copies.device
        self.torch_dtype: torch.dtype = getattr(torch, dtype)

    def _read(self, box: Roi) -> Held:
        voxels, active = self.image.read_stored(box, self.dtype)
        segment = SentRows(partial(self._upload, voxels))
        with on_device(self.device), torch.inference_mode():
            # Without memory they are sent when they are needed: whoever needs them makes room.
            unless_exhausted(self.device, segment.send)
        return segment, active

    def _upload(self, voxels: Sequence[Array]) -> Upload:
        """Begin to send rows, a few at a time."""
        depth, height, width = voxels[0].shape[1:]
        voxel_bytes = max(8, sum(len(part) * part.itemsize for part in voxels))
        step = max(1, PIECE_BYTES // (height * width * voxel_bytes))
        out: list[Tensor] = []
        for low in range(0, depth, step):
            rows = slice(low, min(low + step, depth))
            scale = partial(self._scale, out, (depth, height, width), rows)
            last = self.copies.upload([part[:, rows] for part in voxels], scale)
        return last

    def _scale(
        self, out: list[Tensor], shape: tuple[int, ...], rows: slice, voxels: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Write some rows into the segment, which is made on the stream that sends."""
        if not out:
            size = (self.image.channels, *shape)
            out.append(torch.empty(size, dtype=self.torch_dtype, device=self.device))
        first = 0
        for part, normalize in zip(voxels, self.image.normalize, strict=True):
            channels = out[0][first : first + len(part), rows]
            if isinstance(normalize, Normalization):
                _normalize(normalize, part, channels)
            else:
                channels.copy_(part)
            first += len(part)
        return out

    def batch(self, rois: Sequence[Roi]) -> Tensor:
        """Return patches ``(B, C, *patch)`` of one size; nothing is written into them later."""
        try:
            return retried(self.device, lambda: self._batch(rois))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryRefused(
                f"the rows of a tile do not fit in the memory of {self.device} beside what else is"
                " there; give a smaller device_memory (--device-memory), a smaller patch, or a"
                " smaller batch_size"
            ) from error

    def _batch(self, rois: Sequence[Roi]) -> Tensor:
        batch = self._empty(self._shape(rois))
        for number, roi in enumerate(rois):
            self.fill(self._rows(batch[number]), roi)
        return batch

    def _empty(self, shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape, dtype=self.torch_dtype, device=self.device)

    def _copy(self, voxels: SentRows, here: tuple[slice, ...], out: Tensor) -> None:
        out.copy_(voxels.taken()[(slice(None), *here)])


class SentRows:
    """Some rows on a device, or on their way to it.

    Parameters
    ----------
    upload
        Begins to send them.
    """

    def __init__(self, upload: Callable[[], Upload]) -> None:
        self.upload = upload
        self.tensor: Tensor | None = None

    def send(self) -> None:
        """Begin to send them, and forget the host's."""
        sent = self.upload()
        self.upload = lambda: sent

    def taken(self) -> Tensor:
        """Return them ``CZYX``, for work on the current stream."""
        if self.tensor is None:
            (self.tensor,) = self.upload().taken()
        return self.tensor


def _normalize(by: Normalization, stored: Tensor, out: Tensor) -> None:
    """Write what `Normalization.apply` does, each step rounding as there."""
    by.check(len(stored))
    for number, channel in enumerate(out):
        values = stored[number].to(torch.float64, copy=True)
        zeros = values == 0 if by.keep_zero else None
        channel.copy_(values.sub_(by.zero[number]))
        channel.mul_(by.scale[number])
        low, high = by.low[number], by.high[number]
        if low is not None or high is not None:
            channel.clamp_(low, high)
        if zeros is not None:
            channel.masked_fill_(zeros, 0)
