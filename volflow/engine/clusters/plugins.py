"""Keep a plan's plugin on every worker for the lifetime of its driver."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from distributed import Client, SchedulerPlugin, WorkerPlugin

from volflow.engine.workers import address_of, is_embedded
from volflow.errors import InvalidInput

__all__ = ["with_plugin"]

log = logging.getLogger("volflow")

# A driver that lost its scheduler for a moment reconnects as the same client.
GRACE_S = 60.0

# The plugins of the enclosing blocks: client, type and token of each.
_registered: ContextVar[frozenset[object]] = ContextVar("volflow_plugins", default=frozenset())


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
    scheduler removes the plugin even if this process is killed. Within the block, an equal plugin
    (by ``__dask_tokenize__``) is taken for this one: a batch sends its model once.
    """
    tokenize = getattr(plugin, "__dask_tokenize__", None)
    same = None if tokenize is None else (client.id, type(plugin), tokenize())
    if plugin is None or same in _registered.get():
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
        try:
            client.register_plugin(plugin, name=name)
        except Exception as error:
            with suppress(KeyError):  # from workers that could not load it
                client.unregister_worker_plugin(name)
            raise _not_importable(client, error) from error
        try:
            client.register_plugin(departure, name=departure.name)
        except Exception as error:  # e.g. a scheduler without volflow, or without pickle
            log.debug("the scheduler cannot remove %s if this process dies: %s", name, error)
        before = _registered.set(_registered.get() | ({same} if same else set()))
        try:
            yield
        finally:
            _registered.reset(before)
            # If the scheduler is gone, so are its plugins.
            with suppress(OSError, ValueError, RuntimeError):
                if client.status == "running":
                    client.unregister_worker_plugin(name)
                    client.unregister_scheduler_plugin(departure.name)


def _not_importable(client: Client, error: Exception) -> Exception:
    """Return the error for a plugin that workers cannot load for want of a module, or the same."""
    missing = re.search(r"No module named \W*([\w.]+)", str(error))
    if missing is None:
        return error
    return InvalidInput(
        f"the workers of the Dask cluster at {address_of(client)} cannot import {missing[1]}, which"
        " this process has; install it where they run, or put it on their PYTHONPATH"
    )
