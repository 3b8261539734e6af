"""The plane of a region that a picture shows, from the network's axes to those stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from volflow.geometry.frame import Frame
from volflow.geometry.grid import PatchGrid, stride_of
from volflow.geometry.roi import Roi
from volflow.geometry.views import views
from volflow.infer.exact.plan import dropped_axis
from volflow.infer.request import Request
from volflow.infer.seams.certificate import Plane
from volflow.infer.seams.whole import Whole, finishes
from volflow.store.volume import Volume

__all__ = ["Place"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Place:
    """One region, run whole.

    Parameters
    ----------
    request
        The volume and the network.
    number, box
        Of the region; in frame coordinates.
    image
        What the network saw, ``CZYX``.
    whole
        What it made of it.
    """

    request: Request
    number: int
    box: Roi
    image: Array
    whole: Whole

    @property
    def frame(self) -> Frame:
        """Of the network."""
        return self.request.inputs.frame

    @cached_property
    def normal(self) -> int:
        """The frame's axis across the plane that is shown: slices as people look at them."""
        dropped = dropped_axis(self.request)
        if dropped is not None:
            return dropped
        planes = views(self.request.inputs.specs[0].meta.orientation)
        stored = self.frame.restore(self.box.shape)
        shown = next((view for view in planes if view.is_area(stored)), planes[0])
        return self.frame.axes.index(shown.normal)

    def grid(self, overlap: Any) -> PatchGrid:
        """The patches of the region at an overlap."""
        sides, scale = self.request.options.sides, self.whole.scale
        stride = stride_of(sides, overlap, scale)
        return PatchGrid(self.box.shape, sides, stride, tuple(s > 1 for s in scale))

    def telling(self, along: Array, overlaps: Sequence[Any]) -> int:
        """The index of the output that is shown: where most differs, but in no seam itself.

        In a slice between two layers of patches everything differs, and no border is to be seen.

        Parameters
        ----------
        along
            How much differs, along the normal axis.
        overlaps
            Of the blends.
        """
        scale, patch = self.whole.scale[self.normal], self.request.options.sides[self.normal]
        middles = (np.arange(len(along)) + 0.5) * scale
        edges = [e for overlap in overlaps for e in self._edges(overlap, self.normal)]
        away = np.min([np.abs(middles - e) for e in edges] or [np.full(len(along), np.inf)], axis=0)
        clear = away >= min(patch // 8, away.max())
        return int(np.argmax(np.where(clear, along, -1)))

    def plane(
        self, at: int, results: Sequence[Mapping[str, Volume]], overlaps: Sequence[Any]
    ) -> Plane:
        """The plane at an index of the network's output.

        Parameters
        ----------
        at
            Along the normal axis.
        results, overlaps
            Of the blends.
        """
        normal, scale = self.normal, self.whole.scale[self.normal]
        scores, classes = finishes(self.request, self.image.dtype.name)
        mine = {name: np.take(s, [at], 1 + normal) for name, s in self.whole.scores.items()}
        first = next(iter(mine.values()))
        activated = {name: scores(value.copy()) for name, value in mine.items()}
        thin = _across(Roi.full(next(iter(self.whole.scores.values())).shape[1:]), normal, at)
        differences = []
        for result in results:
            away = np.zeros(thin.shape)
            for name, value in activated.items():
                distance = np.abs(value - scores(result[name].read(thin)))
                np.maximum(away, distance.max(axis=0), out=away)
            differences.append(self._flat(away))
        index = min(self.box.shape[normal] - 1, at * scale + scale // 2)
        inside = _across(self.box, normal, self.box.start[normal] + index)
        stored = self.frame.stored_roi(inside, self.request.inputs.specs[0].spatial_shape)
        axis = self.frame.axes[normal]
        one = activated[next(iter(activated))][0]
        return Plane(
            region=self.number,
            axis=axis,
            index=stored.start[axis],
            image=self._flat(np.take(self.image[0], [index], normal)),
            whole=self._flat(classes(first.copy()) if len(first) > 1 else one),
            differences=tuple(differences),
            borders=tuple(self._borders(overlap) for overlap in overlaps),
        )

    def _flat(self, values: Array) -> Array:
        """A box of one plane, ``ZYX`` in frame order, as a plane of stored axes."""
        return np.squeeze(self.frame.store(values), self.frame.axes[self.normal]).copy()

    def _borders(self, overlap: Any) -> tuple[tuple[int, ...], ...]:
        """Where patches begin and end inside the region, along its stored axes."""
        found = []
        for axis, (n, flip) in enumerate(zip(self.box.shape, self.frame.flips, strict=True)):
            edges = self._edges(overlap, axis)
            found.append(tuple(sorted(n - e if flip else e for e in edges)))
        return self.frame.restore(found)

    def _edges(self, overlap: Any, axis: int) -> set[int]:
        """The same along an axis of the frame; none across slices that are seen one by one."""
        if axis == dropped_axis(self.request):
            return set()
        grid = self.grid(overlap)
        ends = {int(e) for s in grid.starts[axis] for e in (s, s + grid.patch[axis])}
        return {e for e in ends if 0 < e < grid.shape[axis]}


def _across(box: Roi, axis: int, index: int) -> Roi:
    """One plane of a box."""
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = index, index + 1
    return Roi(tuple(start), tuple(stop))
