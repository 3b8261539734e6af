"""What tasks of a process find by name instead of carrying it with them."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from distributed import Client, WorkerPlugin
from distributed.protocol.pickle import dumps

from volflow.engine.clusters.plugins import with_plugin

__all__ = ["InProcess", "Keeping", "hold", "one_plugin", "sent_once", "within_reach"]

LONG_BYTES = 2**15  # of a pickle; to register a plugin takes as long as to send some
LONG_JOB_BYTES = 2**17  # such as weights of all voxels of a patch; the usual job has some KiB

_held: dict[str, Any] = {}


@dataclass(frozen=True)
class InProcess:
    """Something in this process, for tasks that run in it: pickled by name, never copied."""

    key: str

    def get(self) -> Any:
        """The thing itself."""
        return _held[self.key]


@contextmanager
def hold(thing: Any) -> Iterator[InProcess]:
    """Make something known to the tasks of this process."""
    key = uuid.uuid4().hex
    _held[key] = thing
    try:
        yield InProcess(key)
    finally:
        del _held[key]


@contextmanager
def within_reach(thing: Any, *, here: bool) -> Iterator[tuple[Any, Keeping | None]]:
    """Yield what a run's tasks carry of a thing, and what brings the rest once to each worker.

    Parameters
    ----------
    thing
        Tasks have it in their hands or, if that is long to send, find it by name.
    here
        Whether they run in this process, where nothing is sent.
    """
    if here:
        with hold(thing) as held:
            yield held, None
        return
    content = pickle.dumps(thing)
    if len(content) < LONG_BYTES:
        yield thing, None
    else:
        held = InProcess(uuid.uuid4().hex)
        yield held, Keeping({held.key: content})


@contextmanager
def sent_once(job: Any, client: Client) -> Iterator[Any]:
    """Yield a job as it goes with each task: a long one by name, after it was sent to each worker.

    Parameters
    ----------
    job
        See `Plan`.
    client
        Whose workers do the tasks, also those that join later.
    """
    content = dumps(job)
    if len(content) < LONG_JOB_BYTES:
        yield job
        return
    held = InProcess(uuid.uuid4().hex)
    with with_plugin(client, Keeping({held.key: content})):
        yield held


class Keeping(WorkerPlugin):
    """Brings things to every worker of a run once, where each of its tasks needs them.

    Parameters
    ----------
    things
        Their pickles, by the names under which tasks ask for them.
    """

    def __init__(self, things: Mapping[str, bytes]) -> None:
        self.things = dict(things)

    def setup(self, worker: Any = None) -> None:
        """Make them known in this process."""
        _held.update({key: pickle.loads(thing) for key, thing in self.things.items()})

    def teardown(self, worker: Any = None) -> None:
        """Forget them."""
        for key in self.things:
            _held.pop(key, None)


def one_plugin(plugins: Iterable[Keeping | None]) -> Keeping | None:
    """Return one plugin that brings what several do; None where there is nothing to bring.

    Examples
    --------
    >>> sorted(one_plugin([Keeping({"a": b"1"}), None, Keeping({"b": b"2"})]).things)
    ['a', 'b']
    >>> one_plugin([None, None]) is None
    True
    """
    things = {key: thing for one in plugins if one for key, thing in one.things.items()}
    return Keeping(things) if things else None
