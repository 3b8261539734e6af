"""The journal of an output: a small file per finished block, a fingerprint and a lock.

::

    out.zarr.volflow/
        lock              held by flock while a driver runs; names its process
        plan.json         operation, fingerprint and settings of the first run
        session-3f2a…/    of the running driver, through which its tasks write; see `Fence`
        done/00000012.json    the checksums of what block 12 wrote
        failed/00000007.json  why block 7 was given up; the next run tries it again
        provenance.json, machines/    where inputs and model were, and what computed blocks

On an object store ``lease/`` and ``session`` stand for the lock and the session, and
``done-1a2b…/``, which names the run, for ``done/``: a record of a run that was replaced may arrive
late there, and counts for nothing.

A block is done if its file exists, which is written after its voxels, so a process may die at any
moment. After a power cut the disk may lack voxels that were written; ``verify`` finds them.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from volflow.errors import Damaged, InvalidInput, ResumeRefused, RunFailed
from volflow.store.aside import sweep_torn
from volflow.store.atomic import encoded, plain, read_each, read_json, write_json
from volflow.store.journal.failures import Failures
from volflow.store.journal.lease import check_lease, leased
from volflow.store.journal.lock import locked
from volflow.store.journal.records import (
    FORMAT,
    Record,
    as_entries,
    as_record,
    change_between,
    process_name,
    run_named,
)
from volflow.store.journal.refusals import (
    output_of,
    reason,
    unanswered,
    unread,
    unreadable,
    writing,
)
from volflow.store.journal.session import end_session, new_token, run_of, session_at
from volflow.store.layout import ShardEntry
from volflow.store.remote.address import Address, Location, location
from volflow.store.unfinished.fence import Fence

__all__ = ["Journal", "Record", "journal_dir", "journal_of"]

T = TypeVar("T")


def journal_dir(out: str | os.PathLike[str]) -> Path:
    """Return the folder of the journal and the sidecars of an output on a disk.

    Symbolic links are resolved, so that an output has one journal under all its names.

    Raises
    ------
    InvalidInput
        If it is a URL: what asks for a folder cannot be written to a store.

    Examples
    --------
    >>> journal_dir("/data/out.zarr/").name
    'out.zarr.volflow'
    """
    text = os.fspath(out)
    if "://" in text:
        raise InvalidInput(
            f"this needs a local file system, as its journal has a folder beside the output; got"
            f" {text}; write to a folder and copy that to the store"
        )
    return Path(os.path.realpath(text) + ".volflow")


def journal_of(out: str | os.PathLike[str]) -> Journal:
    """Return the journal beside an output, on a disk or on an object store.

    Raises
    ------
    InvalidInput
        If it is a URL at which nothing can be written.

    Examples
    --------
    >>> print(journal_of("s3://bucket/out.zarr").directory)
    s3://bucket/out.zarr.volflow
    """
    at = location(out)
    if isinstance(at, Address):
        return Journal(Address(f"{at}.volflow"))
    return Journal(journal_dir(at))


@dataclass(frozen=True)
class Journal:
    """The journal of one output; the constructor touches no file.

    Parameters
    ----------
    directory
        See `journal_of`.
    """

    directory: Location

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk, where looking costs no request."""
        return isinstance(self.directory, Path)

    @property
    def folder(self) -> Path:
        """The directory, for what must lie on a disk; refused where it is on a store."""
        return self.directory if isinstance(self.directory, Path) else journal_dir(self.output)

    @property
    def _plan(self) -> Location:
        return self.directory / "plan.json"

    def fence(self, session: str) -> Fence:
        """Return what a task writes through on a disk, given the token of its driver."""
        return Fence.of(self.folder, session)

    def done_folder(self, session: str | None = None) -> Location:
        """Return the folder of the records of finished blocks; raises as `recorded`."""
        if session is not None:
            return self._done_of(run_of(session))
        return self._done_of("" if self.is_local else self.run() or "")

    def _done_of(self, run: str) -> Location:
        return self.directory / (f"done-{run}" if run and not self.is_local else "done")

    @property
    def failures(self) -> Failures:
        """The blocks that a run gave up, with the reasons."""
        return Failures(self.directory / "failed", self.done_folder())

    @property
    def output(self) -> Location:
        """The output that lies beside the journal."""
        return location(output_of(self.directory))

    @property
    def passes(self) -> Path:
        """Folder of what is computed before an output: passes with their activations, scores."""
        return self.folder / "passes"

    def recorded(self) -> Record | None:
        """Return the record of the first run; None if there was none.

        Raises
        ------
        Damaged
            If the record is damaged or of an unknown format.
        """
        return self._read_plan(as_record)

    def run(self) -> str | None:
        """Return the name of the run that is recorded; None if there is none; as `recorded`."""
        return self._read_plan(run_named)

    def _read_plan(self, read: Callable[[Any], T]) -> T | None:
        try:
            return read(read_json(self._plan))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if isinstance(self._plan, Address) and not isinstance(error, PermissionError):
                raise RunFailed(unanswered(self._plan, reason(error))) from error
            raise InvalidInput(unreadable(self._plan, reason(error))) from error
        except ValueError as error:
            raise Damaged(unreadable(self._plan, reason(error))) from error

    def make_place(self) -> None:
        """Make the journal's directory beside the output; raises InvalidInput if impossible."""
        with writing(self.directory, begun=False):
            self.directory.mkdir(exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock on the output, which ends with the process; on a store it lapses.

        Raises
        ------
        Locked
            If another driver holds it.
        InvalidInput
            If the directory cannot be made or written.
        """
        self.make_place()
        at = self.directory
        with locked(at) if isinstance(at, Path) else leased(at):
            yield

    def compare(self, record: Record) -> Record:
        """Return a record as it is stored; refuse one that differs from the first run's.

        Raises
        ------
        ResumeRefused
            If it differs, naming the differences.
        InvalidInput
            If the journal is damaged.
        """
        given = Record(record.operation, plain(record.fingerprint), plain(record.settings))
        before = self.recorded()
        if before is not None and (change := change_between(before, given)):
            raise ResumeRefused(
                f"{output_of(self.directory)} was started {change}, or begin again (overwrite=True,"
                " --overwrite), or choose another output"
            )
        return given

    def begin(self, record: Record) -> str:
        """Open a session and return its token; the first run is recorded, later ones compared.

        To be called under the lock.

        Raises
        ------
        ResumeRefused
            If the record differs from the first run's, naming the differences.
        InvalidInput
            If the journal is damaged or cannot be written.
        """
        given, at = self.compare(record), self.directory
        check_lease(at)
        with writing(at, begun=False):
            at.mkdir(exist_ok=True)
            end_session(at)
            before = self.run()
            run = uuid.uuid4().hex if before is None else before
            self._sweep(before)
            self._done_of(run).mkdir(exist_ok=True)
            if before is None:
                write_json(self._plan, {"format": FORMAT, "run": run, **asdict(given)})
            token = new_token(run)
            session_at(at, token).begin()
        return token

    def check(self, session: str) -> None:
        """Stop a task whose driver has ended or was replaced.

        Raises
        ------
        Superseded
            If the session is no longer the current one.
        """
        try:
            session_at(self.directory, session).check()
        except OSError as error:
            raise unread(self.directory, error) from error

    def end(self, session: str | None = None) -> None:
        """Close the session, if it is still this one: nothing its tasks write reaches its place.

        On a store what they are just writing does.
        """
        with writing(self.directory):
            end_session(self.directory, session)

    def mark(
        self,
        block: int,
        entries: Sequence[ShardEntry],
        stages: Mapping[str, float],
        *,
        session: str | None = None,
    ) -> None:
        """Record a block as done, after its voxels are stored.

        Parameters
        ----------
        block
            Number of the block.
        entries
            The shards that it wrote.
        stages
            Seconds it took, by stage.
        session
            If given, it must still be the current one: a task that outlived its driver must not
            record a block of the next run. A block's first record stays.

        Raises
        ------
        RunFailed
            If the record cannot be written; the block is then not done.
        Superseded
            As `check`.
        """
        if session is not None:
            self.check(session)
        found = [asdict(entry) for entry in entries]
        value = {"block": block, "entries": found, "stages": dict(stages), "worker": process_name()}
        entry = _entry(self.done_folder(session), block)
        with writing(entry):
            if session is None:
                write_json(entry, value)
            elif isinstance(entry, Address):
                if not entry.create(encoded(value)) and not self.done(
                    [block], session=session
                ):  # it is damaged
                    write_json(entry, value)
            elif not self.done([block]):  # else one that took it over was first
                self.fence(session).put(entry, encoded(value))

    def done(
        self, blocks: Iterable[int] | None = None, *, session: str | None = None
    ) -> dict[int, tuple[ShardEntry, ...]]:
        """Return the entries of the finished blocks by number, ascending, without damaged records.

        Parameters
        ----------
        blocks
            Read only the records of these blocks; all by default.
        session
            Of the task that asks, which knows its run by it and need not read the plan.
        """
        return {block: entries for block, entries, _ in self._records(blocks, session)}

    def stages(self) -> dict[int, dict[str, float]]:
        """Return the seconds of each finished block, by stage."""
        return {block: stages for block, _, stages in self._records()}

    def forget(self, blocks: Iterable[int]) -> None:
        """Delete the records of blocks, so that the next run repeats them."""
        check_lease(self.directory)
        with writing(self.directory):
            folder = self.done_folder()
            for block in blocks:
                _entry(folder, block).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete the records of the run and of all blocks; sidecars and the lock stay."""
        check_lease(self.directory)
        with writing(self.directory):
            end_session(self.directory)
            # The run's record is deleted last, so that finished blocks never meet another record.
            self._sweep(None)
            self._plan.unlink(missing_ok=True)

    def _sweep(self, run: str | None) -> None:
        """Delete leftovers of killed writers, and all records of blocks where no run goes on."""
        failures = Failures(self.directory / "failed", self._done_of(run or ""))
        failures.sweep(everything=run is None)
        for folder in (self.directory, self.directory / "done"):
            for path in folder.glob(".*.tmp") if isinstance(folder, Path) else ():
                path.unlink(missing_ok=True)
        if run is None:
            for done in self.directory.glob("done*"):
                if isinstance(done, Address):
                    done.delete_below()
                else:
                    for record in done.glob("*.json"):
                        record.unlink(missing_ok=True)
        else:  # an earlier run began, and may have been killed
            sweep_torn(self.output)

    def _records(
        self, blocks: Iterable[int] | None = None, session: str | None = None
    ) -> Iterator[tuple[int, tuple[ShardEntry, ...], dict[str, float]]]:
        paths: list[Location]
        folder = self.done_folder(session)
        if blocks is None:
            try:
                paths = sorted(folder.glob("[0-9]*.json"), key=str)
            except OSError as error:
                raise unread(self.directory, error) from error
        else:
            paths = [_entry(folder, block) for block in sorted(set(blocks))]
        for path, read in read_each(paths):
            try:
                block, (entries, stages) = int(path.stem), as_entries(read())
            except FileNotFoundError:
                continue  # not done, or deleted meanwhile
            except OSError as error:
                raise unread(path, error) from error
            except ValueError:
                continue  # torn by a power cut: the block is repeated
            yield block, entries, stages


def _entry(folder: Location, block: int) -> Location:
    return folder / f"{block:08d}.json"
