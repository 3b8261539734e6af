"""Where the inputs and the model of a run were and what computed it, so that it can be done again.

::

    out.zarr.volflow/
        provenance.json       inputs and model, as far as they have names
        machines/1a2b….json   each kind of machine that computed blocks

It is no part of the fingerprint: a scan that was moved is the same scan.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from volflow.store.atomic import plain, read_json, write_json
from volflow.store.journal.journal import Journal
from volflow.store.journal.records import typed
from volflow.store.remote.address import Address, Location, without_keys

__all__ = [
    "Machine",
    "Provenance",
    "keep_provenance",
    "machines_dir",
    "note_machine",
    "noted_machines",
    "read_provenance",
]

NOTE = "provenance.json"


@dataclass(frozen=True)
class Machine:
    """What the last bits of a result depend on, beside what a run records as its settings.

    Parameters
    ----------
    device, threads
        The name of the GPU, or "cpu"; torch's threads there.
    processor, torch, numpy
        The processor, whose kernels torch and NumPy choose, and their versions.
    """

    device: str
    threads: int
    processor: str
    torch: str
    numpy: str


@dataclass(frozen=True)
class Provenance:
    """Where the inputs and the model of a run were.

    Parameters
    ----------
    given
        The inputs by name, as they were handed over: absolute paths, or types of arrays.
    inputs, mask
        Paths of the volumes that were read, which are copies beside the output where the inputs
        were no Zarr arrays. ``""`` where there was none on disk, None where there was no mask.
    model, weights
        Path or import path of the model, and path of its weights; ``""`` where it has none.
    """

    given: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    mask: str | None = None
    model: str = ""
    weights: str = ""


def keep_provenance(journal: Journal, found: Provenance, copies: Location) -> None:
    """Write the provenance of a run; what lies in the folder of its copies moves with it.

    Passwords and signatures in URLs are left out.
    """

    def inside(path: str) -> str:
        path = without_keys(path)
        at: Location = Address(path) if "://" in path else Path(path)
        if not path or not at.is_relative_to(copies):
            return path
        if isinstance(at, Address):
            return at.relative_to(journal.directory)
        return os.path.relpath(at, journal.directory)

    kept = replace(
        found,
        given={name: without_keys(text) for name, text in found.given.items()},
        inputs={name: inside(path) for name, path in found.inputs.items()},
        mask=found.mask and inside(found.mask),
    )
    path, now, before = journal.directory / NOTE, plain(asdict(kept)), None
    with suppress(OSError, ValueError):
        before = read_json(path)
    with suppress(OSError):  # what is not noted can be named by the user
        if now != before:
            write_json(path, now)


def read_provenance(journal: Journal) -> Provenance:
    """Return the provenance of a run; an empty one where none was noted."""
    with suppress(OSError, ValueError):
        found = typed(Provenance, read_json(journal.directory / NOTE))

        def whole(path: str) -> str:
            if not path or "://" in path:
                return path
            at = journal.directory
            return str(at / path) if isinstance(at, Address) else os.path.normpath(at / path)

        inputs = {name: whole(path) for name, path in found.inputs.items()}
        return replace(found, inputs=inputs, mask=found.mask and whole(found.mask))
    return Provenance()


def machines_dir(journal: Journal) -> Location:
    """Return the folder of notes on the kinds of machines that computed blocks."""
    return journal.directory / "machines"


def note_machine(journal: Journal | None, machine: Machine) -> None:
    """Note in the journal of a run that a machine of this kind computes blocks of it."""
    if journal is None:
        return
    known = asdict(machine)
    name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
    path = machines_dir(journal) / f"{name}.json"
    with suppress(OSError):  # without the note blocks are compared within a tolerance
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            write_json(path, known)


def noted_machines(journal: Journal) -> frozenset[Machine]:
    """Return the kinds of machines that computed blocks of a run; none where nothing was noted."""
    found = set()
    with suppress(OSError, ValueError):
        for path in machines_dir(journal).glob("*.json"):
            found.add(typed(Machine, read_json(path)))
        return frozenset(found)
    return frozenset()
