"""Inputs of a prediction made ready: files converted, and what cannot be identified."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput, ResumeRefused, SourceChanged
from volflow.infer.input_copies import dropped_copies, state_copied
from volflow.infer.request import Request
from volflow.store.journal.journal import Journal, Record, journal_of
from volflow.store.remote.address import Location, is_stored
from volflow.store.volume import Volume
from volflow.volumes.convert import convert

__all__ = ["computed_again", "convert_inputs", "trusting"]


def convert_inputs(
    request: Request, overwrite: bool, *, finished: bool = False, **options: Any
) -> tuple[Request, bool]:
    """Convert what is no Zarr array yet into the folder beside the output.

    Parameters
    ----------
    request
        Checked.
    overwrite
        Replace what was converted before of another input, instead of refusing.
    finished
        Whether the output is complete: of an input whose copy was deleted since, none is made.
    **options
        Of `convert`.

    Returns
    -------
    request
        With volumes on disk, but for inputs of what is finished.
    anew
        True where a conversion that had been begun was begun anew, or an input cannot be
        identified.

    Raises
    ------
    SourceChanged
        Where an input has another shape by now.
    """
    image, given = request.inputs, dict(request.given or {})
    anew = bool(request.unidentified) and not request.options.resume
    dropped, copies = dropped_copies(request), {}

    def converted(name: str, x: Any, source: Any, labels: bool | None) -> Any:
        nonlocal anew
        if isinstance(source, Volume):
            return source
        keep = request.copy_of(name)
        before, old = _begun(keep), dropped.get(name)
        if finished and old and not is_stored(keep) and old.source == source.identity():
            copies[name] = old.copy
            return source
        # A file is opened again when it is converted, lest it changed since.
        x = x if isinstance(x, str | os.PathLike) else source
        try:
            volume = convert(x, keep, labels=labels, **options)
        except ResumeRefused as error:  # what was converted before is another input
            if not overwrite:
                named = x if isinstance(x, str | os.PathLike) else name or "input"
                raise ResumeRefused(f"{named} is not what it was: {error}") from error
            volume = convert(x, keep, labels=labels, overwrite=True, **options)
        if old and old.source == state_copied(keep):
            copies[name] = old.copy
        else:
            anew |= before not in (None, _begun(keep))
        if volume.shape != tuple(source.shape):
            raise SourceChanged(
                f"{name or 'input'} has shape {volume.shape}, and had {tuple(source.shape)} when"
                " the run was planned; run the same command again when it is whole"
            )
        return volume

    Journal(request.sidecar).make_place()
    try:
        # A network reads the values of its inputs, whatever their files say of them.
        volumes = tuple(
            converted(name, x, source, False)
            for (name, x), source in zip(given.items(), image.volumes, strict=True)
        )
        mask = image.mask
        if mask is not None:
            mask = converted("mask", request.options.mask, mask, None)
    except InvalidInput:
        with suppress(OSError):  # there is something in it
            request.sidecar.rmdir()
        raise
    specs = tuple(
        volume.spec if isinstance(volume, Volume) else spec
        for volume, spec in zip(volumes, image.specs, strict=True)
    )
    image = replace(image, specs=specs, volumes=volumes, mask=mask)
    return replace(request, inputs=image, copies=copies), anew


def computed_again(request: Request) -> str:
    """Return why what is there counts for nothing, for people."""
    return (
        f"{request.unidentified}, so that it may hold something else by now; all is computed again"
        " (resume=True trusts that it does not; a copy made with vf.convert is known)"
    )


def trusting(request: Request, record: Record, before: Record) -> Record:
    """Return a record in which inputs that cannot be identified are those of the first run.

    Without ``resume=True`` nothing is trusted.
    """
    then = before.fingerprint
    if not request.options.resume or len(then.get("input", ())) != len(request.inputs.volumes):
        return record
    volumes, mask = request.inputs.volumes, request.inputs.mask

    def one(source: Any, now: Any, first: Any) -> Any:
        return first if source is not None and source.unidentified else now

    kept = dict(record.fingerprint)
    kept["input"] = [one(*x) for x in zip(volumes, kept["input"], then["input"], strict=True)]
    kept["mask"] = one(mask, kept["mask"], then.get("mask"))
    return replace(record, fingerprint=kept)


def _begun(volume: Location) -> object:
    """Return when the run that makes a volume was first recorded; None where none was."""
    try:
        plan = journal_of(volume).directory / "plan.json"
        return plan.stat().st_mtime_ns if isinstance(plan, Path) else plan.stat()
    except OSError:
        return None
