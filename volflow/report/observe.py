"""Record how runs go: metrics for a site's monitoring, and Dask's performance report."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volflow.engine.observing.performance import reporting
from volflow.engine.progress import RunState, watched
from volflow.errors import InvalidInput
from volflow.report.facts.gauges import write_metrics

__all__ = ["observe"]

log = logging.getLogger("volflow")

# The file is written at most this often while a run goes on.
WRITE_EVERY_S = 5.0


@contextmanager
def observe(
    *,
    metrics: str | os.PathLike[str] | None = None,
    performance_report: str | os.PathLike[str] | None = None,
) -> Iterator[None]:
    """Record how everything goes that runs inside the ``with``.

    Parameters
    ----------
    metrics
        A file that holds the progress of all runs that write an output, as OpenMetrics text; it is
        written when a run begins, every few seconds and when it ends. The textfile collector of
        Prometheus' node_exporter reads it under a name that ends in ``.prom``.
    performance_report
        An ``.html`` file for Dask's performance report of what runs: tasks, workers, transfers. A
        second cluster inside the block has its number in the name of its file. It needs bokeh,
        ``pip install "volflow[dashboard]"``, also where the scheduler runs.

    Raises
    ------
    InvalidInput
        Before any work, if a file cannot be written, or bokeh is missing.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from volflow.volumes.convert import convert
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with observe(metrics=f"{folder}/night.prom"):
    ...         volume = convert(np.ones((4, 4, 4)), f"{folder}/a.zarr", progress=False)
    ...     lines = Path(folder, "night.prom").read_text().splitlines()
    >>> [line.split()[1] for line in lines if line.startswith("volflow_finished")]
    ['1']
    """
    with ExitStack() as stack:
        if metrics is not None:
            written = GaugeFile(Path(metrics))
            written.write()
            stack.enter_context(watched(written.see))
        if performance_report is not None:
            stack.enter_context(reporting(_checked(Path(performance_report))))
        yield


def _checked(report: Path) -> Path:
    """Return the path of a report that can be made here."""
    if report.suffix != ".html":
        raise InvalidInput(f"the performance report is an .html file, given {report}")
    if not report.absolute().parent.is_dir():
        raise InvalidInput(f"the folder {report.absolute().parent} does not exist; make it first")
    return report


@dataclass
class GaugeFile:
    """The file of metrics, and the runs that it shows, in the order in which they began."""

    path: Path
    runs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    written_s: float = 0.0

    def see(self, state: RunState) -> None:
        """Account for the state of a run that writes an output; never ends the run."""
        if not state.output:
            return
        self.runs[state.operation, state.output] = _facts(state)
        if state.ended or time.monotonic() - self.written_s >= WRITE_EVERY_S:
            try:
                self.write()
            except InvalidInput as error:
                log.warning("%s", error)

    def write(self) -> None:
        """Write the file."""
        self.written_s = time.monotonic()
        write_metrics(self.path, self.runs.values())


def _facts(state: RunState) -> dict[str, Any]:
    """Return the state of a run as the facts that `run_facts` reads from its journal."""
    now_s, finished = time.time(), state.ended == "done"
    return {
        "path": state.output,
        "operation": state.operation,
        "done": state.blocks_before + state.blocks,
        "total": state.blocks_before + state.total_blocks,
        "failed": state.failed,
        "running": int(not state.ended),
        "finished": int(finished),
        "blocks_per_s": state.blocks / max(state.elapsed_s, 1e-9) if state.blocks else None,
        "left_s": None if state.ended else state.eta_s,
        "last_block_at_s": now_s if state.blocks else None,
        "finished_at_s": now_s if finished else None,
        "stages_s": state.stages,
    }
