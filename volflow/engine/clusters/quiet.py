"""Filter Dask's log records of closed connections, which volflow reports in one line if relevant.

At the end of a run, and on a loaded machine during it, a heartbeat may find its connection closed;
Dask then logs the traceback as an error on the user's terminal. So does asyncio of a connection
that waits for more to send, with a limit of tornado's, when its loop ends.
"""

from __future__ import annotations

import logging

import tornado.util

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
    """Drops log records about closed connections, and nothing else."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for a record about a closed connection."""
        error = record.exc_info[0] if record.exc_info else None
        if error is not None and (error.__name__ in CLOSED or error is tornado.util.TimeoutError):
            return False
        return not str(record.msg).startswith("Failed to reconnect to scheduler")


_filter = ClosedConnections()


def quieten() -> None:
    """Install the filter in this process; further calls change nothing."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_filter)
