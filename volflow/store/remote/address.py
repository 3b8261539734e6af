"""Addresses on object stores, which serve as paths do: written whole, listed, deleted.

An object appears at once or not at all. There are no folders: an address with objects below it
serves as one, and making it costs nothing. What fails is an ``OSError``, as on a disk.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from volflow.errors import InvalidInput, RunFailed
from volflow.store.remote.access import UNLISTED, ask, check_reachable, connect, is_remote

__all__ = [
    "Address",
    "Location",
    "ObjectStat",
    "check_answers",
    "is_stored",
    "location",
    "remove_tree",
    "without_keys",
]

# What makes objects a volume; the second as long as its run has not ended.
ROOTS = ("zarr.json", "zarr.json.unfinished", ".zgroup", ".zarray")
SETTINGS = ("AWS_", "AZURE_", "GOOGLE_")  # in the environment, of where a store is
TRIES, PAUSE_S = 4, 1.0  # to write where there is nothing, and between them
MOST_DELETED = 1000  # in one request


@dataclass(frozen=True)
class ObjectStat:
    """Size of an object in bytes, when it was written by the clock of the store, and its ETag."""

    st_size: int
    st_mtime: float
    tag: str = ""


@dataclass(frozen=True, order=True)
class Address(os.PathLike[str]):
    """The address of an object, or of what lies below it, with the methods of a path.

    Parameters
    ----------
    url
        Such as ``s3://bucket/out.zarr``; a slash at its end counts for nothing.

    Examples
    --------
    >>> out = Address("s3://bucket/scans/out.zarr/")
    >>> print(out / "0" / "zarr.json", out.name, out.parent.parent)
    s3://bucket/scans/out.zarr/0/zarr.json out.zarr s3://bucket
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __fspath__(self) -> str:
        return self.url

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.url}/{name}") if name else self

    @property
    def key(self) -> str:
        """The name in the bucket; ``""`` for the bucket itself."""
        return unquote(self.url.partition("://")[2].partition("/")[2])

    @property
    def name(self) -> str:
        """The last part."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return Path(self.name).stem

    @property
    def parent(self) -> Address:
        """What it lies in; of a bucket, that itself."""
        return Address(self.url.rpartition("/")[0]) if self.key else self

    def with_name(self, name: str) -> Address:
        """Return the address of another name beside it."""
        return self.parent / name

    def is_relative_to(self, other: str | os.PathLike[str]) -> bool:
        """Return True if it is another address or lies below it."""
        return f"{self.url}/".startswith(f"{os.fspath(other).rstrip('/')}/")

    def relative_to(self, other: str | os.PathLike[str]) -> str:
        """Return the rest of the address below another."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} does not lie below {other}")
        return self.url[len(os.fspath(other).rstrip("/")) + 1 :]

    def absolute(self) -> Address:
        """Return the address."""
        return self

    def expanduser(self) -> Address:
        """Return the address."""
        return self

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: objects need no folder."""

    def rmdir(self) -> None:
        """Do nothing: there are no folders."""

    def stat(self) -> ObjectStat:
        """Return size and time; raises FileNotFoundError where there is no such object."""
        import obstore

        found = ask(self.url, lambda: obstore.head(self._store, self.key))
        return _seen(found)

    def exists(self) -> bool:
        """Return True if there is such an object."""
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    is_file = exists

    def read_bytes(self, most_bytes: int | None = None) -> bytes:
        """Return the object; raises ValueError where it is larger than ``most_bytes``."""
        import obstore

        def read() -> bytes:
            answer = obstore.get(self._store, self.key)
            size = answer.meta["size"]
            if most_bytes is not None and size > most_bytes:
                raise ValueError(f"it has {size} bytes, more than {most_bytes}")
            return bytes(answer.bytes())

        return ask(self.url, read)

    def write_bytes(self, data: bytes) -> None:
        """Write the object, whatever was there."""
        import obstore

        ask(self.url, lambda: obstore.put(self._store, self.key, data, use_multipart=False))

    def upload(self, file: Path) -> None:
        """Write the object from a file, in parts where it is large."""
        import obstore

        ask(self.url, lambda: obstore.put(self._store, self.key, file))

    def create(self, data: bytes) -> bool:
        """Write the object where there is none; return False where there is another.

        Where an answer is lost, the object that is there is compared with ``data``, which
        therefore should be like no other.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                obstore.put(self._store, self.key, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        for again in range(TRIES):
            time.sleep(again * PAUSE_S)
            try:
                if ask(self.url, put):
                    return True
                with suppress(FileNotFoundError):  # of two at once both may be refused
                    return self.read_bytes() == data
            except (PermissionError, FileNotFoundError):
                raise
            except OSError:  # such as no answer at all, of which it is not known what was done
                if again == TRIES - 1:
                    raise
        raise OSError(errno.EAGAIN, "it refuses to write what is not there", self.url)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Delete the object."""
        import obstore

        try:
            ask(self.url, lambda: obstore.delete(self._store, self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def glob(self, pattern: str) -> Iterator[Address]:
        """Yield the addresses directly below it whose names match, by name."""
        import obstore

        found = ask(
            self.url, lambda: obstore.list_with_delimiter(self._store, f"{self.key}/".lstrip("/"))
        )
        keys = {*found["common_prefixes"], *(meta["path"] for meta in found["objects"])}
        names = sorted(key.rstrip("/").rpartition("/")[2] for key in keys)
        yield from (self / _literal(name) for name in names if fnmatchcase(name, pattern))

    def rglob(self, name: str) -> Iterator[Address]:
        """Yield the objects of a name at any depth below it, by address."""
        yield from sorted(found for found, _ in self.below() if found.name == name)

    def below(self) -> list[tuple[Address, ObjectStat]]:
        """Return all objects below it."""
        import obstore

        prefix = f"{self.key}/".lstrip("/")
        pages = ask(
            self.url, lambda: list(obstore.list(self._store, prefix or None, chunk_size=1000))
        )
        return [
            (self / _literal(meta["path"].removeprefix(prefix)), _seen(meta))
            for page in pages
            for meta in page
        ]

    def delete_below(self) -> None:
        """Delete all objects below it, first those that make them a volume, and volumes in it."""
        found = [one for one, _ in self.below()]
        roots = [one for one in found if one.name in ROOTS]
        for root in [one for one in roots if one.parent == self]:
            root.unlink(missing_ok=True)
        _delete(self, [one for one in roots if one.parent != self])
        _delete(self, [one for one in found if one.name not in ROOTS])

    @property
    def _store(self) -> Any:
        scheme, _, rest = self.url.partition("://")
        bucket = rest.partition("/")[0]
        known = {name: text for name, text in os.environ.items() if name.startswith(SETTINGS)}
        return _connected(f"{scheme}://{bucket}", tuple(sorted(known.items())))


Location = Path | Address


@lru_cache(16)
def _connected(bucket: str, environment: tuple[tuple[str, str], ...]) -> Any:
    """Return a connection to a bucket, kept while the environment is the same."""
    return connect(bucket)


def _seen(meta: Any) -> ObjectStat:
    return ObjectStat(meta["size"], meta["last_modified"].timestamp(), meta["e_tag"] or "")


def _literal(name: str) -> str:
    """Return a name in a bucket as a part of a URL."""
    return name.replace("%", "%25")


def _delete(at: Address, found: Iterable[Address]) -> None:
    import obstore

    keys = [one.key for one in found]
    for first in range(0, len(keys), MOST_DELETED):
        some = keys[first : first + MOST_DELETED]
        ask(at.url, partial(obstore.delete, at._store, some))


def remove_tree(at: Location) -> None:
    """Delete a folder, as far as that is possible, or all objects below an address."""
    if isinstance(at, Address):
        at.delete_below()
    else:
        shutil.rmtree(at, ignore_errors=True)


def is_stored(at: Location) -> bool:
    """Return True if there is something at a path, or at an address a volume."""
    return at.exists() if isinstance(at, Path) else any((at / name).exists() for name in ROOTS)


def check_answers(at: Location) -> None:
    """Refuse an address whose store refuses or does not answer, which is known in seconds.

    Raises
    ------
    InvalidInput
        For a bucket that is not there, or keys that do not open it.
    RunFailed
        Where nothing answers.
    """
    if isinstance(at, Path):
        return
    try:
        check_reachable(at.url)
    except (PermissionError, FileNotFoundError) as error:
        raise InvalidInput(f"{at} cannot be used: {error.strerror}; check the address") from error
    except OSError as error:
        raise RunFailed(
            f"{at} cannot be reached: {error.strerror}; run the same command again when the store"
            " answers"
        ) from error


def without_keys(text: str) -> str:
    """Return a URL without the password or the signature that it may hold; other texts as given.

    Examples
    --------
    >>> without_keys("https://ann:secret@example.org/scan.nii.gz?X-Amz-Signature=1a2b")
    'https://example.org/scan.nii.gz'
    """
    scheme, found, rest = text.partition("://")
    if not found:
        return text
    rest = re.split(r"[?#]", rest)[0]
    where, slash, key = rest.partition("/")
    user, _, host = where.rpartition("@")
    unlisted = scheme.lower() in UNLISTED
    if ":" in user or (user and unlisted):  # of Azure's it is the name of a container
        rest = f"{host}{slash}{key}"
    elif ":" in where and not unlisted:  # no port, but a key of S3's, which may hold slashes
        rest = rest.rpartition("@")[2]
    return f"{scheme}://{rest}"


def location(out: str | os.PathLike[str]) -> Location:
    """Return where an output lies: the path of a folder, or an address on an object store.

    Raises
    ------
    InvalidInput
        If it is a URL at which nothing can be written, or that holds a password.

    Examples
    --------
    >>> location("out.zarr"), location("s3://bucket/out.zarr")
    (PosixPath('out.zarr'), Address(url='s3://bucket/out.zarr'))
    >>> location("https://example.org/out.zarr")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: https://example.org/out.zarr can be read but not written; write to
    s3://, gs:// or az://, or to a folder
    """
    text = os.fspath(out).removeprefix("file://")
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text)
    _, _, key = rest.rstrip("/").partition("/")
    if without_keys(text) != re.split(r"[?#]", text)[0]:
        raise InvalidInput(
            f"{without_keys(text)} was given with a password in it, which would be recorded; set"
            " it in the environment (AWS_SECRET_ACCESS_KEY) instead"
        )
    if scheme.lower() in UNLISTED or not is_remote(text):
        what = "can be read but not written" if is_remote(text) else "names no object store"
        raise InvalidInput(
            f"{without_keys(text)} {what}; write to s3://, gs:// or az://, or to a folder"
        )
    if not rest.strip("/").partition("/")[2]:
        raise InvalidInput(
            f"{text} names a bucket, and an output lies in one; give a name in it, such as"
            f" {scheme}://{rest.strip('/') or 'bucket'}/out.zarr"
        )
    if re.search(r"[?#]", text) or {"", ".", ".."} & {*unquote(key).split("/")}:
        raise InvalidInput(
            f"{without_keys(text)} names no object: ?, #, //, . and .. mean something else in a"
            " URL; give the plain name of the output in its bucket"
        )
    return Address(text)
