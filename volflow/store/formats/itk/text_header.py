"""Headers of text: their lines, the file of voxels that they name, and our own note in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from volflow.errors import InvalidInput
from volflow.store.atomic import parse_json
from volflow.store.meta import Meta

__all__ = ["NOTE", "data_file", "note_of", "read_lines", "read_note"]

MOST_HEADER = 2**22  # bytes; those of segmentations and of diffusion have some hundred thousand
NOTE = "volflow"  # the name of the line that says what the formats cannot


def read_lines(path: str, is_last: Callable[[str], bool]) -> tuple[list[str], int]:
    """Return the lines of a header to its last one, and where in the file it ends.

    Parameters
    ----------
    path
        The file.
    is_last
        Says whether a line ends the header; without one, the header is the whole file.

    Raises
    ------
    InvalidInput
        If the file cannot be read, or has no end of a header within 4 MiB.
    """
    lines, end = [], 0
    try:
        with Path(path).open("rb") as file:
            while line := file.readline(MOST_HEADER):
                end += len(line)
                if end > MOST_HEADER:
                    raise InvalidInput(
                        f"{path} has no end of a header within {MOST_HEADER >> 20} MiB; it is no"
                        " file of this format, or damaged"
                    )
                lines.append(line.decode(errors="replace").rstrip())
                if is_last(lines[-1]):
                    break
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from error
    return lines, end


def data_file(header: str, name: str) -> str:
    """Return the path of the file of voxels that a header names.

    Raises
    ------
    InvalidInput
        If it lies outside the header's folder, or does not exist.
    """
    folder = Path(os.path.normpath(Path(header).parent))
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder):
        raise InvalidInput(
            f"{header} says that its voxels are in {name:.99}, outside its own folder, where"
            " nothing is read; move both into one folder"
        )
    if not path.is_file():
        raise InvalidInput(
            f"{header} says that its voxels are in {name:.99}, which does not exist; put that file"
            " beside it"
        )
    return str(path)


def note_of(meta: Meta, longest: int = MOST_HEADER) -> str:
    """Return what only a line of our own can say in such a header; ``""`` if there is nothing.

    Parameters
    ----------
    meta
        Metadata of the volume.
    longest
        The most characters; of a longer note the kind alone is left.

    Examples
    --------
    >>> note_of(Meta(kind="classes"))
    '{"kind": "classes"}'
    """
    said: dict[str, object] = {"kind": meta.kind} if meta.kind != "image" else {}
    whole = said | ({"channels": list(meta.channels)} if meta.channels else {})
    whole |= {"made": json.loads(meta.made)} if meta.made else {}
    note = json.dumps(whole) if len(json.dumps(whole)) <= longest else json.dumps(said)
    return "" if note == "{}" else note


def read_note(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the kind of a volume and the names of its channels, as far as a note says them.

    Examples
    --------
    >>> read_note('{"kind": "classes"}'), read_note("what others wrote")
    (('classes', ()), ('image', ()))
    """
    try:
        said = parse_json(text.encode())
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    names = said.get("channels")
    channels = tuple(map(str, names)) if isinstance(names, list) else ()
    return "classes" if said.get("kind") == "classes" else "image", channels
