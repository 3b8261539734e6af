"""Commands run one after the other under a cap on memory, shown while they run."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from volflow.demo.steps import INDENT
from volflow.demo.watch import Watched, watch
from volflow.errors import RunFailed
from volflow.geometry.budget import format_bytes

__all__ = ["Guard"]

MIB = 2**20
BAR = 24

# How our own errors begin, told by the command line or by Python.
_OURS = re.compile(r"^volflow(\.errors\.\w+)?: ")


@dataclass
class Guard:
    """Runs commands under a cap, and keeps what it saw: name, when it started, what became of it.

    Examples
    --------
    >>> guard = Guard(2**30)
    >>> guard.run("nothing", [sys.executable, "-c", "print('done')"]).told
    'done'
    """

    cap_bytes: int
    began_s: float = field(default_factory=time.monotonic)
    seen: list[tuple[str, float, Watched]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began_s

    @property
    def peak_bytes(self) -> int:
        """The most that any of the commands had resident."""
        return max(watched.peak_bytes for _, _, watched in self.seen)

    def run(
        self,
        name: str,
        command: Sequence[str],
        until: Callable[[], bool] | None = None,
        state: Callable[[], str] | None = None,
        check: bool = True,
    ) -> Watched:
        """Run a command to its end, or until it is to be killed.

        Parameters
        ----------
        name
            For messages and pictures.
        command, until
            As in `watch`.
        state
            How far it has come, in a few words, for people at a terminal.
        check
            Whether its failure is an error.

        Raises
        ------
        RunFailed
            Where it fails, or is killed at the cap.
        """
        start_s = self.seconds
        shown = sys.stderr.isatty()
        try:
            look = self._meter(state) if shown else None
            watched = watch(command, self.cap_bytes, until=until, look=look)
        finally:
            if shown:
                _show("")
        self.seen.append((name, start_s, watched))
        if watched.ended == "over":
            raise RunFailed(
                f"{name} was killed at {format_bytes(watched.peak_bytes)}, above the cap of"
                f" {format_bytes(self.cap_bytes)}; what is done is kept, run the same command again"
            )
        if watched.ended == "failed" and check:
            reason = (watched.told.splitlines() or ["it said nothing"])[-1]
            raise RunFailed(f"{name} failed: {_OURS.sub('', reason)}")
        return watched

    def _meter(self, state: Callable[[], str] | None) -> Callable[[float, int], None]:
        def look(seconds: float, resident: int) -> None:
            full = round(BAR * min(1.0, resident / self.cap_bytes))
            memory = f"{resident // MIB} of {self.cap_bytes // MIB} MiB"
            words = "  ".join([memory, f"{seconds:.0f} s", state() if state else ""])
            _show(f"{INDENT}{'█' * full}{'·' * (BAR - full)}  {words}")

        return look


def _show(line: str) -> None:
    """Replace the terminal's last line."""
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()
