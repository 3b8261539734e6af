"""A label map and its truth as one pair on one grid, and boxes of their classes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.engine.cluster import connect, memory_per_worker
from volflow.engine.run_options import RunOptions
from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.roi import Roi
from volflow.geometry.units import units_in
from volflow.store.formats.sources import ArraySource
from volflow.store.formats.taken.labels import NotHeld, whole_numbers
from volflow.store.formats.taken.one_channel import one_channel
from volflow.store.meta import Meta, Vector
from volflow.store.slabs import Array, Source
from volflow.store.volume import described
from volflow.volumes.arrays.grids import difference_of_grids, shared_grid
from volflow.volumes.arrays.inputs import VolumeLike, open_input
from volflow.volumes.arrays.turned import TurnedSource
from volflow.volumes.unpacking import Unpacking

__all__ = ["LabelPair", "open_pair", "readable"]

HELD_BYTES = 2**26  # of a file that is packed as a whole: a larger one is unpacked to a disk
SLAB_BYTES = 2**23
REMEDY = 'bring it onto the truth\'s grid: vf.resample(pred, "resampled.zarr", like=truth, order=0)'


@dataclass(frozen=True)
class LabelPair:
    """Two label maps on one grid, read box by box.

    Parameters
    ----------
    pred, truth
        Sources ``zyx`` of one shape.
    names
        What messages call them.
    """

    pred: Source
    truth: Source
    names: tuple[str, str] = ("pred", "truth")

    @property
    def sources(self) -> tuple[Source, Source]:
        """The two, in this order everywhere."""
        return self.pred, self.truth

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        z, y, x = self.truth.shape
        return z, y, x

    @property
    def meta(self) -> Meta:
        """The grid: the truth's; what it does not know is pred's."""
        return shared_grid([described(self.truth), described(self.pred)])

    @property
    def spacing(self) -> Vector:
        """Voxel size along z, y, x."""
        return self.meta.spacing

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes from 0 on, as the truth has them, else pred; often none."""
        metas = (source.meta for source in (self.truth, self.pred))
        return next((m.channels for m in metas if m.kind == "classes" and m.channels), ())

    def carried(self, sources: Sequence[Source]) -> LabelPair:
        """Return the pair with its sources as tasks carry them."""
        return replace(self, pred=sources[0], truth=sources[1])

    def read(self, which: int, roi: Roi) -> Array:
        """Return the classes in a box of pred (0) or the truth (1), as whole numbers.

        Raises
        ------
        InvalidInput
            Where a voxel is not a whole number, naming it.
        """
        voxels = self.sources[which].read(roi)
        if voxels.dtype.kind == "b":
            return voxels.view(np.uint8)
        if voxels.dtype.kind != "f":
            return voxels
        try:
            return whole_numbers(voxels, np.dtype(f"i{max(4, voxels.dtype.itemsize)}"), roi.start)
        except NotHeld as error:
            voxel = str(error).partition(", and a label map")[0]
            raise InvalidInput(
                f"{self.names[which]}: {voxel}, and classes are whole numbers; give a label map:"
                " scores become classes by a threshold or argmax, and what was interpolated is"
                " resampled with order=0"
            ) from error


def open_pair(pred: VolumeLike | Source, truth: VolumeLike | Source) -> LabelPair:
    """Open two label maps; pred is turned into the orientation of the truth if need be.

    Raises
    ------
    InvalidInput
        Where one cannot be opened or holds several channels, or they lie on different grids.

    Examples
    --------
    >>> open_pair(np.zeros((4, 5, 6), "uint8"), np.zeros((4, 5, 7), "uint8"))
    Traceback (most recent call last):
    volflow.errors.InvalidInput: pred and truth lie on different grids: pred has shape (4, 5, 6),
    truth (4, 5, 7); bring it onto the truth's grid: vf.resample(pred, "resampled.zarr", like=truth,
    order=0)
    """
    one, other = (_opened(x, name) for x, name in ((pred, "pred"), (truth, "truth")))
    frame = _frame(one, other)
    if frame is not None:
        one = TurnedSource(one, frame, str(other.meta.orientation))
    pair = LabelPair(one, other, (_name(one, "pred"), _name(other, "truth")))
    grids = {"pred": (one.shape, one.meta), "truth": (other.shape, other.meta)}
    differing = difference_of_grids(grids)
    if differing is not None:
        what, first, value, name, second = differing
        raise InvalidInput(
            f"{' and '.join(pair.names)} lie on different grids: {first} has {what} {value},"
            f" {name} {second}; {REMEDY}"
        )
    _refuse_elsewhere(pair, frame)
    return pair


def _name(source: Source, otherwise: str) -> str:
    return Path(source.path).name if source.path else otherwise


def _opened(x: Any, name: str) -> Source:
    source = open_input(x)
    if source.ndim == 4 and source.channels_count == 1:
        source = one_channel(source, 0)
    if source.ndim != 3:
        raise InvalidInput(
            f"{_name(source, name)} has {source.channels_count} channels, and classes are one"
            ' number per voxel; store scores as classes (output="classes"), or choose a channel:'
            " vf.open(path)[0] > 0.5"
        )
    return source


def _frame(pred: Source, truth: Source) -> Frame | None:
    """Return the frame that turns pred to the truth; None where nothing is to be turned."""
    here, there = pred.meta.orientation, truth.meta.orientation
    if here is None or there is None or here == there:
        return None
    return Frame.between(here, there)


def _refuse_elsewhere(pair: LabelPair, frame: Frame | None) -> None:
    """Refuse two boxes whose corners are known to lie apart by half a voxel along an axis."""
    stored = pair.pred.source if isinstance(pair.pred, TurnedSource) else pair.pred
    if stored.meta.affine is None or pair.truth.meta.affine is None:
        return
    frame = Frame() if frame is None else frame
    last = np.asarray(pair.shape) - 1
    corners = np.stack(np.meshgrid(*([0, 1] for _ in range(3)), indexing="ij"), -1).reshape(-1, 3)
    flipped = np.where(frame.flips, 1 - corners, corners) * last
    turned = np.stack([flipped[:, frame.axes.index(axis)] for axis in range(3)], axis=1)
    ratio = units_in(stored.meta.unit, pair.truth.meta.unit) or 1.0
    apart = ratio * _world(stored.meta, turned) - _world(pair.truth.meta, corners * last)
    far = float(np.sqrt(np.square(apart).sum(axis=1)).max())
    matrix = np.asarray(pair.truth.meta.affine)[:3, :3]
    if np.abs(np.linalg.solve(matrix, apart.T)).max() > 0.5:  # of slices, thin or thick
        raise InvalidInput(
            f"{' and '.join(pair.names)} lie on different grids: corners of one are up to"
            f" {far:.6g} {pair.truth.meta.unit or 'voxels'} from the other's; {REMEDY}, or, where"
            " a header is wrong, compare the voxels alone: vf.evaluate(vf.open(pred)[:], truth)"
        )


def _world(meta: Meta, voxels: Array) -> Array:
    """Return world coordinates of voxels (n, 3) along z, y, x."""
    matrix = np.asarray(meta.affine)
    found: Array = voxels[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
    return found


@contextmanager
def readable(sources: Sequence[Source], options: RunOptions) -> Iterator[list[Source]]:
    """Yield sources of which any box can be read.

    A file that is packed as a whole is held in memory if it is small, else unpacked for the time
    being into the folder of temporary files (``TMPDIR``).
    """
    if not any(source.sequential for source in sources):
        yield list(sources)
        return
    with tempfile.TemporaryDirectory(prefix="volflow-") as folder:
        yield [
            _unpacked(source, Path(folder) / f"{number}.raw", options)
            for number, source in enumerate(sources)
        ]


def _unpacked(source: Source, place: Path, options: RunOptions) -> Source:
    if not source.sequential:
        return source
    if isinstance(source, TurnedSource):
        return replace(source, source=_unpacked(source.source, place, options))
    if np.prod(source.shape, dtype=object) * source.dtype.itemsize <= HELD_BYTES:
        array = np.empty(source.shape, source.dtype)
        plane = source.shape[-1] * source.shape[-2] * source.dtype.itemsize
        for roi, voxels in source.slabs(max(1, SLAB_BYTES // plane)):
            array[roi.slices()] = voxels
        return ArraySource(array, described(source))
    unpacking = Unpacking(source, place)
    with connect(options.cluster, **options.connection) as client:
        memory_bytes = memory_per_worker(client, options.memory)
        unpacking.perform(client, memory_bytes, options.progress)
    return unpacking.source
