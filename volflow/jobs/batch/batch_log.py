"""The log of a run: lines with times in a file, which is made with the first, and on the screen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from volflow.engine.progress import Progress, announce

__all__ = ["BatchLog", "logged", "now"]


def now() -> str:
    """Return the time here, to the second, with its offset."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


@dataclass
class BatchLog:
    """Writes lines to a file, and to standard error unless ``progress`` is False or a function.

    A file that cannot be written stops no run: what counts stands in the record.
    """

    folder: Path
    progress: Progress = None
    began: str = field(default_factory=now)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def path(self) -> Path:
        """The file of this run."""
        return self.folder / f"log-{self.began[:19].replace(':', '-')}.txt"

    def line(self, text: str, more: str = "") -> None:
        """Write a line, and more, such as a traceback, to the file alone."""
        shown = text.encode("utf-8", "backslashreplace").decode()
        announce(f"predict: {shown}", False if callable(self.progress) else self.progress)
        indented = "".join(f"    {line}\n" for line in more.splitlines())
        with (
            self._guard,
            suppress(OSError),
            self.path.open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write(f"{now()}  {shown}\n{indented}")


class _Warnings(logging.Handler):
    """Writes what volflow warns of meanwhile, such as a lost worker, to the log too."""

    def __init__(self, log: BatchLog) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        self.log.line(record.getMessage())


@contextmanager
def logged(log: BatchLog) -> Iterator[BatchLog]:
    """Write the warnings of volflow to a log within a block."""
    handler, logger = _Warnings(log), logging.getLogger("volflow")
    logger.addHandler(handler)
    try:
        yield log
    finally:
        logger.removeHandler(handler)
