"""Run a network over a volume of any size: check what is asked for, then run it, here or away."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy.typing as npt

from volflow.engine.cluster import Cluster
from volflow.engine.detached.detached_run import DetachedRun
from volflow.engine.plan import Plan
from volflow.engine.progress import Progress
from volflow.errors import InvalidInput
from volflow.infer.detach import detached
from volflow.infer.methods import open_request, working
from volflow.infer.predict_options import PredictOptions
from volflow.infer.prediction import Result, perform, plan_on
from volflow.model.bundle import ModelLike
from volflow.option import called_like, from_keywords, journey
from volflow.store.formats.written import refuse_levels
from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["plan_predict", "predict"]


@journey
def predict(  # noqa: PLR0913 - a public journey takes flat options
    volume: VolumeLike | Mapping[str, VolumeLike],
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    patch: int | tuple[int, int, int] | None = None,
    overlap: float | tuple[float, float, float] | None = None,
    blend: str | npt.ArrayLike | None = None,
    sigma_scale: float | None = None,
    padding: float | str | None = None,
    spacing: float | str | tuple[float | str, ...] | None = None,
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
    keep: bool = False,
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
    detach: bool = False,
) -> Result | DetachedRun:
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
        Path of the OME-Zarr result, or its URL, as in `convert`; a file, such as ``seg.nii.gz``,
        ``seg.tif`` or ``seg.h5``, is exported when the volume behind it is complete. The same call
        again leaves the file alone, writes it anew where it is gone, and refuses one that was
        changed since.
    patch, overlap, blend
        Window of the model, one side or one per axis (1 makes slices); overlap in voxels, or a
        fraction of the patch (0.25); ``"gaussian"`` (default), ``"hann"``, ``"average"`` or
        ``"crop"``, or one's own weights of a patch: positive numbers, ``zyx`` or broadcast, kept
        as float32 (MONAI's ``roi_weight_map``), or a ``.npy`` file of them. ``"exact"`` needs no
        patch, but one with a 1 says that the network takes slices; the volume is zero-padded at its
        far end to the network's alignment (`vf.halo`).
    sigma_scale
        Of the gaussian blend: its sigma as a part of the patch's side, 0.125 as in MONAI.
    padding
        What a patch holds where it reaches outside of the volume: a number in normalised values
        (default: 0), ``"edge"`` or ``"reflect"``, as `numpy.pad` would pad the whole volume.
    spacing
        Voxel size that the model expects along its axes: one number or three in the volume's unit,
        or texts such as ``"1 mm"``; by default a bundle's own; ``"stored"`` takes the volume as it
        is. A volume of another one is seen resampled (cubic; as nnU-Net nearest through slices more
        than three times as thick as wide), normalised with its own statistics. Scores are brought
        back to its grid (linear), activated but before classes are chosen: with a softmax borders
        between classes lie truer than without. They lie beside the output until it is done, and the
        plan says how large they are.
    frame
        Three letters such as ``"RAS"``: axis order and directions in which the model expects its
        patches (and in which patch and overlap are given). Default: as stored, zyx.
    normalize
        ``"minmax"``, ``"zscore"``, ``"zscore:foreground"`` (of voxels that are not zero; zeros
        stay), ``"percentile"`` or ``"percentile:0.5,99.5"`` (to 0..1, clipped) on whole-volume
        statistics; ``"window:-160,240"`` (to 0..1, clipped); ``"scale:255"`` (divided); or a
        function of a float32 ``czyx`` array that acts on each voxel alone. Default: none.
    activation
        Applied after blending: ``"softmax"``, ``"sigmoid"``, a function of a ``CZYX`` tensor.
    output, dtype
        ``"scores"``: float32 ``czyx``, or another dtype (integers round and clip); ``"classes"``:
        the argmax, uint8 ``zyx``.
    batch_size, device, precision
        Found by a trial; ``precision`` is bfloat16 autocast on a GPU that has it, else float32.
        ``"tf32"`` has a GPU round what it multiplies to 10 bits: faster than float32, errors of
        about 1e-3. ``"float16"`` is for GPUs without bfloat16: as exact as tf32, and patches whose
        scores overflow are run again in float32. Weights of half precision are refused unless the
        network casts its images itself.
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
    keep
        Whether copies of inputs beside an exported file stay when it is complete. Without them a
        block that is found damaged later takes a new copy.
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
    detach
        Whether the cluster drives the run: what can be refused is, then the call returns and this
        process may end. The same call finds the run while it is at work. It needs a scheduler that
        was started elsewhere, by its address or a client of it.

    Returns
    -------
    Volume
        The result; by name where the model returns several outputs. With ``detach`` a
        `DetachedRun`: ``status()``, ``result()`` waits for these, ``cancel()``.

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
    return detached(request, options) if detach else perform(request)


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
        return plan_on(request, client)


def _check_levels(levels: Any, out: Any) -> None:
    if not isinstance(levels, bool):
        raise InvalidInput(
            f"levels must be True or False, given {levels!r}; vf.pyramid takes how many"
        )
    if levels:
        refuse_levels(out)
