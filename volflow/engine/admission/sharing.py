"""Runs that one caller has at the same time, each with its share of one budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from volflow.engine.admission.ledger import Claim

__all__ = ["shared", "sharing"]

_count: ContextVar[int] = ContextVar("volflow_sharing", default=1)


@contextmanager
def sharing(count: int) -> Iterator[None]:
    """Say that the runs inside the block are one of so many, whose memory is a share of the whole.

    Examples
    --------
    >>> with sharing(3):
    ...     shared(Claim({"memory": 2}, {"memory": 4, "tasks": 1})).limits
    {'memory': 12, 'tasks': 3}
    """
    before = _count.set(count)
    try:
        yield
    finally:
        _count.reset(before)


def shared(claim: Claim) -> Claim:
    """Return a claim whose limits are those of all runs that share with it."""
    count = _count.get()
    return Claim(claim.takes, {name: count * limit for name, limit in claim.limits.items()})
