"""Progress: a bar on a terminal or in a notebook, plain lines in logs, and the slowest stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

from rich import progress as bars
from rich.console import Console

from volflow.engine.observing.bottleneck import WorkerTime, explain_bottleneck, worker_lines
from volflow.geometry.units import clock, si

__all__ = ["Progress", "RunState", "announce", "is_watched", "shown", "watched"]

LINE_EVERY_S = 10.0  # at most, in logs
WORTH_A_SUMMARY_S = 10.0  # what limited a shorter run is of no interest


@dataclass
class RunState:
    """Progress of a run.

    Parameters
    ----------
    operation, unit
        Names of the operation, and of what its work is counted in.
    total_units, total_blocks
        The work of this run; a resumed run has less than the whole.
    units, blocks, retries, failed
        Work done, blocks done, tasks submitted again, and blocks given up, so far.
    stages, workers
        Seconds by stage, and blocks and seconds of each worker.
    began_s
        When it began, by `time.monotonic`.
    output, blocks_before
        Path of what it writes, "" if nothing; and the blocks of it that were done before.
    ended
        ``"done"`` or ``"failed"`` when it has ended.

    Examples
    --------
    >>> state = RunState("predict", "voxels", total_units=10, total_blocks=2)
    >>> state.add(units=5, blocks=1, stages={"read": 1.0, "model": 3.0})
    >>> state.fraction, state.bottleneck()
    (0.5, 'model 75%')
    """

    operation: str
    unit: str
    total_units: int
    total_blocks: int
    units: int = 0
    blocks: int = 0
    retries: int = 0
    failed: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    workers: dict[str, WorkerTime] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)
    output: str = ""
    blocks_before: int = 0
    ended: str = ""

    def add(self, units: int, blocks: int, stages: Mapping[str, float], worker: str = "") -> None:
        """Account for one step of a task, on the worker of that name."""
        self.units = min(self.total_units, self.units + units)
        self.blocks += blocks
        for stage, seconds in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds
        self.workers.setdefault(worker, WorkerTime()).add(blocks, stages)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run started."""
        return time.monotonic() - self.began_s

    @property
    def fraction(self) -> float:
        """Share of the work that is done."""
        return self.units / self.total_units if self.total_units else 1.0

    @property
    def eta_s(self) -> float | None:
        """Estimated seconds left, at the mean rate so far."""
        if not self.units:
            return None
        return self.elapsed_s * (self.total_units - self.units) / self.units

    def bottleneck(self) -> str:
        """Return the stage that takes the largest share of the tasks' time, and that share."""
        total = sum(self.stages.values())
        if not total:
            return ""
        stage, seconds = max(self.stages.items(), key=lambda item: item[1])
        return f"{stage} {seconds / total:.0%}"

    def summary(self) -> list[str]:
        """Return what limited the run, and each worker's share in it, as lines."""
        said = explain_bottleneck(self.workers)
        lines = worker_lines(self.workers) if len(self.workers) > 1 else []
        return [f"{self.operation}: {said}", *(f"  {line}" for line in lines)] if said else []

    def line(self) -> str:
        """Return the state in one line."""
        rate = self.units / max(self.elapsed_s, 1e-9)
        parts = [
            f"{self.blocks}/{self.total_blocks} blocks",
            f"{si(rate)}{self.unit}/s",
            f"{clock(self.elapsed_s)} elapsed",
        ]
        if self.eta_s is not None and self.units < self.total_units:
            parts.append(f"{clock(self.eta_s)} left")
        if self.bottleneck():
            parts.append(f"limited by {self.bottleneck()}")
        if self.retries:
            parts.append(f"{self.retries} retried")
        return " · ".join(parts)


# How progress is shown; see `shown`.
Progress = bool | Callable[[RunState], object] | None
# Shows the current state.
Show = Callable[[], object]


def announce(line: str, progress: Progress) -> None:
    """Write a line about a run to standard error, unless ``progress`` is False."""
    if progress is not False:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


_watchers: ContextVar[tuple[Callable[[RunState], object], ...]] = ContextVar(
    "volflow_watchers", default=()
)


@contextmanager
def watched(see: Callable[[RunState], object]) -> Iterator[None]:
    """Have a function see the state of all runs inside the block: at each step, and at the end.

    It is called beside what shows the progress, also where that is switched off.
    """
    before = _watchers.set((*_watchers.get(), see))
    try:
        yield
    finally:
        _watchers.reset(before)


def is_watched() -> bool:
    """Return True inside of `watched`."""
    return bool(_watchers.get())


@contextmanager
def shown(state: RunState, progress: Progress) -> Iterator[Show]:
    """Show the progress of a run whenever the yielded function is called, and at the end.

    Parameters
    ----------
    state
        State of the run, which changes; shown from one thread.
    progress
        None: a bar on a terminal or in a notebook, else plain lines; True: plain lines at least;
        False: nothing; a function: called with each `RunState`.
    """
    watchers: list[Show] = [partial(see, state) for see in _watchers.get()]
    display, end = _display(state, progress)
    shows, ends = [display, *watchers], [end, *watchers]

    def show() -> None:
        for one in shows:
            one()

    try:
        yield show
        state.ended = "done"
    except BaseException:
        state.ended = "failed"
        raise
    finally:
        for one in ends:
            one()
        if state.elapsed_s >= WORTH_A_SUMMARY_S and not callable(progress):
            for line in state.summary():
                announce(line, progress)


def _display(state: RunState, progress: Progress) -> tuple[Show, Show]:
    """Return functions that show a state: at each step, at the end."""
    if progress is False:
        return (lambda: None), (lambda: None)
    if callable(progress):
        show = partial(progress, state)
        return show, show
    console = Console(stderr=True)
    terminal = console.is_jupyter or console.is_terminal
    return _bar(state, console) if terminal else _lines(state)


def _lines(state: RunState) -> tuple[Show, Show]:
    """Return functions for plain lines in logs: one at most every few seconds, one at the end."""
    last_s = time.monotonic()

    def end() -> None:
        sys.stderr.write(f"{state.operation}: {state.fraction:4.0%} · {state.line()}\n")
        sys.stderr.flush()

    def show() -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= LINE_EVERY_S:
            last_s = time.monotonic()
            end()

    return show, end


def _bar(state: RunState, console: Console) -> tuple[Show, Show]:
    """Return functions for a bar on a terminal or in a notebook: at each step, at the end."""
    bar = bars.Progress(
        bars.TextColumn("[bold]{task.description}"),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("{task.percentage:3.0f}% · {task.fields[line]}"),
        console=console,
    )
    task = bar.add_task(state.operation, total=1.0, line="")

    def show() -> None:
        bar.start()  # a second call does nothing
        bar.update(task, completed=state.fraction, line=state.line())

    def end() -> None:
        show()
        bar.stop()

    return show, end
