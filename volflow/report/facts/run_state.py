"""The state of a run, as ``volflow status`` and ``volflow verify`` report it."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput, VolflowError
from volflow.store.formats.exported import stored_behind
from volflow.store.journal.complete import count_blocks
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.opening import is_url
from volflow.store.verify import Coverage

__all__ = ["coverage_facts", "run_facts", "run_line", "run_text", "unfinished"]


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
        Plain values, for JSON.

    Raises
    ------
    InvalidInput
        If the output has no journal, or a damaged one.
    """
    out = stored_behind(out) or out
    journal = Journal(journal_dir(out))
    record = journal.recorded()
    if record is None:
        raise InvalidInput(
            f"{os.fspath(out)} has no journal ({journal.directory}); status needs an output that"
            " volflow writes or wrote"
        )
    blocks = journal.stages()
    stages: Counter[str] = Counter()
    for seconds in blocks.values():
        stages.update(seconds)
    last_s = (journal.directory / "done").stat().st_mtime if blocks else None
    return {
        "path": os.fspath(out),
        "operation": record.operation,
        "done": len(blocks),
        "total": math.prod(record.settings.get("grid", ())),
        "grid": record.settings.get("grid"),
        "stages_s": {name: round(seconds, 3) for name, seconds in stages.most_common()},
        "last_block_s": None if last_s is None else round(time.time() - last_s, 1),
        "fingerprint": dict(record.fingerprint),
        "settings": dict(record.settings),
    }


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
    """Return the state of a run and the share of each stage in its time."""
    lines = [f"{facts['path']}: {run_line(facts)}"]
    total = sum(facts["stages_s"].values())
    if total and len(facts["stages_s"]) > 1:
        shares = (f"{name} {seconds / total:.0%}" for name, seconds in facts["stages_s"].items())
        lines.append(f"  time  {', '.join(shares)}")
    if facts["done"] < facts["total"]:
        lines.append("  next  run the same command again to do the rest, if none is at work")
    return "\n".join(lines)


def coverage_facts(coverage: Coverage) -> dict[str, Any]:
    """Return the result of a verification as plain values for JSON."""
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
    }


def _ago(seconds: float) -> str:
    for size, sign in ((86400, "d"), (3600, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / (60 if sign == 'min' else size):.0f} {sign}"
    return f"{seconds:.0f} s"
