"""Resample a volume of any size: to another voxel size, or onto the grid of another volume."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed import Client

from volflow.engine.cluster import Cluster, connect, memory_per_worker
from volflow.engine.clusters.sight import check_sight
from volflow.engine.plan import Plan
from volflow.engine.progress import Progress, announce
from volflow.errors import InvalidInput
from volflow.option import called_like, from_keywords, journey
from volflow.store.journal.journal import Journal, Record, journal_of
from volflow.store.journal.outputs import discard_wholly
from volflow.store.remote.address import Location, is_stored
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.inputs import VolumeLike
from volflow.volumes.convert import convert
from volflow.volumes.copying import make_plan, resumes, run_copy
from volflow.volumes.export import MOVE, refuse_taken, write_file
from volflow.volumes.fold import in_memory
from volflow.volumes.origin import origin_of
from volflow.volumes.pyramid.pyramid import pyramid
from volflow.volumes.resample.lazily import resampled_lazily
from volflow.volumes.resample.resample_layout import lay_out_on, made_of
from volflow.volumes.resample.resample_options import ResampleOptions
from volflow.volumes.resample.resample_request import ResampleRequest
from volflow.volumes.resample.resampled_source import ResampledSource

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["plan_resample", "resample"]


@journey
def resample(  # noqa: PLR0913 - a public journey takes flat options
    volume: VolumeLike,
    out: str | os.PathLike[str] | None = None,
    *,
    spacing: float | str | Sequence[float | str] | None = None,
    like: VolumeLike | None = None,
    order: int | str | Sequence[int] = 1,
    antialias: bool = False,
    fill: float | None = None,
    dtype: str | None = None,
    labels: bool | None = None,
    levels: bool = False,
    chunk: int | Sequence[int] | None = None,
    shard: int | Sequence[int] | None = None,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> Volume | da.Array:
    """Resample a volume to another voxel size, or onto the grid of another volume.

    The result equals that of the whole volume at once, to the bit, however it is cut into blocks.
    An interrupted run is resumed by the same call.

    Parameters
    ----------
    volume
        Any `VolumeLike`, ``zyx`` or ``czyx``. What cannot be read by parts, such as a ``.nii.gz``,
        is converted beside the output first; that copy goes when the result is complete.
    out
        Path of the OME-Zarr result, or its URL, as in `convert`; or a file, such as ``ct.nii.gz``,
        as in `predict`. None: nothing is stored, and a Dask array is returned, one task per block.
    spacing
        Voxel size along z, y, x, or one for all, in the volume's unit or with its own, such as
        ``"0.5mm"``. The field of view stays: an axis of n voxels of size s gets
        ``max(1, round(n * s / t))`` of size t, whose outer edge at the low side is that of the
        volume, so that the first centre, and with it translation and affine, moves by (t - s) / 2.
    like
        A `VolumeLike` on whose grid the voxels shall lie: its shape, spacing, orientation and
        affine, of which axes may be swapped and reversed against the volume's. It is not read. One
        whose axes are oblique to the volume's is refused.
    order
        0: the nearest voxel, of two the upper one along the result; 1: linear; 3: cubic B-spline
        (its prefilter ends after 13 voxels, 22 where float64 is computed); one each for z, y, x of
        the result; or ``"nnunet"``: 3, but 0 through slices thicker than three times the smallest
        side of a voxel, of the volume or else of the result. Beyond the outermost centres the value
        is that at the outermost centre; the spline takes the volume as mirrored there. Of classes 1
        means the likeliest: the largest of linearly interpolated one-hot values, the smaller class
        of two; ``"nnunet"`` has it in the place of 3. NaN makes NaN of the values that it is part
        of, with a spline also those within the reach of its prefilter.
    antialias
        Whether a Gaussian of sigma ``(t / s - 1) / 2`` voxels smooths along axes whose voxels
        become larger, as in ``skimage.transform.resize``.
    fill
        With ``like``, the value of voxels whose centre lies beyond the volume's outer edges: 0.
    dtype
        What is stored, such as ``"float32"``; by default the volume's own. Integers are rounded
        half to even and clipped. The spline is computed in float32, or in float64 where that cannot
        hold the voxels (32-bit integers, float64).
    labels
        As in `convert`: whether the volume is a label map, of which no value is mixed.
    levels
        Whether to write coarser levels of the result as well, as `pyramid` does.
    chunk, shard
        Layout of the result, or the blocks of the Dask array; by default about 64³ and 256³ voxels.
    cluster, workers, resources, wait, memory, overwrite, progress
        As in `predict`.

    Returns
    -------
    Volume or dask.array.Array
        The result, with the channels and classes of the volume; without ``out`` its voxels.

    Raises
    ------
    InvalidInput
        Before any work: for a volume whose voxel size is not known, grids that are oblique to each
        other or do not meet, or options that do not go together.
    MemoryRefused
        Where not even one block fits into ``memory``, saying what would.
    RunFailed
        Where blocks failed after retries; what is done is kept.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from volflow.store.meta import Meta
    >>> from volflow.volumes.write import write
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     thick = Meta(spacing=(3, 1, 1), unit="millimeter", orientation="SAR")
    ...     scan = write(np.ones((20, 64, 64)), f"{folder}/a.zarr", meta=thick, progress=False)
    ...     fine = resample(scan, f"{folder}/b.zarr", spacing=1.5, progress=False)
    ...     fine.shape, fine.meta.translation, resample(scan, like=fine).shape
    ((40, 43, 43), (-0.75, 0.25, 0.25), (40, 43, 43))
    """
    options = from_keywords(ResampleOptions, locals())
    asked = ResampleRequest.of(volume, out, options)
    return resampled_lazily(asked) if out is None else _perform(asked)


@called_like(resample)
def plan_resample(volume: Any, out: Any = None, **options: Any) -> Plan:
    """Return the plan of `resample` with its projected memory; nothing is written.

    Parameters
    ----------
    volume, out, spacing, …
        As in `resample`.
    """
    given = from_keywords(ResampleOptions, options)
    if out is None:
        raise InvalidInput("a plan is of what is stored; give out, such as out.zarr")
    asked = ResampleRequest.of(volume, out, given)
    with connect(given.cluster, **given.connection) as client:
        memory_bytes = memory_per_worker(client, given.memory)
    copy = lay_out_on(asked, memory_bytes)
    begun = _begun(asked)
    plan = make_plan(copy, None, frozenset(begun.done()) if begun else frozenset())
    plan.require_memory(copy.remedy())
    return plan


def _begun(asked: ResampleRequest) -> Journal | None:
    """Return the journal of the run to resume; None where one begins and its place is free.

    Raises
    ------
    InvalidInput
        Where it is taken.
    """
    assert asked.out is not None
    out, file, overwrite = asked.out, asked.file, asked.options.overwrite
    journal, begun = journal_of(out), False
    if file is None or is_stored(out):
        begun = resumes(str(out), overwrite=overwrite)
    if file is not None and not overwrite:
        refuse_taken(file, begun=begun)
    return journal if begun else None


def _resumed(asked: ResampleRequest, record: Record) -> Journal | None:
    """Return the journal of the run to resume; None where all is computed.

    It is said where that is so because the volume cannot be identified.

    Raises
    ------
    ResumeRefused
        Where another run was begun there.
    """
    begun, unknown = _begun(asked), asked.opened.unidentified
    if begun is None:
        return None
    if not unknown:
        begun.compare(record)
        return begun
    before = begun.recorded()
    same = before and before.fingerprint.get("input")
    begun.compare(replace(record, fingerprint={**record.fingerprint, "input": same}))
    announce(
        f"resample: {unknown}, so that it may hold something else by now; all is computed again",
        asked.options.progress,
    )
    return None


def _perform(asked: ResampleRequest) -> Volume:
    """Write what is left of the result, then its levels, or the file."""
    options, out = asked.options, asked.out
    assert out is not None
    # What lies in this process's memory is not sent to another.
    cluster = "threads" if in_memory(asked.opened) else options.cluster
    with connect(cluster, **options.connection) as client:
        check_sight(client, str(asked.file or out), asked.opened.path)
        copy = lay_out_on(asked, memory_per_worker(client, options.memory))
        origin = origin_of(asked.opened)
        identity = asked.opened.identity() if origin is None else origin.identity
        copy = replace(copy, origin=origin)
        record = asked.record(identity, copy.blocks.counts)
        begun = _resumed(asked, record)
        done = 0 if begun is None else len(begun.done())
        again = begun is None and bool(asked.opened.unidentified) and is_stored(out)
        options = replace(options, overwrite=options.overwrite or again)
        make_plan(copy, None, frozenset()).require_memory(copy.remedy())
        with _place_beside(asked), _readable(asked, client, done == len(copy.blocks)) as source:
            made = copy.source
            assert isinstance(made, ResampledSource)
            copy = replace(copy, source=made_of(asked, made.layer, source))
            volume = run_copy(copy, record, client, options)
        if options.levels:
            volume = pyramid(
                volume, cluster=client, memory=options.memory, progress=options.progress
            )
    if asked.file is not None:
        overwrite = asked.options.overwrite
        write_file(volume, asked.file, overwrite=overwrite, renew=True, remedy=MOVE)
    return volume


@contextmanager
def _place_beside(asked: ResampleRequest) -> Iterator[None]:
    """Make the folder beside the output, which goes again where nothing came into it."""
    Journal(asked.sidecar).make_place()
    try:
        yield
    except InvalidInput:
        with suppress(OSError):  # there is something in it
            asked.sidecar.rmdir()
        raise


@contextmanager
def _readable(asked: ResampleRequest, client: Client, finished: bool) -> Iterator[Source]:
    """Yield what is read: the volume, or a copy beside the output, which goes when all is done."""
    options, keep = asked.options, asked.sidecar / "input.zarr"
    if asked.is_direct or finished:
        yield asked.source
        if not asked.is_direct:  # killed when all was done, before the copy went
            discard_wholly(keep)
        return
    given = asked.given if isinstance(asked.given, str | os.PathLike) else asked.opened
    copy = convert(
        given,
        str(keep),
        labels=options.labels,
        overwrite=_is_outdated(keep, asked.opened),
        cluster=client,
        memory=options.memory,
        progress=options.progress,
    )
    yield copy
    discard_wholly(keep)


def _is_outdated(keep: Location, source: Source) -> bool:
    """Whether a copy that was begun is of another state of the volume."""
    record = journal_of(keep).recorded()
    return record is not None and record.fingerprint.get("input") != source.identity()
