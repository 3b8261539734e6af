"""How a volume is cut into tiles for prediction, and what a tile costs in memory.

A tile spans blocks along the frame's second and third axis; a run of blocks goes through it along
the first. Seams between tiles are computed twice, so the tile with the fewest patches wins among
those that fit. Results do not depend on the choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid, PatchGrid
from volflow.infer.method import SLACK_BYTES, TRIALS_DIFFER
from volflow.infer.patches.rolling import FINISH_ROWS
from volflow.store.layout import shrinking

__all__ = ["Demand", "choose_tiling", "patch_count", "runs_of"]

Sides = tuple[int, ...]


@dataclass(frozen=True)
class Demand:
    """All that the memory of a task depends on, apart from its tile.

    Parameters
    ----------
    grid, scale, frame, crop, skipping
        Patches in frame coordinates; whether they own voxels or are weighted, and whether some may
        be left out, so that the weights are summed.
    input_bytes, raw_bytes
        Per voxel: of all rows held, and of one volume while it is read.
    segment_rows
        Rows read at once.
    output_channels, output_bytes
        Channels, and stored bytes per voxel, of all outputs together.
    score_bytes
        Of one score in the blend.
    forward_bytes
        Peak of one forward.
    on_device
        The blend and the forward are in a GPU's memory, not in the host's.
    """

    grid: PatchGrid
    scale: tuple[int, ...]
    frame: Frame
    crop: bool
    skipping: bool
    input_bytes: int
    raw_bytes: int
    segment_rows: int
    output_channels: int
    output_bytes: int
    score_bytes: int
    forward_bytes: int
    on_device: bool = False

    def peak_bytes(self, block: Sequence[int], shard: Sequence[int]) -> int:
        """Return a task's projected peak for a block in output voxels along the stored axes."""
        out = self.grid.reduced(self.scale)
        depth, height, width = self.frame.reorder(block)
        tile = height * width
        reach = [
            min(n, side * s + 2 * (p - 1))
            for n, side, s, p in zip(
                self.grid.shape[1:],
                (height, width),
                self.scale[1:],
                self.grid.patch[1:],
                strict=True,
            )
        ]
        rows = self.grid.patch[0] + self.grid.stride[0] + 2 * self.segment_rows
        rows = min(rows, self.grid.shape[0])
        area = reach[0] * reach[1]
        read = area * (rows * self.input_bytes + self.segment_rows * (self.raw_bytes + 1))
        blend = tile * out.patch[0] * self.output_channels * self.score_bytes
        if self.skipping or not self.crop:
            blend += tile * out.patch[0] * self.score_bytes
        finish = tile * FINISH_ROWS * (self.output_channels * self.score_bytes + self.output_bytes)
        write = 2 * tile * depth * self.output_bytes + 3 * math.prod(shard) * self.output_bytes
        host = read + finish + write + SLACK_BYTES
        return host if self.on_device else host + blend + self.forward_bytes


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


def choose_tiling(
    demand: Demand, shard: Sequence[int], chunk: Sequence[int], memory_bytes: int
) -> tuple[Sides, Sides, int]:
    """Choose the tiling with the fewest forwards that fits the budget.

    Parameters
    ----------
    demand
        What a tile needs.
    shard, chunk
        Of the output, stored axes. Shards are halved down to chunks where a tile of one shard
        does not fit.
    memory_bytes
        Budget of one worker.

    Returns
    -------
    block, shard
        Sides along the stored axes, in output voxels.
    peak_bytes
        What a task is projected to take.

    Raises
    ------
    MemoryRefused
        Where not even a tile of one chunk fits; names the memory that would do.
    """
    out = demand.grid.reduced(demand.scale)
    shape = demand.frame.restore(out.shape)
    smallest = tuple(shard)
    for smallest in shrinking(shard, chunk, chunk):
        best: tuple[int, int, Sides] | None = None
        for block in _candidates(shape, smallest, demand.frame):
            peak = demand.peak_bytes(_clip(block, shape), _clip(smallest, shape))
            if peak > memory_bytes:
                continue
            sides = demand.frame.reorder(block)
            tiles = [[(0, out.shape[0])]] + [
                _cuts(out.shape[a], sides[a], demand.frame.flips[a]) for a in (1, 2)
            ]
            calls = patch_count(out, tiles, demand.crop)
            if best is None or (calls, peak) < best[:2]:
                best = calls, peak, block
        if best is not None:
            return best[2], smallest, best[1]
    needed = demand.peak_bytes(_clip(smallest, shape), _clip(smallest, shape))
    enough = math.ceil(needed * TRIALS_DIFFER / 2**20)
    raise MemoryRefused(
        f"predict with patch {demand.grid.patch} needs at least {format_bytes(needed)} per"
        f" worker but memory is {format_bytes(memory_bytes)}; use"
        f' memory="{enough}MiB" or more (--memory), a smaller patch, or a smaller batch_size'
    )


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


def runs_of(
    blocks: BlockGrid, frame: Frame, done: frozenset[int], workers: int
) -> tuple[tuple[int, ...], ...]:
    """Return the blocks left to do as runs along the frame's first axis, enough for all workers.

    Examples
    --------
    >>> runs_of(BlockGrid((4, 1, 1), (1, 1, 1)), Frame(), frozenset({1}), 1)
    ((0,), (2, 3))
    """
    axis, flip = frame.axes[0], frame.flips[0]
    columns: dict[tuple[int, ...], list[int]] = {}
    for number in range(len(blocks)):
        across = tuple(i for a, i in enumerate(blocks.index(number)) if a != axis)
        columns.setdefault(across, []).append(number)
    pieces = -(-workers // len(columns))
    runs = []
    for numbers in columns.values():
        ordered = numbers[::-1] if flip else numbers
        left = [n for n in ordered if n not in done]
        size = max(1, -(-len(left) // pieces))
        run: list[int] = []
        for number in ordered:
            if number in done or len(run) == size:
                runs.append(tuple(run))
                run = []
            if number not in done:
                run.append(number)
        runs.append(tuple(run))
    return tuple(run for run in runs if run)
