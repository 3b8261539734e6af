"""A prediction from the request to the result: planned, and run under its output's journal."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from distributed import Client

from volflow.engine.cluster import memory_per_worker
from volflow.engine.plan import Plan
from volflow.engine.progress import announce
from volflow.errors import InvalidInput, Locked, RunFailed
from volflow.infer.audit.recorded import keep_request
from volflow.infer.input_copies import drop_copies
from volflow.infer.method import adopt, out_blocks
from volflow.infer.methods import method_of, working
from volflow.infer.ready_inputs import computed_again, convert_inputs, trusting
from volflow.infer.regrid.method import resampled
from volflow.infer.request import Request, normalized
from volflow.infer.settings import Settings
from volflow.infer.under_journal import output_spec, run_method, targets_of
from volflow.store.aside import sweep
from volflow.store.create import check_target
from volflow.store.formats.written import refuse_unwritable
from volflow.store.journal.complete import is_complete
from volflow.store.journal.journal import Record, journal_of
from volflow.store.journal.outputs import begin_anew, withheld
from volflow.store.remote.address import Location, is_stored
from volflow.store.volume import Volume
from volflow.volumes.export import MOVE, refuse_taken, write_file
from volflow.volumes.pyramid.plan import Layout, lay_out
from volflow.volumes.pyramid.pyramid import pyramid

__all__ = ["Result", "perform", "plan_on"]

Result = Volume | dict[str, Volume]


def perform(request: Request, *, begun: bool = False) -> Result:
    """Do what is left of a prediction, and return its outputs.

    Parameters
    ----------
    request
        Checked.
    begun
        Whether an earlier attempt of the same call has begun the output, as far as it was to be
        begun anew: what that did is kept.
    """
    options = request.options
    overwrite = options.overwrite and not begun
    with working(request) as client:
        within = {"cluster": client, "memory": options.memory, "progress": options.progress}
        # Everything that can be refused is refused before a long conversion.
        before, memory_bytes = (
            _resumed(request, overwrite),
            memory_per_worker(client, options.memory),
        )
        settings, _ = _decide(request, before, client, memory_bytes)
        finished = before is not None and is_complete(request.out)
        if request.grid is not None and not finished:
            announce(f"predict: resampled {resampled(request)}", options.progress)
        if finished and request.file is not None and not request.file.exists():
            announce(
                f"predict: {request.file.name} is not there; it is written from the stored volume,"
                " and nothing is computed",
                options.progress,
            )
        request, anew = convert_inputs(
            request,
            overwrite,
            finished=finished and not request.unidentified,
            resume=options.resume,
            **within,
        )
        if anew and not overwrite:
            _check_otherwise(request, settings)
            if before and request.unidentified:
                announce(f"predict: {computed_again(request)}", options.progress)
        result = _execute(request, settings, client, memory_bytes, again=overwrite or anew)
        if options.levels:
            result = _with_levels(result, **within)
    if isinstance(result, Volume) and request.file is not None:
        write_file(result, request.file, overwrite=options.overwrite, renew=True, remedy=MOVE)
        if not options.keep:
            # Where another run has begun meanwhile, that one tidies up.
            with suppress(Locked), journal_of(request.out).lock():
                drop_copies(request)
    return result


def plan_on(request: Request, client: Client) -> Plan:
    """Return the plan of a prediction on a connected cluster; refuses what cannot work.

    Nothing is written.
    """
    options = request.options
    before = _resumed(request, options.overwrite)
    memory_bytes = memory_per_worker(client, options.memory)
    settings, levels = _decide(request, before, client, memory_bytes)
    if before is not None:
        _check_otherwise(request, settings)
    done = journal_of(request.out).done() if before else ()
    plan = method_of(request).plan(request, settings, client, memory_bytes, {}, frozenset(done))
    coarser = ((f"level {layout.level}", layout.describe()) for layout in levels)
    return replace(plan, facts=(*plan.facts, *coarser))


def _resumed(request: Request, overwrite: bool) -> Record | None:
    """Return the record of the run to resume; None where a new one begins and its place is free."""
    file, before = request.file, None
    if file is None or is_stored(request.out):
        before = _recorded(request.out, overwrite)
    if file is not None and not request.options.overwrite:
        refuse_taken(file, begun=before is not None)
    return before


def _decide(
    request: Request, before: Record | None, client: Client, memory_bytes: int
) -> tuple[Settings, tuple[Layout, ...]]:
    """Return the settings of the run, and the coarser levels asked for; refuses what cannot work.

    Parameters
    ----------
    request, client, memory_bytes
        What is predicted, where, and within which budget per worker.
    before
        The record of the run that is resumed, whose settings are adopted.
    """
    options, file = request.options, request.file
    method = method_of(request)
    if before is not None:
        settings = adopt(method, request, before)
    else:
        settings = method.decide(request, client, memory_bytes)
    if file is not None and settings.outputs[0].name:
        names = ", ".join(output.name for output in settings.outputs)
        raise InvalidInput(
            f"the model returns outputs by name ({names}), which {file.name} cannot hold;"
            ' use an output like "out.zarr" and export them'
        )
    if file is not None:
        refuse_unwritable(output_spec(request, settings, settings.outputs[0]), file)
    levels = tuple(
        layout
        for output in (settings.outputs if options.levels else ())
        for layout in lay_out(output_spec(request, settings, output), None, memory_bytes)
    )
    for layout in () if before else levels:
        layout.require_memory()
    return settings, levels


def _recorded(out: Location, overwrite: bool) -> Record | None:
    """Return the record of the run that wrote a volume; None where it is to be written anew."""
    try:
        before = journal_of(out).recorded()
    except InvalidInput:  # damaged, which is no obstacle to a new beginning
        if not overwrite:
            raise
        before = None
    if before is not None and is_stored(out):
        return None if overwrite else before
    check_target(out, overwrite=overwrite)
    return None


def _check_otherwise(request: Request, settings: Settings) -> None:
    """Refuse what was begun otherwise, whatever its inputs are by now."""
    journal = journal_of(request.out)
    before = journal.recorded()
    if before is not None:
        same = {name: before.fingerprint.get(name) for name in ("input", "mask")}
        record = _record(request, settings)
        journal.compare(replace(record, fingerprint={**record.fingerprint, **same}))


def _record(request: Request, settings: Settings) -> Record:
    grid = out_blocks(request, settings).counts
    return Record("predict", request.fingerprint(), settings.to_dict(grid))


def _execute(
    request: Request, settings: Settings, client: Client, memory_bytes: int, *, again: bool
) -> Result:
    """Run what is left of the plan, under the output's lock; ``again`` begins anew."""
    method, journal = method_of(request), journal_of(request.out)
    with journal.lock():
        sweep(request.out)
        before = _recorded(request.out, again)
        if before is not None:  # perhaps another run has begun meanwhile
            settings = adopt(method, request, before)
        record = _record(request, settings)
        if before is not None:
            record = trusting(request, record, before)
            journal.compare(record)
        if not all(isinstance(volume, Volume) for volume in request.inputs.volumes):
            return _left_alone(request, settings)
        progress = request.options.progress
        request = normalized(request, cluster=client, memory=memory_bytes, progress=progress)
        if before is None:
            begin_anew(request.out, journal, record)
        keep_request(journal, request)
        targets = run_method(method, request, settings, client, memory_bytes, record)
    return targets.get("", targets)


def _left_alone(request: Request, settings: Settings) -> Result:
    """Return a complete output whose inputs are not there to be read; under its lock."""
    if not is_complete(request.out):
        raise RunFailed(
            f"blocks of {request.file or request.out} were found damaged meanwhile; run the same"
            " command again, which computes them"
        )
    targets = targets_of(request, settings)
    with withheld(journal_of(request.out), request.out, left=False):
        return targets.get("", targets)


def _with_levels(result: Result, **options: Any) -> Result:
    if isinstance(result, Volume):
        return pyramid(result, **options)
    return {name: pyramid(volume, **options) for name, volume in result.items()}
