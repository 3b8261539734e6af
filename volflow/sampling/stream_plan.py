"""The plan of a stream: its memory and speed, projected before a voxel is read."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from volflow.engine.cluster import DEFAULT_SHARE, cores, free_memory_bytes
from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes, parse_bytes
from volflow.sampling.cases.named_arrays import READ_BYTES, Case
from volflow.sampling.epoch import superchunks
from volflow.sampling.epoch.catalog import GridCatalog, PatchCatalog
from volflow.sampling.stream_options import StreamOptions

__all__ = ["StreamPlan", "plan_stream"]

# Of one core, with the default codec; a plan only says which of the two limits.
DECODE_BYTES_PER_S = 250e6
COPY_BYTES_PER_S = 2e9
# Superchunks read ahead where memory allows: lanes come to their next one after the other.
AHEAD = 4
# Draws, and what Python and its threads add.
OVERHEAD_BYTES = 12 * 2**20
# Patches in batches of four that wait, are made, or are with the trainer, and as many that the
# allocator keeps.
BATCHED, BATCHED_BYTES = 32, 128 * 2**20
# What zarr holds of the bytes that are read: compressed, decoded, put together.
READ_COPIES = 3


@dataclass(frozen=True)
class StreamPlan:
    """The window of a stream, its memory, and what limits its speed.

    Parameters
    ----------
    patches, lanes, superchunks
        Numbers of them in an epoch.
    processes
        Number of processes that share the lanes.
    held_lanes, ahead
        Superchunks that this process holds: one per lane of its own, and those read before they
        are needed.
    superchunk, superchunk_bytes
        The largest superchunk: voxels along z, y, x, and bytes of all its arrays.
    decoded_voxels, per_visit
        Voxels decoded for a visit on average, and patches cut then.
    patch_voxels, voxel_bytes
        Voxels of a patch; bytes of a voxel in all arrays with their channels.
    memory_bytes
        Memory that may be added to this process.
    read_bytes, threads
        Memory of a reading thread beside the superchunks, and the number of these threads.
    batch_bytes
        Memory of batches.
    """

    patches: int
    lanes: int
    superchunks: int
    processes: int
    held_lanes: int
    ahead: int
    superchunk: tuple[int, ...]
    superchunk_bytes: int
    decoded_voxels: float
    per_visit: float
    patch_voxels: int
    voxel_bytes: int
    memory_bytes: int
    read_bytes: int
    threads: int
    batch_bytes: int

    @property
    def reuse(self) -> float:
        """Voxels emitted per voxel decoded, as planned."""
        return self.per_decoding * self.patch_voxels / self.decoded_voxels

    @property
    def per_decoding(self) -> float:
        """Patches cut per decoding: all, of a superchunk that stays in the window."""
        if self.superchunks > self.held_lanes:
            return self.per_visit
        return max(self.per_visit, self.patches / self.processes / self.superchunks)

    @property
    def peak_bytes(self) -> int:
        """Projected growth of this process."""
        held = self.held_lanes + self.ahead
        reading = min(self.threads, held) * self.read_bytes
        return held * self.superchunk_bytes + reading + self.batch_bytes + OVERHEAD_BYTES

    @cached_property
    def seconds_per_patch(self) -> dict[str, float]:
        """Seconds per patch of decoding and of copying, with all threads."""
        patch_bytes = self.patch_voxels * self.voxel_bytes
        decoded_bytes = self.decoded_voxels * self.voxel_bytes / self.per_decoding
        return {
            "decoding": decoded_bytes / (DECODE_BYTES_PER_S * self.threads),
            "copying": patch_bytes / COPY_BYTES_PER_S,
        }

    @property
    def patches_per_s(self) -> float:
        """Patches per second that one process is predicted to give, within a factor of two."""
        return 1 / max(self.seconds_per_patch.values())

    @property
    def limiter(self) -> str:
        """The stage that limits the speed."""
        return max(self.seconds_per_patch, key=self.seconds_per_patch.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for machines."""
        names = ("reuse", "peak_bytes", "patches_per_s", "limiter")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        by = "×".join(map(str, self.superchunk))
        held = _count(self.held_lanes, "superchunk", "superchunks")
        return "\n".join(
            [
                f"epoch       {_count(self.patches, 'patch', 'patches')} in "
                f"{_count(self.lanes, 'lane', 'lanes')}",
                f"window      {held} of up to {by} voxels "
                f"({format_bytes(self.superchunk_bytes)}), {self.ahead} more read ahead",
                f"reuse       {self.reuse:.3g}: {self.per_decoding:.0f} patches per superchunk",
                f"memory      {format_bytes(self.peak_bytes)} of {format_bytes(self.memory_bytes)}",
                f"prediction  about {self.patches_per_s:.2g} patches/s, limited by {self.limiter}",
            ]
        )


def plan_stream(
    catalog: PatchCatalog, patches: int, lanes: int, processes: int, options: StreamOptions
) -> StreamPlan:
    """Size the window of a stream; only what is read ahead depends on memory, never the order.

    Parameters
    ----------
    catalog
        The catalog of superchunks.
    patches, lanes
        Numbers of them in an epoch.
    processes
        Number of processes that share the lanes.
    options
        Options of the stream: reuse, memory and threads count here.

    Raises
    ------
    MemoryRefused
        If the window does not fit, saying what would.
    """
    free = int(free_memory_bytes() * DEFAULT_SHARE)
    budget = free if options.memory is None else parse_bytes(options.memory)
    case, side, voxels = catalog.cases[0], catalog.held[0], math.prod(catalog.patch)
    voxel_bytes = sum(map(case.voxel_bytes, case.sources))
    size = math.prod(catalog.held) * voxel_bytes
    # Whole layers of chunks are read at once, but no more than there is.
    layer = size // side * min(side, max(case.chunk[0] for case in catalog.cases))
    decoded = max(_decoded_bytes(case, catalog.held) for case in catalog.cases)
    there = int(catalog.first[-1])
    held = min(max(1, lanes // processes), there)
    plan = StreamPlan(
        patches=patches,
        lanes=lanes,
        superchunks=there,
        processes=processes,
        held_lanes=held,
        ahead=min(AHEAD, there - held),
        superchunk=catalog.held,
        superchunk_bytes=size,
        decoded_voxels=catalog.mean_decoded,
        per_visit=_per_visit(catalog, patches, lanes, options.reuse),
        patch_voxels=voxels,
        voxel_bytes=voxel_bytes,
        memory_bytes=budget,
        read_bytes=READ_COPIES * min(max(READ_BYTES, layer), decoded),
        threads=options.threads or min(4, cores()),
        batch_bytes=min(BATCHED * voxels * _batched_bytes(case), BATCHED_BYTES),
    )
    while plan.ahead > 1 and plan.peak_bytes > budget:
        plan = replace(plan, ahead=plan.ahead - 1)
    if plan.peak_bytes > budget:
        raise MemoryRefused(_remedy(plan, catalog.patch, case.chunk))
    return plan


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _per_visit(catalog: PatchCatalog, patches: int, lanes: int, reuse: float) -> float:
    """Patches to cut from a decoded superchunk, so that its voxels are used ``reuse`` times.

    A short epoch is spread over as many superchunks as there are lanes.
    """
    if isinstance(catalog, GridCatalog):
        return patches / len(catalog.all_visits)
    wanted = reuse * catalog.mean_decoded / math.prod(catalog.patch)
    return max(1.0, min(wanted, patches / lanes))


def _decoded_bytes(case: Case, held: Sequence[int]) -> int:
    """Bytes that are decoded at most to read a superchunk: those of all chunks that it touches."""
    total = 0
    for name, source in case.sources.items():
        chunks = source.piece[-3:]
        sides = (
            min((-(-h // c) + 1) * c, -(-n // c) * c)
            for h, c, n in zip(held, chunks, case.shape, strict=True)
        )
        total += math.prod(sides) * case.voxel_bytes(name)
    return total


def _batched_bytes(case: Case) -> int:
    """Bytes of a voxel in a batch: classes are int64, all else is float32."""
    return sum(case.channels(name) * (8 if name in case.classes else 4) for name in case.sources)


def _remedy(plan: StreamPlan, patch: Sequence[int], chunk: Sequence[int]) -> str:
    """Say what was refused, and what helps: more memory, or settings with which it fits."""

    def fits(**changes: Any) -> bool:
        return replace(plan, **changes).peak_bytes <= plan.memory_bytes

    held = _count(plan.held_lanes, "superchunk", "superchunks")
    reading = min(plan.threads, plan.held_lanes + plan.ahead)
    ways = [
        f"patches of {'×'.join(map(str, patch))} voxels: a window of {held} of"
        f" {format_bytes(plan.superchunk_bytes)} and {plan.ahead} read ahead,"
        f" {_count(reading, 'reading thread', 'reading threads')} and batches need"
        f" {format_bytes(plan.peak_bytes)}, but memory is {format_bytes(plan.memory_bytes)}; give"
        f" it memory={format_bytes(math.ceil(plan.peak_bytes * 1.01)).replace(' ', '')!r}"
    ]
    if plan.threads > 1 and fits(threads=1):
        ways.append("use threads=1")
    for lanes in (n for n in (64, 32, 16, 8, 4, 2, 1) if n < plan.held_lanes):
        if fits(held_lanes=lanes, ahead=min(1, plan.superchunks - lanes)):
            ways.append(f"use lanes={lanes * plan.processes}")
            break
    # Superchunks of smaller chunks, where only the stored ones make them as large as they are.
    sides = math.prod(p // 2 + p - 1 for p in patch)
    smaller = max(superchunks.HELD_VOXELS, sides) * plan.voxel_bytes
    large = smaller < plan.superchunk_bytes and any(map(operator.gt, chunk, patch))
    converted = {
        "held_lanes": max(1, plan.lanes // plan.processes),
        "ahead": 1,
        "superchunk_bytes": smaller,
        "read_bytes": READ_COPIES * max(READ_BYTES, smaller // 2),
    }
    if large and fits(**converted):
        ways.append("convert the volumes to chunks of half a patch")
    return ", or ".join(ways)
