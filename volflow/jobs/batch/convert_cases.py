"""Convert the arrays of many cases, each once, into a folder that streams and batches read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from volflow.errors import (
    InvalidInput,
    MemoryRefused,
    ResumeRefused,
    RunFailed,
    StoreFull,
    TimeUp,
    VolflowError,
    first_line,
)
from volflow.jobs.batch.convert_cases_options import ConvertCasesOptions
from volflow.jobs.batch.in_turn import SMALL_VOXELS, small_first
from volflow.jobs.batch.result_table import CaseRow, CaseTable
from volflow.option import from_keywords, journey
from volflow.sampling.cases.drafts import drafts_of
from volflow.sampling.cases.names import check_names, listed, names_classes
from volflow.sampling.cases.values import Values
from volflow.store.journal.complete import is_complete
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.opening import is_zarr
from volflow.store.unfinished.root import is_unfinished

if TYPE_CHECKING:
    from distributed import Client

    from volflow.engine.cluster import Cluster
    from volflow.engine.progress import Progress
    from volflow.sampling.cases.open_cases import CasesLike

__all__ = ["Conversion", "convert_cases"]


@journey
def convert_cases(  # noqa: PLR0913 - a public journey takes flat options
    cases: CasesLike,
    out: str | os.PathLike[str],
    *,
    chunk: int | Sequence[int] | None = None,
    shard: int | Sequence[int] | None = None,
    at_once: int | None = None,
    skip_bad: bool = False,
    cluster: Cluster = None,
    workers: str | Sequence[str] | None = None,
    resources: str | Mapping[str, float] | None = None,
    wait: float | str | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> dict[str, dict[str, Any]]:
    """Convert each array of each case once, to ``out/{case}/{name}.zarr``, and return the cases.

    Only what is new or changed is converted; killed at any moment, the same call goes on. A case
    that fails stops no other.

    Parameters
    ----------
    cases
        As `open_cases` takes them; `find_cases` says what a folder holds. Arrays whose names begin
        with label, mask or seg are stored as label maps.
    out
        The folder, which is made if need be. `find_cases` finds the cases in it again.
    chunk, shard
        As in `convert`.
    at_once
        How many small cases (up to 2²⁴ voxels) at a time; by default four in this process, or as
        many as it has cores, and one for each worker of a cluster.
    skip_bad
        Return the others where cases fail, instead of raising an error when all have been tried.
    cluster, workers, resources, wait, memory, progress
        As in `predict`.
    overwrite
        Convert all anew.

    Returns
    -------
    dict
        By the names of the cases: the paths of their volumes by name, as `find_cases` returns them,
        and the values that they were given with.

    Raises
    ------
    InvalidInput
        If there are no cases, or none could be converted.
    RunFailed
        If cases failed, naming them, after all others are done; if no space is left.

    Examples
    --------
    >>> import numpy as np
    >>> scan = np.zeros((8, 9, 10), "int16")
    >>> found = convert_cases({"p1": {"image": scan, "label": scan}}, "cache", progress=False)
    >>> [Path(path).name for path in found["p1"].values()]
    ['image.zarr', 'label.zarr']
    """
    asked = Conversion.of(cases, out, from_keywords(ConvertCasesOptions, locals()))
    table = asked.run()
    if not table.ok and not skip_bad:
        raise RunFailed(asked.told(table))
    good = {row.case: {**row.volumes, **asked.values[row.case]} for row in table if row.ok}
    if not good:
        raise InvalidInput(asked.told(table))
    return good


@dataclass(frozen=True)
class Conversion:
    """Cases by name, each with its arrays by name, and the folder that they are converted into."""

    cases: Mapping[str, Mapping[str, Any]]
    folder: Path
    options: ConvertCasesOptions
    values: Mapping[str, Values] = field(default_factory=dict)
    at_work: set[Path] = field(default_factory=set, repr=False)
    stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @classmethod
    def of(cls, cases: Any, out: Any, options: ConvertCasesOptions) -> Conversion:
        """Return a conversion, checked; nothing is opened.

        Raises
        ------
        InvalidInput
            If there are no cases, names cannot be those of files, or the folder is a volume.
        """
        if "://" in os.fspath(out):
            raise InvalidInput(f"cases are converted into a folder of a local disk; got {out}")
        folder = Path(out).expanduser().absolute()
        if is_zarr(folder) or folder.is_file():
            raise InvalidInput(f"{folder} is no folder of cases; name another, or a new one")
        if options.at_once is not None and options.at_once < 1:
            raise InvalidInput(f"at_once must be 1 or more; got {options.at_once}")
        drafts = drafts_of(cases)
        named = {one.name or f"case{n}": one.arrays for n, one in enumerate(drafts)}
        if len(named) < len(drafts) or not named:
            raise InvalidInput("cases need names, and these must differ; give a mapping by name")
        check_names(named)
        check_names({name for arrays in named.values() for name in arrays})
        values = {name: one.values for name, one in zip(named, drafts, strict=True)}
        return cls(named, folder, options, values)

    def place(self, case: str, name: str) -> Path:
        """Return where an array goes."""
        return self.folder / case / f"{name}.zarr"

    def told(self, table: CaseTable) -> str:
        """Return which cases failed, and why the first did, in a line."""
        first, names = table.bad[0], [row.case for row in table.bad]
        return (
            f"{len(names)} of {len(table)} cases could not be converted: {listed(names)}"
            f" ({first.case}: {first.reason}); mend them and call it again, which does only these,"
            " or go on with the others by skip_bad=True (--skip-bad)"
        )

    def planned(self) -> CaseTable:
        """Return what would be done with each case."""
        return CaseTable(tuple(self._looked_at(case) for case in self.cases))

    def run(self) -> CaseTable:
        """Convert what is new or changed: small cases several at a time, then large ones alone."""
        began = time.monotonic()
        rows = {row.case: row for row in self.planned()}
        todo = [case for case, row in rows.items() if row.ok and row.status != "kept"]
        if todo:
            rows |= {row.case: row for row in self._converted(todo)}
        return CaseTable(tuple(rows.values()), round(time.monotonic() - began, 3))

    def _converted(self, todo: Sequence[str]) -> list[CaseRow]:
        from volflow.engine.cluster import connect, is_embedded, memory_per_worker
        from volflow.engine.progress import announce
        from volflow.engine.workers import expected_workers

        options, rows = self.options, []
        quiet = False if callable(options.progress) else options.progress
        self.folder.mkdir(parents=True, exist_ok=True)
        with connect(options.cluster, **options.connection) as client:
            seats = min(4, os.cpu_count() or 1) if is_embedded(client) else expected_workers(client)
            jobs = small_first(
                todo, self._is_small, partial(self._convert, client), options.at_once or seats,
                client, memory_per_worker(client, options.memory), self.stop, self._halt,
            )  # fmt: skip
            with closing(jobs) as ended:
                for row in ended:
                    rows.append(row)
                    reason = f": {row.reason}" if row.reason else ""
                    line = f"{row.case} {row.status}{reason} ({len(rows)} of {len(todo)})"
                    announce(f"convert: {line}", quiet)
        return rows

    def _is_small(self, case: str) -> bool:
        """Return True also of a case that cannot be opened, which its turn will tell."""
        from volflow.volumes.arrays.inputs import open_input

        with suppress(OSError, VolflowError):
            shapes = [open_input(one).shape for one in self.cases[case].values()]
            return max(map(prod, shapes)) <= SMALL_VOXELS
        return True

    def _looked_at(self, case: str) -> CaseRow:
        """Return the row of a case as it is now."""
        try:
            states = [self._state(case, name) for name in self.cases[case]]
        except (OSError, VolflowError) as error:
            return self._row(case, "failed", first_line(error))
        order = ("changed", "unfinished", "new", "kept")
        return self._row(case, next(one for one in order if one in states))

    def _state(self, case: str, name: str) -> str:
        """Return ``"kept"`` for an array whose conversion is whole, or why it is converted."""
        from volflow.volumes.arrays.inputs import open_input

        source, place = open_input(self.cases[case][name]), self.place(case, name)
        before = Journal(journal_dir(place)).recorded()
        if before is None:
            return "new"
        if before.fingerprint.get("input") != source.identity():
            return "changed"
        if not is_complete(place) or not is_zarr(place) or is_unfinished(place):
            return "unfinished"
        options = self.options
        asked = options.overwrite or options.chunk is not None or options.shard is not None
        return "unfinished" if asked else "kept"

    def _convert(self, client: Client, case: str, memory_bytes: int, last: bool) -> CaseRow | None:
        """Convert the arrays of a case, and say what became of it; see `small_first`."""
        from volflow.engine.wanted import check_wanted
        from volflow.volumes.convert import convert

        options, began = self.options, time.monotonic()
        status, reason = "done", ""
        try:
            for name, array in self.cases[case].items():
                check_wanted()
                place, state = self.place(case, name), self._state(case, name)
                if state == "kept":
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                self.at_work.add(place)
                convert(
                    array, place, chunk=options.chunk, shard=options.shard, cluster=client,
                    labels=True if names_classes(name) else None,
                    memory=memory_bytes, progress=False,
                    overwrite=options.overwrite or state == "changed",
                )  # fmt: skip
        except (StoreFull, TimeUp):
            raise
        except MemoryRefused as error:
            if not last:
                return None
            status, reason = "failed", first_line(error)
        except ResumeRefused as error:
            status, reason = "refused", first_line(error)
        except Exception as error:  # whatever it is, other cases are converted
            check_wanted()
            if self.stop.is_set() or client.status != "running":
                raise
            status, reason = "failed", first_line(error)
        finally:
            self.at_work.difference_update(self.place(case, name) for name in self.cases[case])
        return self._row(case, status, reason, round(time.monotonic() - began, 3))

    def _row(self, case: str, status: str, reason: str = "", seconds: float = 0.0) -> CaseRow:
        volumes = {name: str(self.place(case, name)) for name in self.cases[case]}
        return CaseRow(case, status, reason, seconds, 0.0, str(self.folder / case), volumes)

    def _halt(self) -> None:
        """Have the tasks at work stop at their next look."""
        for place in tuple(self.at_work):
            with suppress(OSError, VolflowError):
                Journal(journal_dir(place)).end()
