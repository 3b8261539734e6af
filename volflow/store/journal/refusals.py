"""How a journal says in one line what it cannot read or write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from volflow.errors import InvalidInput, RunFailed, StoreFull, writing_failed
from volflow.store.remote.access import UNLISTED
from volflow.store.remote.address import Address, Location, without_keys

__all__ = [
    "output_of",
    "reason",
    "refuse_plain_http",
    "unanswered",
    "unread",
    "unreadable",
    "writing",
]


def output_of(directory: Location) -> str:
    """Return the path of the output beside which a journal lies."""
    return str(directory).removesuffix(".volflow")


def reason(error: Exception) -> str:
    """Return why a file of a journal cannot be used, in a few words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    damaged = isinstance(error, json.JSONDecodeError | UnicodeError)
    return "it is damaged" if damaged else str(error)


def unreadable(path: Location, why: str) -> str:
    """Return the refusal of a file of a journal, with the remedy."""
    return (
        f"{path} cannot be used: {why}; restore it, or begin again"
        " (overwrite=True, --overwrite), or choose another output"
    )


def unanswered(at: Address, why: str) -> str:
    """Return what is said of a store that does not answer, for now."""
    return f"{at} cannot be read: {why}; run the same command again when the store answers"


def unread(at: Location, error: OSError) -> RunFailed:
    """Return the failure to read what should be there, on a disk or on a store."""
    why = reason(error)
    return RunFailed(unanswered(at, why) if isinstance(at, Address) else unreadable(at, why))


def refuse_plain_http(out: str | os.PathLike[str], what: str) -> None:
    """Refuse an output behind plain HTTP, saying what cannot be done there.

    Raises
    ------
    InvalidInput
        If it is one.

    Examples
    --------
    >>> refuse_plain_http("https://example.org/out.zarr", "it cannot be verified")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: https://example.org/out.zarr lies behind plain HTTP, where no
    journal can be listed, so it cannot be verified; give its address on the store that holds it
    (s3://, gs://, az://), or a folder with it and its journal, out.zarr.volflow
    """
    text = without_keys(os.fspath(out)).rstrip("/")
    scheme, found, rest = text.partition("://")
    if found and scheme.lower() in UNLISTED:
        raise InvalidInput(
            f"{text} lies behind plain HTTP, where no journal can be listed, so {what}; give its"
            " address on the store that holds it (s3://, gs://, az://), or a folder with it and its"
            f" journal, {rest.rpartition('/')[2]}.volflow"
        )


@contextmanager
def writing(path: Location, *, begun: bool = True) -> Iterator[None]:
    """Turn a disk error into one clear line; InvalidInput if nothing was started yet."""
    try:
        yield
    except OSError as error:
        why = f"the journal {path} cannot be written: {reason(error)}; "
        failed = writing_failed(error)
        lost = isinstance(error, PermissionError | FileNotFoundError)
        if begun or failed is StoreFull or (isinstance(path, Address) and not lost):
            remedy = "what is done is kept; fix this and run the same command again"
            raise failed(why + remedy) from error
        if isinstance(error, FileNotFoundError) and not isinstance(path, Address):
            why = f"the folder {path.parent} does not exist; "
        remedy = "it lies beside the output; choose an output in a writable folder"
        if isinstance(path, Address):
            remedy = "check the address, and that these keys may write there"
        raise InvalidInput(why + remedy) from error
