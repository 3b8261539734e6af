"""Fences: what a task writes reaches the output only while its run is the current one.

::

    out.zarr.volflow/
        session-3f2a…/    of the running driver; its tasks begin their files here
        ended-3f2a…/      of one that has ended, about to be deleted

A file is begun in the folder of the session and renamed to its place when it is whole; what is
deleted is renamed into it first. To end a session its folder is renamed, before anything else is
changed: from then on neither the files that a task begins nor those that it has begun can be put in
place, as their names lead nowhere. So of a task that outlives its driver no byte, late as it may
come, reaches the output of the next run.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from volflow.errors import Superseded

__all__ = ["Fence", "end_sessions"]

RUNNING, ENDED = "session-", "ended-"


@dataclass(frozen=True)
class Fence:
    """The folder of a session, through which its tasks write.

    Parameters
    ----------
    folder
        On the file system of the output; see `Fence.of`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name:
    ...     journal, file = Path(name), Path(name, "0")
    ...     fence = Fence.of(journal, "3f2a")
    ...     fence.begin()
    ...     fence.put(file, b"of the first run")
    ...     end_sessions(journal)
    ...     try:
    ...         fence.put(file, b"late")
    ...     except Superseded as error:
    ...         print(str(error).rpartition("; ")[2])
    ...     file.read_bytes()
    this task stops
    b'of the first run'
    """

    folder: Path

    @classmethod
    def of(cls, directory: Path, session: str) -> Fence:
        """Return the fence of a session, by its token, in the directory of a journal."""
        return cls(directory / f"{RUNNING}{session}")

    def begin(self) -> None:
        """Begin the session."""
        self.folder.mkdir()

    def check(self) -> None:
        """Stop a task whose session has ended.

        Raises
        ------
        Superseded
            If it has.
        """
        if not self.folder.is_dir():
            raise self._superseded()

    @contextmanager
    def file(self, path: Path) -> Iterator[IO[bytes]]:
        """Open a new file, which is put in its place at the end of the block.

        Raises
        ------
        Superseded
            If the session has ended; what lies at the path is as it was.
        OSError
            If it cannot be written.
        """
        part = self.folder / uuid.uuid4().hex
        with self._while_current():
            try:
                with part.open("xb") as file:
                    yield file
                part.replace(path)
            except BaseException:
                with suppress(OSError):
                    part.unlink()
                raise

    def put(self, path: Path, data: Any) -> None:
        """Write the bytes of a file; as `file`."""
        with self.file(path) as file:
            file.write(data)

    def remove(self, path: Path) -> None:
        """Delete a file, if there is one; as `file`."""
        part = self.folder / uuid.uuid4().hex
        with self._while_current():
            try:
                path.replace(part)
            except FileNotFoundError:
                self.check()
            else:
                part.unlink(missing_ok=True)

    @contextmanager
    def _while_current(self) -> Iterator[None]:
        """Tell a session that has ended from other reasons for which a name leads nowhere."""
        try:
            yield
        except FileNotFoundError:
            self.check()
            raise

    def _superseded(self) -> Superseded:
        directory = self.folder.parent
        why = "was replaced by another" if any(directory.glob(f"{RUNNING}*")) else "has ended"
        output = str(directory).removesuffix(".volflow")
        return Superseded(f"the driver of {output} {why}; this task stops")


def end_sessions(directory: Path) -> None:
    """End all sessions of a journal, and delete what their tasks have not finished writing.

    To be called under the lock of the output.

    Raises
    ------
    OSError
        If one cannot be ended.
    """
    (directory / "session").unlink(missing_ok=True)  # by which tasks of earlier versions stop
    for folder in directory.glob(f"{RUNNING}*"):
        folder.rename(folder.with_name(ENDED + folder.name.removeprefix(RUNNING)))
    for folder in directory.glob(f"{ENDED}*"):
        shutil.rmtree(folder, ignore_errors=True)
