"""Convert files and NumPy arrays to sharded OME-Zarr volumes, without holding them whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from volflow.engine.cluster import Cluster, connect, memory_per_worker
from volflow.engine.clusters.sight import check_sight
from volflow.engine.plan import Plan
from volflow.engine.progress import Progress, announce
from volflow.errors import InvalidInput
from volflow.option import called_like, from_keywords, journey
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.sources import ArraySource, open_source
from volflow.store.formats.taken.adjusted import on_spacing, stored_as
from volflow.store.formats.taken.labels import NotHeld, taken_as
from volflow.store.formats.taken.one_channel import one_channel
from volflow.store.journal.journal import Record, journal_of
from volflow.store.journal.outputs import check_apart
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.computed import DaskSource
from volflow.volumes.arrays.inputs import VolumeLike, open_input
from volflow.volumes.copy_layout import (
    Copy,
    adopted,
    in_strips,
    lay_out,
    unpacked_first,
    unpacked_if_dear,
)
from volflow.volumes.copying import make_plan, make_record, resumes, run_copy
from volflow.volumes.kind import set_kind
from volflow.volumes.origin import Origin, origin_of, trusted
from volflow.volumes.volume_options import ConvertOptions, WriteOptions
from volflow.volumes.write import write_source

__all__ = ["convert", "plan_convert"]


@dataclass(frozen=True)
class Import:
    """A source, its destination, and why an unfinished copy of it starts over, if it does."""

    source: Any
    out: str | os.PathLike[str]
    options: ConvertOptions
    origin: Origin | None
    anew: str

    @classmethod
    def of(cls, source: Any, out: Any, options: ConvertOptions) -> Import:
        """Look at the source, then at what was started at the destination."""
        check_apart(out, source)
        choice = replace(ImageChoice.among(options), channel=None)
        journal, origin = journal_of(out), origin_of(open_source(source, choice))
        origin = trusted(origin, journal) if options.resume else origin
        anew = "" if options.overwrite or origin is None else origin.begins_anew(journal)
        options = replace(options, overwrite=options.overwrite or bool(anew))
        return cls(source, out, options, origin, anew)

    def copy(self, memory_bytes: int) -> Copy:
        """Return the copy; the source is opened after its state was noted."""
        options, out = self.options, os.fspath(self.out)
        opened = taken_as(one_channel(self.open(), options.channel), options.labels)
        opened = on_spacing(stored_as(opened, options.dtype), options.spacing, options.unit)
        layout = adopted(out, options.chunk, options.shard, overwrite=options.overwrite)
        copy = lay_out(opened, out, *layout, memory_bytes)
        copy = in_strips(unpacked_first(copy, layout, anew=options.overwrite))
        copy = unpacked_if_dear(copy, layout)
        named = isinstance(self.source, str | os.PathLike)
        name = os.fspath(self.source) if named else type(self.source).__name__
        what = f"{name}: {tuple(opened.shape)} {np.dtype(opened.dtype)}"
        return replace(copy, what=what, origin=self.origin)

    def open(self) -> Source:
        """Open the image that was chosen, with all its channels."""
        return open_source(self.source, replace(ImageChoice.among(self.options), channel=None))

    def record(self, copy: Copy) -> Record:
        """Return the record of the copy: the state of its source, and what is made of it."""
        options = self.options
        plain = self.open() if self.origin is None else self.origin.source
        state = plain.identity() if self.origin is None else self.origin.identity
        asked = {**vars(ImageChoice.among(options)), "spacing": options.spacing}
        asked |= {"unit": options.unit, "dtype": options.dtype and str(np.dtype(options.dtype))}
        made = {name: value for name, value in asked.items() if value is not None}
        # Other voxels than those of the file; what merely counts as labels can be changed later.
        if options.dtype is None and copy.spec.dtype != plain.dtype:
            made["labels"] = True
        return make_record(state, copy, **made)


@journey
def convert(  # noqa: PLR0913 - a public journey takes flat options
    source: VolumeLike | Source,
    out: str | os.PathLike[str],
    *,
    chunk: int | Sequence[int] | None = None,
    shard: int | Sequence[int] | None = None,
    spacing: float | Sequence[float] | None = None,
    unit: str | None = None,
    dtype: str | None = None,
    channel: str | int | None = None,
    timepoint: int | None = None,
    level: int | None = None,
    series: str | int | None = None,
    dataset: str | None = None,
    labels: bool | None = None,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = None,
) -> Volume:
    """Convert a file or array to a sharded OME-Zarr 0.5 volume, without holding it whole.

    Parameters
    ----------
    source
        ``.npy``, ``.nii``, ``.nii.gz``, a Zarr v2 or v3 array or OME-Zarr image, or any other
        `VolumeLike`; what Dask computes goes to `write`.
    out
        Path of the volume, or its URL on an object store (``s3://``, ``gs://``, ``az://``); level 0
        is array ``"0"`` in it.
    chunk, shard
        Voxels per axis; by default about 64³ and 256³, thinner along thick slices.
    spacing, unit
        Voxel size along z, y, x, or one for all, and its unit (``"mm"``, ``"um"``, …), where the
        source does not say them, or says them wrong.
    dtype
        What to store, such as ``"uint16"``, by default what the source holds. Floats are rounded
        to integers; a voxel that it does not hold is refused, never clipped.
    channel
        Number or name of the one channel to take; by default all of them.
    timepoint, level, series, dataset
        Which image of a source that holds several: a timepoint, a level of a pyramid (0 is the
        finest), a DICOM series or an image of a TIFF file by number, name or UID, the path of a
        dataset in HDF5 or N5. The last two may stand in the path, too: ``"cells.h5::volumes/raw"``.
    labels
        True for a label map: each voxel is the number of a class, so that levels take the
        commonest, pictures colour it and `compare` counts it. Floats must be whole numbers and are
        stored as integers. False for an image. By default what the source says: a NIfTI file by
        its intent (1002, which `export` writes), OME-Zarr by ``image-label``. Given for a volume
        that is converted already, it changes what that is taken for, as `set_kind` does.
    cluster, workers, resources, wait, memory, progress
        As in `predict`. A ``.nii.gz`` is one forward pass in one task.
    overwrite
        Replace a volume that is there. Without it, an interrupted conversion is resumed, or starts
        over where its source has changed since, such as a file that was still being uploaded.
    resume
        As in `write`, for what Dask computes, and for volumes behind plain HTTP.

    Returns
    -------
    Volume
        The converted volume, with the spacing, unit and orientation of its source.

    Raises
    ------
    InvalidInput
        For a source that cannot be read, is damaged or cut short, for a layout that does not fit,
        an output that exists, or a voxel that ``dtype`` or a label map does not hold. No part of
        the volume is then left; where only a piece of a source is found damaged, such as a
        chunk, an unfinished one is, which is refused wherever it is opened.
    SourceChanged
        Where the source is changed while it is read.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     volume = convert(np.zeros((8, 9, 10), "uint8"), f"{folder}/a.zarr", progress=False)
    ...     volume.shape
    (8, 9, 10)
    """
    options = from_keywords(ConvertOptions, locals())
    if isinstance(source, str | os.PathLike):
        return _copied(os.fspath(source), out, options)
    opened = open_input(source)
    if isinstance(opened, DaskSource):
        computed = _computed_as(opened, options)
        volume = write_source(computed, out, from_keywords(WriteOptions, vars(options)))
        return volume if labels is None else set_kind(volume, computed.meta.kind)
    return _copied(opened, out, options)


@called_like(convert)
def plan_convert(source: Any, out: str | os.PathLike[str], **options: Any) -> Plan:
    """Return the plan of `convert` with its projected memory; nothing is written.

    Parameters
    ----------
    source, out, chunk, …
        As in `convert`.

    Returns
    -------
    Plan
        `describe()` prints it, `to_dict()` gives it as plain values.
    """
    asked = Import.of(source, out, from_keywords(ConvertOptions, options))
    with connect(asked.options.cluster, **asked.options.connection) as client:
        memory_bytes = memory_per_worker(client, asked.options.memory)
    copy = asked.copy(memory_bytes)
    resuming = resumes(out, overwrite=asked.options.overwrite)
    done = frozenset(journal_of(out).done() if resuming else ())
    plan = make_plan(copy, None, done)
    plan.require_memory(copy.remedy())
    return replace(plan, facts=(*plan.facts, ("anew", asked.anew))) if asked.anew else plan


def _copied(given: Any, out: str | os.PathLike[str], options: ConvertOptions) -> Volume:
    """Copy a file, a stored volume or an array in memory."""
    asked, labels = Import.of(given, out, options), options.labels
    # What lies in this process's memory is not sent to another.
    here = isinstance(given, ArraySource | Volume) and given.path is None
    if asked.anew:
        announce(f"convert: {asked.anew}", options.progress)
    cluster = "threads" if here else options.cluster
    with connect(cluster, **options.connection) as client:
        check_sight(client, out, given)
        copy = asked.copy(memory_per_worker(client, options.memory))
        try:
            volume = run_copy(copy, asked.record(copy), client, asked.options)
        except NotHeld as error:
            name = given if isinstance(given, str) else "the array"
            raise InvalidInput(f"{name}: {error}") from error
    kind = copy.spec.meta.kind
    return volume if labels is None or volume.meta.kind == kind else set_kind(volume, kind)


def _computed_as(source: DaskSource, options: ConvertOptions) -> DaskSource:
    """Return a computed source as a label map or as an image."""
    ImageChoice.among(options).refuse_but((), "the array", "computed by Dask")
    if options.channel is not None or options.dtype is not None:
        given = "channel" if options.dtype is None else "dtype"
        remedy = "array[0]" if options.dtype is None else 'array.astype("uint16")'
        raise InvalidInput(
            f"{given}= is for what is stored, and the array is computed by Dask; give {remedy} or"
            " the like, and leave it out"
        )
    labels = options.labels
    if labels is None:
        return source
    if labels and source.dtype.kind == "f":
        raise InvalidInput(
            f"a label map holds whole numbers, and the array {source.dtype}; give"
            ' array.astype("int32")'
        )
    return replace(source, meta=replace(source.meta, kind="classes" if labels else "image"))
