"""Figures of a stream: stalls, decoding, reuse, memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

from volflow.geometry.budget import format_bytes

__all__ = ["Metrics"]


@dataclass
class Metrics:
    """Figures of this process's part of a stream, since the stream was made.

    Examples
    --------
    >>> metrics = Metrics(patches=8, emitted_voxels=4000, decoded_voxels=1000)
    >>> metrics.reuse, metrics.amplification
    (4.0, 0.25)
    """

    patches: int = 0
    superchunks: int = 0
    emitted_voxels: int = 0
    decoded_voxels: int = 0
    decoded_bytes: int = 0
    decode_s: float = 0.0
    stall_s: float = 0.0
    live_bytes: int = 0
    peak_bytes: int = 0
    began_s: float | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the first patch was asked for."""
        return 0.0 if self.began_s is None else time.perf_counter() - self.began_s

    def begin(self) -> None:
        """Note that the first patch is asked for."""
        self.began_s = time.perf_counter() if self.began_s is None else self.began_s

    def emit(self, voxels: int) -> None:
        """Note that a patch is the trainer's now."""
        self.patches += 1
        self.emitted_voxels += voxels

    @property
    def reuse(self) -> float:
        """Voxels emitted per voxel decoded."""
        return self.emitted_voxels / self.decoded_voxels if self.decoded_voxels else 0.0

    @property
    def amplification(self) -> float:
        """Voxels decoded per voxel emitted."""
        return self.decoded_voxels / self.emitted_voxels if self.emitted_voxels else 0.0

    @property
    def decode_mb_per_s(self) -> float:
        """Megabytes decoded per second and reader."""
        return self.decoded_bytes / 1e6 / self.decode_s if self.decode_s else 0.0

    @property
    def stall(self) -> float:
        """Share of the time in which the trainer waited for patches."""
        return self.stall_s / self.elapsed_s if self.elapsed_s else 0.0

    def __str__(self) -> str:
        return (
            f"{self.patches:,} patches in {self.elapsed_s:.1f} s, stalled {self.stall_s:.2f} s "
            f"({self.stall:.1%}); {self.superchunks:,} superchunks decoded at "
            f"{self.decode_mb_per_s:.0f} MB/s, reuse {self.reuse:.2f}, "
            f"{format_bytes(self.live_bytes)} live"
        )
