"""The Zarr store behind a URL, on which reading and writing fail as on a disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from zarr.storage import ObjectStore

from volflow.store.remote.access import UNLISTED, ask, connect, pauses, raise_unless_cut

__all__ = ["Remote", "can_list"]

ONE_PUT_BYTES = 2**28  # a larger object is sent in parts

T = TypeVar("T")


class Remote(ObjectStore[Any]):
    """The Zarr store behind a URL; it pickles as its address, and fails as a disk does.

    Parameters
    ----------
    address
        URL of the Zarr group or array.
    read_only
        Refuse to write.
    """

    def __init__(self, address: str, *, read_only: bool = False) -> None:
        super().__init__(connect(address), read_only=read_only)
        self.address = address.rstrip("/")

    def with_read_only(self, read_only: bool = False) -> Remote:
        """Return the same store, read-only or not."""
        return Remote(self.address, read_only=read_only)

    def __str__(self) -> str:
        return self.address

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Remote) and self.address == other.address
        return same and self.read_only == getattr(other, "read_only", None)

    __hash__ = None  # type: ignore[assignment] # as that of zarr

    def __getstate__(self) -> dict[Any, Any]:
        return {"address": self.address, "read_only": self.read_only}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.__init__(state["address"], read_only=state["read_only"])  # type: ignore[misc]

    async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
        """Return an object or a range of it; None if there is none."""
        return await _ask(self._name(key), partial(super().get, key, prototype, byte_range))

    async def get_partial_values(self, prototype: Any, key_ranges: Any) -> Any:
        """Return ranges of objects."""
        wanted = list(key_ranges)
        return await _ask(self.address, partial(super().get_partial_values, prototype, wanted))

    async def exists(self, key: str) -> bool:
        """Return True if there is such an object."""
        found: bool = await _ask(self._name(key), partial(super().exists, key))
        return found

    async def set(self, key: str, value: Any) -> None:
        """Write an object whole, in one request unless it is huge."""
        import obstore

        self._check_writable()
        data, parts = value.as_buffer_like(), len(value) > ONE_PUT_BYTES
        put = partial(obstore.put_async, self.store, key, data, use_multipart=parts)
        await _ask(self._name(key), put)

    async def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        await _ask(self._name(key), partial(super().delete, key))

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        """Yield the names directly below a prefix."""

        async def names() -> list[str]:
            return [name async for name in ObjectStore.list_dir(self, prefix)]

        for name in await _ask(self._name(prefix), names):
            yield name

    def _name(self, key: str) -> str:
        return f"{self.address}/{key}"


def can_list(store: ObjectStore[Any], prefix: str) -> bool:
    """Return True if a store lists its objects with their ETags."""
    import obstore

    if isinstance(store, Remote) and store.address.partition("://")[0].lower() in UNLISTED:
        return False
    try:
        first = ask(
            f"{store}/{prefix}",
            lambda: next(iter(obstore.list(store.store, prefix or None, chunk_size=1)), []),
        )
    except PermissionError:
        return False
    return all(meta["e_tag"] for meta in first)


async def _ask(what: str, call: Callable[[], Awaitable[T]]) -> T:
    for pause_s in pauses():
        try:
            return await call()
        except Exception as error:
            raise_unless_cut(error, what, last=pause_s is None)
        await asyncio.sleep(pause_s or 0)
    raise AssertionError  # the last pause is None
