"""Steps of a demo: its folder, lines that name each step, commands run under a cap on memory.

Resident memory counts all that a process has taken: interpreter, libraries, every buffer. It is
read twenty times a second. The kernel keeps its peak (``VmHWM``), so that a peak between two
readings is seen at the next one.

Users who may make control groups can let the kernel itself hold a process, its share of the page
cache included: ``systemd-run --user --scope -p MemoryMax=768M volflow predict …``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from volflow.errors import InvalidInput, RunFailed
from volflow.geometry.budget import format_bytes

__all__ = ["INDENT", "Guard", "Watched", "check_system", "folder_for", "say", "watch"]

INDENT = " " * 13  # of lines below the name of a step
MIB = 2**20
BAR = 24  # characters of the meter
EVERY_S = 0.05
OUTPUT_BYTES = 4000
PROC = Path("/proc")

# How our own errors begin, whether the command line or Python prints them.
_OURS = re.compile(r"^volflow(\.errors\.\w+)?: ")
_KIB = re.compile(r"^(VmRSS|VmHWM):\s+(\d+) kB$", re.MULTILINE)


def folder_for(out: str | os.PathLike[str]) -> Path:
    """Return a folder as a path; it is made if it is missing.

    Raises
    ------
    InvalidInput
        If it cannot be made.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@dataclass(frozen=True)
class Watched:
    """How a process ended, and its memory over time.

    Parameters
    ----------
    ended
        ``"done"`` or ``"failed"`` if it ended by itself, ``"stopped"`` if it was killed as asked,
        ``"over"`` if it was killed at the cap.
    seconds, peak_bytes
        How long it ran, and the most memory that was resident.
    curve
        Pairs of seconds since its start and the bytes that were resident then.
    output
        The end of what it printed.
    """

    ended: str
    seconds: float
    peak_bytes: int
    curve: tuple[tuple[float, int], ...]
    output: str


def watch(
    command: Sequence[str],
    cap_bytes: int,
    *,
    until: Callable[[], bool] | None = None,
    look: Callable[[float, int], object] | None = None,
) -> Watched:
    """Run a command and kill it (SIGKILL) when it, with its children, is above a cap.

    Parameters
    ----------
    command
        Program and arguments. What it prints is kept, not shown.
    cap_bytes
        The cap on resident memory.
    until
        Called whenever the memory is read; once it returns True the command is killed.
    look
        Called whenever the memory is read, with seconds and resident bytes.

    Raises
    ------
    InvalidInput
        If the system has no ``/proc``.

    Examples
    --------
    >>> greedy = watch([sys.executable, "-c", "x = bytearray(2**30); x[::4096] = x[::4096]"], 2**28)
    >>> greedy.ended
    'over'
    """
    check_system()
    ended, peak, curve = "", 0, []
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is this process's to answer
        )  # fmt: skip
        try:
            while process.poll() is None and not ended:
                resident, highest = _memory(process.pid)
                peak = max(peak, highest)
                if highest > cap_bytes:
                    ended = "over"
                elif until is not None and until():
                    ended = "stopped"
                elif resident:  # 0: it has just ended
                    curve.append((time.monotonic() - began, resident))
                    if look is not None:
                        look(*curve[-1])
                    time.sleep(EVERY_S)
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.monotonic() - began
        output.seek(max(0, output.seek(0, os.SEEK_END) - OUTPUT_BYTES))
        text = output.read().decode(errors="replace").strip()
    ended = ended or ("failed" if process.returncode else "done")
    return Watched(ended, seconds, peak, tuple(curve), text)


def check_system() -> None:
    """Refuse systems that do not show the memory of other processes.

    Raises
    ------
    InvalidInput
        If the system has no ``/proc``.
    """
    if not (PROC / "self" / "status").exists():
        raise InvalidInput(
            f"watching the memory of a process needs Linux's /proc, and this is {sys.platform};"
            " run it on Linux, or in a Linux container"
        )


def _memory(pid: int) -> tuple[int, int]:
    """Return the resident bytes of a process and its descendants, and the sum of their peaks."""
    resident = highest = 0
    for one in _family(pid):
        with suppress(OSError):  # it has ended
            found = dict(_KIB.findall((PROC / str(one) / "status").read_text()))
            resident += 1024 * int(found.get("VmRSS", 0))
            highest += 1024 * int(found.get("VmHWM", 0))
    return resident, highest


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))


@dataclass
class Guard:
    """Runs commands under a cap, and keeps the name, the start in seconds and what it saw of each.

    Examples
    --------
    >>> guard = Guard(2**30)
    >>> guard.run("nothing", [sys.executable, "-c", "print('done')"]).output
    'done'
    """

    cap_bytes: int
    began_s: float = field(default_factory=time.monotonic)
    seen: list[tuple[str, float, Watched]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Seconds since the guard was made."""
        return time.monotonic() - self.began_s

    @property
    def peak_bytes(self) -> int:
        """The largest resident memory of all commands so far."""
        return max(watched.peak_bytes for _, _, watched in self.seen)

    def run(
        self,
        name: str,
        command: Sequence[str],
        until: Callable[[], bool] | None = None,
        state: Callable[[], str] | None = None,
        check: bool = True,
    ) -> Watched:
        """Run a command to its end, or until it is to be killed; a terminal shows its memory.

        Parameters
        ----------
        name
            Its name in messages and pictures.
        command, until
            As in `watch`.
        state
            Returns how far it has come, in a few words, for people at a terminal.
        check
            Whether its failure is an error.

        Raises
        ------
        RunFailed
            If it fails, or is killed at the cap.
        """

        def look(seconds: float, resident: int) -> None:
            full = round(BAR * min(1.0, resident / self.cap_bytes))
            memory = f"{resident // MIB} of {self.cap_bytes // MIB} MiB"
            words = "  ".join([memory, f"{seconds:.0f} s", state() if state else ""])
            _show(f"{INDENT}{'█' * full}{'·' * (BAR - full)}  {words}")

        start_s, shown = self.seconds, sys.stderr.isatty()
        try:
            watched = watch(command, self.cap_bytes, until=until, look=look if shown else None)
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
            reason = (watched.output.splitlines() or ["it printed nothing"])[-1]
            raise RunFailed(f"{name} failed: {_OURS.sub('', reason)}")
        return watched


def _show(line: str) -> None:
    """Replace the terminal's last line."""
    sys.stderr.write(f"\r\x1b[K{line}")
    sys.stderr.flush()
