"""The options of `convert_cases`: those of `convert` that go for all, and how many at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from volflow.engine.run_options import OutputOptions
from volflow.jobs.batch.batch_options import CASES
from volflow.option import numbers, option

__all__ = ["ConvertCasesOptions"]


@dataclass(frozen=True)
class ConvertCasesOptions(OutputOptions):
    """The options of `convert_cases`."""

    chunk: int | Sequence[int] | None = option(
        None, "Voxels of a compressed piece: 64, or 16,128,128 (z,y,x).", read=numbers
    )
    shard: int | Sequence[int] | None = option(
        None, "Voxels of a stored object, a multiple of the chunk.", read=numbers
    )
    at_once: int | None = option(
        None,
        "How many small cases at a time. Default: four, or one for each worker of a cluster.",
        CASES,
    )
    skip_bad: bool = option(False, "Go on without cases that cannot be used.", CASES)
