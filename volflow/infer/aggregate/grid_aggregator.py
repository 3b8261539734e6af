"""Outputs of one's own loop over the patches of a grid become volumes, larger than memory too."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt
import torch

from volflow.engine.cluster import DEFAULT_SHARE, free_memory_bytes
from volflow.errors import InvalidInput
from volflow.geometry.budget import parse_bytes
from volflow.geometry.grid import PatchGrid
from volflow.geometry.windows import WeightMap, check_blend, refuse_coarser
from volflow.infer.aggregate.batch import (
    Kind,
    check_finite,
    coarser,
    corner_of,
    kind_of,
    named_tensors,
    places_of,
)
from volflow.infer.aggregate.case import CaseBlend, CasePlace
from volflow.infer.aggregate.from_stream import as_stored, grids_of, metas_of, targets_of
from volflow.infer.aggregate.scratch import PendingPatches, Scratch
from volflow.infer.merge import merge_options
from volflow.infer.predict_options import PredictOptions, blend_of
from volflow.infer.request import check_classes
from volflow.model.copies import Copies
from volflow.model.spec import Spec
from volflow.sampling.stream import PatchStream
from volflow.store.layout import resolve_layout
from volflow.volumes.arrays.inputs import VolumeLike
from volflow.volumes.framed import on_scale

__all__ = ["Aggregated", "GridAggregator"]

NAMED = 3  # cases with missing patches that a message names

CLOSED, BROKEN = "it is closed", "an error ended it"


class Aggregated(dict[str, Any]):
    """Volumes by the name of their case; of several outputs those of a case by their names.

    Attributes
    ----------
    coverage
        Share of the voxels that patches covered, of every case of the stream; the others are 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.coverage: dict[str, float] = {}


class GridAggregator:
    """Blend the outputs of one's own loop over a grid of patches into volumes.

    The result is the same to the last bit in whatever order patches come: they are summed in the
    order of the grid. Rows that no later patch reaches are written as whole shards at once; a
    case whose last patch has come is finished at once, under its name and with a journal that
    `verify` reads. Until then there is nothing at its place.

    Parameters
    ----------
    out
        Path of the OME-Zarr results; ``{case}`` stands for the name of the case.
    stream
        The ``PatchStream`` over a ``GridSampler`` from which the batches come. Of one in a frame
        results lie along the stored axes all the same, as those of `predict`.
    blend, sigma_scale
        ``"gaussian"``, ``"hann"``, ``"average"``, ``"crop"`` or one's own weights of a patch, and
        how wide the gaussian is, as in `predict`.
    activation
        Applied after blending: ``"softmax"``, ``"sigmoid"``, a function of a ``CZYX`` tensor.
    output
        ``"scores"``: ``czyx``; ``"classes"``: the argmax, ``zyx``, as in `predict`.
    dtype
        What is stored: by default uint8 for classes; for scores float32, or float64 where outputs
        are float64 or integers of more than 16 bits, and with ``"crop"`` and no activation
        integers and bool stay what they are. Integers asked for round and clip.
    chunk, shard
        Layout of the results; by default about 64³ and 256³ voxels.
    like
        A volume on the grid of the case whose spacing, unit, orientation and origin the result
        takes, or one for each by the name of its case. By default they are those of the case's
        arrays; a case that holds none but what Dask computes knows nothing of its grid, and its
        result is not exported to NIfTI.
    memory
        For open rows, rows that wait for their shards and patches that wait for their turn, like
        ``"2GiB"``; by default a share of what is free. What is more lies in files without a name
        beside the output.
    overwrite
        Replace outputs that are there, each when the new one is whole.

    Raises
    ------
    InvalidInput
        Where the stream is none over a grid or its patches go to several processes, a name does
        not do for a path, an output exists, or an option is unknown.

    Notes
    -----
    Memory above the budget: a few rows at a time while they are finished, and the compression of
    a shard. Half precision is summed in float32. As a context manager it closes at the end, and
    after an error it deletes what is not finished.

    Examples
    --------
    >>> import tempfile, numpy as np, volflow as vf
    >>> scan = np.random.default_rng(0).random((20, 30, 40), "float32")
    >>> stream = vf.PatchStream(scan, vf.GridSampler(16, overlap=0.25))
    >>> net = torch.nn.Identity()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with GridAggregator(folder + "/{case}.zarr", stream, blend="hann") as aggregator:
    ...         for batch in stream.loader(batch_size=4):
    ...             aggregator.add_batch(net(batch["image"]), batch)
    ...     (result,) = aggregator.close().values()
    ...     bool(np.allclose(result[0], scan)), result.axes
    (True, ('c', 'z', 'y', 'x'))
    """

    def __init__(  # noqa: PLR0913 - a public journey takes flat options
        self,
        out: str | os.PathLike[str],
        stream: PatchStream,
        blend: str | npt.ArrayLike = "gaussian",
        *,
        sigma_scale: float | None = None,
        activation: str | Callable[[Any], Any] | None = None,
        output: str = "scores",
        dtype: str | None = None,
        chunk: int | tuple[int, int, int] | None = None,
        shard: int | tuple[int, int, int] | None = None,
        like: VolumeLike | Mapping[str, VolumeLike] | None = None,
        memory: str | int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.grids = grids_of(stream)
        stored = [as_stored(case) for case in stream.cases]
        cases = [case for case, _ in stored]
        self.frames = {case.name: frame for case, frame in stored}
        self.metas = metas_of(cases, like)
        weighted = blend_of(blend)
        if weighted == "exact":
            raise InvalidInput(
                "blend 'exact' is a property of the whole network, not of outputs of patches; use"
                " crop, average, gaussian or hann"
            )
        if isinstance(weighted, WeightMap):
            weighted = weighted.fitted(next(iter(self.grids.values())).patch)
        else:
            check_blend(weighted)
        given = PredictOptions(
            patch=1, overlap=0, blend=weighted, sigma_scale=sigma_scale, activation=activation,
            output=output, dtype=dtype, chunk=chunk, shard=shard, overwrite=overwrite,
        )  # fmt: skip
        self.options = merge_options(given, Spec())
        for case in cases:
            spacing = self.metas[case.name].spacing
            resolve_layout(tuple(case.shape)[-3:], spacing, "float32", chunk, shard)
        self.targets = targets_of(os.fspath(out), cases, overwrite=overwrite)
        budget = int(free_memory_bytes() * DEFAULT_SHARE) if memory is None else parse_bytes(memory)
        folder = next(iter(self.targets.values())).parent
        self.scratch = Scratch(folder, budget)
        self.pending = PendingPatches(self.scratch)
        self.kind: Kind | None = None
        self.coarser: dict[str, PatchGrid] = {}  # in voxels of the outputs
        self.open: dict[str, CaseBlend] = {}
        self.results = Aggregated()
        self.ended = ""  # why no more patches are taken

    def add_batch(
        self,
        outputs: torch.Tensor | Mapping[str, torch.Tensor] | Sequence[torch.Tensor],
        batch: Mapping[str, Any],
    ) -> None:
        """Add the outputs of a batch; of any case, in any order.

        Parameters
        ----------
        outputs
            ``(B, C, *patch)`` on any device; as many channels, and the same dtype, every time. Of
            slices also ``(B, C, y, x)``, as networks of slices give them. A dict or tuple of such
            tensors is stored as `predict` stores it, by name; coarser outputs, whose sides divide
            the patch's, where patches begin at multiples of that; the last patches of an axis lie
            inside the volume, where those of `predict` reach beyond it.
        batch
            As the stream's loader gave it: its ``"location"`` and ``"case"`` are used.

        Raises
        ------
        InvalidInput
            Where outputs and batch do not fit each other, the stream, or what came before, or
            where outputs are not finite. Nothing of the batch is added then.
        StoreFull
            Where no space is left. What is not finished is deleted then.
        """
        self._check_open()
        places = places_of(batch, self.grids)
        self._check_new(places)
        patch = next(iter(self.grids.values())).patch
        named = named_tensors(outputs, patch)
        kind = kind_of(named, len(places), patch, self.kind)
        check_classes(self.options, kind.outputs)
        refuse_coarser(self.options.blending, kind.scale)
        grids = self.coarser or {
            name: coarser(grid, kind.scale) for name, grid in self.grids.items()
        }
        parts = [one.detach() for one in named.values()]
        there = Copies(parts[0].device).download(parts).arrived()
        scores = torch.cat([one.to(kind.computed) for one in there], dim=1)
        check_finite(scores, places, self.grids)
        self.kind, self.coarser = kind, grids
        try:
            for (name, number), one in zip(places, scores, strict=True):
                case = self._case(name, kind)
                case.add(number, one)
                if case.complete:
                    self._finish(case)
        except BaseException:
            self._discard(BROKEN)
            raise

    def close(self, *, partial: bool = False) -> Aggregated:
        """Finish all cases; a second call returns the same.

        Parameters
        ----------
        partial
            Whether patches may be missing. Voxels that no patch covered are 0 then, and a case
            of which no patch came has no volume.

        Returns
        -------
        Aggregated
            The volumes by case, and the coverage of each.

        Raises
        ------
        InvalidInput
            Where patches are missing; they can still be added.
        """
        if self.ended == CLOSED:
            return self.results
        self._check_open()
        missing = self._missing()
        if missing and not partial:
            raise InvalidInput(
                f"{'; '.join(missing[:NAMED])}"
                + (f"; and {len(missing) - NAMED} more cases" if len(missing) > NAMED else "")
                + "; add them, or keep what there is with close(partial=True)"
            )
        try:
            for case in list(self.open.values()):
                self._finish(case)
        except BaseException:
            self._discard(BROKEN)
            raise
        for name in self.metas:
            self.results.coverage.setdefault(name, 0.0)
        self._discard(CLOSED)
        return self.results

    def __enter__(self) -> GridAggregator:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if not self.ended:
                self._discard(BROKEN)

    def _case(self, name: str, kind: Kind) -> CaseBlend:
        """Return the open case of that name, opened if its first patch has come."""
        if name not in self.open:
            grid, frame = self.coarser[name], self.frames[name]
            meta = on_scale(self.metas[name], frame, self.grids[name].shape, kind.scale)
            place = CasePlace(self.targets[name], frame, meta)
            self.open[name] = CaseBlend(name, grid, place, self.options, kind, self.pending)
        return self.open[name]

    def _finish(self, case: CaseBlend) -> None:
        self.results[case.name] = case.finish()
        self.results.coverage[case.name] = case.coverage
        del self.open[case.name]

    def _discard(self, why: str) -> None:
        self.ended = why
        for case in self.open.values():
            case.discard()
        self.open.clear()
        self.pending.close()

    def _check_open(self) -> None:
        if self.ended:
            raise InvalidInput(
                f"this aggregator takes no more patches: {self.ended}; make a new one"
            )

    def _check_new(self, places: list[tuple[str, int]]) -> None:
        for n, (name, number) in enumerate(places):
            case = self.open.get(name)
            came = name in self.results if case is None else case.has(number)
            if came or (name, number) in places[:n]:
                raise InvalidInput(
                    f"case {name!r}: the patch at {corner_of(self.grids[name], number)} was added"
                    " before; add each patch of the grid once"
                )

    def _missing(self) -> list[str]:
        """Return a line for each case that lacks patches."""
        lines = []
        for name, grid in self.grids.items():
            first = self.open[name].next if name in self.open else 0
            early = len(self.pending.numbers(name)) if name in self.open else 0
            count = 0 if name in self.results else len(grid) - first - early
            if count:
                were = "patch was" if len(grid) == 1 else "patches were"
                lines.append(
                    f'case "{name}": {count} of {len(grid)} {were} never added, first at'
                    f" {corner_of(grid, first)}"
                )
        return lines
