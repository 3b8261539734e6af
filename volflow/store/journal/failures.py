"""Blocks that a run gave up, with the reasons: a small file each, until the block is done."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from volflow.store.atomic import read_json, write_json
from volflow.store.journal.records import typed
from volflow.store.remote.address import Location

__all__ = ["Failure", "Failures"]


@dataclass(frozen=True)
class Failure:
    """Why a block was given up.

    Parameters
    ----------
    block
        Its number.
    box
        Its box in the form of an index, such as ``"[0:64, 0:64, 0:64]"``; empty if not known.
    reason
        The first line of its last error.
    """

    block: int
    box: str
    reason: str

    def __str__(self) -> str:
        return f"block {self.block} {self.box}".rstrip() + f": {self.reason}"


@dataclass(frozen=True)
class Failures:
    """The blocks that were given up in an output, of which those in the folder ``done`` count not.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     failures = Failures(Path(folder, "failed"), Path(folder, "done"))
    ...     failures.note(Failure(7, "[0:8, 0:8, 0:8]", "OSError: it did not work"))
    ...     print(*failures.read())
    block 7 [0:8, 0:8, 0:8]: OSError: it did not work
    """

    folder: Location
    done: Location

    def note(self, failure: Failure) -> None:
        """Record a block that was given up; raises OSError if it cannot be written."""
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / f"{failure.block:08d}.json", vars(failure))

    def read(self) -> list[Failure]:
        """Return the blocks that were given up and not done since, by number."""
        found = []
        paths: list[Location] = [*self.folder.glob("[0-9]*.json")]
        for path in sorted(paths, key=str):
            # One that is damaged, or deleted meanwhile, says nothing.
            with suppress(OSError, ValueError):
                if not (self.done / path.name).exists():
                    found.append(typed(Failure, read_json(path)))
        return found

    def sweep(self, *, everything: bool) -> None:
        """Delete the records of blocks that are done, or all; raises OSError if it cannot."""
        for path in self.folder.glob("*"):
            if everything or not path.name.endswith(".json") or (self.done / path.name).exists():
                path.unlink(missing_ok=True)
