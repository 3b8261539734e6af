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
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import describe, file_result  # noqa: E402

from volflow.geometry.frame import Frame  # noqa: E402
from volflow.geometry.grid import BlockGrid, PatchGrid  # noqa: E402
from volflow.geometry.roi import Roi  # noqa: E402
from volflow.infer.patches.course import (  # noqa: E402
    exchanged,
    exchanged_grid,
    goes_along_second,
)
from volflow.infer.patches.demand import Demand  # noqa: E402
from volflow.infer.patches.tiling import (  # noqa: E402
    choose_tiling,
    limit_depth,
    patch_count,
    runs_of,
)
from volflow.infer.patches.writer import tile_of  # noqa: E402

MIB = 2**20
WORKERS = (1, 4, 16, 64)
# Shape, patch, stride, chunk and shard, in voxels along the stored axes.
VOLUMES = (
    ((512,) * 3, (96,) * 3, (72,) * 3, (64,) * 3, (256,) * 3),
    ((1024,) * 3, (96,) * 3, (72,) * 3, (64,) * 3, (256,) * 3),
    ((1, 30_000, 30_000), (1, 512, 512), (1, 384, 384), (1, 512, 512), (1, 2048, 2048)),
)


def demand_of(grid: PatchGrid, frame: Frame) -> Demand:
    """A network of three classes, whose forward takes 300 MiB."""
    return Demand(
        grid=grid, scale=(1, 1, 1), frame=frame, crop=False, skipping=False, input_bytes=2,
        raw_bytes=2, segment_rows=64, output_channels=3, output_bytes=1, score_bytes=4,
        forward_bytes=300 * MIB,
    )  # fmt: skip


def shares(grid: PatchGrid, tiles: Sequence[Roi], workers: int) -> str:
    """Factor and busiest worker, where each tile is a run."""
    each = [patch_count(grid, [[side] for side in tile], crop=False) for tile in tiles]
    busiest = -(-len(each) // workers) * max(each) * workers
    return f"{sum(each) / len(grid):.2f} | {busiest / len(grid):.2f}"


def row(volume: tuple[tuple[int, ...], ...], workers: int, memory_bytes: int) -> str:
    """A line of the table."""
    shape, patch, stride, chunk, shard = volume
    grid, frame = PatchGrid(shape, patch, stride), Frame()
    step = -(-shape[0] // min(workers, -(-shape[0] // chunk[0])))
    thick = -(-step // chunk[0]) * chunk[0]
    planes = [
        Roi((low, 0, 0), (min(shape[0], low + thick), *shape[1:]))
        for low in range(0, shape[0], thick)
    ]
    naive = shares(grid, planes, workers)
    if goes_along_second(grid):
        grid, frame = exchanged_grid(grid), Frame(exchanged(frame.axes), exchanged(frame.flips))
    depth = limit_depth(shard, chunk, shape, frame.axes[0])
    found = choose_tiling(demand_of(grid, frame), depth, chunk, memory_bytes, None, workers)
    blocks = BlockGrid(shape, found.block)
    tiles = [tile_of(blocks, frame, run) for run in runs_of(blocks, frame, frozenset(), workers)]
    cells = ["×".join(map(str, shape)), str(workers), "×".join(map(str, found.block))]
    return f"| {' | '.join(cells)} | {len(tiles)} | {shares(grid, tiles, workers)} | {naive} |"


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
