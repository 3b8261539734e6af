"""Keep a plan's plugin on every worker for the lifetime of its driver."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, SchedulerPlugin, WorkerPlugin

from volflow.engine.workers import is_embedded

__all__ = ["with_plugin"]

log = logging.getLogger("volflow")

# A driver that lost its scheduler for a moment reconnects as the same client.
GRACE_S = 60.0


class Departure(SchedulerPlugin):
    """Removes a worker plugin from all workers when the client that registered it is gone.

    Parameters
    ----------
    client
        Id of the client.
    plugin
        Name of the worker plugin.
    grace_s
        Seconds in which the client may reconnect.
    """

    def __init__(self, client: str, plugin: str, grace_s: float) -> None:
        self.client = client
        self.plugin = plugin
        self.grace_s = grace_s
        self.name = f"{plugin}-departure"

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Wait for the client; unregister the plugin if it stays away."""
        if client == self.client and not scheduler._ongoing_background_tasks.closed:
            scheduler._ongoing_background_tasks.call_later(self.grace_s, self._leave, scheduler)

    async def _leave(self, scheduler: Any) -> None:
        if self.client in scheduler.clients:
            return
        with suppress(ValueError):  # its driver has removed it already
            await scheduler.unregister_worker_plugin(None, self.plugin)
        with suppress(KeyError, ValueError):
            scheduler.remove_plugin(self.name)


@contextmanager
def with_plugin(client: Client, plugin: WorkerPlugin | None) -> Iterator[None]:
    """Register a plugin on every worker, including those that join later.

    If the workers are threads of this process, its methods are called directly. Otherwise the
    scheduler removes the plugin even if this process is killed.
    """
    if plugin is None:
        yield
    elif is_embedded(client):
        plugin.setup(None)  # type: ignore[arg-type] # there is no separate worker
        try:
            yield
        finally:
            plugin.teardown(None)  # type: ignore[arg-type]
    else:
        name = f"volflow-{uuid.uuid4().hex[:8]}"
        departure = Departure(client.id, name, GRACE_S)
        client.register_plugin(plugin, name=name)
        try:
            client.register_plugin(departure, name=departure.name)
        except Exception as error:  # e.g. a scheduler without volflow, or without pickle
            log.debug("the scheduler cannot remove %s if this process dies: %s", name, error)
        try:
            yield
        finally:
            # If the scheduler is gone, so are its plugins.
            with suppress(OSError, ValueError, RuntimeError):
                if client.status == "running":
                    client.unregister_worker_plugin(name)
                    client.unregister_scheduler_plugin(departure.name)
