"""The options of `convert_cases`: those of `convert` for all of them, and how many at once."""

from __future__ import annotations

from dataclasses import dataclass

from volflow.jobs.batch.batch_options import CASES
from volflow.option import option
from volflow.volumes.volume_options import ChunkOptions

__all__ = ["ConvertCasesOptions"]


@dataclass(frozen=True)
class ConvertCasesOptions(ChunkOptions):
    """The options of `convert_cases`."""

    at_once: int | None = option(
        None,
        "How many small cases at a time. Default: four, or one for each worker of a cluster.",
        CASES,
    )
    skip_bad: bool = option(False, "Go on without cases that cannot be used.", CASES)
