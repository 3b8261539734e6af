"""A process that is measured from outside while it runs, and whose attempts at one thing add up.

The process says when it begins (`measured`); from then on its memory, its seconds, its bytes read
and written and the size of its scratch folder are sampled. Every second what was seen is written to
a small file of its folder, so that what an attempt took counts although all was killed: seconds
and bytes are summed over the attempts, and of memory and disk the most is kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

EVERY_S, SAVE_S = 0.05, 1.0
# The scratch folder is looked through for at most this share of the time.
LOOKING = 0.05
# Where less memory than this is left on the machine the process is stopped.
LEAST_FREE_BYTES = 2**30
SUMS = ("wall_s", "cpu_s", "written_bytes", "from_disk_bytes", "to_disk_bytes", "asked_bytes")
PEAKS = ("growth_bytes", "anonymous_bytes", "disk_bytes")

Row = dict[str, Any]


class Stopped(Exception):
    """A process did not end well; the text says how."""


def counters(pid: int | str = "self") -> Row:
    """Everything that a process has used so far, and its memory."""
    place = Path("/proc") / str(pid)
    found = dict(re.findall(r"^(\w+):\s+(\d+)", (place / "status").read_text(), re.MULTILINE))
    io = dict(re.findall(r"^(\w+): (\d+)", (place / "io").read_text(), re.MULTILINE))
    ticks = (place / "stat").read_text().rpartition(")")[2].split()
    return {
        "at_s": time.time(),
        "cpu_s": (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK"),
        "resident_bytes": 1024 * int(found["VmRSS"]),
        "peak_bytes": 1024 * int(found["VmHWM"]),
        "anonymous_bytes": 1024 * int(found["RssAnon"]),
        "written_bytes": int(io["wchar"]),
        "from_disk_bytes": int(io["read_bytes"]),
        "to_disk_bytes": int(io["write_bytes"]),
    }


def since(base: Row, now: Row) -> Row:
    """What was used between two moments; memory is what it grew by at most."""
    used = ("cpu_s", "written_bytes", "from_disk_bytes", "to_disk_bytes")
    return {
        "wall_s": now["at_s"] - base["at_s"],
        "growth_bytes": max(0, now["peak_bytes"] - base["resident_bytes"]),
        "anonymous_bytes": max(0, now["anonymous_bytes"] - base["anonymous_bytes"]),
        **{name: now[name] - base[name] for name in used},
    }


def measured(folder: Path, work: Callable[[], Any]) -> tuple[Any, Row]:
    """Run something in this process; its result, and what it used."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # lest what is freed here is used there and not counted
    Path("/proc/self/clear_refs").write_text("5")
    base = counters()
    save(folder / "began.json", base)
    result = work()
    return result, since(base, counters())


def end_with_parent() -> None:
    """Let the kernel kill this process when the one that watches it is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def watched(command: Sequence[str], folder: Path) -> Row:
    """Run a command that measures itself; its row, over all attempts in the folder.

    It writes ``result.json`` last. Raises Stopped if it does not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before, mine = attempts_of(folder), Row()
    for name in ("began.json", "asked.json", "result.json"):
        (folder / name).unlink(missing_ok=True)
    failure = ""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            for free in _samples(process, folder, before, mine):
                if free < LEAST_FREE_BYTES:
                    failure = "stopped: the memory of the machine was used up"
                    process.kill()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    result = load(folder / "result.json", None)
    if result is None or process.returncode:
        told = (folder / "output.txt").read_text(errors="replace").strip()[-1500:]
        raise Stopped(failure or f"ended with {process.returncode}: {told}")
    merge(mine, result.pop("used", {}))
    _record(folder, before, mine)
    return {**result, **total(attempts_of(folder))}


def _samples(
    process: subprocess.Popen[bytes], folder: Path, before: list[Row], mine: Row
) -> Iterator[int]:
    """Add up what a process uses until it ends; yield the memory that the machine has left."""
    base: Row | None = None
    saved = looked = time.monotonic()
    pause = EVERY_S
    while process.poll() is None:
        base = base or load(folder / "began.json", None)
        if base:
            with contextlib.suppress(OSError, KeyError):  # it has just ended
                merge(mine, since(base, counters(process.pid)))
            now = time.monotonic()
            if now - looked >= pause:
                merge(mine, {"disk_bytes": used_bytes(folder / "scratch")})
                looked = time.monotonic()
                pause = max(EVERY_S, (looked - now) / LOOKING)
            if now - saved >= SAVE_S:
                _record(folder, before, mine)
                saved = now
        yield free_memory_bytes()
        time.sleep(EVERY_S)


def _record(folder: Path, before: list[Row], mine: Row) -> None:
    merge(mine, load(folder / "asked.json", {}))
    if mine:
        save(folder / "attempts.json", [*before, mine])


def attempts_of(folder: Path) -> list[Row]:
    """What each attempt used."""
    found: list[Row] = load(folder / "attempts.json", [])
    return found


def merge(row: Row, seen: Row) -> None:
    """Let a row hold the most of each figure; none of them ever falls."""
    for name, value in seen.items():
        row[name] = max(row.get(name, value), value)


def total(attempts: Sequence[Row]) -> Row:
    """The attempts together."""
    found: Row = {"attempts": max(1, len(attempts))}
    for names, together in ((SUMS, sum), (PEAKS, max)):
        for name in names:
            values = [row[name] for row in attempts if name in row]
            if values:
                found[name] = together(values)
    return found


def used_bytes(folder: Path) -> int:
    """Bytes of all files in a folder, some of which may be gone meanwhile."""
    found, stack = 0, [folder]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(Path(entry.path))
                else:
                    with contextlib.suppress(OSError):
                        found += entry.stat(follow_symlinks=False).st_size
    return found


def free_memory_bytes() -> int:
    """Memory that the machine can give to processes without swapping."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    return 1024 * int(found[1]) if found else sys.maxsize


def save(path: Path, values: Any) -> None:
    """Write JSON that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1))
    part.replace(path)


def load(path: Path, default: Any) -> Any:
    """Read JSON, if it is there."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return default
