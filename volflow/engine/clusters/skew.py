"""The versions of a cluster: those that cannot work with ours are refused, others are told."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from distributed import Client

import volflow
from volflow.engine.clusters.asking import ask, cannot_run
from volflow.engine.workers import address_of, is_embedded, worker_records
from volflow.errors import InvalidInput

__all__ = ["Newcomers", "alike", "compare_versions", "versions_here"]

log = logging.getLogger("volflow")

# Of each package, how many parts of its version must be equal for objects to travel. Where only
# later parts differ, results may differ by rounding.
PARTS = {"python": 2, "volflow": 3, "dask": 2, "distributed": 2, "torch": 2, "zarr": 1, "numpy": 1}

REMEDY = "install the same version for both"

W = TypeVar("W")


@dataclass(frozen=True)
class _Compared:
    """A client, and what each worker of its cluster lacks: "" if nothing, as far as is known."""

    client: str
    lacks: dict[str, str]


_compared: ContextVar[_Compared | None] = ContextVar("volflow_compared", default=None)


@contextmanager
def alike(client: Client) -> Iterator[None]:
    """Compare the versions of a cluster with ours, once for all connections inside the block.

    Raises
    ------
    InvalidInput
        If they cannot work together, naming both versions.
    """
    found = _compared.get()
    if found is None or found.client != client.id:
        asked = [] if is_embedded(client) else _check(client)
        found = _Compared(client.id, dict.fromkeys(asked, ""))
    before = _compared.set(found)
    try:
        yield
    finally:
        _compared.reset(before)


@cache
def versions_here() -> dict[str, str]:
    """Return the versions of this process that matter, without importing any package."""
    found = {"python": ".".join(map(str, sys.version_info[:3])), "volflow": volflow.__version__}
    for name in PARTS.keys() - found.keys():
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def compare_versions(
    ours: Mapping[str, str], theirs: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return their versions that cannot work with ours, and those that differ without harm.

    Examples
    --------
    >>> compare_versions(
    ...     {"dask": "2026.8.0", "numpy": "2.4.6"}, {"dask": "2026.1.0", "numpy": "2.4.5"}
    ... )
    ({'dask': '2026.1.0'}, {'numpy': '2.4.5'})
    """
    breaking: dict[str, str] = {}
    harmless: dict[str, str] = {}
    for name, parts in PARTS.items():
        here, there = ours.get(name), theirs.get(name)
        if here is None or there is None or here == there:
            continue
        same = here.split(".")[:parts] == there.split(".")[:parts]
        (harmless if same else breaking)[name] = there
    return breaking, harmless


@dataclass
class Newcomers:
    """The workers that join a cluster later, of which those with other versions get no block.

    They are asked while the run goes on, and get none before they have answered.

    Parameters
    ----------
    client
        Inside a block of `alike`.
    """

    client: Client
    _asked: dict[str, Future[Any]] = field(default_factory=dict)

    def admitted(self, reading: Mapping[str, W]) -> dict[str, W]:
        """Return those of a reading of the live workers, by address, that may get blocks."""
        found = _compared.get()
        if found is None or is_embedded(self.client):
            return dict(reading)
        for address in reading.keys() - found.lacks.keys() - self._asked.keys():
            self._asked[address] = self._ask(address)
        for address in [one for one, future in self._asked.items() if future.done()]:
            lacks = _lacking(self._asked.pop(address), address)
            if lacks:
                log.warning("worker %s gets no block: %s", address, lacks)
            if lacks is not None:
                found.lacks[address] = lacks
        return {a: one for a, one in reading.items() if found.lacks.get(a) == ""}

    def close(self) -> None:
        """Wait for no answer any more."""
        for future in self._asked.values():
            future.cancel()

    def _ask(self, address: str) -> Future[Any]:
        loop: Any = self.client.loop
        answer = self.client._run(versions_here, workers=[address], on_error="return")
        return asyncio.run_coroutine_threadsafe(answer, loop.asyncio_loop)


def _lacking(asked: Future[Any], address: str) -> str | None:
    """Return what a worker has of other versions; "" if nothing, None if it did not answer."""
    try:
        answer = asked.result()[address]
    except Exception as error:  # it has left, or the scheduler has
        log.debug("%s does not say its versions: %s", address, error)
        return None
    if isinstance(answer, OSError):
        return None
    if isinstance(answer, Exception):
        return f"it {cannot_run(answer)}"
    ours = versions_here()
    breaking, _ = compare_versions(ours, answer)
    texts = [
        f"it has {name} {there} and this process {ours[name]}" for name, there in breaking.items()
    ]
    return f"{', '.join(texts)}; {REMEDY}" if texts else ""


def _check(client: Client) -> list[str]:
    """Compare all versions; return the addresses of the workers that answered."""
    ours = versions_here()
    differing: set[tuple[str, str]] = set()
    versions = _versions(client)
    for address, theirs in versions.items():
        place = f"the worker {address}" if address else "the scheduler"
        breaking, harmless = compare_versions(ours, theirs)
        for name, there in breaking.items():
            raise InvalidInput(
                f"{place} of the Dask cluster at {address_of(client)} has {name} {there} and this"
                f" process {ours[name]}, between which objects do not travel; {REMEDY}"
            )
        differing |= {*harmless.items()}
    for name, there in sorted(differing):
        text = "the cluster has %s %s, this process %s: results may differ by rounding"
        log.warning(text, name, there, ours[name])
    return [address for address in versions if address]


def _versions(client: Client) -> dict[str, dict[str, str]]:
    """Return the versions of the workers that answer, by address, and the scheduler's, by ""."""
    scheduler: Any = client.scheduler
    said = client.sync(scheduler.versions, packages=[])
    found = {name: said["packages"][name] for name in ("dask", "distributed")}
    found["python"] = ".".join(str(said["host"]["python"]).split(".")[:3])
    versions = {"": found}
    with suppress(TimeoutError):  # one that is stopped computes nothing
        versions |= ask(client, versions_here, workers=list(worker_records(client)))
    return versions
