"""The state of many outputs at once: named one by one, or all that lie in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volflow.engine.observing.run_facts import run_facts
from volflow.errors import Damaged, InvalidInput, Locked, RunFailed, VolflowError
from volflow.report.facts.run_state import run_text
from volflow.store.formats.exported import stored_behind
from volflow.store.journal.detachment import read_detachment
from volflow.store.journal.journal import journal_dir
from volflow.store.opening import is_url, is_zarr

__all__ = ["Overview", "look_at", "outputs_below"]

SUFFIX = ".volflow"
# Outputs of a folder that are shown one by one: what is done needs no line of its own.
MOST_SHOWN = 40


@dataclass(frozen=True)
class Overview:
    """The states of outputs, and the paths that are none.

    Parameters
    ----------
    runs
        Facts of each output, as of `run_facts`.
    refused
        Path and error of each that is no output, or whose journal is damaged.
    """

    runs: tuple[Mapping[str, Any], ...]
    refused: tuple[tuple[str, VolflowError], ...] = ()

    @property
    def exit_code(self) -> int:
        """What running the commands again would meet: the worst of all outputs.

        2 or 3 where a path is no output or its journal is damaged; 1 where something is left to do
        and nobody is at work on it; 4 where a run is at work; 0 where all is done.
        """
        codes = {error.exit_code for _, error in self.refused}
        states = {facts["state"] for facts in self.runs}
        codes |= {RunFailed.exit_code} if states & {"stopped", "silent"} else set()
        codes |= {Locked.exit_code} if "running" in states else set()
        order = (InvalidInput.exit_code, Damaged.exit_code, RunFailed.exit_code, Locked.exit_code)
        return next((code for code in order if code in codes), 0)

    @property
    def running(self) -> bool:
        """Whether a run is at work on one of them."""
        return any(facts["state"] == "running" for facts in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "done": sum(facts["done"] for facts in self.runs),
            "total": sum(facts["total"] for facts in self.runs),
            "outputs": [dict(facts) for facts in self.runs],
            "refused": [{"path": path, "reason": str(error)} for path, error in self.refused],
        }

    def gauges(self) -> Iterator[dict[str, Any]]:
        """Yield the facts of each output as `metrics_text` shows them."""
        for facts in self.runs:
            done = facts["state"] == "done"
            yield {
                **facts,
                "path": os.path.realpath(facts["path"]),  # the name that a run itself gives it
                "running": int(facts["state"] == "running"),
                "finished": int(done),
                "finished_at_s": facts["last_block_at_s"] if done else None,
            }

    def text(self) -> str:
        """Return the states for people: what is not done in full, the rest counted."""
        if len(self.runs) == 1:
            return run_text(self.runs[0])
        left = [facts for facts in self.runs if facts["state"] != "done"]
        order = {"running": 0, "silent": 1, "stopped": 2}
        left.sort(key=lambda facts: order[facts["state"]])
        lines = [run_text(facts) for facts in left[:MOST_SHOWN]]
        if len(left) > MOST_SHOWN:
            lines.append(f"and {len(left) - MOST_SHOWN} more that are not done")
        blocks, total = (sum(facts[name] for facts in self.runs) for name in ("done", "total"))
        outputs = f"{len(self.runs) - len(left)} of {len(self.runs)} outputs done"
        return "\n".join([*lines, f"{outputs}, {blocks} of {total} blocks"])


def look_at(paths: Sequence[str | os.PathLike[str]]) -> Overview:
    """Return the state of outputs, and of all outputs in folders; only journals are read.

    Parameters
    ----------
    paths
        Outputs, or folders with outputs in them, at any depth.
    """
    runs: list[Mapping[str, Any]] = []
    refused: list[tuple[str, VolflowError]] = []
    for path in paths:
        try:
            found = [*outputs_below(path)] or [os.fspath(path)]  # which says why it is none
        except InvalidInput as error:
            refused.append((os.fspath(path), error))
            continue
        for out in found:
            try:
                runs.append(run_facts(out))
            except VolflowError as error:
                refused.append((out, error))
    return Overview(tuple(runs), tuple(refused))


def outputs_below(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yield a path that has a journal, or a URL; else the outputs in a folder, at any depth."""
    if is_url(os.fspath(path)):
        yield os.fspath(path)
        return
    directory = journal_dir(path)
    if _has_journal(directory):
        yield os.fspath(path)
        return
    for folder, folders, _ in os.walk(path):
        folders.sort()
        # Stores have very many files, and the journals of what they hold lie beside them.
        for name in [name for name in folders if name.endswith(SUFFIX)]:
            if _has_journal(Path(folder, name)):
                yield str(Path(folder, name.removesuffix(SUFFIX)))
        folders[:] = [
            name
            for name in folders
            if not name.endswith(SUFFIX)
            and f"{name}{SUFFIX}" not in folders
            and not is_zarr(Path(folder, name))
        ]


def _has_journal(directory: Path) -> bool:
    """Return True for the folder of an output that was begun, be it with its inputs."""
    note = read_detachment(directory)
    if (directory / "plan.json").is_file() or (note is not None and note.store):
        return True
    out = str(directory).removesuffix(SUFFIX)
    behind = stored_behind(out)
    if behind is not None and (journal_dir(behind) / "plan.json").is_file():
        return True
    return any((one / "plan.json").is_file() for one in directory.glob(f"*.zarr{SUFFIX}"))
