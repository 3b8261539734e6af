"""Copies of inputs beside an exported file: deleted when it is complete, and made again if needed.

::

    seg.nii.gz.volflow/
        input.zarr      what the network reads, while blocks are left
        copies.json     afterwards: of which state of the input it was a copy, and its identity

A copy made of the same state has the same voxels, so that it counts as the one that is recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from volflow.infer.request import Request
from volflow.store.atomic import read_json, write_json
from volflow.store.journal.journal import journal_of
from volflow.store.journal.outputs import discard
from volflow.store.journal.records import typed
from volflow.store.remote.address import Location, remove_tree
from volflow.store.volume import Volume
from volflow.volumes.copying import COPY_VERSION

__all__ = ["Dropped", "drop_copies", "dropped_copies", "state_copied"]

NOTE = "copies.json"


@dataclass(frozen=True)
class Dropped:
    """A copy of an input that was deleted.

    Parameters
    ----------
    source
        Identity of the input when it was copied.
    copy
        Identity of the copy, which the journal of the output names as its input.
    version
        Of what copies.
    """

    source: str
    copy: str
    version: int = COPY_VERSION


def dropped_copies(request: Request) -> Mapping[str, Dropped]:
    """Return the deleted copies of inputs by name; none where the note is absent or damaged."""
    if request.file is None:  # beside a volume copies stay: a store need not be asked
        return {}
    with suppress(OSError, ValueError, AttributeError):
        found = read_json(request.sidecar / NOTE).items()
        every = {name: typed(Dropped, saved) for name, saved in found}
        return {name: one for name, one in every.items() if one.version == COPY_VERSION}
    return {}


def state_copied(copy: Location) -> str:
    """Return the identity of the input when a copy was made of it; ``""`` if there is no record."""
    record = journal_of(copy).recorded()
    return str(record.fingerprint.get("input", "")) if record else ""


def drop_copies(request: Request) -> None:
    """Delete the copies of inputs of a complete output, and note them; under the output's lock.

    What cannot be told from another state of the same input keeps its copy.
    """
    notes, gone = dict(dropped_copies(request)), []
    for name, volume in zip(request.given or {}, request.inputs.volumes, strict=True):
        place = request.copy_of(name)
        if isinstance(volume, Volume) and volume.path == str(place) and not request.unidentified:
            copy = request.copies.get(name) or volume.identity()
            notes[name] = Dropped(state_copied(place), copy)
            gone.append(place)
        elif name in notes and journal_of(place).directory.exists():  # killed amid the deletion
            gone.append(place)
    if not gone:
        return
    write_json(request.sidecar / NOTE, {name: asdict(one) for name, one in notes.items()})
    for place in gone:
        journal = journal_of(place)
        discard(place, journal)
        remove_tree(journal.directory)
