"""Predict many cases with one model: new and changed ones, each under its own journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volflow.jobs.batch.asked_cases import AskedBatch
from volflow.jobs.batch.batch_options import BatchOptions
from volflow.jobs.batch.perform_batch import perform_batch, planned_batch
from volflow.jobs.batch.result_table import CaseTable
from volflow.option import from_keywords, journey

if TYPE_CHECKING:
    import numpy.typing as npt

    from volflow.engine.cluster import Cluster
    from volflow.engine.progress import Progress
    from volflow.jobs.batch.detached_batch import DetachedBatch
    from volflow.model.bundle import ModelLike
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["predict_cases"]


@journey
def predict_cases(  # noqa: PLR0913 - a public journey takes flat options
    cases: str | os.PathLike[str] | Mapping[str, VolumeLike | Mapping[str, VolumeLike]],
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    since: str | None = None,
    retry_failed: bool = False,
    at_once: int | None = None,
    on_failure: str | None = None,
    dry_run: bool = False,
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
) -> CaseTable | DetachedBatch:
    """Run a network over many cases, and say what became of each; made to be started by a timer.

    Only cases are computed that are new or whose files changed; others cost a look at their files,
    and the network is not even loaded where none is left. A case that fails stops no other. Killed
    at any moment, the same call goes on. Log, summary and record lie beside the results, in
    ``<out>.volflow/``.

    Parameters
    ----------
    cases
        What `find_cases` takes or returns: a pattern with ``{case}``, a folder, a table, or a
        mapping of names to volumes, or to several by name. A volume called ``label`` is no input.
    model
        As in `predict`; loaded once.
    out
        Pattern of the results, such as ``"out/{case}_seg.nii.gz"``.
    since
        Only cases whose files changed since: a date, a time, or a while such as ``"24h"``.
    retry_failed
        Try cases again that were refused for what they hold. Those that failed otherwise are tried
        again each time; both where their files, the model or the settings change.
    at_once
        How many small cases (up to 2²⁴ voxels) at a time; by default one in this process, and one
        for each worker of a cluster. In this process each has its share of the memory.
    on_failure
        A shell command that is run after cases failed in this run; the environment variable
        ``VOLFLOW_SUMMARY`` holds the path of the summary page.
    dry_run
        Return what would be done with each case, and do nothing.
    overwrite
        Compute those anew whose results are of another model or of other settings, or in whose
        place another file stands; without it they are named and left.
    mask
        As in `predict`, for all cases; ``{case}`` in its path stands for each name.
    patch, overlap, blend, sigma_scale, padding, spacing, frame, normalize, activation, output
        As in `predict`.
    dtype, batch_size, device
        As in `predict`, as all that follow.
    detach
        Whether the cluster drives the batch, as in `predict`: the cases are found, the model is
        loaded and what workers do not see is refused, then the call returns. ``on_failure`` is run
        where the driver is.

    Returns
    -------
    CaseTable
        A row for each case; ``table.ok`` is False where one failed or was refused. With ``detach``
        a `DetachedBatch`: ``status()``, ``result()`` waits for the table, ``cancel()``.

    Raises
    ------
    InvalidInput
        Where no case is found, or the model cannot be loaded.
    Locked
        Where another run of the same batch is at work.
    RunFailed
        Where no space is left, or the cluster is gone; what is done is kept.

    Examples
    --------
    >>> import numpy as np, torch
    >>> for name in ("p1", "p2"):
    ...     np.save(f"{name}.npy", np.ones((8, 9, 10), "float32"))
    >>> net = torch.nn.Identity()
    >>> table = predict_cases("{case}.npy", net, "{case}_out.zarr", patch=8, progress=False)
    >>> [(row.case, row.status) for row in table]
    [('p1', 'done'), ('p2', 'done')]
    >>> predict_cases("{case}.npy", net, "{case}_out.zarr", patch=8, progress=False).counts
    {'kept': 2}
    """
    options = from_keywords(BatchOptions, locals())
    batch = AskedBatch.of(cases, out, options)
    if options.dry_run:
        return planned_batch(batch, model)
    if not detach:
        return perform_batch(batch, model)
    from volflow.jobs.batch.detached_batch import detached_batch

    return detached_batch(batch, model)
