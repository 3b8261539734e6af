"""One model per process: loaded once, found by its digest, gone with the run.

A scattered model is lost with its worker, and a model inside each task is shipped with each task.
A worker plugin is set up again on every worker that joins or restarts.
"""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import torch
from distributed import WorkerPlugin

from volflow.engine.memory import give_back
from volflow.engine.pages import HUGE_PAGES, prepare_allocators

__all__ = ["ModelPlugin", "asks_for_huge_pages", "forward_lock", "lent", "resident"]

# More than glibc takes from a heap, so that it gets pages of its own.
PROBE_BYTES = 33 * 2**20

logger = logging.getLogger(__name__)

_models: dict[str, torch.nn.Module] = {}
_users: Counter[str] = Counter()  # runs of this process that hold a model
_locks: dict[str, threading.Lock] = {}
_places: dict[str, threading.BoundedSemaphore] = {}
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
        key = f"{digest}@{device}"
        if key not in _models:
            _models[key] = _models[digest].to(device)
        return _models[key]


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
            _users[self.digest] += 1
            _models.setdefault(self.digest, self.module)

    def teardown(self, worker: Any = None) -> None:
        """Forget the model and its copies on devices, unless another run needs them."""
        with _guard:
            _users[self.digest] -= 1
            if _users[self.digest] > 0:
                return
            for key in [k for k in _models if k.partition("@")[0] == self.digest]:
                del _models[key]
        if worker is not None:
            give_back()  # others may use this worker, and it keeps more now than Dask lets it


@contextmanager
def lent(model: ModelPlugin) -> Iterator[None]:
    """Keep a model resident for the length of one task, where no plugin was set up.

    Two tasks of a process at a time: while one computes the other reads or blends, and more would
    only hold memory, since one forward at a time runs on a device.
    """
    with _guard:
        places = _places.setdefault(model.digest, threading.BoundedSemaphore(2))
    with places:
        model.setup()
        try:
            yield
        finally:
            model.teardown()


def _unpack(module: bytes, digest: str) -> ModelPlugin:
    prepare_allocators(own=False)  # weights are the first that torch allocates in a worker
    return ModelPlugin(cloudpickle.loads(module), digest)
