"""What is done: one small file per block beside the output, a fingerprint, a lock.

::

    out.zarr.volflow/
        lock              held by flock while a driver lives; names its process
        plan.json         operation, fingerprint and settings of the first run
        session           token of the driver at work; gone when it has ended
        done/00000012.json    the checksums of what block 12 wrote

A block is done when its file is there, which is written after its voxels: a process may die at any
moment. After a power cut the disk may hold less than was written; ``verify`` finds out.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from volflow.errors import (
    Damaged,
    InvalidInput,
    Locked,
    ResumeRefused,
    RunFailed,
    StoreFull,
    Superseded,
    writing_failed,
)
from volflow.store.atomic import parse_json, plain, read_json, write_json
from volflow.store.journal.records import (
    FORMAT,
    Record,
    as_entries,
    as_record,
    change_between,
)
from volflow.store.layout import ShardEntry

__all__ = ["Journal", "Record", "journal_dir"]


def journal_dir(out: str | os.PathLike[str]) -> Path:
    """The directory of the journal and the sidecars of an output.

    Links are followed, so that one output has one journal by whatever name it is reached.

    Raises
    ------
    InvalidInput
        For a URL: journals lie on local file systems.

    Examples
    --------
    >>> journal_dir("/data/out.zarr/").name
    'out.zarr.volflow'
    """
    text = os.fspath(out)
    if "://" in text:
        raise InvalidInput(
            f"a journal needs a local file system; got {text}, expected a path;"
            " write to a local path and copy the result"
        )
    return Path(os.path.realpath(text) + ".volflow")


@dataclass(frozen=True)
class Journal:
    """The journal of one output; making one touches no file.

    Parameters
    ----------
    directory
        See `journal_dir`.
    """

    directory: Path

    @property
    def _plan(self) -> Path:
        return self.directory / "plan.json"

    @property
    def _session(self) -> Path:
        return self.directory / "session"

    def _entry(self, block: int) -> Path:
        return self.directory / "done" / f"{block:08d}.json"

    @property
    def passes(self) -> Path:
        """Folder of the passes of an exact output, and of what they keep."""
        return self.directory / "passes"

    def recorded(self) -> Record | None:
        """What the first run recorded; None where nothing was begun.

        Raises
        ------
        Damaged
            If the record is damaged or of an unknown format.
        """
        try:
            return as_record(read_json(self._plan))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidInput(_unreadable(self._plan, _reason(error))) from error
        except ValueError as error:
            raise Damaged(_unreadable(self._plan, _reason(error))) from error

    def make_place(self) -> None:
        """Make the journal's directory beside the output; refuses where that cannot be made."""
        with _writing(self.directory, begun=False):
            self.directory.mkdir(exist_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the output for one driver; the lock dies with its process.

        Raises
        ------
        Locked
            If another driver holds it.
        InvalidInput
            If the directory cannot be made or written.
        """
        path = self.directory / "lock"
        self.make_place()
        with _writing(self.directory, begun=False):
            # Appending never truncates: the file may be the holder's.
            file = path.open("a+", encoding="utf-8")
        with file:
            _acquire(file, path)
            with _writing(path, begun=False):
                _note(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            try:
                yield
            finally:
                # A full disk must not hide how the run ended; closing releases the lock.
                with suppress(OSError):
                    _note(file, "")

    def compare(self, record: Record) -> Record:
        """Refuse a record that differs from the first run's; returns it as it is stored.

        Raises
        ------
        ResumeRefused
            If it differs, saying in what.
        InvalidInput
            If the journal is damaged.
        """
        given = Record(record.operation, plain(record.fingerprint), plain(record.settings))
        before = self.recorded()
        if before is not None and (change := change_between(before, given)):
            raise ResumeRefused(
                f"{_output(self.directory)} was begun {change}, or begin again (overwrite=True,"
                " --overwrite), or choose another output"
            )
        return given

    def begin(self, record: Record) -> str:
        """Open a session: the first run is recorded, a later one compared with it.

        To be called under the lock. Returns the token for `check`.

        Raises
        ------
        ResumeRefused
            If the record differs from the first run's, saying in what.
        InvalidInput
            If the journal is damaged or cannot be written.
        """
        given = self.compare(record)
        token = uuid.uuid4().hex
        with _writing(self.directory, begun=False):
            self.directory.mkdir(exist_ok=True)
            (self.directory / "done").mkdir(exist_ok=True)
            fresh = self.recorded() is None
            self._sweep(everything=fresh)
            if fresh:
                write_json(self._plan, {"format": FORMAT, **asdict(given)})
            write_json(self._session, token)
        return token

    def check(self, session: str) -> None:
        """Stop a task whose driver has ended or was replaced.

        Raises
        ------
        Superseded
            If the session is not the running one.
        """
        try:
            current = read_json(self._session)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            current = None
        except OSError as error:
            raise RunFailed(_unreadable(self._session, _reason(error))) from error
        if current != session:
            why = "has ended" if current is None else "was replaced by another"
            raise Superseded(f"the driver of {_output(self.directory)} {why}; this task stops")

    def end(self) -> None:
        """Close the session; tasks still under way stop at their next check."""
        with _writing(self._session):
            self._session.unlink(missing_ok=True)

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
            Its number.
        entries
            What it wrote.
        stages
            Seconds it spent, by stage.
        session
            Where given, it must still be the running one: a task that outlived its driver may
            not vouch for a block of the next run.

        Raises
        ------
        RunFailed
            If the record cannot be written; the block then is not done.
        Superseded
            As `check`.
        """
        value = {
            "block": block,
            "entries": [asdict(entry) for entry in entries],
            "stages": dict(stages),
        }
        if session is not None:
            self.check(session)
        with _writing(self._entry(block)):
            write_json(self._entry(block), value)

    def done(self, blocks: Iterable[int] | None = None) -> dict[int, tuple[ShardEntry, ...]]:
        """What is done, by block number, in their order; a damaged record is none.

        Parameters
        ----------
        blocks
            Only these, as a task asks for its own: their records alone are read.
        """
        return {block: entries for block, entries, _ in self._records(blocks)}

    def stages(self) -> dict[int, dict[str, float]]:
        """The seconds of each done block, by stage."""
        return {block: stages for block, _, stages in self._records()}

    def forget(self, blocks: Iterable[int]) -> None:
        """Make blocks undone, so that the next run repeats them."""
        with _writing(self.directory):
            for block in blocks:
                self._entry(block).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget the run and all blocks; sidecars and the lock stay."""
        with _writing(self.directory):
            self._session.unlink(missing_ok=True)
            # The record goes last: blocks that are done must never meet another record.
            self._sweep(everything=True)
            self._plan.unlink(missing_ok=True)

    def _sweep(self, *, everything: bool) -> None:
        """Delete what killed writers left behind; with ``everything`` also the blocks."""
        for folder in (self.directory, self.directory / "done"):
            for path in folder.glob(".*.tmp"):
                path.unlink(missing_ok=True)
        if everything:
            for path in (self.directory / "done").glob("*.json"):
                path.unlink(missing_ok=True)

    def _records(
        self, blocks: Iterable[int] | None = None
    ) -> Iterator[tuple[int, tuple[ShardEntry, ...], dict[str, float]]]:
        if blocks is None:
            paths = sorted((self.directory / "done").glob("[0-9]*.json"))
        else:
            paths = [self._entry(block) for block in sorted(set(blocks))]
        for path in paths:
            try:
                block, (entries, stages) = int(path.stem), as_entries(read_json(path))
            except FileNotFoundError:
                continue  # not done, or forgotten in the meantime
            except OSError as error:
                raise RunFailed(_unreadable(path, _reason(error))) from error
            except ValueError:
                continue  # torn by a power cut: the block is repeated
            yield block, entries, stages


def _acquire(file: IO[str], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        try:
            holder = parse_json(file.read(4096).encode())
            who = f"process {holder['pid']} on {holder['host']}"
        except (ValueError, TypeError, KeyError):
            who = "another process"
        raise Locked(
            f"{_output(path.parent)} is being written by {who}; one driver at a time;"
            " wait for it to end or stop it, the lock goes with its process"
        ) from None
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be locked: {_reason(error)}; expected a file system with flock;"
            " write the output to another one"
        ) from error


def _note(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _output(directory: Path) -> str:
    return str(directory).removesuffix(".volflow")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    damaged = isinstance(error, json.JSONDecodeError | UnicodeError)
    return "it is damaged" if damaged else str(error)


def _unreadable(path: Path, why: str) -> str:
    return (
        f"{path} cannot be used: {why}; restore it, or begin again"
        " (overwrite=True, --overwrite), or choose another output"
    )


@contextmanager
def _writing(path: Path, *, begun: bool = True) -> Iterator[None]:
    """Turn a failure of the disk into one clear line; before work it is a refusal."""
    try:
        yield
    except OSError as error:
        why = f"the journal {path} cannot be written: {_reason(error)}; "
        failed = writing_failed(error)
        if begun or failed is StoreFull:
            remedy = "what is done stays done; put it right and run the same command again"
            raise failed(why + remedy) from error
        if isinstance(error, FileNotFoundError):
            why = f"the folder {path.parent} does not exist; "
        remedy = "it lies beside the output; choose an output in a folder that can be written"
        raise InvalidInput(why + remedy) from error
