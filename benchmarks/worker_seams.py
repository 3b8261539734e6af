"""How many patches many workers compute twice at the seams between their runs; nothing is run.

    python benchmarks/worker_seams.py            # some seconds; the result is filed
    python benchmarks/worker_seams.py --no-file

``factor`` is all forwards over the patches of the grid, ``busiest`` what the last worker to end
computes over its fair share of the grid: 1.00 is a worker that computes no patch twice beside
others that are never idle. *By planes* cuts the volume along the first axis alone, into as many
slabs of whole chunks as there are workers, the naive way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import describe, file_result  # noqa: E402

from volflow.geometry.frame import Frame  # noqa: E402
from volflow.geometry.grid import BlockGrid, PatchGrid  # noqa: E402
from volflow.infer.patches.course import (  # noqa: E402
    exchanged,
    exchanged_grid,
    goes_along_second,
)
from volflow.infer.patches.demand import Demand  # noqa: E402
from volflow.infer.patches.runs import last_end, runs_of  # noqa: E402
from volflow.infer.patches.tiling import (  # noqa: E402
    choose_tiling,
    limit_depth,
    patch_count,
)
from volflow.infer.patches.writer import tile_of  # noqa: E402

MIB = 2**20
Volume = tuple[tuple[int, ...], ...]
WORKERS = (1, 4, 16, 64)
# Shape, patch, stride, chunk and shard, in voxels along the stored axes.
VOLUMES = (
    ((512,) * 3, (96,) * 3, (72,) * 3, (64,) * 3, (256,) * 3),
    ((1024,) * 3, (96,) * 3, (72,) * 3, (64,) * 3, (256,) * 3),
    ((4096,) * 3, (96,) * 3, (72,) * 3, (64,) * 3, (256,) * 3),
    ((1, 30_000, 30_000), (1, 512, 512), (1, 384, 384), (1, 512, 512), (1, 2048, 2048)),
)


def demand_of(grid: PatchGrid, frame: Frame) -> Demand:
    """A network of three classes, whose forward takes 300 MiB."""
    return Demand(
        grid=grid, scale=(1, 1, 1), frame=frame, crop=False, skipping=False, input_bytes=2,
        raw_bytes=2, segment_rows=64, output_channels=3, output_bytes=1, score_bytes=4,
        forward_bytes=300 * MIB,
    )  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """How the planner cuts a volume for so many workers: its blocks, and the patches of each run."""

    grid: PatchGrid
    frame: Frame
    blocks: BlockGrid
    workers: int

    def patches(self, run: Sequence[int]) -> int:
        """Return how many patches a run, or a part of one, computes."""
        tile = tile_of(self.blocks, self.frame, run)
        return patch_count(self.grid, [[side] for side in tile], crop=False)

    def runs(self) -> tuple[tuple[int, ...], ...]:
        """Return the runs in the order in which workers get them."""
        return runs_of(self.blocks, self.frame, frozenset(), self.workers, self.patches)


def cut_of(volume: Volume, workers: int, memory_bytes: int) -> Cut:
    """Return how the planner cuts a volume."""
    shape, patch, stride, chunk, shard = volume
    grid, frame = PatchGrid(shape, patch, stride), Frame()
    if goes_along_second(grid):
        grid, frame = exchanged_grid(grid), Frame(exchanged(frame.axes), exchanged(frame.flips))
    depth = limit_depth(shard, chunk, shape, frame.axes[0])
    found = choose_tiling(demand_of(grid, frame), depth, chunk, memory_bytes, None, workers)
    return Cut(grid, frame, BlockGrid(shape, found.block), workers)


def planes(volume: Volume, workers: int) -> list[int]:
    """Return the patches of each slab along the first axis, the naive way."""
    shape, patch, stride, chunk, _ = volume
    grid, step = (
        PatchGrid(shape, patch, stride),
        -(-shape[0] // min(workers, -(-shape[0] // chunk[0]))),
    )
    thick = -(-step // chunk[0]) * chunk[0]
    slabs = [(low, min(shape[0], low + thick)) for low in range(0, shape[0], thick)]
    across = [[(0, side)] for side in shape[1:]]
    return [patch_count(grid, [[slab], *across], crop=False) for slab in slabs]


def shares(each: Sequence[int], patches: int, workers: int) -> str:
    """Return factor and busiest worker of runs of so many patches each."""
    return f"{sum(each) / patches:.2f} | {last_end(each, workers) * workers / patches:.2f}"


def row(volume: Volume, workers: int, memory_bytes: int) -> str:
    """A line of the table."""
    cut = cut_of(volume, workers, memory_bytes)
    patches, each = len(cut.grid), [cut.patches(run) for run in cut.runs()]
    cells = ["×".join(map(str, volume[0])), str(workers), "×".join(map(str, cut.blocks.block))]
    naive = shares(planes(volume, workers), patches, workers)
    return f"| {' | '.join(cells)} | {len(each)} | {shares(each, patches, workers)} | {naive} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-file", action="store_true", help="do not file the result")
    options = parser.parse_args()
    lines = [
        describe([]),
        "",
        "    python benchmarks/worker_seams.py",
        "",
        "4 GiB a worker, overlap ¼.",
        "",
        "| volume | workers | block | runs | factor | busiest | by planes: factor | busiest |",
        "|---|---|---|---|---|---|---|---|",
        *(row(volume, workers, 4096 * MIB) for volume in VOLUMES for workers in WORKERS),
    ]
    text = "\n".join(lines)
    print(text)
    if not options.no_file:
        print(f"\nfiled under {file_result('worker_seams', text)}")


if __name__ == "__main__":
    main()
