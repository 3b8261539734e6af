"""Settings that a run decides once, and a resumed run adopts from its journal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from volflow.model.forward import Output
from volflow.store.journal.records import typed

__all__ = ["Settings"]

MOST_SIDE = 2**31  # of what a journal may say


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that a run decides once and a resumed run adopts; each method adds its own.

    Parameters
    ----------
    outputs
        What the model returns.
    dtype, precision, device, threads
        In which it computes, where, and with how many torch threads per worker.
    block, chunk, shard
        Of the result, in output voxels along the stored axes.
    peak_bytes
        What a worker is thought to take.
    batch_size
        Of consecutive patches of one row of the grid; 1 where the network sees whole blocks.
    layout
        Of the tensors that a GPU convolves: "contiguous", or "channels_last".
    device_peak_bytes, device_memory_bytes
        What a task is thought to take of a GPU, and its budget there; 0 on a CPU.
    host_sums
        Whether patches of a GPU are blended in the host's memory, where it has no room.
    """

    outputs: tuple[Output, ...]
    dtype: str
    precision: str
    device: str
    threads: int
    block: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    peak_bytes: int
    batch_size: int
    layout: str = "contiguous"
    device_peak_bytes: int = 0
    device_memory_bytes: int = 0
    host_sums: bool = False

    def own(self) -> dict[str, Any]:
        """Return what the method adds, as plain values for the journal: passes, if it has any."""
        return {"exact": None}

    @property
    def keeps(self) -> bool:
        """Whether the run keeps something for all blocks that are left."""
        return False

    def on_cpu(self) -> Self:
        """Return the settings with the CPU in place of a GPU, which computes in float32."""
        return replace(
            self,
            device="cpu",
            layout="contiguous",
            precision="float32" if self.precision in ("tf32", "float16") else self.precision,
            peak_bytes=self.peak_bytes + self.device_peak_bytes,
            device_peak_bytes=0,
            device_memory_bytes=0,
            host_sums=False,
        )

    def to_dict(self, grid: tuple[int, ...]) -> dict[str, Any]:
        """Return plain values for the journal."""
        common = {
            field.name: getattr(self, field.name)
            for field in fields(Settings)
            if getattr(self, field.name) != field.default
        }
        outputs = [[o.name, o.channels, list(o.scale)] for o in self.outputs]
        return {"grid": list(grid), **common, "outputs": outputs, **self.own()}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], **own: Any) -> Self:
        """Return the settings that a journal holds.

        Parameters
        ----------
        saved
            What `to_dict` made.
        **own
            Of it the fields that the method adds.

        Raises
        ------
        KeyError, TypeError, ValueError
            Where a journal says what cannot be.
        """
        # What only GPUs need is left out where it is the default.
        names = {field.name for field in fields(Settings)} & saved.keys()
        values = {name: saved[name] for name in names}
        values["outputs"] = [
            {"name": n, "channels": c, "scale": s} for n, c, s in values["outputs"]
        ]
        settings = typed(cls, {**values, **own})
        scales = (output.scale for output in settings.outputs)
        sides = [settings.block, settings.chunk, settings.shard, *scales]
        if {len(three) for three in sides} != {3} or not settings.outputs:
            raise ValueError("there are not three numbers for three axes")
        channels = (output.channels for output in settings.outputs)
        counts = (settings.threads, settings.batch_size, *channels)
        if not all(1 <= n <= MOST_SIDE for n in (*counts, *itertools.chain(*sides))):
            raise ValueError("numbers are out of any range")
        np.dtype(settings.dtype)
        return settings
