"""Run a network over a volume of any size: open inputs, make a plan, run it under a journal."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import zarr
from distributed import Client

from volflow.engine.cluster import Cluster, connect, memory_per_worker
from volflow.engine.events import State, announce
from volflow.engine.plan import Plan
from volflow.engine.run import run
from volflow.errors import InvalidInput
from volflow.infer.call import Call, converted_inputs, make_call, placeholders
from volflow.infer.exact.plan import passes_of
from volflow.infer.options import PredictOptions
from volflow.infer.patches.job import Target
from volflow.infer.patches.plan import (
    Settings,
    adopt,
    check_otherwise,
    decide,
    make_plan,
    out_blocks,
)
from volflow.infer.request import Request, make_request, normalized, output_meta
from volflow.model.bundle import evaluating
from volflow.model.forward import Output
from volflow.passes.executor import run_passes
from volflow.store.aside import sweep
from volflow.store.create import check_target, create
from volflow.store.journal.complete import count_blocks
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.journal.outputs import begin_anew
from volflow.store.volume import Volume, open_volume
from volflow.volumes.arrays.inputs import VolumeLike
from volflow.volumes.export import is_foreign, refuse_changed, write_file
from volflow.volumes.pyramid.plan import Layout, lay_out
from volflow.volumes.pyramid.pyramid import pyramid

__all__ = ["plan_predict", "predict"]

Progress = bool | Callable[[State], object] | None
Result = Volume | dict[str, Volume]

MOVE = (
    "move it away, and the same command writes it anew from the stored volume; or compute all anew"
    " with overwrite=True (--overwrite)"
)


def _targets(request: Request, settings: Settings) -> tuple[Target, ...]:
    """The volumes that take the outputs: those of an interrupted run, the others made anew."""
    options = request.options
    named = len(settings.outputs) > 1 or settings.outputs[0].name != ""
    if named:
        zarr.open_group(request.out, mode="a")
    targets = []
    for output in settings.outputs:
        path = request.out / output.name if named else request.out
        if path.exists():
            volume = open_volume(path)
        else:
            volume = create(
                path,
                _shape(request, settings, output),
                options.stored_dtype(settings.dtype),
                output_meta(request, output),
                chunk=settings.chunk,
                shard=settings.shard,
            )
        array = f"{output.name}/0" if named else "0"
        targets.append(Target(output.name, array, output.channels, volume))
    return tuple(targets)


def _shape(request: Request, settings: Settings, output: Output) -> tuple[int, ...]:
    front = () if request.options.output == "classes" else (output.channels,)
    return (*front, *out_blocks(request, settings).shape)


def _check_place(out: Path, journal: Journal, overwrite: bool) -> Record | None:
    """The record of the run to resume; None where a new one begins."""
    try:
        before = journal.recorded()
    except InvalidInput:  # damaged, which is no obstacle to a new beginning
        if not overwrite:
            raise
        before = None
    if before is not None and out.exists():
        return None if overwrite else before
    check_target(out, overwrite=overwrite)
    return None


def _execute(
    request: Request,
    settings: Settings,
    client: Client,
    memory: Any,
    overwrite: bool,
    progress: Progress,
) -> Result:
    journal = Journal(journal_dir(request.out))
    with journal.lock():
        sweep(request.out)
        before = _check_place(request.out, journal, overwrite)
        settings = adopt(request, before) if before else settings
        grid = out_blocks(request, settings).counts
        record = Record("predict", request.fingerprint(), settings.to_dict(grid))
        if before is not None:
            journal.compare(record)
        request = normalized(request, cluster=client, memory=memory, progress=progress)
        if before is None:
            begin_anew(request.out, journal, record)
        targets = _targets(request, settings)
        if settings.exact is not None:
            passes = passes_of(request, settings)
            if len(journal.done()) < math.prod(grid):
                run_passes(passes, client, memory, progress)
        plan = make_plan(request, settings, client, memory, targets)
        run(replace(plan, journal=journal, record=record), cluster=client, progress=progress)
        if settings.exact is not None:
            passes.drop(len(passes.steps) - 1)
    volumes = {t.name: t.volume for t in targets}
    return volumes.get("", volumes)


def predict(  # noqa: PLR0913 - a public journey takes flat options
    volume: VolumeLike | Mapping[str, VolumeLike],
    model: Any,
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
        Path of the OME-Zarr result; a name ending in ``.nii``, ``.nii.gz`` or ``.npy`` is exported
        when the volume behind it is complete. The same call again leaves the file alone, writes it
        anew where it is gone, and refuses one that was changed since.
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
        Weights of half precision are refused unless the network casts its images itself.
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
        processes, a scheduler address, a client or a cluster object.
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
    options = PredictOptions(
        patch, overlap, blend, frame, normalize, activation, output, dtype, batch_size, device,
        precision, flips, mask, skip_below, fill, chunk, shard,
    )  # fmt: skip
    _check_levels(levels, out)
    call = make_call(volume, model, out, weights, trust, options)
    with evaluating(call.model.module), connect(cluster, wait=wait) as client:
        with placeholders(call) as (named, stand_in):
            # Everything that can be refused is refused before a long conversion.
            request = make_request(named, stand_in, call.model, call.options, call.store)
            settings, resuming = _settings(call, request, client, memory, overwrite)
            if levels:
                _layouts(request, settings, client, memory, resuming)
        if resuming and is_foreign(call.out) and not call.out.exists():
            _tell_of_lost(call, progress)
        given = converted_inputs(
            call, overwrite, cluster=client, memory=memory, progress=progress, resume=resume
        )
        request = make_request(given.named, given.mask, call.model, call.options, call.store)
        if given.anew and not overwrite:
            check_otherwise(request, settings)
        again = overwrite or given.anew
        result = _execute(request, settings, client, memory, again, progress)
        if levels:
            result = _with_levels(result, cluster=client, memory=memory, progress=progress)
    if isinstance(result, Volume) and is_foreign(call.out):
        write_file(result, call.out, overwrite=overwrite, renew=True, remedy=MOVE)
    return result


def _tell_of_lost(call: Call, progress: Progress) -> None:
    done, total = count_blocks(call.store)
    if done == total:
        announce(
            f"predict: {call.out.name} is not there; it is written from the stored volume, and"
            " nothing is computed",
            progress,
        )


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


def _with_levels(result: Result, **options: Any) -> Result:
    if isinstance(result, Volume):
        return pyramid(result, **options)
    return {name: pyramid(volume, **options) for name, volume in result.items()}


def _layouts(
    request: Request, settings: Settings, client: Client, memory: Any, resuming: bool
) -> list[Layout]:
    """The coarser levels of the outputs; refuses new ones where memory does not do."""
    memory_bytes = memory_per_worker(client, memory)
    dtype = request.options.stored_dtype(settings.dtype)
    found: list[Layout] = []
    for output in settings.outputs:
        shape = _shape(request, settings, output)
        front = (1,) * (len(shape) - 3)
        stored = ((*front, *settings.chunk), (*front, *settings.shard))
        meta = output_meta(request, output)
        found += lay_out(shape, dtype, meta, stored, None, memory_bytes)
    for layout in () if resuming else found:
        layout.require_memory()
    return found


def _settings(
    call: Call, request: Request, client: Client, memory: Any, overwrite: bool
) -> tuple[Settings, bool]:
    """What the run will do, and whether it resumes one; refuses what cannot work."""
    before = None
    foreign = is_foreign(call.out)
    if not foreign or call.store.exists():
        before = _check_place(call.store, Journal(journal_dir(call.store)), overwrite)
    if foreign and call.out.exists() and before is None and not overwrite:
        raise InvalidInput(f"{call.out} exists; use overwrite=True (--overwrite) or another output")
    if foreign and not overwrite:
        refuse_changed(call.out, MOVE)
    settings = adopt(request, before) if before else decide(request, client, memory)
    if foreign and settings.outputs[0].name:
        names = ", ".join(output.name for output in settings.outputs)
        raise InvalidInput(
            f"the model returns outputs by name ({names}), which {call.out.name} cannot hold;"
            ' use an output like "out.zarr" and export them'
        )
    return settings, before is not None


def plan_predict(  # noqa: PLR0913 - as predict
    volume: Any,
    model: Any,
    out: str | os.PathLike[str],
    *,
    levels: bool = False,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    cluster: Cluster = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = None,
    **options: Any,
) -> Plan:
    """What `predict` would do, with its projected memory; nothing is written.

    Parameters
    ----------
    volume, model, out, levels, weights, trust, cluster, wait, memory, overwrite, resume, progress
        As in `predict`.
    **options
        The others of `predict`.
    """
    del progress, resume
    _check_levels(levels, out)
    call = make_call(volume, model, out, weights, trust, PredictOptions(**options))
    with (
        evaluating(call.model.module),
        connect(cluster, wait=wait) as client,
        placeholders(call) as (named, mask),
    ):
        request = make_request(named, mask, call.model, call.options, call.store)
        settings, resuming = _settings(call, request, client, memory, overwrite)
        plan = make_plan(request, settings, client, memory, resuming=resuming)
        coarser = _layouts(request, settings, client, memory, resuming) if levels else []
    # What was handed over, rather than what stands in for it here.
    given = f"{call.named()} {request.inputs.shape}"
    described = {f"level {layout.level}": layout.describe() for layout in coarser}
    return replace(plan, facts=(("input", given), *plan.facts[1:], *described.items()))
