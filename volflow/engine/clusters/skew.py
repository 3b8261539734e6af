"""The versions of a cluster: those that cannot work with ours are refused, others are told."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distributed import Client

import volflow
from volflow.engine.clusters.asking import ask
from volflow.engine.workers import address_of, is_embedded, worker_records
from volflow.errors import InvalidInput

__all__ = ["alike", "compare_versions", "unlike", "versions_here"]

log = logging.getLogger("volflow")

# Of each package, how many parts of its version must be equal for objects to travel. Where only
# later parts differ, results may differ by rounding.
PARTS = {"python": 2, "volflow": 3, "dask": 2, "distributed": 2, "torch": 2, "zarr": 1, "numpy": 1}

_checked: ContextVar[str] = ContextVar("volflow_checked", default="")


@contextmanager
def alike(client: Client) -> Iterator[None]:
    """Compare the versions of a cluster with ours, once for all connections inside the block.

    Raises
    ------
    InvalidInput
        If they cannot work together, naming both versions.
    """
    if not is_embedded(client) and _checked.get() != client.id:
        _check(client)
    before = _checked.set(client.id)
    try:
        yield
    finally:
        _checked.reset(before)


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


def unlike(ours: Mapping[str, str]) -> str:
    """Return in what this process cannot work for one of other versions; "" if it can.

    Examples
    --------
    >>> unlike({"dask": "2020.1.0"}).endswith(" and its driver 2020.1.0")
    True
    >>> unlike(versions_here())
    ''
    """
    breaking, _ = compare_versions(ours, versions_here())
    return "; ".join(
        f"{name} {here}, and its driver {ours[name]}" for name, here in breaking.items()
    )


def _check(client: Client) -> None:
    ours = versions_here()
    differing: set[tuple[str, str]] = set()
    for place, theirs in _versions(client).items():
        breaking, harmless = compare_versions(ours, theirs)
        for name, there in breaking.items():
            raise InvalidInput(
                f"{place} of the Dask cluster at {address_of(client)} has {name} {there} and this"
                f" process {ours[name]}, between which objects do not travel; install the same"
                " version for both"
            )
        differing |= {*harmless.items()}
    for name, there in sorted(differing):
        text = "the cluster has %s %s, this process %s: results may differ by rounding"
        log.warning(text, name, there, ours[name])


def _versions(client: Client) -> dict[str, dict[str, str]]:
    """Return the versions of the scheduler and of each worker, by what they are called."""
    scheduler: Any = client.scheduler
    said = client.sync(scheduler.versions, packages=[])
    found = {name: said["packages"][name] for name in ("dask", "distributed")}
    found["python"] = ".".join(str(said["host"]["python"]).split(".")[:3])
    versions = {"the scheduler": found}
    with suppress(TimeoutError):  # one that is stopped computes nothing
        answers = ask(client, versions_here, workers=list(worker_records(client)))
        versions |= {f"the worker {address}": answer for address, answer in answers.items()}
    return versions
