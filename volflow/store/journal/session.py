"""The session of a driver: a folder on a disk, an object that holds its token on a store.

On a disk it is a `Fence`. Nothing can be renamed on a store, so a task looks whether its session is
the current one before it writes; what it is just writing may arrive late. A token begins with the
name of its run, which resumed runs keep.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from volflow.errors import Superseded
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.refusals import output_of
from volflow.store.remote.address import Address, Location
from volflow.store.unfinished.fence import Fence, end_sessions

__all__ = ["StoreSession", "end_session", "new_token", "run_of", "session_at"]


def new_token(run: str) -> str:
    """Return a token for a session of a run.

    Examples
    --------
    >>> run_of(new_token("3f2a"))
    '3f2a'
    """
    return f"{run}-{uuid.uuid4().hex}"


def run_of(token: str) -> str:
    """Return the name of the run of a session."""
    return token.rpartition("-")[0]


def session_at(directory: Location, token: str) -> Fence | StoreSession:
    """Return the session of a token, in the directory of a journal."""
    if isinstance(directory, Address):
        return StoreSession(directory, token)
    return Fence.of(directory, token)


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


def end_session(directory: Location, token: str | None = None) -> None:
    """End the current session, if it is a given one; raises OSError if that is impossible."""
    if isinstance(directory, Address):
        if token is None or _current(directory) == token:
            (directory / "session").unlink(missing_ok=True)
    elif token is None or Fence.of(directory, token).folder.is_dir():
        end_sessions(directory)


def _current(directory: Address) -> str | None:
    try:
        return str(read_json(directory / "session"))
    except (FileNotFoundError, ValueError):
        return None
