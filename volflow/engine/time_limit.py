"""A limit to the time of runs: until a time of the day, or for so long."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta

from dask.utils import parse_timedelta

from volflow.errors import InvalidInput

__all__ = ["TimeLimit", "current_limit", "limited", "parse_limit", "time_limit"]


@dataclass(frozen=True)
class TimeLimit:
    """When runs stop, in seconds since 1970, and the words for it, such as "at 07:00"."""

    at_s: float
    text: str

    @property
    def left_s(self) -> float:
        """Seconds left; negative when the time is up."""
        return self.at_s - time.time()


_limit: ContextVar[TimeLimit | None] = ContextVar("volflow_time_limit", default=None)


def current_limit() -> TimeLimit | None:
    """Return the limit within which this is called; None without one."""
    return _limit.get()


@contextmanager
def time_limit(
    *, until: str | datetime | None = None, after: float | str | None = None
) -> Iterator[None]:
    """Stop everything that runs inside the ``with`` when its time is up, to be gone on with later.

    No further blocks are begun then; workers finish the block that they are at. The call that was
    at work raises `TimeUp` (exit code 1), and the same call does the rest. Of several limits the
    first counts.

    Parameters
    ----------
    until
        When to stop: a time of the day such as ``"07:00"``, which comes within 24 hours, or a date
        and a time, ``"2026-12-01 07:00"``.
    after
        How long to run: seconds, or a text such as ``"8h"``.

    Raises
    ------
    InvalidInput
        If that is no time, or has passed.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from volflow.volumes.convert import convert
    >>> with tempfile.TemporaryDirectory() as folder, time_limit(after="8h"):
    ...     convert(np.ones((4, 4, 4)), f"{folder}/a.zarr", progress=False).shape
    (4, 4, 4)
    """
    given = [_limit.get(), *parse_limit(until, after)]
    with limited(min((one for one in given if one), key=lambda one: one.at_s, default=None)):
        yield


@contextmanager
def limited(limit: TimeLimit | None) -> Iterator[None]:
    """Run a block within a limit, as that of another process; None is without one."""
    before = _limit.set(limit)
    try:
        yield
    finally:
        _limit.reset(before)


def parse_limit(
    until: str | datetime | None, after: float | str | None, now: datetime | None = None
) -> list[TimeLimit]:
    """Return the limits that are asked for; raises InvalidInput.

    Examples
    --------
    >>> evening = datetime(2026, 11, 30, 22, 15)
    >>> [night, hours] = parse_limit("07:00", "8h", evening)
    >>> night.text, (night.at_s - evening.timestamp()) / 3600
    ('at 07:00', 8.75)
    >>> hours.text, (hours.at_s - evening.timestamp()) / 3600
    ('after 8h', 8.0)
    """
    now = now or datetime.now()
    limits = []
    if until is not None:
        limits.append(TimeLimit(_moment(until, now).timestamp(), f"at {until}"))
    if after is not None:
        text = after if isinstance(after, str) else f"{after:g} s"
        limits.append(TimeLimit(now.timestamp() + _seconds(after), f"after {text}"))
    return limits


def _moment(until: str | datetime, now: datetime) -> datetime:
    try:
        if isinstance(until, str) and re.fullmatch(r"\d?\d:\d\d", until.strip()):
            hour, minute = map(int, until.split(":"))
            moment = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return moment if moment > now else moment + timedelta(days=1)
        moment = datetime.fromisoformat(until) if isinstance(until, str) else until
        passed = moment.timestamp() <= now.timestamp()
    except (ValueError, AttributeError):
        raise InvalidInput(
            f"until must be a time of the day like 07:00, or a date and a time like"
            f' "2026-12-01 07:00", given {until!r}'
        ) from None
    if passed:
        raise InvalidInput(f"until must lie ahead, given {until}, which has passed")
    return moment


def _seconds(after: float | str) -> float:
    try:
        seconds = float(parse_timedelta(after, default="s"))
    except (ValueError, KeyError, TypeError, AttributeError):
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise InvalidInput(
            f"the time to run must be seconds or a text like 8h or 30m, given {after!r}"
        )
    return seconds
