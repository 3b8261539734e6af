"""Places on GPUs: which one "cuda" means in this process, and how many processes share it.

Each process that works on a GPU holds a lock (`flock`) on a file named after it, in a folder of its
user; the lock ends with the process. So the processes of a machine spread over its GPUs, and each
knows among how many the memory of its own is to be divided.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

__all__ = ["note_current", "own_number", "sharers", "take_place"]


@dataclass(eq=False)
class Places:
    """The places of one process.

    Parameters
    ----------
    locks
        Handle of the locked file by the number of the GPU; None where nothing can be locked.
    own, wished
        Number of the GPU that "cuda" means, and of the one that the main thread had chosen.
    guard
        For the threads of the process.
    """

    locks: dict[int, int | None] = field(default_factory=dict)
    own: int | None = None
    wished: int | None = None
    guard: threading.RLock = field(default_factory=threading.RLock)

    def leave(self) -> None:
        """Give all places up, as the end of the process does."""
        for handle in self.locks.values():
            if handle is not None:
                os.close(handle)
        self.locks, self.own, self.wished = {}, None, None


_places: dict[int, Places] = {}  # by process, as a forked child holds none of its parent's


def own_number() -> int:
    """Return the number of the GPU that "cuda" means in this process, which takes a place there.

    It is the one that `torch.cuda.set_device` chose in this thread, or in the main one before the
    run; else the one on which the fewest processes work, and among equals the first.
    """
    chosen, places = torch.cuda.current_device(), _places_here()
    if chosen or places.wished is not None:
        return take_place(chosen or places.wished or 0)
    with places.guard:
        if places.own is None:
            with _folder() as folder:
                places.own = min(
                    range(torch.cuda.device_count()), key=lambda n: len(_taken(folder, n))
                )
                _take(places, folder, places.own)
        return places.own


def take_place(number: int) -> int:
    """Count this process among those that work on a GPU, and return the number of that."""
    places = _places_here()
    if number not in places.locks and number < torch.cuda.device_count():
        with places.guard, _folder() as folder:
            _take(places, folder, number)
    return number


def note_current() -> None:
    """Note which GPU the main thread has chosen, as the tasks of a run are in other threads."""
    main = threading.current_thread() is threading.main_thread()
    if main and torch.cuda.is_initialized():
        _places_here().wished = torch.cuda.current_device() or None


def sharers(number: int) -> int:
    """Return how many processes of this user work on a GPU; this one is among them."""
    take_place(number)
    with _folder() as folder:
        return max(1, len(_taken(folder, number)))


def _places_here() -> Places:
    process = os.getpid()
    return _places.get(process) or _places.setdefault(process, Places())


@contextmanager
def _folder() -> Iterator[Path | None]:
    """Yield the folder of the locks, which no other process uses meanwhile; None without one."""
    place = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    folder, handle, held = Path(place) / f"volflow-devices-{os.getuid()}", None, False
    try:
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            fcntl.flock(handle, fcntl.LOCK_EX)
            held = os.fstat(handle).st_uid == os.getuid()  # else another user made it
        yield folder if held else None
    finally:
        if handle is not None:
            os.close(handle)


def _identity(number: int) -> str:
    """Return what names a GPU in all processes, however each of them counts its GPUs."""
    return str(getattr(torch.cuda.get_device_properties(number), "uuid", number))


def _take(places: Places, folder: Path | None, number: int) -> None:
    if number not in places.locks:
        places.locks[number] = None if folder is None else _lock_slot(folder, number)


def _lock_slot(folder: Path, number: int) -> int | None:
    taken, name = _taken(folder, number), _identity(number)
    free = next(n for n in range(len(taken) + 1) if n not in taken)
    try:
        handle = os.open(folder / f"{name}.{free}", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # such as a full disk: the others do not know of this one
        return None
    return handle


def _taken(folder: Path | None, number: int) -> set[int]:
    """Return the slots of a GPU that processes hold."""
    if folder is None:
        return set()
    found = folder.glob(f"{_identity(number)}.*")
    return {int(path.suffix[1:]) for path in found if not _is_free(path)}


def _is_free(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # it is gone
        return True
    return True
