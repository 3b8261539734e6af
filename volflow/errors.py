"""The exceptions volflow raises, below every floor.

::

    VolflowError                 exit code 1
    ├── InvalidInput             exit code 2, also a ValueError: refused before any work
    │   ├── MemoryRefused        the plan does not fit the memory budget
    │   ├── ResumeRefused        the journal belongs to another input, model or setting
    │   ├── Locked               another driver holds the output
    │   └── NoExactRule          an operation has no exact rule
    ├── RunFailed                also a RuntimeError: blocks failed after their retries
    │   └── StoreFull            there is no space left for the output
    └── Superseded               the task's driver is gone; another may have taken over

Every message names the rule, what was given, what was expected and the remedy.
"""

from __future__ import annotations

__all__ = [
    "InvalidInput",
    "Locked",
    "MemoryRefused",
    "NoExactRule",
    "ResumeRefused",
    "RunFailed",
    "StoreFull",
    "Superseded",
    "VolflowError",
]


class VolflowError(Exception):
    """Base of all errors that volflow raises on purpose."""

    exit_code = 1


class InvalidInput(VolflowError, ValueError):
    """An argument, file or model that cannot be used; nothing was changed."""

    exit_code = 2


class MemoryRefused(InvalidInput):
    """The plan needs more memory than the budget; the message names what fits."""


class ResumeRefused(InvalidInput):
    """The output was begun with another input, weights, settings or code version."""


class Locked(InvalidInput):
    """Another driver is writing this output."""


class NoExactRule(InvalidInput):
    """The model holds an operation for which no exact rule is known."""


class RunFailed(VolflowError, RuntimeError):
    """Some blocks failed after their retries; what is done stays done."""


class StoreFull(RunFailed):
    """No space is left for the output: trying again would not help."""


class Superseded(VolflowError):
    """The driver of this task has stopped or was replaced; the task must stop too."""
