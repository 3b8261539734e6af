"""Start an output again, delete it with its journal, and keep it apart from its inputs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import zarr

from volflow.errors import InvalidInput
from volflow.store.aside import beside, sweep
from volflow.store.journal.journal import Journal, Record
from volflow.store.journal.levels import Place, drop_levels, level_journals
from volflow.store.journal.provenance import machines_dir
from volflow.store.opening import local_path
from volflow.store.volume import Volume

__all__ = ["begin_anew", "check_apart", "discard", "discard_levels"]


def check_apart(out: str | os.PathLike[str], *inputs: Any) -> None:
    """Refuse an output that would delete one of its inputs.

    Parameters
    ----------
    out
        Path of the output.
    inputs
        All inputs; paths and volumes are compared, other objects are not on disk.

    Raises
    ------
    InvalidInput
        If an input is the output or lies inside it.
    """
    place = Path(os.path.realpath(out))
    for one in inputs:
        one = local_path(one) if isinstance(one, zarr.Array) else one
        path = one.path if isinstance(one, Volume) else one
        if not isinstance(path, str | os.PathLike) or "://" in os.fspath(path):
            continue
        source = Path(os.path.realpath(Path(path).expanduser()))
        if place == source or place in source.parents:
            raise InvalidInput(f"{out} would replace its own input {path}; choose another output")


def begin_anew(out: Path, journal: Journal, record: Record) -> None:
    """Delete an output and its journal, and record the new run; to be called under the lock.

    The volumes are created after this, so a process may be killed at any point: blocks of the old
    output never count as done, and no output exists without its record.
    """
    discard(out, journal)
    journal.begin(record)


def discard_levels(place: Place, count: int) -> None:
    """Delete the coarser levels of a volume beyond ``count``, with their journals; under the lock.

    The metadata must no longer list them.
    """
    for level in place.surplus(count):
        discard(place.path(level), place.journal(level))
        shutil.rmtree(place.journal(level).directory, ignore_errors=True)


def discard(out: Path, journal: Journal) -> None:
    """Delete an output and forget its run; under the lock."""
    sweep(out)
    _fence_off(journal)
    old = beside(out, "old")
    if out.exists():
        # Renamed first: half deleted, it could pass for complete, or for a foreign folder.
        out.rename(old)
    drop_levels(journal)
    shutil.rmtree(journal.passes, ignore_errors=True)
    shutil.rmtree(machines_dir(journal), ignore_errors=True)
    journal.clear()
    shutil.rmtree(old, ignore_errors=True)


def _fence_off(journal: Journal) -> None:
    """End what a driver that died left of its sessions, also those of its passes and levels.

    Their tasks may live, and the next run writes under the same names.
    """
    passes = (Journal(folder) for folder in journal.passes.glob("[0-9]*"))
    for one in (journal, *passes, *level_journals(journal).values()):
        one.end()
