"""Start an output again, withhold it while it is written, keep it apart from its inputs."""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import zarr

from volflow.errors import InvalidInput, writing_failed
from volflow.store.aside import beside, sweep
from volflow.store.journal.journal import Journal, Record, journal_of
from volflow.store.journal.lease import check_lease
from volflow.store.journal.levels import Place, drop_levels, level_journals
from volflow.store.journal.provenance import machines_dir
from volflow.store.journal.refusals import writing
from volflow.store.opening import local_path
from volflow.store.remote.address import (
    Address,
    Location,
    check_answers,
    is_stored,
    location,
    remove_tree,
)
from volflow.store.unfinished.root import publish, withhold
from volflow.store.volume import Volume

__all__ = [
    "begin_anew",
    "check_apart",
    "computed_first",
    "discard",
    "discard_levels",
    "discard_wholly",
    "withheld",
]


def check_apart(out: str | os.PathLike[str], *inputs: Any) -> None:
    """Refuse an output that would delete one of its inputs, or whose store does not answer.

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
    check_answers(location(out))
    place = _named(out)
    for one in inputs:
        one = local_path(one) if isinstance(one, zarr.Array) else one
        path = one.path if isinstance(one, Volume) else one
        if not isinstance(path, str | os.PathLike):
            continue
        source = _named(path)
        if f"{source}/".startswith(f"{place}/"):
            raise InvalidInput(f"{out} would replace its own input {path}; choose another output")


def _named(path: str | os.PathLike[str]) -> str:
    """Return the one name of what has several: a path without links, or a URL."""
    text = os.fspath(path).removeprefix("file://")
    if "://" in text:
        scheme, _, rest = re.split(r"[?#]", text)[0].partition("://")
        # As obstore reads it.
        return f"{scheme.replace('s3a', 's3')}://{posixpath.normpath(unquote(rest))}"
    whole = Path(text).expanduser()
    # What is named in a file behind :: lies in that file.
    return os.path.realpath(whole if whole.exists() else os.fspath(whole).partition("::")[0])


def begin_anew(out: Location, journal: Journal, record: Record) -> None:
    """Delete an output and its journal, and record the new run; to be called under the lock.

    The volumes are created after this, so a process may be killed at any point: blocks of the old
    output never count as done, and no output exists without its record.
    """
    discard(out, journal)
    journal.begin(record)


def computed_first(journal: Journal) -> list[Journal]:
    """Return the journals of what an output is made of: passes, scores on another grid."""
    # An output on a store has none.
    names = ("[0-9]*", "*.volflow") if journal.is_local else ()
    found = [Journal(folder) for name in names for folder in journal.passes.glob(name)]
    return [*found, *(inner for one in found for inner in computed_first(one))]


@contextmanager
def withheld(journal: Journal, *places: Location, left: bool) -> Iterator[None]:
    """Withhold the root metadata of an output while blocks of it are written; under the lock.

    They are put in place at the end of the block, unless it fails. So an output whose bad blocks
    are written again is refused meanwhile as a new one is.

    Parameters
    ----------
    journal
        Of the run.
    places
        The volumes of the output, then the store around them.
    left
        Whether blocks are left to write; where none are, what is in place stays.

    Raises
    ------
    Superseded
        If another driver took over the output: its metadata are not this one's to change.
    RunFailed
        If they cannot be changed.
    """
    check = partial(check_lease, journal.directory)
    for at in reversed(places) if left else ():
        try:
            withhold(at, check)
        except OSError as error:
            raise writing_failed(error)(
                f"{at} cannot be withheld while it is written: {error.strerror or error}; put this"
                " right and run the same command again"
            ) from error
    yield
    publish(*places, check=check)


def discard_levels(place: Place, count: int) -> None:
    """Delete the coarser levels of a volume beyond ``count``, with their journals; under the lock.

    The metadata must no longer list them.
    """
    for level in place.surplus(count):
        discard(place.path(level), place.journal(level))
        remove_tree(place.journal(level).directory)


def discard(out: Location, journal: Journal) -> None:
    """Delete an output and forget its run; under the lock."""
    if isinstance(out, Address):
        check_lease(journal.directory)
        _fence_off(journal)
        with writing(journal.directory):
            # First what makes it a volume: half deleted, it must not pass for complete.
            out.delete_below()
            drop_levels(journal)
            remove_tree(machines_dir(journal))
        journal.clear()
        return
    sweep(out)
    _fence_off(journal)
    old = beside(out, "old")
    if out.exists():
        # Renamed first: half deleted, it could pass for complete, or for a foreign folder.
        out.rename(old)
    drop_levels(journal)
    shutil.rmtree(journal.passes, ignore_errors=True)
    remove_tree(machines_dir(journal))
    journal.clear()
    shutil.rmtree(old, ignore_errors=True)


def discard_wholly(out: Location) -> None:
    """Delete what was only made on the way, with its journal, under its own lock."""
    journal = journal_of(out)
    there = journal.directory.exists() if journal.is_local else journal.recorded() is not None
    if not there and not is_stored(out):
        return
    with journal.lock():
        discard(out, journal)
    remove_tree(journal.directory)


def _fence_off(journal: Journal) -> None:
    """End what a driver that died left of its sessions, also those of its passes and levels.

    Their tasks may live, and the next run writes under the same names.
    """
    for one in (journal, *computed_first(journal), *level_journals(journal).values()):
        one.end()
