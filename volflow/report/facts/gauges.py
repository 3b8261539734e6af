"""The state of runs as OpenMetrics text, which a site's monitoring reads from a file.

The format is that of https://prometheus.io/docs/specs/om/open_metrics_spec, of which only gauges
are used: these mean the same in Prometheus' older text format, so that the textfile collector of
node_exporter takes the file as it is, under a name that ends in ``.prom``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.store.atomic import write_file

__all__ = ["metrics_text", "write_metrics"]

# Name and help of each gauge, and the fact that it shows.
GAUGES = (
    ("blocks", "Blocks of the output.", "total"),
    ("blocks_done", "Blocks that are stored and recorded as done.", "done"),
    ("blocks_failed", "Blocks that were given up after their retries.", "failed"),
    ("running", "1 while a run is at work, as far as can be seen, otherwise 0.", "running"),
    ("finished", "1 if all blocks are done, otherwise 0.", "finished"),
    ("blocks_per_second", "Pace of the last blocks.", "blocks_per_s"),
    ("left_seconds", "Estimated time until the last block is done.", "left_s"),
    ("last_block_timestamp_seconds", "When a block was last recorded.", "last_block_at_s"),
    ("last_success_timestamp_seconds", "When the output was finished.", "finished_at_s"),
)
STAGES = ("stage_seconds", "Seconds that the workers spent in a stage.")


def metrics_text(runs: Iterable[Mapping[str, Any]]) -> str:
    r"""Return the state of runs as OpenMetrics text; facts that are None are left out.

    Parameters
    ----------
    runs
        Facts as of `run_facts`, at least ``path`` and ``operation``.

    Examples
    --------
    >>> print(metrics_text([{"path": "out.zarr", "operation": "predict", "done": 3, "total": 8}]))
    # HELP volflow_blocks Blocks of the output.
    # TYPE volflow_blocks gauge
    volflow_blocks{operation="predict",output="out.zarr"} 8
    # HELP volflow_blocks_done Blocks that are stored and recorded as done.
    # TYPE volflow_blocks_done gauge
    volflow_blocks_done{operation="predict",output="out.zarr"} 3
    # EOF
    <BLANKLINE>
    """
    runs = list(runs)
    lines: list[str] = []
    for name, help_text, fact in GAUGES:
        samples = [(_labels(run), run[fact]) for run in runs if run.get(fact) is not None]
        lines += _family(name, help_text, samples)
    stages = [
        (_labels(run, stage=stage), seconds)
        for run in runs
        for stage, seconds in run.get("stages_s", {}).items()
    ]
    lines += _family(*STAGES, stages)
    return "\n".join([*lines, "# EOF", ""])


def _family(name: str, help_text: str, samples: list[tuple[str, float]]) -> Iterator[str]:
    if samples:
        yield f"# HELP volflow_{name} {help_text}"
        yield f"# TYPE volflow_{name} gauge"
        yield from (f"volflow_{name}{labels} {_number(value)}" for labels, value in samples)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(round(float(value), 3))


def _labels(run: Mapping[str, Any], **more: str) -> str:
    labels = {"operation": run["operation"], "output": run["path"], **more}
    return "{" + ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items()) + "}"


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()  # names of files may hold anything
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write_metrics(path: str | Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Write the state of runs to a file, which others see whole or not at all.

    Raises
    ------
    InvalidInput
        If the file cannot be written.
    """
    try:
        write_file(Path(path), metrics_text(runs).encode())
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise InvalidInput(
            f"the metrics cannot be written to {path}: {why}; choose a file in a folder that"
            " exists and can be written"
        ) from error
