"""The session of a driver on an object store: an object that holds its token.

On a disk a session is a folder (`Fence`). Nothing can be renamed on a store, so a task looks
whether its session is the current one before it writes; what it is just writing may arrive late.
"""

from __future__ import annotations

from dataclasses import dataclass

from volflow.errors import Superseded
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.refusals import output_of
from volflow.store.remote.address import Address

__all__ = ["StoreSession", "end_session"]


@dataclass(frozen=True)
class StoreSession:
    """A session, with the methods of a `Fence` that a store can keep.

    Parameters
    ----------
    directory
        Of the journal.
    token
        Of the driver.
    """

    directory: Address
    token: str

    def begin(self) -> None:
        """Make it the current one; raises OSError if the store does not answer."""
        write_json(self.directory / "session", self.token)

    def check(self) -> None:
        """Stop a task whose session is not the current one.

        Raises
        ------
        Superseded
            If it has ended or was replaced.
        OSError
            If the store does not answer.
        """
        current = _current(self.directory)
        if current != self.token:
            why = "has ended" if current is None else "was replaced by another"
            raise Superseded(f"the driver of {output_of(self.directory)} {why}; this task stops")


def end_session(directory: Address, token: str | None = None) -> None:
    """End the current session, if it is a given one; raises OSError as `StoreSession.check`."""
    if token is None or _current(directory) == token:
        (directory / "session").unlink(missing_ok=True)


def _current(directory: Address) -> str | None:
    try:
        return str(read_json(directory / "session"))
    except (FileNotFoundError, ValueError):
        return None
