"""The exceptions volflow raises, below every floor.

::

    VolflowError                 exit code 1: the same command goes on
    ├── InvalidInput             exit code 2, also a ValueError: the user must change something
    │   ├── MemoryRefused        the plan does not fit the memory budget
    │   ├── ResumeRefused        the journal belongs to another input, model or setting
    │   ├── NoExactRule          an operation has no exact rule
    │   ├── InvalidPipeline      a pipeline file has mistakes, one a line
    │   ├── Damaged              exit code 3: a file is damaged, or holds NaN where that is refused
    │   │   └── Unreadable       voxels of one place are; a run goes on with the others
    │   └── Locked               exit code 4: another driver holds the output
    ├── RunFailed                also a RuntimeError: blocks failed after their retries
    │   ├── TimeUp               the time given to a run is over; the same call does the rest
    │   ├── StoreFull            there is no space left for the output
    │   ├── PeerLost             another process of a group ended, or did not answer in time
    │   └── SourceChanged        what is read was changed meanwhile
    └── Superseded               the task's driver is gone; another may have taken over

Every message names the rule, what was given, what was expected and the remedy.
"""

from __future__ import annotations

import errno

__all__ = [
    "Damaged",
    "InvalidInput",
    "InvalidPipeline",
    "Locked",
    "MemoryRefused",
    "NoExactRule",
    "PeerLost",
    "ResumeRefused",
    "RunFailed",
    "SourceChanged",
    "StoreFull",
    "Superseded",
    "TimeUp",
    "Unreadable",
    "VolflowError",
    "first_line",
    "writing_failed",
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
    """The output was started with another input, weights, settings or code version."""


class Damaged(InvalidInput):
    """A file that breaks its format, or NaN or infinity where numbers are needed."""

    exit_code = 3


class Unreadable(Damaged):
    """Stored voxels that cannot be decoded; others of the volume may be intact."""


class Locked(InvalidInput):
    """Another driver is writing this output."""

    exit_code = 4


class NoExactRule(InvalidInput):
    """The model holds an operation for which no exact rule is known."""


class InvalidPipeline(InvalidInput):
    """A pipeline file with mistakes; each has a line of the message, with its file and line."""


class RunFailed(VolflowError, RuntimeError):
    """Some blocks failed after their retries; what is done stays done."""


class TimeUp(RunFailed):
    """The time given to a run is over: it stopped in order, and the same call does the rest."""


class StoreFull(RunFailed):
    """No space is left for the output: trying again would not help."""


class PeerLost(RunFailed):
    """Another process of the same group ended, or did not answer within the timeout."""


class SourceChanged(RunFailed):
    """What is read was changed meanwhile, such as a file that is still being uploaded."""


class Superseded(VolflowError):
    """The driver of this task has stopped or was replaced; the task must stop too."""


def writing_failed(error: OSError) -> type[RunFailed]:
    """The exception for what cannot be written: StoreFull where no space is left, or RunFailed."""
    return StoreFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else RunFailed


def first_line(error: BaseException) -> str:
    r"""The first line of what an exception says, or its type where it says nothing.

    Examples
    --------
    >>> first_line(ValueError("no shape.\nat line 3")), first_line(KeyError())
    ('no shape', 'KeyError')
    """
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
