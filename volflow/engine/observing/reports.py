"""What tasks report to their drivers, over one of Dask's event topics for each connection.

A message waits 10 ms behind another of the same client, so that a run which had to subscribe to a
topic of its own would begin so much later.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from distributed import Client

from volflow.engine.workers import selection

__all__ = ["heard", "is_connected", "reported"]

Hear = Callable[[dict[str, Any]], object]


@dataclass
class Topic:
    """The topic of a connection, and who hears what is reported to each of its drivers."""

    client: Client
    name: str = field(default_factory=lambda: f"volflow-{uuid.uuid4().hex}")
    hearers: dict[str, Hear] = field(default_factory=dict)
    comm: Any = None  # over which it was subscribed to

    def subscribe(self) -> None:
        """Subscribe, again where the client has lost its scheduler meanwhile and found it."""
        if self.client.scheduler_comm is not self.comm:
            self.comm = self.client.scheduler_comm
            self.client.subscribe_topic(self.name, self.take)

    def take(self, event: tuple[float, dict[str, Any]]) -> None:
        """Hand a report to its driver, unless that has ended."""
        message = event[1]
        hear = self.hearers.get(message["driver"])
        if hear is not None:
            hear(message)


# The connections of the enclosing blocks: the topic of each client and chosen workers.
_topics: ContextVar[Mapping[object, Topic] | None] = ContextVar("volflow_topics", default=None)


def is_connected(client: Client) -> bool:
    """Return True inside `reported` of the same client and chosen workers."""
    return (client.id, selection()) in (_topics.get() or {})


@contextmanager
def reported(client: Client) -> Iterator[None]:
    """Have what tasks report reach the runs inside the block."""
    topic = Topic(client)
    topic.subscribe()
    before = _topics.set({**(_topics.get() or {}), (client.id, selection()): topic})
    try:
        yield
    finally:
        _topics.reset(before)
        if client.status == "running":  # else the scheduler has dropped it
            with suppress(OSError, RuntimeError, ValueError):
                client.unsubscribe_topic(topic.name)


@contextmanager
def heard(client: Client, driver: str, hear: Hear) -> Iterator[str]:
    """Have a driver hear its reports inside the block, which is one of `reported`.

    Parameters
    ----------
    client, driver
        The client, and what names the driver.
    hear
        Called with each report, in the thread of Dask's event loop.

    Yields
    ------
    str
        The topic to which tasks report.
    """
    topic = (_topics.get() or {})[client.id, selection()]
    topic.subscribe()
    topic.hearers[driver] = hear
    try:
        yield topic.name
    finally:
        del topic.hearers[driver]
