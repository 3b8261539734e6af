"""The folder in which the steps of a network lie, and when it is deleted."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

from volflow.errors import InvalidInput

__all__ = ["StepFolders"]


@dataclass(frozen=True, eq=False)
class StepFolders:
    """A folder of steps. A temporary one is deleted with the last object that holds it.

    A copy, by pickle too, is a temporary folder of its own: two networks never share one.

    Parameters
    ----------
    path
        The folder.
    home
        In which temporary ones are made; by default in that of the system.
    """

    path: Path
    home: Path | None = None

    @staticmethod
    def of(named: str | Path | None) -> StepFolders:
        """Return the folder that a user names, which is made; a temporary one without a name.

        Raises
        ------
        InvalidInput
            If it is no folder, or nothing can be written there.
        """
        if named is None:
            return StepFolders.temporary()
        path = Path(named).absolute()
        try:
            path.mkdir(parents=True, exist_ok=True)
            writable = os.access(path, os.W_OK | os.X_OK)
        except OSError as error:
            raise InvalidInput(
                f"scratch is a folder, and {path} cannot be made: {error.strerror}; name another"
            ) from error
        if not writable:
            raise InvalidInput(f"scratch is a folder, and {path} cannot be written; name another")
        return StepFolders(path, path)

    @staticmethod
    def temporary(home: Path | None = None) -> StepFolders:
        """Return a new folder."""
        found = StepFolders(Path(tempfile.mkdtemp(prefix="volflow-", dir=home)), home)
        weakref.finalize(found, shutil.rmtree, found.path, ignore_errors=True)
        return found

    def __reduce__(self) -> tuple[object, ...]:
        return StepFolders.temporary, (self.home,)

    @property
    def inputs(self) -> Path:
        """Folder of files that were converted to be read; it serves all steps."""
        return self.path / "inputs"

    def step(self, number: int) -> Path:
        """Return the folder of a step."""
        return self.path / f"step-{number:08d}"

    def clear(self) -> None:
        """Delete all that steps left."""
        shutil.rmtree(self.path, ignore_errors=True)
