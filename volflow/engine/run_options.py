"""The options that all operations share: where they run, and whether they overwrite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from volflow.option import option

if TYPE_CHECKING:
    from volflow.engine.cluster import Cluster
    from volflow.engine.progress import Progress

__all__ = ["MEMORY", "OutputOptions", "RunOptions"]

MEMORY = "What one worker may use, such as 2GiB. Default: a share of what is free."


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every operation: where and how it runs; each adds its own.

    Public journeys take them flat, as keywords, and turn them at once into one such object, which
    all that runs the journey receives. ``journey(…, **vars(options))`` is the way back.
    """

    cluster: Cluster = option(
        None,
        "Where to run: threads, processes, a number of processes, or tcp://host:port of a Dask"
        " scheduler. Default: threads of this process.",
    )
    wait: float | str | None = option(
        None,
        "How long to wait where the cluster has no worker: seconds, or a text such as 10m. Default:"
        " as long as it takes.",
    )
    memory: str | int | None = option(None, MEMORY)
    progress: Progress = option(
        None, "Show no progress.", names=("--quiet", "-q"), read=lambda name, quiet: not quiet
    )


@dataclass(frozen=True, kw_only=True)
class OutputOptions(RunOptions):
    """Options of operations that write a volume."""

    overwrite: bool = option(False, "Replace the output if it exists.")
