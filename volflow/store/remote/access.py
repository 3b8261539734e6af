"""Object stores behind URLs: s3://, gs://, az://, http(s)://, asked through obstore.

Credentials are found by obstore in the environment of each process (``AWS_ACCESS_KEY_ID``,
``AWS_ENDPOINT_URL``, …) or on the machine; profiles in ``~/.aws`` need boto3. They are never sent
to a worker: a store travels as its address. Requests that fail by 5xx, timeouts, broken connections
or cut answers are repeated with growing, random pauses for up to two minutes. What fails still is
an ``OSError``, as on a disk.
"""

from __future__ import annotations

import atexit
import errno
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from volflow.errors import InvalidInput, first_line

__all__ = [
    "UNLISTED",
    "ask",
    "check_reachable",
    "connect",
    "holds",
    "is_remote",
    "listed",
    "pauses",
    "raise_unless_cut",
]

SCHEMES = ("s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss", "http", "https")
UNLISTED = ("http", "https")  # but for WebDAV
PATIENCE_S, BRIEF_S = 120.0, 4.0  # for which requests that fail are repeated
MOST_TRIES = 1000  # in that time
TIMEOUT = "60s"  # of one request
CUT_TRIES = 6
CUT = ("response body", "connection closed before message completed", "IncompleteMessage")
SETTLES_S = 0.2  # in which threads of obstore have let go of what they returned
NO_KEYS = "169.254.169.254"  # asked for credentials where there are none

NO_BUCKET = "NoSuchBucket"

T = TypeVar("T")


@cache
def _settle_at_exit() -> None:
    """Have the interpreter wait for a moment before it ends.

    A thread of obstore lets go of an answer's objects just after it was given; where it waits for
    Python's lock while the interpreter ends, the process is aborted.
    """
    atexit.register(time.sleep, SETTLES_S)


def is_remote(url: str) -> bool:
    """Return True if a URL is of an object store that `connect` knows.

    Examples
    --------
    >>> is_remote("s3://bucket/scan.zarr"), is_remote("memory://scan.zarr"), is_remote("scan.zarr")
    (True, False, False)
    """
    scheme, found, _ = url.partition("://")
    return bool(found) and scheme.lower() in SCHEMES


def connect(url: str, patience_s: float | None = None) -> Any:
    """Return the obstore store of a URL, whose keys are relative to it; nothing is requested.

    Raises
    ------
    InvalidInput
        If obstore is missing, or the URL or the configuration cannot be used.
    """
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise InvalidInput(
            f'{url} needs a package that is not installed ({error}); pip install "volflow[cloud]"'
        ) from error
    _settle_at_exit()
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    plain = url.startswith("http://") or (url.startswith("s3") and endpoint.startswith("http://"))
    options: dict[str, Any] = {"client_options": {"timeout": TIMEOUT}}
    if plain:
        options["client_options"]["allow_http"] = True
    options["retry_config"] = {
        "max_retries": MOST_TRIES,
        "retry_timeout": timedelta(seconds=PATIENCE_S if patience_s is None else patience_s),
        "backoff": {"max_backoff": timedelta(seconds=10)},
    }
    if url.startswith("s3"):
        options |= _profile(url)
    try:
        return from_url(url, **options)
    except Exception as error:  # of any class, for what is misspelt or missing
        raise InvalidInput(
            f"{url} cannot be used: {first_line(error)}; check the address"
        ) from error


def _profile(url: str) -> dict[str, Any]:
    """Return the credentials of a profile in ``~/.aws``, which obstore leaves to boto3."""
    named = os.environ.get("AWS_PROFILE")
    files = [Path("~/.aws").expanduser() / name for name in ("credentials", "config")]
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE"):
        return {}
    if not named and not any(path.exists() for path in files):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return {"credential_provider": Boto3CredentialProvider()}
    except ImportError as error:
        if not named:
            return {}
        raise InvalidInput(
            f"{url} needs boto3 for the profile AWS_PROFILE={named} ({error}); pip install boto3,"
            " or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except Exception as error:
        raise InvalidInput(
            f"{url} cannot be used with the profile {named or 'of ~/.aws'}: {first_line(error)}"
        ) from error


def ask(what: str, call: Callable[[], T]) -> T:
    """Return what a call of obstore returns; it is repeated where an answer is cut short.

    Other failures that may pass, obstore repeats itself.

    Raises
    ------
    PermissionError, FileNotFoundError
        If it is refused, or there is no such object or bucket.
    OSError
        For any other failure, with the reason.
    """
    for pause_s in pauses():
        try:
            return call()
        except Exception as error:
            raise_unless_cut(error, what, last=pause_s is None)
        time.sleep(pause_s or 0)
    raise AssertionError  # the last pause is None


def pauses() -> Iterator[float | None]:
    """Yield the seconds after each try of a request whose answer was cut; None after the last."""
    for repeat in range(CUT_TRIES - 1):
        yield random.uniform(0, 0.1 * 2**repeat)
    yield None


def raise_unless_cut(error: Exception, what: str, *, last: bool) -> None:
    """Raise the error of a disk for one of obstore, unless an answer was cut short."""
    known = isinstance(error, OSError) and NO_BUCKET not in str(error)
    if known or not (isinstance(error, OSError) or type(error).__module__.startswith("obstore")):
        raise error
    if last or not any(text in str(error) for text in CUT):
        raise _os_error(error, what) from error


def _os_error(error: Exception, what: str) -> OSError:
    text = str(error)
    if NO_KEYS in text:
        return PermissionError(
            errno.EACCES,
            "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a profile"
            " of ~/.aws needs boto3), or AWS_SKIP_SIGNATURE=true for a public bucket",
            what,
        )
    code = re.search(r"<Code>(\w+)</Code>", text)
    status = re.search(r"status code: ([^:]+)", text)
    reason = ", ".join(found[1] for found in (status, code) if found) or first_line(error)
    if code is not None and code[1] == NO_BUCKET:
        return FileNotFoundError(errno.ENOENT, "the bucket does not exist", what)
    if re.search(r"status code: 40[13]", text):
        return PermissionError(errno.EACCES, f"permission denied ({reason})", what)
    return OSError(errno.EIO, reason, what)


def check_reachable(url: str) -> bool:
    """Return True if there is Zarr v3 at a URL; a wrong address or key is known in seconds.

    Raises
    ------
    PermissionError, FileNotFoundError
        If it refuses, or there is no such bucket.
    OSError
        If it does not answer.
    """
    import obstore

    found = holds(url, "zarr.json", BRIEF_S)
    if not found and url.partition("://")[0].lower() not in UNLISTED:  # is there a bucket at all?
        store = connect(url, BRIEF_S)
        ask(url, lambda: next(iter(obstore.list(store, chunk_size=1)), None))
    return found


def holds(url: str, name: str, patience_s: float | None = None) -> bool:
    """Return True if there is an object of a name below a URL; raises as `check_reachable`."""
    import obstore

    store = connect(url, patience_s)
    try:
        ask(url, lambda: obstore.head(store, name))
    except FileNotFoundError:
        return False
    return True


def listed(store: Any, prefix: str) -> list[str]:
    """Return key, size and ETag of all objects below a prefix, sorted.

    Raises
    ------
    OSError
        If the store does not answer.
    """
    import obstore

    pages = ask(
        f"{store}/{prefix}",
        lambda: list(obstore.list(store.store, prefix or None, chunk_size=1000)),
    )
    return sorted(
        f"{meta['path']} {meta['size']} {meta['e_tag']}\n" for page in pages for meta in page
    )
