"""Run a network over a volume of any size: open inputs, make a plan, run it under a journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Client

from volflow.engine.cluster import Cluster, memory_per_worker
from volflow.engine.plan import Plan
from volflow.engine.progress import Progress, announce
from volflow.engine.run import run
from volflow.errors import InvalidInput
from volflow.infer.audit.recorded import keep_request
from volflow.infer.method import adopt, out_blocks
from volflow.infer.methods import method_of, open_request, working
from volflow.infer.predict_options import PredictOptions
from volflow.infer.ready_inputs import computed_again, convert_inputs, trusting
from volflow.infer.request import Request, normalized, output_meta
from volflow.infer.settings import Settings
from volflow.model.bundle import ModelLike
from volflow.model.forward import Output
from volflow.option import called_like, from_keywords, journey
from volflow.store.aside import sweep
from volflow.store.create import check_target, create, create_store, open_begun
from volflow.store.journal.complete import count_blocks
from volflow.store.journal.journal import Record, journal_of
from volflow.store.journal.outputs import begin_anew
from volflow.store.meta import VolumeSpec
from volflow.store.remote.address import Location, is_stored
from volflow.store.unfinished.root import publish
from volflow.store.volume import Volume
from volflow.volumes.arrays.inputs import VolumeLike
from volflow.volumes.export import is_foreign, refuse_changed, write_file
from volflow.volumes.pyramid.plan import Layout, lay_out
from volflow.volumes.pyramid.pyramid import pyramid

__all__ = ["plan_predict", "predict"]

Result = Volume | dict[str, Volume]

MOVE = (
    "move it away, and the same command writes it anew from the stored volume; or compute all anew"
    " with overwrite=True (--overwrite)"
)


@journey
def predict(  # noqa: PLR0913 - a public journey takes flat options
    volume: VolumeLike | Mapping[str, VolumeLike],
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    patch: int | tuple[int, int, int] | None = None,
    overlap: float | tuple[float, float, float] | None = None,
    blend: str | None = None,
    frame: str | None = None,
    normalize: str | Callable[[Any], Any] | None = None,
    activation: str | Callable[[Any], Any] | None = None,
    output: str | None = None,
    dtype: str | None = None,
    batch_size: int | str = "auto",
    device: str = "auto",
    device_memory: str | int | None = None,
    precision: str = "auto",
    flips: str = "",
    mask: VolumeLike | None = None,
    skip_below: float | None = None,
    fill: float | None = None,
    chunk: int | tuple[int, int, int] | None = None,
    shard: int | tuple[int, int, int] | None = None,
    levels: bool = False,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = None,
) -> Result:
    """Run a network over a volume, in overlapping patches or exactly, and store the result.

    A blended result equals that of one global sliding window, an exact one that of the network run
    on the whole volume at once, whatever the blocks, the workers and the memory. An interrupted run
    is resumed by the same call and repeats only blocks in flight.

    Parameters
    ----------
    volume
        Any `VolumeLike`, ``zyx`` or ``czyx``; or several on one grid by name,
        ``{"t1": …, "flair": …}``, whose channels are concatenated in the model's order. What is no
        Zarr array yet is converted on the way, into ``<out>.volflow/``.
    model
        ``nn.Module``, bundle directory, ``"package.module:callable"`` or ``torch.export`` archive.
        What is None below is taken from a bundle, else from the default named.
    out
        Path of the OME-Zarr result, or its URL, as in `convert`; a name ending in ``.nii``,
        ``.nii.gz`` or ``.npy`` is exported when the volume behind it is complete. The same call
        again leaves the file alone, writes it anew where it is gone, and refuses one that was
        changed since.
    patch, overlap, blend
        Window of the model, one side or one per axis (1 makes slices); overlap in voxels, or a
        fraction of the patch (0.25); ``"gaussian"`` (default), ``"hann"``, ``"average"`` or
        ``"crop"``. ``"exact"`` needs no patch, but one with a 1 says that the network takes
        slices; the volume is zero-padded at its far end to the network's alignment (`vf.halo`).
    frame
        Three letters such as ``"RAS"``: axis order and directions in which the model expects its
        patches (and in which patch and overlap are given). Default: as stored, zyx.
    normalize
        ``"minmax"``, ``"zscore"``, ``"percentile"`` on whole-volume statistics, or a function of a
        float32 ``czyx`` array that acts on each voxel alone. Default: none.
    activation
        Applied after blending: ``"softmax"``, ``"sigmoid"``, a function of a ``CZYX`` tensor.
    output, dtype
        ``"scores"``: float32 ``czyx``, or another dtype (integers round and clip); ``"classes"``:
        the argmax, uint8 ``zyx``.
    batch_size, device, precision
        Found by a trial; ``precision`` is bfloat16 autocast on a GPU that has it, else float32.
        ``"tf32"`` has a GPU round what it multiplies to 10 bits: faster than float32, errors of
        about 1e-3. Weights of half precision are refused unless the network casts its images
        itself.
    device_memory
        What a task may take of a GPU's memory, like ``"20GiB"``; by default what is free, shared by
        the processes on it. A plan that needs more is refused.
    flips
        Axes of the model's view (``"zyx"``) over whose mirrored copies scores are averaged.
    mask, skip_below, fill
        Patches without a voxel that is in the mask (> 0) and not below the threshold (of the
        stored values) are left out; voxels that no patch covers get ``fill``: the background
        class, or 0.
    chunk, shard
        Layout of the result; by default about 64³ and 256³ voxels.
    levels
        Whether to write coarser levels of the result as well, as `pyramid` does.
    weights, trust
        Weights for a callable; ``trust`` allows files that can run code.
    cluster
        None: the active Dask client, else threads in this process; ``"processes"``, a number of
        processes, ``"cuda"`` (a process per GPU), ``"slurm"`` (jobs), a scheduler address, a client
        or a cluster object; see `connect`.
    workers, resources
        Only these workers of it: names or addresses, and such as have these of Dask's resources,
        of which a task takes as much, like ``{"GPU": 1}``.
    wait
        How long to wait where the cluster has no worker, at first or later: seconds, or a text
        such as ``"10 minutes"``. By default as long as it takes, saying so.
    memory
        What one worker may add above its resident size, like ``"2GiB"``; by default a share of
        what the machine, the cgroup or SLURM leaves. A plan that needs more is refused.
    overwrite
        Replace an output that is there, instead of resuming or refusing.
    resume
        As in `write`: trust that a Dask array is what it was where that cannot be told.
    progress
        None: a bar on a terminal, lines elsewhere; False: nothing; a function: gets each state.

    Returns
    -------
    Volume
        The result; by name where the model returns several outputs.

    Raises
    ------
    InvalidInput
        Before any work, for options, inputs or models that cannot work together.
    NoExactRule
        Where an op of the model cannot be computed exactly in blocks, naming it.
    RunFailed
        Where blocks failed after retries; what is done is kept.

    Examples
    --------
    >>> import tempfile, numpy as np, torch
    >>> scan = np.random.default_rng(0).random((20, 30, 40), "float32")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     out = f"{folder}/out.zarr"
    ...     result = predict(scan, torch.nn.Identity(), out, patch=16, progress=False)
    ...     bool(np.allclose(result[0], scan)), result.axes
    (True, ('c', 'z', 'y', 'x'))
    """
    options = from_keywords(PredictOptions, locals())
    _check_levels(levels, out)
    request = open_request(volume, model, out, options)
    with working(request) as client:
        within = {"cluster": client, "memory": memory, "progress": progress}
        # Everything that can be refused is refused before a long conversion.
        before, memory_bytes = _resumed(request), memory_per_worker(client, memory)
        settings, _ = _decide(request, before, client, memory_bytes)
        if before and request.file and not request.file.exists():
            _announce_lost_file(request)
        request, anew = convert_inputs(request, overwrite, resume=resume, **within)
        if anew and not overwrite:
            _check_otherwise(request, settings)
            if before and request.unidentified:
                announce(f"predict: {computed_again(request)}", progress)
        again = overwrite or anew
        result = _execute(request, settings, client, memory_bytes, again=again)
        if levels:
            result = _with_levels(result, **within)
    if isinstance(result, Volume) and request.file is not None:
        write_file(result, request.file, overwrite=overwrite, renew=True, remedy=MOVE)
    return result


@called_like(predict)
def plan_predict(volume: Any, model: Any, out: Any, **options: Any) -> Plan:
    """Return the plan of `predict` with its projected memory; nothing is written.

    Parameters
    ----------
    volume, model, out, patch, …
        As in `predict`.
    """
    given = from_keywords(PredictOptions, options)
    _check_levels(given.levels, out)
    request = open_request(volume, model, out, given)
    with working(request) as client:
        before, memory_bytes = _resumed(request), memory_per_worker(client, given.memory)
        settings, levels = _decide(request, before, client, memory_bytes)
        done = journal_of(request.out).done() if before else ()
        plan = method_of(request.options).plan(
            request, settings, client, memory_bytes, {}, frozenset(done)
        )
    coarser = ((f"level {layout.level}", layout.describe()) for layout in levels)
    return replace(plan, facts=(*plan.facts, *coarser))


def _check_levels(levels: Any, out: Any) -> None:
    if not isinstance(levels, bool):
        raise InvalidInput(
            f"levels must be True or False, given {levels!r}; vf.pyramid takes how many"
        )
    if levels and is_foreign(out):
        raise InvalidInput(
            f"levels are arrays of an OME-Zarr volume, which {Path(out).name} cannot hold; use an"
            ' output like "out.zarr", or leave levels out'
        )


def _resumed(request: Request) -> Record | None:
    """Return the record of the run to resume; None where a new one begins and its place is free."""
    file, overwrite, before = request.file, request.options.overwrite, None
    if file is None or is_stored(request.out):
        before = _recorded(request.out, overwrite)
    if file is not None and not overwrite:
        if file.exists() and before is None:
            raise InvalidInput(f"{file} exists; use overwrite=True (--overwrite) or another output")
        refuse_changed(file, MOVE)
    return before


def _decide(
    request: Request, before: Record | None, client: Client, memory_bytes: int
) -> tuple[Settings, tuple[Layout, ...]]:
    """Return the settings of the run, and the coarser levels asked for; refuses what cannot work.

    Parameters
    ----------
    request, client, memory_bytes
        What is predicted, where, and within which budget per worker.
    before
        The record of the run that is resumed, whose settings are adopted.
    """
    options, file = request.options, request.file
    method = method_of(options)
    if before is not None:
        settings = adopt(method, request, before)
    else:
        settings = method.decide(request, client, memory_bytes)
    if file is not None and settings.outputs[0].name:
        names = ", ".join(output.name for output in settings.outputs)
        raise InvalidInput(
            f"the model returns outputs by name ({names}), which {file.name} cannot hold;"
            ' use an output like "out.zarr" and export them'
        )
    levels = tuple(
        layout
        for output in (settings.outputs if options.levels else ())
        for layout in lay_out(_spec(request, settings, output), None, memory_bytes)
    )
    for layout in () if before else levels:
        layout.require_memory()
    return settings, levels


def _recorded(out: Location, overwrite: bool) -> Record | None:
    """Return the record of the run that wrote a volume; None where it is to be written anew."""
    try:
        before = journal_of(out).recorded()
    except InvalidInput:  # damaged, which is no obstacle to a new beginning
        if not overwrite:
            raise
        before = None
    if before is not None and is_stored(out):
        return None if overwrite else before
    check_target(out, overwrite=overwrite)
    return None


def _spec(request: Request, settings: Settings, output: Output) -> VolumeSpec:
    front = () if request.options.output == "classes" else (output.channels,)
    shape = (*front, *out_blocks(request, settings).shape)
    dtype, meta = request.options.stored_dtype(settings.dtype), output_meta(request, output)
    return VolumeSpec.of(shape, dtype, meta, settings.chunk, settings.shard)


def _announce_lost_file(request: Request) -> None:
    """Say so where only the file is gone that the stored volume is exported to."""
    done, total = count_blocks(request.out)
    if done == total and request.file is not None:
        announce(
            f"predict: {request.file.name} is not there; it is written from the stored volume, and"
            " nothing is computed",
            request.options.progress,
        )


def _check_otherwise(request: Request, settings: Settings) -> None:
    """Refuse to begin anew, for inputs that were computed anew, what was begun otherwise, too."""
    journal = journal_of(request.out)
    before = journal.recorded()
    if before is not None:
        same = {name: before.fingerprint.get(name) for name in ("input", "mask")}
        record = _record(request, settings)
        journal.compare(replace(record, fingerprint={**record.fingerprint, **same}))


def _record(request: Request, settings: Settings) -> Record:
    grid = out_blocks(request, settings).counts
    return Record("predict", request.fingerprint(), settings.to_dict(grid))


def _execute(
    request: Request, settings: Settings, client: Client, memory_bytes: int, *, again: bool
) -> Result:
    """Run what is left of the plan, under the output's lock; ``again`` begins anew."""
    options = request.options
    method, journal = method_of(options), journal_of(request.out)
    with journal.lock():
        sweep(request.out)
        before = _recorded(request.out, again)
        if before is not None:  # perhaps another run has begun meanwhile
            settings = adopt(method, request, before)
        record = _record(request, settings)
        if before is not None:
            record = trusting(request, record, before)
            journal.compare(record)
        request = normalized(
            request, cluster=client, memory=memory_bytes, progress=options.progress
        )
        if before is None:
            begin_anew(request.out, journal, record)
        keep_request(journal, request)
        targets = _targets(request, settings)
        done = frozenset(journal.done())
        with method.prepared(request, settings, client, memory_bytes, done):
            plan = method.plan(request, settings, client, memory_bytes, targets, done)
            plan = replace(plan, journal=journal, record=record)
            run(plan, cluster=client, progress=options.progress)
        publish(*(request.out / name for name in targets), request.out)
    return targets.get("", targets)


def _targets(request: Request, settings: Settings) -> dict[str, Volume]:
    """Return where the outputs go: volumes of an interrupted run, and new ones for the others."""
    named = len(settings.outputs) > 1 or settings.outputs[0].name != ""
    if named and not is_stored(request.out):
        create_store(request.out)
    targets = {}
    for output in settings.outputs:
        path = request.out / output.name if named else request.out
        if is_stored(path):
            targets[output.name] = open_begun(path)
        else:
            targets[output.name] = create(path, _spec(request, settings, output), finished=False)
    return targets


def _with_levels(result: Result, **options: Any) -> Result:
    if isinstance(result, Volume):
        return pyramid(result, **options)
    return {name: pyramid(volume, **options) for name, volume in result.items()}
