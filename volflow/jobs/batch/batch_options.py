"""The options of `predict_cases`: those of `predict`, and which cases, how many at a time."""

from __future__ import annotations

from dataclasses import dataclass

from volflow.infer.predict_options import PredictOptions
from volflow.option import option

__all__ = ["CASES", "BatchOptions"]

CASES = "Many cases"


@dataclass(frozen=True)
class BatchOptions(PredictOptions):
    """The options of `predict_cases`."""

    since: str | None = option(
        None,
        "Only cases whose files changed since: 2026-11-29, 2026-11-29T20:00, or 24h ago.",
        CASES,
    )
    retry_failed: bool = option(
        False, "Try cases again that were refused for what their files hold.", CASES
    )
    at_once: int | None = option(
        None,
        "How many small cases at a time. Default: one, or one for each worker of a cluster.",
        CASES,
    )
    on_failure: str | None = option(
        None,
        "A shell command to run where cases failed; VOLFLOW_SUMMARY is the path of the summary.",
        CASES,
    )
    dry_run: bool = option(
        False, "Say what would be done with each case, and do nothing; as --plan.", CASES
    )
