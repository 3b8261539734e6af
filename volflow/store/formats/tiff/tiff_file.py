"""TIFF files as tifffile opens them, and what is looked at before."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from volflow.errors import Damaged, InvalidInput, VolflowError, first_line

__all__ = ["count_pages", "damage_in_tiff", "import_tifffile", "opened_tiff"]

MOST_TAGS = 4096  # of a page, as tifffile has it
# Bytes of an offset, of a count of tags, and of a tag, by the version in the header.
_SIZES = {42: (4, 2, 12), 43: (8, 8, 20)}


def import_tifffile() -> Any:
    """Return the module tifffile; InvalidInput with the remedy if it is not installed."""
    try:
        import tifffile
    except ImportError:
        raise InvalidInput(
            'TIFF files need tifffile, which is not installed; pip install "volflow[tiff]"'
        ) from None
    log = logging.getLogger("tifffile")
    if not log.hasHandlers():  # its remarks would stand beside the one line of a refusal
        log.addHandler(logging.NullHandler())
    return tifffile


@contextmanager
def opened_tiff(path: str, omexml: str | None = None) -> Iterator[Any]:
    """Open a TIFF file with tifffile, whose errors become Damaged with the path.

    Parameters
    ----------
    path
        The file.
    omexml
        Read instead of the OME-XML in the file.
    """
    tifffile = import_tifffile()
    with damage_in_tiff(path), tifffile.TiffFile(path, omexml=omexml) as file:
        yield file


@contextmanager
def damage_in_tiff(path: str) -> Iterator[None]:
    """Turn errors of tifffile, which are of any class, into Damaged with the path of the file.

    Those of the disk itself stay what they are.
    """
    try:
        yield
    except VolflowError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise Damaged(f"{path} is a damaged TIFF file ({first_line(error)}); copy it again") from (
            error
        )


def count_pages(path: str) -> int:
    """Return how many pages a TIFF file has.

    The chain of pages is followed here first, as tifffile would follow one that leads in a circle
    for ever.

    Raises
    ------
    InvalidInput
        If it is no TIFF file, has no pages, or cannot be read.
    Damaged
        If the chain leads in a circle or out of the file.
    """
    try:
        with Path(path).open("rb") as file:
            return _count(file, path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from error


def _count(file: IO[bytes], path: str) -> int:
    size, seen = Path(path).stat().st_size, set[int]()
    start = file.read(16)
    order: Any = {b"II": "little", b"MM": "big"}.get(start[:2])
    version = int.from_bytes(start[2:4], order or "little")
    if order is None or version not in _SIZES:
        raise InvalidInput(f"{path} is not a TIFF file; its first bytes are not a TIFF header")
    wide, count_size, tag_size = _SIZES[version]
    first = wide
    if path.lower().endswith(".ndpi"):  # offsets of eight bytes in an else short form
        wide = 8
    at = int.from_bytes(start[first : first + wide], order)
    while at:
        if at in seen:
            raise Damaged(f"{path} has pages that lead in a circle; copy it again")
        begin = at + count_size
        if begin <= size:
            file.seek(at)
            tags = int.from_bytes(file.read(count_size), order)
            end = begin + tags * tag_size
        if begin > size or tags > MOST_TAGS or end > size:
            raise Damaged(f"{path} is cut short or damaged after {len(seen)} pages; copy it again")
        seen.add(at)
        file.seek(end)
        at = int.from_bytes(file.read(wide), order)
    if not seen:
        raise InvalidInput(f"{path} is a TIFF file without pages; export it again")
    return len(seen)
