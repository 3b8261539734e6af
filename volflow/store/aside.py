"""Write under a temporary name and rename when complete; remove what dead processes left behind.

::

    .out.zarr.new-1a2b3c4d      a folder being written
    .out.zarr.old-1a2b3c4d      a folder that is being replaced
    .seg.nii.gz.1a2b3c4d.tmp    a file being written
    out.zarr/zarr.json.1a2b….partial    a file that zarr is writing itself, which holds no lock

The process that makes one of these holds a lock (`flock`) on it, which ends with the process: if
another process can lock it, its owner is dead. If a file system cannot lock folders, leftovers on
it stay.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["beside", "file_aside", "folder_aside", "replace_folder", "sweep", "sweep_torn"]

# Includes the names that earlier versions used.
_NAMES = re.compile(r"(?:(?:new|old|part)-[0-9a-f]{8}|(?:[0-9a-f]{8}|[0-9a-f]{32})\.tmp)")
# What zarr appends to the name of a shard, or of metadata, until it is whole.
_TORN = re.compile(r".+\.[0-9a-f]{32}\.partial")


def beside(target: Path, word: str) -> Path:
    """Return a new path beside a target, in the form that `sweep` recognises.

    Examples
    --------
    >>> beside(Path("/data/out.zarr"), "old").name[:-8]
    '.out.zarr.old-'
    """
    return target.with_name(f".{target.name}.{word}-{uuid.uuid4().hex[:8]}")


@contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """Make a new folder beside a target; it is deleted at the end of the block unless moved.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    path, handle = _new_folder(target)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


@contextmanager
def file_aside(target: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Yield a new file beside a target, and its path; it is deleted at the end unless moved.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    path, file = _new_file(target)
    try:
        with file:
            yield path, file
    finally:
        with suppress(OSError):
            path.unlink()


def replace_folder(new: Path, target: Path) -> None:
    """Put a folder in the place of another, which is deleted last.

    Raises
    ------
    OSError
        If it cannot be moved; the old folder is then back in its place.
    """
    if not target.exists():
        new.rename(target)
        return
    old, handle = beside(target, "old"), os.open(target, os.O_RDONLY)
    try:
        _lock(handle)
        target.rename(old)
        try:
            new.rename(target)
        except OSError:
            with suppress(OSError):
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        os.close(handle)


def sweep(target: os.PathLike[str]) -> None:
    """Delete what dead processes left beside a target on a disk; what a live process owns stays.

    Leftovers that cannot be read or deleted stay as well: they do no harm.
    """
    if not isinstance(target, Path):  # on an object store nothing is half written
        return
    prefix = f".{target.name}."
    try:
        found = [path for path in target.parent.iterdir() if path.name.startswith(prefix)]
    except OSError:
        return
    for path in found:
        if _NAMES.fullmatch(path.name.removeprefix(prefix)):
            _remove_abandoned(path)


def _remove_abandoned(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not _lock(handle):
                return
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(handle)


# Before it is locked, another process may delete a new file or folder as abandoned; then a new one
# is made.


def _new_folder(target: Path) -> tuple[Path, int]:
    while True:
        path = beside(target, "new")
        path.mkdir()
        with suppress(FileNotFoundError):
            handle = os.open(path, os.O_RDONLY)
            if _lock(handle, without=True) and path.exists():
                return path, handle
            os.close(handle)


def _new_file(target: Path) -> tuple[Path, IO[bytes]]:
    while True:
        path = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        file = path.open("wb")
        if _lock(file.fileno(), without=True) and path.exists():
            return path, file
        file.close()


def _lock(handle: int, *, without: bool = False) -> bool:
    """Return True if this process now holds the lock; ``without`` if locks are not supported."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return without
    return True


def sweep_torn(store: os.PathLike[str]) -> None:
    """Delete what killed processes left of files that zarr was writing in a store.

    Shards are written behind a `Fence`; earlier versions left them to zarr, as metadata are.

    To be called under the lock of the output, when no task is at work on it that counts. What
    cannot be deleted stays.
    """
    if not isinstance(store, Path):  # on an object store nothing is half written
        return
    for folder, _, files in os.walk(store):
        for name in files:
            if _TORN.fullmatch(name):
                with suppress(OSError):
                    Path(folder, name).unlink()
