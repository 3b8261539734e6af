"""Progress: a bar on a terminal or in a notebook, plain lines in logs, and the slowest stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rich import progress as bars
from rich.console import Console

__all__ = ["Progress", "Reporter", "RunState", "announce", "reporter"]


@dataclass
class RunState:
    """How far a run has come.

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
    stages: dict[str, float] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    def add(self, units: int, blocks: int, stages: Mapping[str, float]) -> None:
        """Account for one step of a task."""
        self.units = min(self.total_units, self.units + units)
        self.blocks += blocks
        for stage, seconds in stages.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.began_s

    @property
    def fraction(self) -> float:
        """Share of the work that is done."""
        return self.units / self.total_units if self.total_units else 1.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the mean rate so far."""
        if not self.units:
            return None
        return self.elapsed_s * (self.total_units - self.units) / self.units

    def bottleneck(self) -> str:
        """The stage that takes the largest share of the tasks' time, and that share."""
        total = sum(self.stages.values())
        if not total:
            return ""
        stage, seconds = max(self.stages.items(), key=lambda item: item[1])
        return f"{stage} {seconds / total:.0%}"

    def line(self) -> str:
        """The state in one line."""
        rate = self.units / max(self.elapsed_s, 1e-9)
        parts = [
            f"{self.blocks}/{self.total_blocks} blocks",
            f"{_si(rate)}{self.unit}/s",
            f"{_clock(self.elapsed_s)} elapsed",
        ]
        if self.eta_s is not None and self.units < self.total_units:
            parts.append(f"{_clock(self.eta_s)} left")
        if self.bottleneck():
            parts.append(f"limited by {self.bottleneck()}")
        if self.retries:
            parts.append(f"{self.retries} retried")
        return " · ".join(parts)


def _si(value: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if value < 1000:
            return f"{value:.3g} {prefix}"
        value /= 1000
    return f"{value:.3g} T"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


# What a caller may ask to see of a run; see `reporter`.
Progress = bool | Callable[[RunState], object] | None


class Reporter(Protocol):
    """Shows the state of a run."""

    def update(self, state: RunState) -> None:
        """Show the state; called often, from one thread."""

    def close(self, state: RunState) -> None:
        """Show the last state and leave."""


class Silent:
    """Shows nothing."""

    def update(self, state: RunState) -> None:
        """Show nothing."""

    def close(self, state: RunState) -> None:
        """Show nothing."""


class Callback:
    """Hands each state to a function."""

    def __init__(self, function: Callable[[RunState], object]) -> None:
        self.function = function

    def update(self, state: RunState) -> None:
        """Call the function."""
        self.function(state)

    def close(self, state: RunState) -> None:
        """Call the function a last time."""
        self.function(state)


class Lines:
    """One plain line at most every few seconds, for logs."""

    every_s = 10.0

    def __init__(self) -> None:
        self.last_s = time.monotonic()

    def _print(self, state: RunState) -> None:
        sys.stderr.write(f"{state.operation}: {state.fraction:4.0%} · {state.line()}\n")
        sys.stderr.flush()

    def update(self, state: RunState) -> None:
        """Print a line if the last is old enough."""
        if time.monotonic() - self.last_s >= self.every_s:
            self.last_s = time.monotonic()
            self._print(state)

    def close(self, state: RunState) -> None:
        """Print the last line."""
        self._print(state)


class Bar:
    """A bar on a terminal, or a notebook's."""

    def __init__(self, console: Console) -> None:
        self.progress = bars.Progress(
            bars.TextColumn("[bold]{task.description}"),
            bars.BarColumn(bar_width=24),
            bars.TextColumn("{task.percentage:3.0f}% · {task.fields[line]}"),
            console=console,
            transient=False,
        )
        self.task: bars.TaskID | None = None

    def update(self, state: RunState) -> None:
        """Redraw the bar."""
        if self.task is None:
            self.progress.start()
            self.task = self.progress.add_task(state.operation, total=1.0, line="")
        self.progress.update(self.task, completed=state.fraction, line=state.line())

    def close(self, state: RunState) -> None:
        """Draw the bar a last time."""
        self.update(state)
        self.progress.stop()


def announce(line: str, progress: Progress) -> None:
    """Say what a user should know of a run, in a line on standard error; nothing where False."""
    if progress is not False:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def reporter(progress: Progress) -> Reporter:
    """The reporter for a ``progress`` argument.

    Parameters
    ----------
    progress
        None: a bar on a terminal or in a notebook, else plain lines; True: plain lines at least;
        False: nothing; a function: called with each `RunState`.
    """
    if progress is False:
        return Silent()
    if callable(progress):
        return Callback(progress)
    console = Console(stderr=True)
    if console.is_jupyter or console.is_terminal:
        return Bar(console)
    return Lines()
