"""The lock on an output: a file that its driver holds by flock, and that names its process."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from volflow.errors import InvalidInput, Locked
from volflow.store.atomic import parse_json
from volflow.store.journal.refusals import output_of, reason, writing

__all__ = ["Holder", "holder_of", "locked"]


@dataclass(frozen=True)
class Holder:
    """The driver that a lock names.

    Parameters
    ----------
    host, pid
        Its machine and process.
    since_s
        When it took the lock, in seconds since 1970.
    alive
        True if it still holds it, False if it ended without releasing it, and None if that cannot
        be seen from this machine.
    """

    host: str
    pid: int
    since_s: float
    alive: bool | None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock in the folder of a journal, which ends with this process.

    Raises
    ------
    Locked
        If another driver holds it.
    InvalidInput
        If it cannot be written, or the file system has no locks.
    """
    path = directory / "lock"
    with writing(directory, begun=False):
        # Opened for appending, which never truncates: another driver may hold the file.
        file = path.open("a+", encoding="utf-8")
    with file:
        _acquire(file, path)
        with writing(path, begun=False):
            _note(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        try:
            yield
        finally:
            # A full disk must not hide how the run ended; closing releases the lock.
            with suppress(OSError):
                _note(file, "")


def holder_of(directory: Path) -> Holder | None:
    """Return the driver that the lock in a folder names; None if it was released."""
    try:
        with (directory / "lock").open("rb") as file:
            noted = parse_json(file.read(4096))
            host, pid = str(noted["host"]), int(noted["pid"])
            since_s = os.fstat(file.fileno()).st_mtime
            held = _is_held(file.fileno())
    except (OSError, ValueError, TypeError, KeyError, OverflowError):  # nobody, or damaged
        return None
    here = host == socket.gethostname()
    # Where another machine's lock seems free, the file system may not carry locks between them.
    return Holder(host, pid, since_s, True if held else (False if here else None))


def _is_held(file: int) -> bool:
    """Return True if another holds the lock: it is shared for a moment, which drivers wait out."""
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _acquire(file: IO[str], path: Path) -> None:
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # perhaps `holder_of` holds it, which is for less than this
            time.sleep(0.02)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        try:
            holder = parse_json(file.read(4096).encode())
            who = f"process {holder['pid']} on {holder['host']}"
        except (ValueError, TypeError, KeyError):
            who = "another process"
        raise Locked(
            f"{output_of(path.parent)} is being written by {who}; only one driver may write;"
            " wait for it to end or stop it, which releases the lock"
        ) from None
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be locked: {reason(error)}; expected a file system with flock;"
            " write the output to another one"
        ) from error


def _note(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
