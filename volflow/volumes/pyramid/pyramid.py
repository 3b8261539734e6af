"""Coarser levels of a volume: each made from the stored one before it, under its own journal."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distributed import Client

from volflow.engine.cluster import (
    Cluster,
    connect,
    memory_per_worker,
    workers,
)
from volflow.engine.clusters.sight import check_sight
from volflow.engine.plan import Plan
from volflow.engine.progress import Progress
from volflow.engine.run import run
from volflow.errors import writing_failed
from volflow.option import called_like, from_keywords, journey
from volflow.store.aside import sweep
from volflow.store.create import add_array
from volflow.store.journal.levels import Place, finest_of, list_levels, own_group
from volflow.store.journal.outputs import begin_anew, discard_levels
from volflow.store.meta import Level
from volflow.store.opening import level_array
from volflow.store.volume import Volume, open_volume
from volflow.volumes.pyramid.plan import Task, tasks_for
from volflow.volumes.pyramid.task import LevelJob, halve_blocks
from volflow.volumes.volume_options import PyramidOptions

__all__ = ["plan_pyramid", "pyramid"]


@journey
def pyramid(  # noqa: PLR0913 - a public journey takes flat options
    volume: str | os.PathLike[str] | Volume,
    *,
    levels: int | None = None,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> Volume:
    """Write the coarser levels "1", "2", … of a volume, each half as fine as the one before.

    A voxel of an image is the mean of those that merge into it, a voxel of classes the commonest
    of them, the smallest of several: no value is invented. Integer means are exact and rounded
    half to even. Thick slices are not merged until the voxels within them are as large; an odd
    side is rounded up, and its last voxel counts what there is. The metadata list the levels when
    all are complete; until then the volume is valid without them.

    An interrupted run is resumed by the same call, and where everything is there it returns at
    once. Levels of a volume that has changed since are made again.

    Parameters
    ----------
    volume
        Path of a volume that volflow wrote, or the `Volume`; ``zyx`` or ``czyx``.
    levels
        How many there shall be beside the full resolution; more are removed. By default until no
        side is longer than 64 voxels, or as many as there are.
    cluster, workers, resources, wait, memory, progress
        As in `predict`.
    overwrite
        Make all levels again, and replace arrays of these names that volflow did not make.

    Returns
    -------
    Volume
        Level 0, which now knows its levels.

    Raises
    ------
    InvalidInput
        Where the volume is not one of volflow's or not complete, or cannot have so many levels.
    MemoryRefused
        Where not even one block fits into ``memory``, saying what would.
    RunFailed
        Where blocks failed after retries; what is done is kept.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from volflow.volumes.convert import convert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     convert(np.ones((70, 80, 90), "uint8"), f"{folder}/a.zarr", progress=False).shape
    ...     [level.scale for level in pyramid(f"{folder}/a.zarr", progress=False).levels]
    (70, 80, 90)
    [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)]
    """
    options = from_keywords(PyramidOptions, locals())
    finest, place = finest_of(volume)
    with connect(options.cluster, **options.connection) as client:
        check_sight(client, place.store)
        memory_bytes = memory_per_worker(client, options.memory)
        with place.run.lock():
            sweep(place.store)
            finest = open_volume(str(finest.path))  # as the last driver left it
            tasks = tasks_for(finest, place, levels, memory_bytes, overwrite)
            try:
                _execute(finest, place, tasks, client, progress)
            except OSError as error:
                raise writing_failed(error)(
                    f"levels of {finest.path} cannot be written: {error.strerror or error}; what"
                    " is done is kept, put it right and run the same command again"
                ) from error
    return open_volume(str(finest.path))


def _execute(
    finest: Volume, place: Place, tasks: list[Task], client: Client, progress: Progress
) -> None:
    first = Level("0", finest.meta.spacing, finest.meta.translation)
    wanted = (first, *(task.listed for task in tasks))
    kept = next((n for n, task in enumerate(tasks) if task.left), len(tasks))
    if len(finest.levels) > kept + 1:  # what is made again or removed is no longer listed
        list_levels(finest, wanted[: kept + 1])
        finest = open_volume(str(finest.path))
    discard_levels(place, len(tasks))
    source = finest
    for task in tasks:
        source = _make(task, source, finest, place, client, progress)
    list_levels(finest, wanted)


def _make(
    task: Task, source: Volume, finest: Volume, place: Place, client: Client, progress: Progress
) -> Volume:
    """Make what is left of a level; returns it."""
    layout, level = task.layout, task.layout.level
    journal = place.journal(level)
    if not task.begun:
        journal.directory.parent.mkdir(parents=True, exist_ok=True)
        begin_anew(place.path(level), journal, task.record)
        add_array(own_group(finest), str(level), layout.spec, finest.array.fill_value)
    array = level_array(own_group(finest), str(level))
    target = replace(finest, array=array, meta=layout.spec.meta, level=level)
    job = LevelJob(
        source=source,
        target=target,
        array=place.array(level),
        factors=layout.factors,
        blocks=layout.blocks,
        piece=layout.piece,
    )
    if task.left:
        plan = layout.plan(task.left, max(1, sum(workers(client).values())))
        plan = replace(plan, job=job, journal=journal, record=task.record)
        run(plan, cluster=client, progress=progress)
    return target


@called_like(pyramid)
def plan_pyramid(volume: Any, **options: Any) -> Plan:
    """Return the plan of `pyramid` with its projected memory; nothing is written.

    Parameters
    ----------
    volume, levels, …
        As in `pyramid`.
    """
    asked = from_keywords(PyramidOptions, options)
    finest, place = finest_of(volume)
    with connect(asked.cluster, **asked.connection) as client:
        memory_bytes = memory_per_worker(client, asked.memory)
        threads = max(1, sum(workers(client).values()))
    tasks = tasks_for(finest, place, asked.levels, memory_bytes, asked.overwrite)
    plans = [task.layout.plan(task.left, threads) for task in tasks]
    return Plan(
        "pyramid",
        halve_blocks,
        None,
        tuple(run for plan in plans for run in plan.runs),
        units=sum(plan.units for plan in plans),
        unit="voxels",
        peak_bytes=max((plan.peak_bytes for plan in plans if plan.runs), default=0),
        memory_bytes=memory_bytes,
        facts=(
            ("volume", f"{finest.path} {finest.shape} {finest.dtype}"),
            ("values", "commonest class" if finest.meta.kind == "classes" else "mean"),
            *((f"level {task.layout.level}", task.layout.describe()) for task in tasks),
        ),
    )
