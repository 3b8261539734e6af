"""How a volume is cut into tiles for prediction, so that a tile fits into memory.

A tile spans blocks along the frame's second and third axis; a run of blocks goes through it along
the first. Seams between tiles are computed twice: among the tiles that fit that one wins with which
the last worker ends first, for one worker that of the fewest patches. Results do not depend on the
choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.geometry.frame import Frame
from volflow.geometry.grid import PatchGrid
from volflow.infer.method import TRIALS_DIFFER
from volflow.infer.patches.demand import Demand
from volflow.infer.patches.runs import Shares, shares_of
from volflow.store.layout import shrinking

__all__ = ["Tiling", "choose_tiling", "limit_depth", "patch_count", "place_sums"]

# Sums in the host's memory take about as long as a forward; seams may cost as much before.
MANY_FORWARDS = 2
# Shards are made smaller where they cost this many times the forwards of smaller ones, but hold at
# least so many voxels: a store of many small objects is slow.
WORTH_SMALLER, LEAST_SHARD = 1.05, 2**20

Sides = tuple[int, ...]


def patch_count(grid: PatchGrid, tiles: Sequence[Sequence[tuple[int, int]]], crop: bool) -> int:
    """Return the number of patches computed when each axis is cut into these intervals of voxels.

    Examples
    --------
    >>> grid = PatchGrid((8, 8, 8), (4, 4, 4), (4, 4, 4))
    >>> patch_count(grid, [[(0, 8)], [(0, 8)], [(0, 3), (3, 8)]], crop=False)
    12
    """
    return math.prod(
        sum(len(grid.touching(axis, low, high, owned=crop)) for low, high in intervals)
        for axis, intervals in enumerate(tiles)
    )


def _cuts(n: int, step: int, flip: bool) -> list[tuple[int, int]]:
    cuts = [(low, min(n, low + step)) for low in range(0, n, step)]
    return [(n - high, n - low) for low, high in cuts] if flip else cuts


def _candidates(
    shape: Sequence[int], shard: Sequence[int], frame: Frame
) -> Iterator[tuple[int, ...]]:
    """Yield blocks of whole shards: one shard along the carry axis, any number along the others."""
    carry = frame.axes[0]
    options = []
    for axis, (n, s) in enumerate(zip(shape, shard, strict=True)):
        most = 1 if axis == carry else -(-n // s)
        parts = sorted({-(-most // k) for k in range(1, most + 1)})
        options.append([s * p for p in parts])
    for z in options[0]:
        for y in options[1]:
            for x in options[2]:
                yield z, y, x


@dataclass(frozen=True)
class Tiling:
    """How a volume is cut, and what that costs.

    Parameters
    ----------
    block, shard
        In output voxels along the stored axes.
    forwards
        Patches computed.
    peak_bytes, device_peak_bytes
        What a task is projected to take of the host's memory, and of a GPU's.
    host_sums
        Whether scores of a GPU are summed in the host's memory.
    """

    block: Sides
    shard: Sides
    forwards: int
    peak_bytes: int
    device_peak_bytes: int
    host_sums: bool


def choose_tiling(
    demand: Demand,
    shard: Sequence[int],
    chunk: Sequence[int],
    memory_bytes: int,
    device_bytes: int | None = None,
    workers: int = 1,
) -> Tiling:
    """Choose the tiling that is done first, of those that fit the budgets: those of one worker.

    Parameters
    ----------
    demand
        What a tile needs.
    shard, chunk
        Of the output, stored axes. Shards are halved, at most down to chunks, where a tile of one
        shard does not fit, or where smaller ones need clearly fewer forwards.
    memory_bytes, device_bytes
        Of a worker, and of its GPU; None without one.
    workers
        That share the runs (`volflow.infer.patches.runs`). The last to end counts, so that many of
        them get cubes rather than thin slabs.

    Raises
    ------
    MemoryRefused
        Where not even a tile of one chunk fits; names the memory that would do.
    """
    out = demand.grid.reduced(demand.scale)
    shape = demand.frame.restore(out.shape)
    smallest, found = tuple(shard), list[tuple[int, Tiling]]()
    ideal = -(-len(out) // workers)  # no patch twice, and no worker idle
    for smallest in shrinking(shard, chunk, chunk):
        if found and math.prod(smallest) < LEAST_SHARD:
            break
        fitting = _fitting(demand, smallest, memory_bytes, device_bytes, workers)
        best = min(fitting, key=_sooner, default=None)
        if best is not None:
            found.append(best)
            if best[0] <= ideal:
                break
    soonest = min((last for last, _ in found), default=0)
    for last, tiling in found:
        if last <= WORTH_SMALLER * soonest:
            return tiling
    least = _clip(smallest, shape)
    raise _refused(demand, least, memory_bytes, device_bytes)


def _sooner(found: tuple[int, Tiling]) -> tuple[int, int, int]:
    last, tiling = found
    return last, tiling.forwards, tiling.peak_bytes


def _fitting(
    demand: Demand,
    shard: Sides,
    memory_bytes: int,
    device_bytes: int | None,
    workers: int,
) -> Iterator[tuple[int, Tiling]]:
    """Yield the tilings by whole shards that fit the budgets, each behind its busiest worker's."""
    out = demand.grid.reduced(demand.scale)
    shape = demand.frame.restore(out.shape)
    for block in _candidates(shape, shard, demand.frame):
        peak = demand.peak_bytes(_clip(block, shape), _clip(shard, shape))
        on_device = demand.device_peak_bytes(_clip(block, shape))
        if peak <= memory_bytes and on_device <= (device_bytes or on_device):
            shares = _shares(demand, out, demand.frame.reorder(block), workers)
            tiling = Tiling(block, shard, shares.total, peak, on_device, demand.host_sums)
            yield shares.last, tiling


def _shares(demand: Demand, out: PatchGrid, sides: Sequence[int], workers: int) -> Shares:
    """Return what workers do where blocks have these sides, cut as `runs_of` does.

    Parameters
    ----------
    demand, out
        What a tile needs, and the grid in output voxels.
    sides
        Of a block, in the frame.
    workers
        That share the runs.
    """
    layers, *across = (
        sorted(_cuts(n, side, flip))
        for n, side, flip in zip(out.shape, sides, demand.frame.flips, strict=True)
    )

    def count(axis: int, low: int, high: int) -> int:
        return len(out.touching(axis, low, high, owned=demand.crop))

    rows, columns = ([count(axis, *cut) for cut in cuts] for axis, cuts in enumerate(across, 1))
    tiles = [row * column for row in rows for column in columns]

    def sizes(length: int) -> list[int]:
        ends = (layers[at : at + length] for at in range(0, len(layers), length))
        depths = [count(0, run[0][0], run[-1][1]) for run in ends]
        return [depth * tile for depth in depths for tile in tiles]

    return shares_of(len(layers), len(tiles), workers, sizes)


def place_sums(
    demand: Demand,
    shard: Sequence[int],
    chunk: Sequence[int],
    memory_bytes: int,
    device_bytes: int | None,
    workers: int = 1,
) -> Tiling:
    """Choose the tiling, and where the scores of a GPU are summed: there, unless it is too tight.

    Parameters
    ----------
    demand, shard, chunk, memory_bytes, device_bytes, workers
        As of `choose_tiling`.

    Raises
    ------
    MemoryRefused
        Where nothing fits either way.
    """
    if not demand.on_device:
        return choose_tiling(demand, shard, chunk, memory_bytes, None, workers)
    on_host = replace(demand, host_sums=True)
    try:
        there = choose_tiling(demand, shard, chunk, memory_bytes, device_bytes, workers)
    except MemoryRefused:
        return choose_tiling(on_host, shard, chunk, memory_bytes, device_bytes, workers)
    try:
        here = choose_tiling(on_host, shard, chunk, memory_bytes, device_bytes, workers)
    except MemoryRefused:
        return there
    return here if there.forwards >= MANY_FORWARDS * here.forwards else there


def _refused(
    demand: Demand, least: Sides, memory_bytes: int, device_bytes: int | None
) -> MemoryRefused:
    """Return the error that names what the smallest tile needs of each budget that is too tight."""
    needed, on_device = demand.peak_bytes(least, least), demand.device_peak_bytes(least)
    needs, remedies = [], []
    if needed > memory_bytes:
        needs.append(
            f"{format_bytes(needed)} per worker but memory is {format_bytes(memory_bytes)}"
        )
        remedies.append(f'memory="{_enough(needed)}" or more (--memory)')
    if device_bytes is not None and on_device > device_bytes:
        needs.append(
            f"{format_bytes(on_device)} on the device but device_memory is"
            f" {format_bytes(device_bytes)}"
        )
        remedies.append(f'device_memory="{_enough(on_device)}" or more (--device-memory)')
    return MemoryRefused(
        f"predict with patch {demand.grid.patch} needs at least {', and '.join(needs)}; use"
        f" {' and '.join(remedies)}, a smaller patch, or a smaller batch_size"
    )


def _enough(needed: int) -> str:
    return f"{math.ceil(needed * TRIALS_DIFFER / 2**20)}MiB"


def limit_depth(
    shard: Sequence[int], chunk: Sequence[int], shape: Sequence[int], carry: int
) -> tuple[int, ...]:
    """Return shards of at most about a quarter of the carry axis: an interruption costs a block.

    Examples
    --------
    >>> limit_depth((256, 256, 256), (64, 64, 64), (300, 300, 300), carry=0)
    (128, 256, 256)
    """
    quarter = -(-shape[carry] // 4)
    depth = max(1, -(-quarter // chunk[carry])) * chunk[carry]
    return tuple(min(s, depth) if a == carry else s for a, s in enumerate(shard))


def _clip(sides: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(min(s, n) for s, n in zip(sides, shape, strict=True))
