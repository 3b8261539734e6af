"""How far a run is and who is at work on it, read from the journal of its output alone."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from volflow.engine.observing.bottleneck import WorkerTime, explain_bottleneck
from volflow.errors import InvalidInput
from volflow.store.formats.exported import stored_behind
from volflow.store.journal.detachment import detachment_facts
from volflow.store.journal.history import Finished, find_holder, finished_blocks
from volflow.store.journal.journal import Journal, Record, journal_of
from volflow.store.journal.levels import level_journals
from volflow.store.journal.lock import Holder
from volflow.store.journal.outputs import computed_first
from volflow.store.journal.refusals import refuse_plain_http
from volflow.store.remote.address import Location, check_answers
from volflow.store.unfinished.root import is_unfinished

__all__ = ["SILENT_S", "awaited", "pace", "run_facts"]

# Blocks whose times give the pace: enough to even out, few enough to follow a change.
RECENT = 64
# A run on another machine that recorded nothing for so long, and so many times the usual time
# between blocks, may have ended.
SILENT_S, SILENT_BLOCKS = 600.0, 10
# A detached driver that died is begun again within seconds, if its scheduler lives; on a store it
# waits for a minute until the lease of the first has lapsed.
BEGUN_AGAIN_S = 120.0


def run_facts(out: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the progress of an output from its journal; no voxel is read.

    Parameters
    ----------
    out
        The path of an output of volflow: a volume, or an exported file, for which the volume behind
        it stands.

    Returns
    -------
    dict
        Plain values, for JSON. ``state`` is ``"done"``, ``"running"``, ``"stopped"``, or
        ``"silent"``: another machine's process holds the lock, or a cluster was given the run, and
        nothing is recorded. ``detached`` says which scheduler was given it, and how it ended.

    Raises
    ------
    InvalidInput
        If the output has no journal, or a damaged one.
    """
    refuse_plain_http(out, "how far its run is cannot be told")
    notes = journal_of(out)
    check_answers(notes.output)
    detached = detachment_facts(notes.directory)
    out = stored_behind(out) or out
    main = journal_of(out)
    journal = _at_work(main)
    record = journal.recorded()
    if record is None and detached is not None:
        record = Record(detached["operation"], {}, {"grid": [0]})  # no block is known so far
    if record is None:
        raise InvalidInput(
            f"{os.fspath(out)} has no journal ({main.directory}); status needs an output that"
            " volflow writes or wrote"
        )
    now_s, failures = time.time(), journal.failures.read()
    count, finished = finished_blocks(journal)
    total = math.prod(record.settings.get("grid", ()))
    holder = find_holder(main) or find_holder(journal)
    levels = _levels(main)
    # What is done first, such as converting the input, is not yet the output.
    whole = count >= total > 0 and journal == main and not levels
    done = whole and not is_unfinished(main.output)
    workers = _by_worker(finished)
    stages = WorkerTime()
    for worker in workers.values():
        stages.add(worker.blocks, worker.stages)
    ordered = sorted(stages.stages.items(), key=lambda item: -item[1])
    since_s = holder.since_s if holder and holder.alive is not False else None
    last_s = round(now_s - finished[-1].at_s, 1) if finished else None
    paced = pace(finished, total - count, since_s, now_s)
    return {
        "path": os.fspath(out),
        "operation": record.operation,
        "state": _state(done, holder, finished, now_s, detached),
        "done": count,
        "total": total,
        "grid": record.settings.get("grid"),
        "levels": levels,
        **paced,
        "holder": None if holder is None else asdict(holder),
        "detached": detached,
        "stages_s": {name: round(seconds, 3) for name, seconds in ordered},
        "workers": {
            name: {"blocks": one.blocks, "stages_s": one.stages} for name, one in workers.items()
        },
        "bottleneck": explain_bottleneck(workers),
        "failed": len(failures),
        "failures": [asdict(failure) for failure in failures],
        "last_block_s": last_s,
        "last_block_at_s": finished[-1].at_s if finished else None,
        "fingerprint": dict(record.fingerprint),
        "settings": dict(record.settings),
    }


def pace(
    finished: Sequence[Finished], left: int, since_s: float | None, now_s: float
) -> dict[str, float | None]:
    """Return the pace of the last blocks and the seconds left; None where they are not known.

    Parameters
    ----------
    finished
        Finished blocks, oldest first.
    left
        Number of blocks left.
    since_s
        When the running driver began; earlier blocks are of an earlier run, and a run that does not
        run has no time left. None if none runs.
    now_s
        The time, in seconds since 1970.

    Examples
    --------
    >>> blocks = [Finished(n, 10.0 * n, 1000, "a:1", {}) for n in (1, 2, 3)]
    >>> pace(blocks, left=6, since_s=0, now_s=35)
    {'blocks_per_s': 0.1, 'voxels_per_s': 100.0, 'left_s': 55.0}
    """
    own = [one for one in finished if since_s is None or one.at_s > since_s]
    recent = own[-RECENT:]
    # The pace needs a beginning: of the run, or else the block before.
    if len(recent) < len(own) or since_s is None:
        begin_s = own[-len(recent) - 1].at_s if len(recent) < len(own) else None
        if begin_s is None and recent:
            begin_s, recent = recent[0].at_s, recent[1:]
    else:
        begin_s = since_s
    took_s = recent[-1].at_s - begin_s if recent and begin_s is not None else 0.0
    if took_s <= 0:
        return {"blocks_per_s": None, "voxels_per_s": None, "left_s": None}
    blocks_per_s = len(recent) / took_s
    voxels = sum(one.voxels for one in recent)
    waited_s = now_s - recent[-1].at_s
    return {
        "blocks_per_s": blocks_per_s,
        "voxels_per_s": voxels / took_s if voxels else None,
        "left_s": None if since_s is None else max(0.0, left / blocks_per_s - waited_s),
    }


def _at_work(main: Journal) -> Journal:
    """Return the journal of an output, or that of what its run does first.

    Inputs are converted before the output's own record is written, and an exact prediction has
    passes before the one that writes; both have journals inside of the output's.
    """
    first: list[Location] = list(main.directory.glob("*.zarr.volflow"))
    first += [one.directory for one in computed_first(main)]
    plans = [at / "plan.json" for at in first if (at / "plan.json").is_file()]
    if not plans or any(main.done_folder().glob("*.json")):
        return main
    return Journal(max(plans, key=lambda plan: plan.stat().st_mtime).parent)


def _levels(main: Journal) -> dict[str, list[int]]:
    """Return the blocks done and all blocks of each coarser level that is not finished."""
    found: dict[str, list[int]] = {}
    for name, journal in level_journals(main).items():
        record = journal.recorded()
        total = math.prod(record.settings.get("grid", ())) if record else 0
        done = sum(1 for _ in journal.done_folder().glob("*.json"))
        if done < total:
            found[name] = [done, total]
    return found


def _by_worker(finished: Sequence[Finished]) -> dict[str, WorkerTime]:
    workers: dict[str, WorkerTime] = {}
    for one in finished:
        workers.setdefault(one.worker, WorkerTime()).add(1, one.stages)
    return workers


def _state(
    done: bool,
    holder: Holder | None,
    finished: Sequence[Finished],
    now_s: float,
    detached: Mapping[str, Any] | None,
) -> str:
    if holder is None or holder.alive is False:
        if done or detached is None or detached["ended"]:
            return "done" if done else "stopped"
        last_s = finished[-1].at_s if finished else 0.0
        return awaited(detached, last_s, begun=holder is not None, now_s=now_s)
    if holder.alive:
        return "running"
    times = [holder.since_s, *(one.at_s for one in finished[-SILENT_BLOCKS:])]
    usual_s = (times[-1] - times[0]) / max(1, len(times) - 1)
    silent = now_s - max(times) > max(SILENT_S, SILENT_BLOCKS * usual_s)
    return "done" if done else "silent" if silent else "running"


def awaited(detached: Mapping[str, Any], last_s: float, *, begun: bool, now_s: float) -> str:
    """Return the state of a run that a cluster was given, and on which no process is seen at work.

    Its driver waits for a worker, tries the model, or is begun again as its worker died.

    Parameters
    ----------
    detached
        Facts of its note, as of `detachment_facts`; it has not ended.
    last_s, now_s
        When anything was recorded last, and the time, in seconds since 1970.
    begun
        Whether a process has begun it, and died.
    """
    most_s = BEGUN_AGAIN_S if begun else SILENT_S
    return "silent" if now_s - max(detached["since_s"], last_s) > most_s else "running"
