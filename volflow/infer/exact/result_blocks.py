"""Blocks of whole shards for the last pass of an exact prediction, which writes the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from volflow.infer.request import Request, output_meta
from volflow.model.forward import Output
from volflow.passes.schedule import SIDES
from volflow.store.layout import resolve_layout

__all__ = ["BlockLayout", "ResultBlocks"]


@dataclass(frozen=True)
class BlockLayout:
    """Sides of a block, chunk and shard of the result: stored axes, output voxels."""

    block: tuple[int, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]


@dataclass(frozen=True)
class ResultBlocks:
    """The ways in which a result can be cut into blocks of whole shards.

    Parameters
    ----------
    request, outputs, computed
        The prediction, the outputs of the model, and the dtype in which it computes.
    seen, sizes
        The axes of the frame that the network sees, and the sides of its padded image along them.
    """

    request: Request
    outputs: tuple[Output, ...]
    computed: str
    seen: tuple[int, ...]
    sizes: tuple[int, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Sides of the result along the stored axes."""
        return self.request.out_shape(self.outputs[0].scale)

    @cached_property
    def stored(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sides of chunk and shard in a large block."""
        options = self.request.options
        spacing = output_meta(self.request, self.outputs[0]).spacing
        dtype = options.stored_dtype(self.computed)
        return resolve_layout(self.shape, spacing, dtype, options.chunk, options.shard)

    @property
    def dropped(self) -> int:
        """The stored axis along which slices lie."""
        (axis,) = {0, 1, 2} - {self.request.inputs.frame.axes[a] for a in self.seen}
        return axis

    def thicknesses(self) -> tuple[int, ...]:
        """Return how many slices a block may hold, largest first; a chunk is read once for all."""
        chunk, shard = (sides[self.dropped] for sides in self.stored)
        if self.request.options.shard is not None:
            return (shard,)
        return (chunk, *(side for side in (*SIDES, 4, 2, 1) if side < chunk))

    def layouts(self, thickness: int | None = None) -> dict[tuple[int, ...], BlockLayout]:
        """Return layouts of the result by the block that the network sees, largest first."""
        chunk, shard = self.stored
        frame, scale = self.request.inputs.frame, self.outputs[0].scale
        fixed = self.request.options.shard is not None
        chunked = self.request.options.chunk is not None
        found: dict[tuple[int, ...], BlockLayout] = {}
        for side in (max(self.shape), *SIDES):
            sides = [side] * 3
            if thickness is not None:
                sides[self.dropped] = thickness
            layout = _layout(self.shape, sides, (chunk, shard), fixed, chunked)
            inside = [b * s for b, s in zip(frame.reorder(layout.block), scale, strict=True)]
            whole = [b >= n for b, n in zip(layout.block, self.shape, strict=True)]
            block = tuple(
                n if one else min(inside[a], n)
                for a, n, one in zip(
                    self.seen, self.sizes, (frame.reorder(whole)[a] for a in self.seen), strict=True
                )
            )
            found.setdefault(block, layout)
        return found


def _layout(
    shape: Sequence[int],
    sides: Sequence[int],
    stored: tuple[Sequence[int], Sequence[int]],
    fixed: bool,
    chunked: bool,
) -> BlockLayout:
    """Return a block of about some sides and of whole shards, which shrink with it unless fixed."""
    block, chunks, shards = [], [], []
    for n, side, c, s in zip(shape, sides, *stored, strict=True):
        unit = s if fixed or side >= n else c if chunked else min(c, side)
        count = max(1, -(-n // max(side, unit)))
        share = -(-n // count)
        b = -(-share // unit) * unit
        kept = s if fixed else b if b <= s else math.gcd(b, s)
        block.append(b)
        shards.append(kept)
        chunks.append(kept if kept < c else math.gcd(c, kept))
    return BlockLayout(tuple(block), tuple(chunks), tuple(shards))
