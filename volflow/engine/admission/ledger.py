"""Which tasks of a worker may run beside each other, as a pure state machine.

Each run plans its tasks as if it had the workers to itself. Where several runs share a worker, its
ledger admits a task when what it takes fits beside those that run, in the order of asking. So the
peak stays within one budget, and two runs slow each other down and nothing worse.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Claim", "Ledger"]

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Claim:
    """What a task takes of its worker, and what its run says that all tasks may take there.

    Parameters
    ----------
    takes, limits
        Amounts by name; what has no limit is not counted.
    """

    takes: Mapping[str, int] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)

    def capped(self, name: str, limit: int | None) -> Claim:
        """Return the claim with a limit that is no larger than this one; None changes nothing.

        Examples
        --------
        >>> Claim({"memory": 5}, {"memory": 10}).capped("memory", 8).limits
        {'memory': 8}
        """
        if limit is None:
            return self
        return Claim(self.takes, {**self.limits, name: min(limit, self.limits.get(name, limit))})


@dataclass
class Ledger(Generic[T]):
    """The tasks that run on a worker and those that wait, in the order of asking.

    A task is admitted when each amount, summed over it and those that run, is within the smallest
    limit that any of them names; or when none runs, as its plan was refused if it could not run
    alone. No task passes one that asked before it.

    Examples
    --------
    >>> ledger = Ledger()
    >>> def claim(takes):
    ...     return Claim({"memory": takes}, {"memory": 10})
    >>> ledger.ask("a", claim(6)), ledger.ask("b", claim(6)), ledger.ask("c", claim(3))
    (['a'], [], [])
    >>> ledger.leave("a")
    ['b', 'c']
    """

    running: dict[T, Claim] = field(default_factory=dict)
    waiting: dict[T, Claim] = field(default_factory=dict)

    def ask(self, task: T, claim: Claim) -> list[T]:
        """Let a task wait in line; return those that are admitted now."""
        self.waiting[task] = claim
        return self._admit()

    def leave(self, task: T) -> list[T]:
        """Remove a task that has ended, or no longer wants to run; return those admitted now."""
        self.running.pop(task, None)
        self.waiting.pop(task, None)
        return self._admit()

    def _admit(self) -> list[T]:
        admitted: list[T] = []
        for task, claim in list(self.waiting.items()):
            if not self._fits(claim):
                break
            self.running[task] = self.waiting.pop(task)
            admitted.append(task)
        return admitted

    def _fits(self, claim: Claim) -> bool:
        if not self.running:
            return True
        claims = [claim, *self.running.values()]
        for name in {name for one in claims for name in one.limits}:
            limit = min(one.limits[name] for one in claims if name in one.limits)
            if sum(one.takes.get(name, 0) for one in claims) > limit:
                return False
        return True
