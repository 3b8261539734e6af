"""What is left of a prediction, run under the journal of its output."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from distributed import Client

from volflow.engine.run import run
from volflow.errors import InvalidInput
from volflow.infer.method import Method, out_blocks
from volflow.infer.request import Request, output_meta
from volflow.infer.settings import Settings
from volflow.model.forward import Output
from volflow.store.atomic import plain
from volflow.store.create import create, create_store, open_begun
from volflow.store.journal.journal import Record, journal_of
from volflow.store.journal.outputs import begin_anew, withheld
from volflow.store.meta import VolumeSpec
from volflow.store.remote.address import is_stored
from volflow.store.volume import Volume

__all__ = ["output_spec", "run_method", "targets_of", "write_under"]


def output_spec(request: Request, settings: Settings, output: Output) -> VolumeSpec:
    """Return the spec of an output."""
    front = () if request.options.output == "classes" else (output.channels,)
    shape = (*front, *out_blocks(request, settings).shape)
    dtype, meta = request.options.stored_dtype(settings.dtype), output_meta(request, output)
    return VolumeSpec.of(shape, dtype, meta, settings.chunk, settings.shard)


def targets_of(request: Request, settings: Settings) -> dict[str, Volume]:
    """Return where the outputs go: volumes of an interrupted run, and new ones for the others."""
    named = len(settings.outputs) > 1 or settings.outputs[0].name != ""
    if named and not is_stored(request.out):
        create_store(request.out)
    targets = {}
    for output in settings.outputs:
        path = request.out / output.name if named else request.out
        if is_stored(path):
            targets[output.name] = open_begun(path)
        else:
            spec = output_spec(request, settings, output)
            targets[output.name] = create(path, spec, finished=False)
    return targets


def run_method(
    method: Method[Any],
    request: Request,
    settings: Settings,
    client: Client,
    memory_bytes: int,
    record: Record,
) -> dict[str, Volume]:
    """Run the plan for the blocks that are not done; under the output's lock.

    Returns
    -------
    dict
        The outputs by name.
    """
    journal = journal_of(request.out)
    targets = targets_of(request, settings)
    done = frozenset(journal.done())
    with method.prepared(request, settings, client, memory_bytes, done):
        plan = method.plan(request, settings, client, memory_bytes, targets, done)
        plan = replace(plan, journal=journal, record=record)
        places = dict.fromkeys([*(request.out / name for name in targets), request.out])
        with withheld(journal, *places, left=bool(plan.runs)):
            run(plan, cluster=client, progress=request.options.progress)
    return targets


def write_under(
    method: Method[Any],
    request: Request,
    settings: Settings,
    client: Client,
    memory_bytes: int,
    fingerprint: Mapping[str, Any],
) -> None:
    """Write what another run is made of, resuming what was begun of the same.

    Parameters
    ----------
    method, request, settings, client, memory_bytes
        As in `run_method`.
    fingerprint
        Of the other run, which decides whether what was begun is of the same.
    """
    journal = journal_of(request.out)
    journal.make_place()
    saved = settings.to_dict(out_blocks(request, settings).counts)
    record = Record("predict", plain(dict(fingerprint)), plain(saved))
    with journal.lock():
        before = None
        with suppress(InvalidInput):  # a damaged record: what it was of is made anew
            before = journal.recorded()
        same = before is not None and (before.fingerprint, before.settings) == (
            record.fingerprint, record.settings,
        )  # fmt: skip
        if not same or not is_stored(request.out):
            begin_anew(request.out, journal, record)
        run_method(method, request, settings, client, memory_bytes, record)
