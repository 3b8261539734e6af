"""One model per process: loaded once, found by its digest, gone with the run.

A scattered model is lost with its worker, and a model inside each task is shipped with each task.
A worker plugin is set up again on every worker that joins or restarts.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cloudpickle
import torch
from distributed import WorkerPlugin

from volflow.engine.memory import give_back
from volflow.engine.pages import HUGE_PAGES, prepare_allocators

__all__ = [
    "ModelPlugin",
    "asks_for_huge_pages",
    "forward_lock",
    "held",
    "lent",
    "made_once",
    "resident",
    "trials_of",
]

# More than glibc takes from a heap, so that it gets pages of its own.
PROBE_BYTES = 33 * 2**20
# Models whose trials are remembered after they have gone.
MOST_REMEMBERED = 64

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Resident:
    """What a process has of a model.

    Parameters
    ----------
    modules
        As it was handed over, under an empty name, and by device; none when nobody uses it.
    made
        What was made of it once, such as its graph; goes with it.
    trials
        What trial forwards showed. It stays, as a loop over many cases uses the model anew in each.
    users
        Number of runs that use it.
    places
        How many tasks may have it lent at a time.
    """

    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
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
    """Whether torch asks for huge pages in this process: what it then takes begins with a page."""
    return torch.empty(PROBE_BYTES, dtype=torch.uint8).data_ptr() % mmap.PAGESIZE == 0


def forward_lock(device: torch.device) -> threading.Lock:
    """The lock that lets one forward at a time run on a device, whatever the scheduler."""
    with _guard:
        return _locks.setdefault(f"{device.type}:{device.index or 0}", threading.Lock())


def resident(digest: str, device: torch.device) -> torch.nn.Module:
    """The model of this digest, moved to the device on first use."""
    with _guard:
        modules = _residents[digest].modules
        if str(device) not in modules:
            modules[str(device)] = modules[""].to(device)
        return modules[str(device)]


def trials_of(digest: str) -> dict[Hashable, list[Any]]:
    """What trial forwards of a model showed in this process, to be added to."""
    return _residents[digest].trials


def made_once(digest: str, key: Hashable, make: Callable[[], T]) -> T:
    """Return what is made of a model, once while it is resident."""
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
        In eval mode; used as it is in this process, copied by cloudpickle to others.
    digest
        What tasks ask for.
    """

    def __init__(self, module: torch.nn.Module, digest: str) -> None:
        self.module = module
        self.digest = digest

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (cloudpickle.dumps(self.module), self.digest)

    def __dask_tokenize__(self) -> str:
        return self.digest

    def setup(self, worker: Any = None) -> None:
        """Make the model known in this process."""
        prepare_allocators(own=worker is not None)
        wanted = os.environ.get(HUGE_PAGES) == "1" and logger.isEnabledFor(logging.DEBUG)
        if wanted and not asks_for_huge_pages():
            logger.debug(
                f"torch asks for no huge pages: it reads {HUGE_PAGES} at its first allocation,"
                " which came before; set it to 1 before Python starts"
            )
        with _guard:
            found = _residents.setdefault(self.digest, Resident())
            found.users += 1
            found.modules.setdefault("", self.module)

    def teardown(self, worker: Any = None) -> None:
        """Forget the model and its copies on devices, unless another run needs them."""
        with _guard:
            found = _residents[self.digest]
            found.users -= 1
            if not found.users:
                found.modules.clear()
                found.made.clear()
                gone = [digest for digest, other in _residents.items() if not other.users]
                for digest in gone[:-MOST_REMEMBERED]:
                    del _residents[digest]
        if worker is not None:
            give_back()  # others may use this worker, and it keeps more now than Dask lets it


@contextmanager
def held(model: ModelPlugin) -> Iterator[None]:
    """Keep a model resident in this process for a while."""
    model.setup()
    try:
        yield
    finally:
        model.teardown()


@contextmanager
def lent(model: ModelPlugin) -> Iterator[None]:
    """Keep a model resident for the length of one task, where no plugin was set up.

    Two tasks of a process at a time: while one computes the other reads or blends, and more would
    only hold memory, since one forward at a time runs on a device.
    """
    with _guard:
        places = _residents.setdefault(model.digest, Resident()).places
    with places, held(model):
        yield


def _unpack(module: bytes, digest: str) -> ModelPlugin:
    prepare_allocators(own=False)  # weights are the first that torch allocates in a worker
    return ModelPlugin(cloudpickle.loads(module), digest)
