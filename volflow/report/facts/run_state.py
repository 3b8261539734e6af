"""The state of a run, as ``volflow status`` and ``volflow verify`` report it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from volflow.engine.observing.bottleneck import WorkerTime, explain_bottleneck, shares, worker_lines
from volflow.errors import InvalidInput, VolflowError
from volflow.geometry.units import clock, si
from volflow.store.coverage import Coverage, Recomputed
from volflow.store.formats.exported import stored_behind
from volflow.store.journal.complete import count_blocks
from volflow.store.journal.failures import Failure
from volflow.store.journal.history import Finished, find_holder, finished_blocks
from volflow.store.journal.journal import Journal, journal_of
from volflow.store.journal.levels import level_journals
from volflow.store.journal.lock import Holder
from volflow.store.opening import is_url
from volflow.store.remote.address import Address, Location, check_answers
from volflow.store.unfinished.root import is_unfinished

__all__ = ["coverage_facts", "pace", "run_facts", "run_line", "run_text", "unfinished"]

# Blocks whose times give the pace: enough to even out, few enough to follow a change.
RECENT = 64
# A run on another machine that recorded nothing for so long, and so many times the usual time
# between blocks, may have ended.
SILENT_S, SILENT_BLOCKS = 600.0, 10
MOST_FAILED = 20  # blocks that the text lists


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
        ``"silent"``: another machine's process holds the lock and records nothing.

    Raises
    ------
    InvalidInput
        If the output has no journal, or a damaged one.
    """
    out = stored_behind(out) or out
    main = journal_of(out)
    check_answers(main.output)
    journal = _at_work(main)
    record = journal.recorded()
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
    done = count >= total and journal == main and not levels and not is_unfinished(main.output)
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
        "state": _state(done, holder, finished, now_s),
        "done": count,
        "total": total,
        "grid": record.settings.get("grid"),
        "levels": levels,
        **paced,
        "holder": None if holder is None else asdict(holder),
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
    first += [] if isinstance(main.directory, Address) else main.passes.glob("[0-9]*")
    plans = [at / "plan.json" for at in first if (at / "plan.json").is_file()]
    if not plans or any((main.directory / "done").glob("*.json")):
        return main
    return Journal(max(plans, key=lambda plan: plan.stat().st_mtime).parent)


def _levels(main: Journal) -> dict[str, list[int]]:
    """Return the blocks done and all blocks of each coarser level that is not finished."""
    found: dict[str, list[int]] = {}
    for name, journal in level_journals(main).items():
        record = journal.recorded()
        total = math.prod(record.settings.get("grid", ())) if record else 0
        done = sum(1 for _ in (journal.directory / "done").glob("*.json"))
        if done < total:
            found[name] = [done, total]
    return found


def _by_worker(finished: Sequence[Finished]) -> dict[str, WorkerTime]:
    workers: dict[str, WorkerTime] = {}
    for one in finished:
        workers.setdefault(one.worker, WorkerTime()).add(1, one.stages)
    return workers


def _state(done: bool, holder: Holder | None, finished: Sequence[Finished], now_s: float) -> str:
    if holder is None or holder.alive is False:
        return "done" if done else "stopped"
    if holder.alive:
        return "running"
    times = [holder.since_s, *(one.at_s for one in finished[-SILENT_BLOCKS:])]
    usual_s = (times[-1] - times[0]) / max(1, len(times) - 1)
    silent = now_s - max(times) > max(SILENT_S, SILENT_BLOCKS * usual_s)
    return "done" if done else "silent" if silent else "running"


def run_line(facts: Mapping[str, Any]) -> str:
    """Return the state of a run in a few words.

    Examples
    --------
    >>> run_line({"operation": "predict", "done": 3, "total": 8, "last_block_s": 61.2})
    'predict: 3 of 8 blocks done (38%), the last 61 s ago'
    """
    share = facts["done"] / facts["total"] if facts["total"] else 1.0
    line = f"{facts['operation']}: {facts['done']} of {facts['total']} blocks done ({share:.0%})"
    if facts["done"] < facts["total"] and facts["last_block_s"] is not None:
        line += f", the last {_ago(facts['last_block_s'])} ago"
    return line


def unfinished(out: str | os.PathLike[str]) -> str:
    """Return how many blocks of a run are done; "" if there is no run, or it is finished."""
    try:
        done, total = (0, 0) if is_url(os.fspath(out)) else count_blocks(Path(out))
    except (VolflowError, OSError):  # damaged or not readable, which others report
        return ""
    return f"unfinished: {done} of {total} blocks done" if done < total else ""


def run_text(facts: Mapping[str, Any]) -> str:
    """Return the state of a run for people: how far, how fast, who is at work, what limits it."""
    lines = [f"{facts['path']}: {run_line(facts)}"]
    if facts["state"] == "running" and facts["blocks_per_s"]:
        lines.append(f"  pace  {_pace_text(facts)}")
    if facts["holder"]:
        lines.append(f"  lock  {_holder_text(facts)}")
    for name, (done, blocks) in facts["levels"].items():
        lines.append(f"  level {name}: {done} of {blocks} blocks done")
    total = sum(facts["stages_s"].values())
    if total and len(facts["stages_s"]) > 1:
        lines.append(f"  time  {shares(facts['stages_s'])}")
    if facts["bottleneck"] and facts["state"] != "done":
        lines.append(f"        {facts['bottleneck']}")
    if len(facts["workers"]) > 1:
        workers = {n: WorkerTime(w["blocks"], w["stages_s"]) for n, w in facts["workers"].items()}
        lines += [f"        {line}" for line in worker_lines(workers)]
    failed = [str(Failure(**one)) for one in facts["failures"]]
    more = len(failed) - MOST_FAILED
    failed[MOST_FAILED:] = [f"and {more} more, which --json lists"] if more > 0 else []
    lines += [f"  failed  {line}" for line in failed]
    if facts["state"] == "stopped":
        lines.append("  next  nobody is at work on it; run the same command again to do the rest")
    return "\n".join(lines)


def _pace_text(facts: Mapping[str, Any]) -> str:
    parts = [f"{facts['blocks_per_s']:.3g} blocks/s"]
    if facts["voxels_per_s"]:
        parts.append(f"{si(facts['voxels_per_s'])}voxels/s")
    if facts["left_s"] is not None:
        parts.append(f"about {clock(facts['left_s'])} left")
    return " · ".join(parts)


def _holder_text(facts: Mapping[str, Any]) -> str:
    holder = facts["holder"]
    since = datetime.fromtimestamp(holder["since_s"]).astimezone().strftime("%Y-%m-%d %H:%M")
    who = f"process {holder['pid']} on {holder['host']}, since {since}"
    if holder["alive"]:
        return f"held by {who}"
    if holder["alive"] is False:
        return f"left by {who}, which has ended; the next run takes it over"
    seen = "whether it runs cannot be seen from this machine"
    silent = f"; it has recorded nothing for {_ago(facts['last_block_s'])}" * (
        facts["state"] == "silent" and facts["last_block_s"] is not None
    )
    return f"held by {who}; {seen}{silent}"


def coverage_facts(coverage: Coverage) -> dict[str, Any]:
    """Return the result of a verification as plain values for JSON."""
    anew = coverage.recomputed
    return {
        "path": coverage.path,
        "ok": coverage.ok,
        "total": coverage.total,
        "done": coverage.done,
        "missing": coverage.missing,
        "grid": list(coverage.grid),
        "bad": [{"block": block, "reason": reason} for block, reason in coverage.bad],
        "levels": [coverage_facts(level) for level in coverage.levels],
        "file": None if coverage.file is None else asdict(coverage.file),
        **({"unfinished": True} if coverage.unfinished else {}),
        **({} if anew is None else {"recomputed": _recomputed_facts(anew)}),
    }


def _recomputed_facts(found: Recomputed) -> dict[str, Any]:
    return {
        "total": found.total,
        "drawn": list(found.drawn),
        "seed": found.seed,
        "compared": found.compared,
        "wrong": [{"block": block, "reason": reason} for block, reason in found.wrong],
        "differing_voxels": found.differing_voxels,
        "most_wrong": found.most_wrong,
        "excluded_share": found.excluded_share if found.excluded_share <= 1 else None,
    }


def _ago(seconds: float) -> str:
    for size, sign in ((86400, "d"), (3600, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / (60 if sign == 'min' else size):.0f} {sign}"
    return f"{seconds:.0f} s"
