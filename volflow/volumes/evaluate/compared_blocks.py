"""The blocks in which two label maps are compared, and the cells that they are cut into."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from volflow.geometry.grid import BlockGrid
from volflow.geometry.roi import Roi
from volflow.store.slabs import Source

__all__ = ["CELL", "ComparedBlocks", "fitting_blocks"]

CELL = 64
MOST_VOXELS = 2**24  # of a block: 256³
MOST_CELLS = 2**21  # 8192³ voxels; of larger volumes cells are larger


@dataclass(frozen=True)
class ComparedBlocks:
    """Blocks of whole cells.

    Parameters
    ----------
    shape
        Voxels of the volume.
    block
        Voxels of a block, per axis a multiple of the cell or all there are.
    cell
        Side of a cell in voxels: what is known of a volume is known per cell, however large the
        blocks are.

    Examples
    --------
    >>> blocks = ComparedBlocks((100, 64, 200), (100, 64, 128))
    >>> len(blocks.grid), len(blocks.cells), [n for n, _ in blocks.cells_of(1)]
    (2, 8, [2, 3, 6, 7])
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    cell: int = CELL

    @cached_property
    def grid(self) -> BlockGrid:
        """The boxes of the blocks."""
        return BlockGrid(self.shape, self.block)

    @cached_property
    def cells(self) -> BlockGrid:
        """The boxes of the cells, which follow from the shape alone."""
        return BlockGrid(self.shape, tuple(min(self.cell, n) for n in self.shape))

    def cells_of(self, block: int) -> Iterator[tuple[int, Roi]]:
        """Yield number and box of each cell of a block, in order."""
        for number in self.cells.touching(self.grid[block]):
            yield number, self.cells[number]

    def blocks_of(self, cells: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[int, ...]:
        """Return the numbers of the blocks in which some cells lie, ascending."""
        index = np.unravel_index(cells, self.cells.counts)
        sides = zip(index, self.cells.block, self.block, strict=True)
        blocks = [place * cell // block for place, cell, block in sides]
        return tuple(np.unique(np.ravel_multi_index(blocks, self.grid.counts)).tolist())


def fitting_blocks(sources: Sequence[Source], most: int = MOST_VOXELS) -> ComparedBlocks:
    """Return blocks that cover what is decoded together, where that fits.

    Parameters
    ----------
    sources
        What is read together.
    most
        Voxels that a block has at most, as long as it has more than one cell.

    Examples
    --------
    >>> from volflow.store.formats.sources import open_source
    >>> source = open_source(np.broadcast_to(np.uint8(0), (1000, 1000, 1000)))
    >>> fitting_blocks([source]).block, fitting_blocks([source], 2**20).block
    ((256, 256, 256), (64, 128, 128))
    """
    shape, cell = sources[0].shape, CELL
    while math.prod(-(-n // cell) for n in shape) > MOST_CELLS:
        cell *= 2
    piece = [max(sides) for sides in zip(*(source.piece for source in sources), strict=True)]
    block = [cell * -(-min(p, n) // cell) for p, n in zip(piece, shape, strict=True)]
    while math.prod(block) > most and max(block) > cell:
        widest = int(np.argmax(block))
        block[widest] = cell * -(-block[widest] // (2 * cell))
    while 2 * math.prod(block) <= most:
        short = [axis for axis in reversed(range(3)) if block[axis] < shape[axis]]
        if not short:
            break
        block[min(short, key=lambda axis: block[axis])] *= 2
    return ComparedBlocks(shape, tuple(map(min, block, shape)), cell)
