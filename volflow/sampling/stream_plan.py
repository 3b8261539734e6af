"""What a stream will hold and how fast it may run, before a voxel is read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from volflow.engine.cluster import DEFAULT_SHARE, cores, free_memory_bytes
from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes, parse_bytes
from volflow.sampling import superchunks
from volflow.sampling.cases.cases import READ_BYTES, Case
from volflow.sampling.epoch.field import Field, RandomField
from volflow.volumes.arrays.inputs import chunk_of

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
        Of an epoch: how many there are.
    processes
        That share the lanes.
    held_lanes, ahead
        Superchunks held at a time by this process: one per lane that is its own, and those read
        before they are needed.
    superchunk, superchunk_bytes
        The largest: voxels per axis, and bytes of all arrays.
    decoded_voxels, per_visit
        Decoded for a visit on average, and the patches cut then.
    patch_voxels, voxel_bytes
        Of a patch; of a voxel in all arrays with their channels.
    memory_bytes
        What may be added to this process.
    read_bytes, threads
        What a thread that reads takes beside the superchunks, and how many read.
    batch_bytes
        What batches take.
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
        """Of decoding and of copying, with all threads."""
        patch_bytes = self.patch_voxels * self.voxel_bytes
        decoded_bytes = self.decoded_voxels * self.voxel_bytes / self.per_decoding
        return {
            "decoding": decoded_bytes / (DECODE_BYTES_PER_S * self.threads),
            "copying": patch_bytes / COPY_BYTES_PER_S,
        }

    @property
    def patches_per_s(self) -> float:
        """Predicted for one process; half or double is no surprise."""
        return 1 / max(self.seconds_per_patch.values())

    @property
    def limiter(self) -> str:
        """What limits it."""
        return max(self.seconds_per_patch, key=self.seconds_per_patch.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for machines."""
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
    field: Field,
    patches: int,
    lanes: int,
    sharing: int,
    *,
    reuse: float,
    memory: str | int | None,
    threads: int | None,
) -> StreamPlan:
    """Size the window of a stream; only what is read ahead depends on memory, never the order.

    Parameters
    ----------
    field
        Where patches come from.
    patches, lanes
        Of an epoch.
    sharing
        Processes that share the lanes.
    reuse, memory, threads
        As asked for.

    Raises
    ------
    MemoryRefused
        Where the window does not fit, saying what would.
    """
    budget = int(free_memory_bytes() * DEFAULT_SHARE) if memory is None else parse_bytes(memory)
    threads = threads or min(4, cores())
    case = field.cases[0]
    voxel_bytes = sum(map(case.voxel_bytes, case.sources))
    size = math.prod(field.held) * voxel_bytes
    # Whole layers of chunks are read at once, but no more than there is.
    layer = size // field.held[0] * min(field.held[0], max(case.chunk[0] for case in field.cases))
    decoded = max(_decoded_bytes(case, field.held) for case in field.cases)
    there = int(field.first[-1])
    held = min(max(1, lanes // sharing), there)
    plan = StreamPlan(
        patches,
        lanes,
        there,
        sharing,
        held,
        min(AHEAD, there - held),
        field.held,
        size,
        field.mean_decoded,
        _per_visit(field, patches, lanes, reuse),
        math.prod(field.patch),
        voxel_bytes,
        budget,
        READ_COPIES * min(max(READ_BYTES, layer), decoded),
        threads,
        min(BATCHED * math.prod(field.patch) * _batched_bytes(case), BATCHED_BYTES),
    )
    while plan.ahead > 1 and plan.peak_bytes > budget:
        plan = replace(plan, ahead=plan.ahead - 1)
    if plan.peak_bytes > budget:
        raise MemoryRefused(_remedy(plan, field.patch, case.chunk))
    return plan


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _per_visit(field: Field, patches: int, lanes: int, reuse: float) -> float:
    """Patches to cut from a decoded superchunk, so that its voxels are used ``reuse`` times.

    A short epoch is spread over as many superchunks as there are lanes.
    """
    if not isinstance(field, RandomField):
        return patches / len(field.line)
    wanted = reuse * field.mean_decoded / math.prod(field.patch)
    return max(1.0, min(wanted, patches / lanes))


def _decoded_bytes(case: Case, held: Sequence[int]) -> int:
    """What is decoded at most to read the arrays of a superchunk: all chunks that it touches."""
    total = 0
    for name, source in case.sources.items():
        chunks = chunk_of(source)
        sides = (
            min((-(-h // c) + 1) * c, -(-n // c) * c)
            for h, c, n in zip(held, chunks, case.shape, strict=True)
        )
        total += math.prod(sides) * case.voxel_bytes(name)
    return total


def _batched_bytes(case: Case) -> int:
    """A voxel in a batch: classes are int64, all else is float32."""
    return sum(case.channels(name) * (8 if name in case.classes else 4) for name in case.sources)


def _remedy(plan: StreamPlan, patch: Sequence[int], chunk: Sequence[int]) -> str:
    """What was refused, and what helps: more memory, or the settings with which it fits."""
    size, budget = plan.superchunk_bytes, plan.memory_bytes
    window = f"{_count(plan.held_lanes, 'superchunk', 'superchunks')} of {format_bytes(size)}"
    reading = min(plan.threads, plan.held_lanes + plan.ahead)
    text = (
        f"a window of {window} and {plan.ahead} read ahead,"
        f" {_count(reading, 'reading thread', 'reading threads')} and batches need"
        f" {format_bytes(plan.peak_bytes)}, but memory is {format_bytes(budget)}; give it"
        f" memory={format_bytes(math.ceil(plan.peak_bytes * 1.01)).replace(' ', '')!r}"
    )
    ways = [f"use {setting}" for setting in _settings_that_fit(plan)]
    if _small_chunks_fit(plan, patch, chunk):
        ways.append("convert the volumes to chunks of half a patch")
    return ", or ".join([text, *ways])


def _small_chunks_fit(plan: StreamPlan, patch: Sequence[int], chunk: Sequence[int]) -> bool:
    """Whether superchunks are as large as they are because of their chunks, and it fits without."""
    smaller = (
        max(superchunks.HELD_VOXELS, math.prod(p // 2 + p - 1 for p in patch)) * plan.voxel_bytes
    )
    if smaller >= plan.superchunk_bytes or all(c <= p for c, p in zip(chunk, patch, strict=True)):
        return False
    converted = replace(
        plan,
        held_lanes=max(1, plan.lanes // plan.processes),
        ahead=1,
        superchunk_bytes=smaller,
        read_bytes=READ_COPIES * max(READ_BYTES, smaller // 2),
    )
    return converted.peak_bytes <= plan.memory_bytes


def _settings_that_fit(plan: StreamPlan) -> Iterator[str]:
    """Fewer threads where that is enough, fewer lanes where it is not."""
    single = replace(plan, threads=1)
    if plan.threads > 1 and single.peak_bytes <= plan.memory_bytes:
        yield "threads=1"
    for lanes in (n for n in (64, 32, 16, 8, 4, 2, 1) if n < plan.held_lanes):
        fewer = replace(plan, held_lanes=lanes, ahead=min(1, plan.superchunks - lanes))
        if fewer.peak_bytes <= plan.memory_bytes:
            yield f"lanes={lanes * plan.processes}"
            return
