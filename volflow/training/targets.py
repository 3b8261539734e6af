"""A loss over blocks: which box of the target belongs to which box of an output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.partition.graph import Graph
from volflow.training.images import Batch
from volflow.training.losses import Loss, target_at

__all__ = ["TargetLoss"]


@dataclass(frozen=True, eq=False)
class TargetLoss:
    """A loss of `volflow.losses` and its target, as `volflow.partition.gradients.BlockLoss`.

    Parameters
    ----------
    loss
        The loss.
    target
        Of the whole volume.
    outputs
        By name: the node, its shape, and the voxels of the volume per voxel.
    """

    loss: Loss
    target: Batch
    outputs: Mapping[str, tuple[int, tuple[int, ...], tuple[int, ...]]]

    @staticmethod
    def of(loss: Any, target: Batch, image: Batch, graph: Graph) -> TargetLoss:
        """Return the loss of a network's outputs.

        Raises
        ------
        InvalidInput
            If the loss is none, or the target does not suit the volume.
        """
        if isinstance(loss, type) or not isinstance(loss, Loss):
            got = f"the class {loss.__name__}" if isinstance(loss, type) else type(loss).__name__
            raise InvalidInput(
                f"a step takes a loss that is a sum over voxels, got {got}; use one of"
                " vf.losses, vf.losses.mean(function) for a mean over voxels, or call the network"
                " itself for the scores and any loss"
            )
        if target.sizes != image.sizes or len(target.images) != len(image.images):
            raise InvalidInput(
                f"the target has {_described(target)} and the volume {_described(image)}; give a"
                " target on the volume's own grid"
            )
        whole, outputs = graph.sizes(0), {}
        for name, node in graph.outputs.items():
            scale = tuple(n // m for n, m in zip(whole, graph.sizes(node), strict=True))
            outputs[name] = node, graph.nodes[node].shape, scale
        return TargetLoss(loss, target, outputs)

    def sums(self, outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]) -> Tensor:
        """Return the sums of a block."""
        like = next(iter(outputs.values()))
        scores, targets = dict[str, Tensor](), dict[str, Tensor]()
        for name, (node, shape, scale) in self.outputs.items():
            box = boxes.get(node, Roi((0,) * len(scale), (0,) * len(scale)))
            # A coarse output may have no voxel in a block at the border of the volume.
            values = outputs[node] if node in outputs else like.new_zeros(*shape[:2], *box.shape)
            scores[name], targets[name] = values, self._target(box, scale).to(like.device)
        if list(scores) == [""]:
            return self.loss.partial(scores[""], targets[""])
        return self.loss.partial(scores, targets)

    def _target(self, box: Roi, scale: tuple[int, ...]) -> Tensor:
        """Return the target of a box of an output."""
        start = tuple(a * s for a, s in zip(box.start, scale, strict=True))
        stop = tuple(b * s for b, s in zip(box.stop, scale, strict=True))
        voxels = self.target(Roi(start, stop).clip(self.target.sizes))
        if voxels.dtype.kind not in "fc":
            voxels = voxels.astype(np.int64)
        whole = torch.from_numpy(np.ascontiguousarray(voxels))
        return whole if set(scale) == {1} else target_at(whole, scale)

    def finish(self, total: Tensor) -> Tensor:
        """Return the loss."""
        return self.loss.finish(total)


def _described(batch: Batch) -> str:
    sides: Any = (len(batch.images), *batch.sizes)
    return f"{'×'.join(map(str, sides))} voxels (the first counts volumes)"
