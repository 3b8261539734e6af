"""The ledger of a worker process: a task waits there until it fits beside the others."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from distributed import Worker

from volflow.engine.admission.ledger import Claim, Ledger
from volflow.engine.memory import resident_bytes

__all__ = ["Desk", "desk_of"]

# Interval at which a waiting task checks that it is still wanted itself.
LOOK_EVERY_S = 0.5
NAME = "volflow-desk"


@dataclass
class Desk:
    """A ledger that the threads of a worker share."""

    ledger: Ledger[object] = field(default_factory=Ledger)
    changed: threading.Condition = field(default_factory=threading.Condition)

    idle_bytes: int | None = None  # resident size when the last task came to an idle process

    @contextmanager
    def admitted(
        self, claim: Claim, wanted: Callable[[], bool], on_wait: Callable[[], object]
    ) -> Iterator[bool]:
        """Run the block when a task fits beside those that run; yield False if it is unwanted.

        Parameters
        ----------
        claim
            What the task takes.
        wanted
            Returns False as soon as the task shall no longer wait.
        on_wait
            Called once if the task has to wait.
        """
        task = object()
        with self.changed:
            if not self.ledger.running:
                self.idle_bytes = resident_bytes()
            self.ledger.ask(task, claim)
            waits = task in self.ledger.waiting
        if waits:
            on_wait()
        with self.changed:
            while task in self.ledger.waiting and wanted():
                self.changed.wait(LOOK_EVERY_S)
            runs = task in self.ledger.running
        try:
            yield runs
        finally:
            with self.changed:
                self.ledger.leave(task)
                self.changed.notify_all()

    def added_bytes(self) -> int:
        """Return what running tasks have added to the resident size of the process."""
        with self.changed:
            if not self.ledger.running or self.idle_bytes is None:
                return 0
            return max(0, resident_bytes() - self.idle_bytes)


def desk_of(worker: Worker) -> Desk:
    """Return the desk of a worker, made by the first task that asks."""
    extensions: dict[str, object] = worker.extensions
    desk = extensions.setdefault(NAME, Desk())
    assert isinstance(desk, Desk)
    return desk
