"""What a journal says of how a run went: when and where each block was done, and who is at work.

Nothing is changed, and nothing is read but what lies beside the output, so any machine that sees
the output can look, while the run goes on elsewhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volflow.store.atomic import read_each
from volflow.store.journal.journal import Journal
from volflow.store.journal.lease import leaseholder_of
from volflow.store.journal.lock import Holder, holder_of
from volflow.store.journal.records import as_entries
from volflow.store.layout import ShardEntry
from volflow.store.remote.address import Address, Location

__all__ = ["Finished", "find_holder", "finished_blocks"]

# Records read of a long run, the newest: enough for its pace, and quick on a slow file system.
MOST_READ = 2000


@dataclass(frozen=True)
class Finished:
    """A finished block.

    Parameters
    ----------
    block
        Its number.
    at_s
        When it was recorded, in seconds since 1970, by the clock of the file system or store.
    voxels
        Voxels that it wrote of one output, counting no channels; 0 if it wrote none.
    worker
        Host and number of the process that did it; "" in journals that do not say.
    stages
        Seconds by stage.
    """

    block: int
    at_s: float
    voxels: int
    worker: str
    stages: Mapping[str, float]

    @property
    def took_s(self) -> float:
        """Seconds of all stages."""
        return sum(self.stages.values())


def finished_blocks(journal: Journal, most: int = MOST_READ) -> tuple[int, list[Finished]]:
    """Return the number of finished blocks, and the last of them, oldest first."""
    listed = sorted(_listed(journal.done_folder()), key=lambda item: (item[1], str(item[0])))
    last = dict(listed[-most:])
    read = [_read(path, last[path], load) for path, load in read_each(last)]
    found = [one for one in read if one is not None]
    return len(listed) - (len(read) - len(found)), found


def _listed(folder: Location) -> Iterator[tuple[Location, float]]:
    """Yield the path of each block's record, and when it was written."""
    if isinstance(folder, Address):
        yield from ((at, seen.st_mtime) for at, seen in folder.below() if at.stem.isdecimal())
        return
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name[:1].isdigit() and entry.name.endswith(".json"):
                    yield Path(entry.path), entry.stat().st_mtime
    except (FileNotFoundError, NotADirectoryError):  # none is done yet, or deleted meanwhile
        return


def _read(path: Location, at_s: float, load: Callable[[], Any]) -> Finished | None:
    """Return a block's record; None if it is damaged, so that the block will be done again."""
    try:
        saved = load()
        entries, stages = as_entries(saved)
        return Finished(int(path.stem), at_s, _voxels(entries), _worker(saved), stages)
    except (OSError, ValueError):
        return None


def _worker(saved: Any) -> str:
    worker = saved.get("worker", "")
    return worker if isinstance(worker, str) else ""


def _voxels(entries: tuple[ShardEntry, ...]) -> int:
    """Return the voxels of a block: of its first array, and there of the first channels."""
    first = next(iter(entries), None)
    if first is None:
        return 0
    like = (first.array, first.start[:-3])
    return sum(
        math.prod(b - a for a, b in zip(one.start[-3:], one.stop[-3:], strict=False))
        for one in entries
        if (one.array, one.start[:-3]) == like
    )


def find_holder(journal: Journal) -> Holder | None:
    """Return the driver that the lock of an output names; None if it was released."""
    at = journal.directory
    return holder_of(at) if isinstance(at, Path) else leaseholder_of(at)
