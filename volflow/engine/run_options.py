"""The options that all operations share: where they run, and whether they overwrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volflow.option import option

if TYPE_CHECKING:
    from volflow.engine.cluster import Cluster
    from volflow.engine.progress import Progress

__all__ = [
    "MEMORY",
    "ObserveOptions",
    "OutputOptions",
    "RunOptions",
    "TimeOptions",
    "WorkerOptions",
]

MEMORY = "What one worker may use, such as 2GiB. Default: a share of what is free."


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of what runs on workers: where, and in how much memory."""

    cluster: Cluster = option(
        None,
        "Where to run: threads, processes or processes:4, cuda (a process per GPU), slurm or"
        " slurm:8 (jobs), or tcp://host:port of a Dask scheduler. Default: threads.",
    )
    workers: str | Sequence[str] | None = option(
        None, "Only these workers of the cluster: names, addresses or hosts, with commas."
    )
    resources: str | Mapping[str, float] | None = option(
        None, "Only workers with these of Dask's resources, of which a task takes as much: GPU=1."
    )
    wait: float | str | None = option(
        None,
        "How long to wait where the cluster has no worker: seconds, or a text such as 10m. Default:"
        " as long as it takes.",
    )
    memory: str | int | None = option(None, MEMORY)

    @property
    def connection(self) -> dict[str, Any]:
        """What `connect` is asked for, beside the cluster."""
        names = ("wait", "workers", "resources", "memory")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class RunOptions(WorkerOptions):
    """Options of every operation: where and how it runs; each adds its own.

    Public journeys take them flat, as keywords, and turn them at once into one such object, which
    all that runs the journey receives. ``journey(…, **vars(options))`` is the way back.
    """

    progress: Progress = option(
        None,
        "Say nothing of what goes well.",
        names=("--quiet", "-q"),
        read=lambda name, quiet: not quiet,
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions(RunOptions):
    """Options of operations that write a volume."""

    overwrite: bool = option(False, "Replace the output if it exists.")


@dataclass(frozen=True, kw_only=True)
class ObserveOptions:
    """Files that record how the runs of a command went; every command that runs blocks has them."""

    metrics: str | None = option(
        None, "Write the progress to a file as OpenMetrics text, for a site's monitoring."
    )
    performance_report: str | None = option(
        None, "Write Dask's performance report, an .html file; needs the extra 'dashboard'."
    )


@dataclass(frozen=True, kw_only=True)
class TimeOptions:
    """When to stop; every command that runs blocks has them."""

    until: str | None = option(
        None, "Stop at a time such as 07:00, after the blocks at work; run it again for the rest."
    )
    after: str | None = option(None, "Stop after a time such as 8h, likewise.", names=("--for",))
