"""What is to be done with each case, told from its files and the record alone."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from volflow.errors import VolflowError
from volflow.infer.predict_options import PredictOptions
from volflow.jobs.batch.case_record import STARTED, PastCase
from volflow.store.atomic import differences, plain
from volflow.store.formats.exported import BEHIND, fault_of, read_receipt
from volflow.store.formats.sources import open_source, split_part
from volflow.store.formats.written import is_foreign
from volflow.store.journal.complete import is_complete
from volflow.store.journal.journal import journal_dir
from volflow.store.slabs import file_identity
from volflow.store.unfinished.root import is_unfinished

__all__ = [
    "Asked",
    "Verdict",
    "identity_of_volume",
    "in_the_way",
    "is_finished",
    "settings_asked",
    "triage",
    "wrote",
]

# Options that decide no voxel. Another model is noticed by its identity, another mask as an input.
BESIDE = {"cluster", "wait", "memory", "device_memory", "overwrite", "resume", "progress"}
BESIDE |= {"weights", "trust", "mask", "keep"}


@dataclass(frozen=True)
class Asked:
    """What a batch asks of every case.

    Parameters
    ----------
    model, settings
        What identifies the model, and the options that decide the result.
    overwrite
        Whether results of other models or settings are replaced.
    retry_failed
        Whether cases are tried again whose failure is final.
    """

    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False
    retry_failed: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a case.

    Parameters
    ----------
    status
        ``"kept"`` or ``"failed"``: nothing; ``"new"``, ``"changed"``, ``"unfinished"``,
        ``"again"``: it is computed; ``"differs"``: a result was made otherwise, which the journal
        has the last word on.
    reason
        Why, in words.
    anew
        Whether what is there is replaced.
    """

    status: str
    reason: str = ""
    anew: bool = False

    @property
    def idle(self) -> bool:
        """Return True if nothing is to be done."""
        return self.status in ("kept", "failed")


def triage(
    past: PastCase | None, inputs: Mapping[str, str], asked: Asked, finished: Callable[[], bool]
) -> Verdict:
    """Decide what is to be done with a case.

    Parameters
    ----------
    past
        What is known of it.
    inputs
        Identities of its volumes now.
    asked
        What is asked of all cases.
    finished
        Whether its result is there, whole and as it was written.

    Examples
    --------
    >>> asked = Asked("model 1")
    >>> triage(None, {"image": "a1"}, asked, lambda: False)
    Verdict(status='new', reason='', anew=False)
    >>> from volflow.jobs.batch.result_table import CaseRow
    >>> done = PastCase(CaseRow("p1", "done"), {"image": "a1"}, "model 1")
    >>> triage(done, {"image": "a1"}, asked, lambda: True).status
    'kept'
    >>> triage(done, {"image": "b2"}, asked, lambda: True)
    Verdict(status='changed', reason='image changed', anew=True)
    >>> triage(done, {"image": "a1"}, Asked("model 2"), lambda: True)
    Verdict(status='differs', reason='made with another model', anew=False)
    """
    if past is None:
        return Verdict("new")
    changed = [name for name, now in inputs.items() if now and past.inputs.get(name) != now]
    changed += [name for name in past.inputs if name not in inputs]
    if changed:
        return Verdict("changed", f"{', '.join(changed)} changed", anew=True)
    known = all(inputs.values())
    otherwise = _otherwise(past, asked)
    replace = asked.overwrite and bool(otherwise)
    if past.row.status == STARTED:
        return Verdict("unfinished", otherwise, anew=replace)
    if past.row.status == "failed":
        if past.final and known and not otherwise and not asked.retry_failed:
            return Verdict("failed", past.row.reason)
        return Verdict("again", "failed before", anew=replace)
    if past.row.status == "refused" and not otherwise:
        return Verdict("again" if asked.overwrite else "differs", past.row.reason, asked.overwrite)
    if not otherwise:
        return Verdict("kept") if known and finished() else Verdict("again", "not as it was left")
    return Verdict("again" if replace else "differs", otherwise, anew=replace)


def _otherwise(past: PastCase, asked: Asked) -> str:
    """Return how a case was asked for otherwise; ``""`` where it was asked for as now."""
    parts = ["made with another model"] if past.model != asked.model else []
    lines = differences(plain(past.settings), plain(asked.settings))
    return "; ".join([*parts, *(["other settings: " + ", ".join(lines)] if lines else [])])


def settings_asked(options: PredictOptions) -> dict[str, Any]:
    """Return the options that decide a result, as plain values."""
    found = {}
    for one in fields(PredictOptions):
        value = getattr(options, one.name)
        if one.name in BESIDE or value == one.default:
            continue
        if one.name in ("normalize", "activation") and callable(value):
            from volflow.model.digest import digest_of

            value = f"function {digest_of(value)[:16]}"
        try:
            found[one.name] = plain(value)
        except TypeError:  # such as a dtype
            found[one.name] = str(value)
    return found


def identity_of_volume(volume: Any) -> str:
    """Return a hash that changes with a volume; ``""`` where that cannot be told."""
    try:
        if isinstance(volume, str | os.PathLike):
            found = open_source(volume)
            return "" if found.unidentified else found.identity()
        from volflow.volumes.arrays.inputs import open_input

        return open_input(volume).identity()
    except (OSError, VolflowError):
        # One that cannot be read is the same again as long as its file is.
        with suppress(OSError, TypeError):
            return file_identity(str(split_part(os.fspath(volume))[0]))
        return ""


def wrote(out: str) -> tuple[int, int] | None:
    """Return size and time of the file of a result; None where it is no single file."""
    try:
        stat = Path(out).stat()
    except OSError:
        return None
    return (stat.st_size, stat.st_mtime_ns) if Path(out).is_file() else None


def is_finished(out: str, past: PastCase | None) -> bool:
    """Return True if a result is there, whole and as it was left."""
    path = Path(out)
    stored = journal_dir(path) / BEHIND if is_foreign(path) else path
    if past is None or not path.exists() or past.wrote != wrote(out):
        return False
    try:
        return is_complete(stored) and not is_unfinished(stored)
    except VolflowError:
        return False


def in_the_way(out: str) -> bool:
    """Return True for a file at the place of a result that is not, or no longer, a result."""
    path = Path(out)
    try:
        if not (is_foreign(path) and path.is_file()):
            return False
        receipt = read_receipt(path)
        return receipt is None or bool(fault_of(path, receipt))
    except OSError:  # of which the prediction says more
        return False
