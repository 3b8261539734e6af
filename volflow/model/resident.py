"""One model per process: loaded once, found by its digest, dropped after the run.

A scattered model is lost with its worker, and a model in the task is sent with every task. A worker
plugin is set up again on every worker that joins or restarts.

A module is used as it was given, or copied to a device: it is never changed. Copies of the last
model outlive its run, so that a loop over many cases moves the weights once.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cloudpickle
import torch
from distributed import WorkerPlugin
from torch import nn

from volflow.engine.memory import give_back
from volflow.engine.pages import HUGE_PAGES, prepare_allocators
from volflow.model.device import numbered
from volflow.model.placed import placed_module
from volflow.model.places import note_current

__all__ = [
    "ModelPlugin",
    "asks_for_huge_pages",
    "drop_copy",
    "forward_lock",
    "held",
    "lent",
    "made_once",
    "resident",
    "trials_of",
]

# More than glibc allocates from a heap, so that it is mapped separately.
PROBE_BYTES = 33 * 2**20
# Number of models whose trials are remembered after they are dropped.
MOST_REMEMBERED = 64

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Resident:
    """State of one model in this process.

    Parameters
    ----------
    given
        The module as given; None while no run uses it.
    copies
        Its copies, by device and memory layout.
    made
        Objects derived from it once, such as its graph; dropped with it.
    trials
        Results of trial forwards. They stay, as a loop over many cases loads the model for each.
    users
        Number of runs that use it.
    places
        Semaphore of the tasks that may use it at a time.
    """

    given: nn.Module | None = None
    copies: dict[tuple[torch.device, str], nn.Module] = field(default_factory=dict)
    made: dict[Hashable, Any] = field(default_factory=dict)
    trials: dict[Hashable, list[Any]] = field(default_factory=dict)
    users: int = 0
    places: threading.BoundedSemaphore = field(
        default_factory=lambda: threading.BoundedSemaphore(2)
    )


_residents: dict[str, Resident] = {}  # by digest
_locks: dict[str, threading.Lock] = {}
_guard = threading.Lock()


def asks_for_huge_pages() -> bool:
    """Return True if torch asks for huge pages in this process: its memory is then page-aligned."""
    return torch.empty(PROBE_BYTES, dtype=torch.uint8).data_ptr() % mmap.PAGESIZE == 0


def forward_lock(device: torch.device) -> threading.Lock:
    """Return the lock under which forwards are started, one at a time, on a kind of device.

    All GPUs share one: how cuDNN computes is a setting of the process.
    """
    with _guard:
        return _locks.setdefault(device.type, threading.Lock())


def resident(digest: str, device: torch.device, layout: str = "contiguous") -> nn.Module:
    """Return the model with this digest on a device.

    Parameters
    ----------
    digest
        Of a model that a run uses.
    device
        Where it lies: the module that was given does, or a copy.
    layout
        Of its weights on a GPU: "contiguous", or "channels_last".

    Raises
    ------
    KeyError
        Where no run uses such a model.
    """
    key = numbered(device), layout
    with _guard:
        found = _residents[digest]
        if found.given is None:
            raise KeyError(digest)
        if key not in found.copies:
            found.copies[key] = placed_module(found.given, *key)
        return found.copies[key]


def drop_copy(digest: str, device: torch.device, layout: str) -> None:
    """Drop the copy of a model on a device, if there is one."""
    with _guard:
        _residents[digest].copies.pop((numbered(device), layout), None)


def trials_of(digest: str) -> dict[Hashable, list[Any]]:
    """Return the results of a model's trial forwards in this process, a dict to be added to."""
    return _residents[digest].trials


def made_once(digest: str, key: Hashable, make: Callable[[], T]) -> T:
    """Return an object derived from a model, made once while the model is resident."""
    with _guard:
        found = _residents.get(digest) or Resident()
        made = found.made.get(key)
    if made is None:
        made = make()
        with _guard:
            if found.users:  # else its last run has ended meanwhile
                made = found.made.setdefault(key, made)
    result: T = made
    return result


class ModelPlugin(WorkerPlugin):
    """Holds a model on every worker of a run.

    Parameters
    ----------
    module
        A module in eval mode; used as it is in this process, copied by cloudpickle to others.
    digest
        Digest by which tasks find it.
    device
        On which it will run, as the user named it.
    """

    def __init__(self, module: nn.Module, digest: str, device: str = "auto") -> None:
        self.module = module
        self.digest = digest
        self.device = device

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (cloudpickle.dumps(self.module), self.digest, self.device)

    def __dask_tokenize__(self) -> str:
        return self.digest

    def setup(self, worker: Any = None) -> None:
        """Make the model resident in this process."""
        prepare_allocators(own=worker is not None)
        wanted = os.environ.get(HUGE_PAGES) == "1" and logger.isEnabledFor(logging.DEBUG)
        if wanted and not asks_for_huge_pages():
            logger.debug(
                f"torch asks for no huge pages: it reads {HUGE_PAGES} at its first allocation,"
                " which came before; set it to 1 before Python starts"
            )
        if worker is None:
            note_current()
        elif self.device != "cpu" and torch.cuda.is_available():
            # All workers take their places before the first divides the memory of its GPU.
            with suppress(RuntimeError):  # the trial will say why
                numbered(torch.device("cuda" if self.device == "auto" else self.device))
        with _guard:
            found = _residents.setdefault(self.digest, Resident())
            found.users += 1
            if found.given is None:
                found.given = self.module
            for other in _residents.values():
                if not other.users:
                    other.copies.clear()

    def teardown(self, worker: Any = None) -> None:
        """Drop the model, unless another run uses it; its copies stay until another comes."""
        with _guard:
            found = _residents[self.digest]
            found.users -= 1
            if not found.users:
                copies = found.copies.items()
                found.copies = {key: one for key, one in copies if one is not found.given}
                found.given = None
                found.made.clear()
                gone = [digest for digest, other in _residents.items() if not other.users]
                for digest in gone[:-MOST_REMEMBERED]:
                    del _residents[digest]
        if worker is not None:
            # Other users of this worker need the memory that it keeps.
            give_back()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


@contextmanager
def held(model: ModelPlugin) -> Iterator[None]:
    """Keep a model resident in this process within a block."""
    model.setup()
    try:
        yield
    finally:
        model.teardown()


@contextmanager
def lent(model: ModelPlugin) -> Iterator[None]:
    """Keep a model resident for one task, for workers without the plugin.

    At most two tasks of a process run at a time: while one computes the other reads or blends.
    More would only take memory, since one forward at a time runs on a device.
    """
    with _guard:
        places = _residents.setdefault(model.digest, Resident()).places
    with places, held(model):
        yield


def _unpack(module: bytes, digest: str, device: str) -> ModelPlugin:
    prepare_allocators(own=False)  # weights are torch's first allocation in a worker
    return ModelPlugin(cloudpickle.loads(module), digest, device)
