"""A process under watch: its resident memory twenty times a second, and its end at a cap.

Resident memory counts all that a process has taken: interpreter, libraries, every buffer. The
kernel keeps its peak (``VmHWM``), so that a peak between two looks is seen at the next one.

Where a user may make control groups the kernel itself can hold a process, its share of the page
cache included: ``systemd-run --user --scope -p MemoryMax=768M volflow predict …``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from volflow.errors import InvalidInput

__all__ = ["Watched", "check_system", "watch"]

EVERY_S = 0.05
TOLD_BYTES = 4000

PROC = Path("/proc")


@dataclass(frozen=True)
class Watched:
    """What became of a process.

    Parameters
    ----------
    ended
        ``"done"`` or ``"failed"`` by itself, ``"stopped"`` as asked, ``"over"`` at the cap.
    seconds, peak_bytes
        How long it ran, and the most memory that was resident.
    curve
        Seconds since its start, and the bytes resident then.
    told
        The end of what it printed.
    """

    ended: str
    seconds: float
    peak_bytes: int
    curve: tuple[tuple[float, int], ...]
    told: str


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
        Of resident memory.
    until
        Asked at every look: once it answers True the command is killed just so.
    look
        Called at every look with seconds and resident bytes.

    Raises
    ------
    InvalidInput
        On a system without ``/proc``.

    Examples
    --------
    >>> greedy = watch([sys.executable, "-c", "x = bytearray(2**30); x[::4096] = x[::4096]"], 2**28)
    >>> greedy.ended
    'over'
    """
    check_system()
    ended, peak, curve = "", 0, []
    began = time.monotonic()
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=told, stderr=subprocess.STDOUT,
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
        told.seek(max(0, told.seek(0, os.SEEK_END) - TOLD_BYTES))
        text = told.read().decode(errors="replace").strip()
    ended = ended or ("failed" if process.returncode else "done")
    return Watched(ended, seconds, peak, tuple(curve), text)


def check_system() -> None:
    """Refuse systems that do not tell the memory of other processes.

    Raises
    ------
    InvalidInput
        On a system without ``/proc``.
    """
    if not (PROC / "self" / "status").exists():
        raise InvalidInput(
            f"watching the memory of a process needs Linux's /proc, and this is {sys.platform};"
            " run it on Linux, a container of it will do"
        )


def _memory(pid: int) -> tuple[int, int]:
    """Bytes resident of a process and its descendants, and the sum of their peaks."""
    resident = highest = 0
    for one in _family(pid):
        with suppress(OSError):  # it has ended
            for line in (PROC / str(one) / "status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    resident += int(line.split()[1]) * 1024
                elif line.startswith("VmHWM:"):
                    highest += int(line.split()[1]) * 1024
    return resident, highest


def _family(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for thread in (PROC / str(pid) / "task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _family(int(child))
