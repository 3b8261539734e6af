"""Dask's log of connections that close, which volflow tells in one line where it matters.

At the end of a run, and on a loaded machine in the middle of one, a heartbeat finds its connection
closed: Dask logs the traceback of that, as an error, on the terminal of whoever called.
"""

from __future__ import annotations

import logging

__all__ = ["ClosedConnections", "quieten"]

LOGGERS = (
    "asyncio",  # "Future exception was never retrieved"
    "distributed.batched",
    "distributed.client",
    "distributed.core",
    "distributed.nanny",
    "distributed.worker",
    "tornado.application",
)

# By name, as not every version of Dask has all of them.
CLOSED = {"CancelledError", "ClosedClientError", "CommClosedError"}


class ClosedConnections(logging.Filter):
    """Drops what is logged of connections that were closed, and nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a record about a closed connection."""
        error = record.exc_info[0] if record.exc_info else None
        if error is not None and error.__name__ in CLOSED:
            return False
        return not str(record.msg).startswith("Failed to reconnect to scheduler")


_filter = ClosedConnections()


def quieten() -> None:
    """Keep closed connections out of this process's log; calling it again changes nothing."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_filter)
