"""What the demos share: a folder for what they write, and lines that say each step."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from volflow.errors import InvalidInput

__all__ = ["INDENT", "folder_for", "say"]

INDENT = " " * 13  # of what is said below a step's name


def folder_for(out: str | os.PathLike[str]) -> Path:
    """The folder, made if it is missing.

    Raises
    ------
    InvalidInput
        Where it cannot be made.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"the folder {folder} cannot be made: {error.strerror}") from error
    return folder


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
