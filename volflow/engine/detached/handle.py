"""What a handle of any detached run can do: say how far it is, wait for its result, stop it."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar

from distributed import Client, Future

from volflow import errors
from volflow.engine.clusters.asking import ask
from volflow.engine.clusters.forms import open_client
from volflow.engine.clusters.quiet import quieten
from volflow.engine.detached.driver_task import is_driving
from volflow.engine.workers import answering, worker_records
from volflow.errors import InvalidInput, RunFailed, VolflowError
from volflow.store.journal.detachment import (
    CANCELLED,
    DONE,
    Ending,
    keep_ending,
    read_detachment,
    read_ending,
)
from volflow.store.journal.journal import journal_of
from volflow.store.remote.address import Location, check_answers

__all__ = ["Handle", "is_under_way", "state_of_task"]

T = TypeVar("T")

LOOK_EVERY_S = 0.25
# After its task has ended, a network file system may show the note of it so much later.
NOTED_S = 5.0
# A driver looks once a second whether it is wanted; one that writes a file ends with that.
STOP_S = 600.0
CANCELLED_TEXT = (
    "{}: the detached run was cancelled; what is done is kept, and the same call does the rest"
)
LOST_TEXT = (
    "{}: its driver is gone without a word, as each worker that ran it died, or the scheduler was"
    " restarted; what is done is kept, and the same call does the rest"
)
DRIVEN_TEXT = (
    "{}: the detached run was told to stop and has not within {:.0f} s; what it is at work on may"
    " take long: cancel it again later, or stop the worker that drives it"
)
# The states of a task that is yet to end.
UNDER_WAY = ("released", "waiting", "no-worker", "queued", "processing")


@dataclass(frozen=True)
class Handle(ABC, Generic[T]):
    """A run whose driver is a task of a cluster; it needs neither this object nor this process.

    Parameters
    ----------
    out
        Where its output is: a path, a URL, or a pattern of many.
    key
        Of the driver's task, as the scheduler and its dashboard name it.
    cluster
        Address of the scheduler, or a client of it.
    """

    operation: ClassVar[str]  # the function that returns such a handle

    out: str
    key: str
    cluster: str | Client = field(repr=False)

    @classmethod
    def of(cls, out: str | os.PathLike[str], cluster: str | Client | None = None) -> Self:
        """Return the handle of the run that was detached last to an output.

        Parameters
        ----------
        out
            As it was given to the call that detached it.
        cluster
            Address of the scheduler as this machine reaches it, or a client of it, which knows its
            certificates; by default the address that was noted.

        Raises
        ------
        InvalidInput
            If no such run was detached to it, or the note of it is damaged.
        """
        place = cls._folder_of(os.fspath(out))
        check_answers(place)
        note = read_detachment(place)
        if note is None:
            raise InvalidInput(
                f"{out} has no note of a detached run, or a damaged one; a run that is at work on"
                " it (volflow status says which process) is stopped where it was started, or by"
                " its task on the cluster's dashboard"
            )
        if note.operation != cls.operation:
            raise InvalidInput(
                f"{out} was detached by {note.operation}, and a {cls.__name__} is of"
                f" {cls.operation}; use the class that {note.operation} returns"
            )
        return cls(os.fspath(out), note.key, cluster or note.scheduler)

    @classmethod
    def _folder_of(cls, out: str) -> Location:
        """Return the folder with the notes of an output."""
        return journal_of(out).directory

    @property
    def _folder(self) -> Location:
        return self._folder_of(self.out)

    @abstractmethod
    def status(self) -> dict[str, Any]:
        """Return how far it is; only what lies beside the output is read."""

    @abstractmethod
    def _opened(self, result: Mapping[str, Any]) -> T:
        """Return what the call returns, from its plain values."""

    def result(self) -> T:
        """Wait for the end, and return what the call without ``detach`` returns.

        Raises
        ------
        VolflowError
            The error of the driver, as the call without ``detach`` raises it; `RunFailed` if the
            run was cancelled, or its driver or the scheduler is gone.
        """
        ending = self._ending()
        if ending is None or ending.how != DONE:  # or a driver was lost, and there is another
            try:
                ending = self._awaited()
            except RunFailed:  # the cluster may be gone since
                if ending is None:
                    raise
        if ending.how != DONE:
            raise _kind_of(ending)(ending.text)
        return self._opened(ending.result)

    def cancel(self) -> None:
        """Stop it as SIGTERM stops a driver, and wait until it has; the same call does the rest.

        Blocks that are done stay done. A run that has ended is left as it is.

        Raises
        ------
        RunFailed
            If the scheduler does not answer, or the driver does not stop within ten minutes.
        """
        ending = self._ending()
        if ending is not None and ending.how == DONE:
            return
        with ExitStack() as stack:
            try:
                client = stack.enter_context(self._connected())
            except RunFailed:
                if ending is None:  # else its cluster may be gone since
                    raise
                return
            self._stop(client)

    def _stop(self, client: Client) -> None:
        if self._ending() is None:
            keep_ending(self._folder, Ending(self.key, CANCELLED, CANCELLED_TEXT.format(self.out)))
        client.cancel([Future(self.key, client)], force=True)
        client.unpublish_dataset(self.key)
        until_s = time.monotonic() + STOP_S
        while self._is_driven(client):
            if time.monotonic() > until_s:
                raise RunFailed(DRIVEN_TEXT.format(self.out, STOP_S))
            time.sleep(LOOK_EVERY_S)

    def _ending(self) -> Ending | None:
        """Return how the run ended; None as long as it has not."""
        ending = read_ending(self._folder, self.key)
        note = read_detachment(self._folder)
        if ending is None and (note is None or note.key != self.key):
            raise RunFailed(
                f"{self.out}: another run has begun since, and nothing is known of {self.key};"
                " volflow status says how far the output is"
            )
        return ending

    def _awaited(self) -> Ending:
        """Return how the run has ended, when its scheduler has no task of it any more."""
        with self._connected() as client:
            while is_under_way(client, self.key):
                time.sleep(LOOK_EVERY_S)
            until_s = time.monotonic() + NOTED_S
            while (ending := self._ending()) is None:
                if time.monotonic() > until_s:
                    raise RunFailed(LOST_TEXT.format(self.out))
                time.sleep(LOOK_EVERY_S)
            return ending

    def _is_driven(self, client: Client) -> bool:
        with suppress(TimeoutError):  # of a worker that is stopped
            addresses = list(worker_records(client))
            return any(ask(client, is_driving, self.key, workers=addresses).values())
        return False

    @contextmanager
    def _connected(self) -> Iterator[Client]:
        quieten()
        with ExitStack() as stack:
            try:
                client, _ = stack.enter_context(open_client(self.cluster))
            except InvalidInput as error:
                raise RunFailed(
                    f"{self.out}: {error}; what is done is kept, and the same call does the rest"
                ) from error
            yield client


def _kind_of(ending: Ending) -> type[VolflowError]:
    """Return the exception of a run that ended with an error, or was cancelled."""
    kind = getattr(errors, ending.how, None)
    if isinstance(kind, type) and issubclass(kind, VolflowError):
        return kind
    return RunFailed


def is_under_way(client: Client, key: str) -> bool:
    """Return True if a scheduler has a task that has not ended; raises RunFailed if it is gone."""
    return state_of_task(client, key) in UNDER_WAY


def state_of_task(client: Client, key: str) -> str | None:
    """Return the state of a task at its scheduler; None if that knows none of that key.

    Raises
    ------
    RunFailed
        If the scheduler does not answer.
    """
    with answering(client):
        scheduler: Any = client.scheduler
        states: dict[str, str | None] = client.sync(scheduler.get_task_status, keys=[key])
    return states[key]
