"""The state of a run, as ``volflow status`` and ``volflow verify`` report it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from volflow.engine.observing.bottleneck import WorkerTime, shares, worker_lines
from volflow.errors import VolflowError
from volflow.geometry.units import clock, si
from volflow.store.coverage import Coverage, Recomputed
from volflow.store.journal.complete import count_blocks
from volflow.store.journal.failures import Failure
from volflow.store.opening import is_url

__all__ = ["coverage_facts", "detached_lines", "run_line", "run_text", "unfinished"]

MOST_FAILED = 20  # blocks that the text lists


def run_line(facts: Mapping[str, Any]) -> str:
    """Return the state of a run in a few words.

    Examples
    --------
    >>> run_line({"operation": "predict", "done": 3, "total": 8, "last_block_s": 61.2})
    'predict: 3 of 8 blocks done (38%), the last 61 s ago'
    """
    if not facts["total"]:
        return f"{facts['operation']}: no block is planned yet"
    share = facts["done"] / facts["total"]
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
    if facts.get("detached"):
        lines += detached_lines(facts["detached"], facts["state"])
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


def detached_lines(detached: Mapping[str, Any], state: str) -> list[str]:
    """Return where the driver of a run is, or how it ended where that left blocks to do."""
    if detached["ended"]:
        text = next(iter(detached["text"].splitlines()), "")
        return [f"  ended  {text}"] if state == "stopped" and text else []
    if state == "done":
        return []
    line = f"  detached  driven by the cluster at {detached['scheduler']}"
    line += f", since {_moment(detached['since_s'])}"
    if state == "silent":
        line += "; it records nothing: the same command finds it, or does the rest"
    return [line]


def _moment(since_s: float) -> str:
    return datetime.fromtimestamp(since_s).astimezone().strftime("%Y-%m-%d %H:%M")


def _holder_text(facts: Mapping[str, Any]) -> str:
    holder = facts["holder"]
    who = f"process {holder['pid']} on {holder['host']}, since {_moment(holder['since_s'])}"
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
