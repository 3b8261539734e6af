"""Receipts of exported files: size and checksum recorded when a file was written.

::

    seg.nii.gz.volflow/
        export.json     size and checksum of the file, and the volume that it holds
        output.zarr     that volume, if `predict` wrote the file
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from volflow.errors import InvalidInput, Unreadable
from volflow.geometry.roi import Roi
from volflow.store.atomic import read_json, write_json
from volflow.store.formats.nifti import import_nibabel
from volflow.store.formats.sources import open_source
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.records import typed
from volflow.store.slabs import Source

__all__ = [
    "BEHIND",
    "RECEIPT",
    "FileSum",
    "Receipt",
    "fault_of",
    "file_sum",
    "foreign_voxels",
    "keep_receipt",
    "read_receipt",
    "state_of",
    "stored_behind",
]

RECEIPT, FORMAT = "export.json", 1
BEHIND = "output.zarr"
PIECE_BYTES, SLAB_BYTES = 2**20, 2**26


@dataclass(frozen=True)
class FileSum:
    """Size of a file, and the crc32c of its bytes."""

    size: int = 0
    crc32c: int = 0

    def of(self, data: bytes) -> FileSum:
        """Return the sum of the file with these bytes appended."""
        return FileSum(self.size + len(data), google_crc32c.extend(self.crc32c, data))


@dataclass(frozen=True)
class Receipt:
    """Record of an exported file as it was written.

    Parameters
    ----------
    files
        Sum of the file; while it replaces another, of both: a process may be killed before or
        after the replacement.
    volume
        Path of the volume that it holds.
    state
        Identity of the volume, from `state_of`.
    """

    files: tuple[FileSum, ...]
    volume: str
    state: str


def state_of(volume: Source) -> str:
    """Return the identity of a volume's voxels; ``""`` if it cannot be determined."""
    known = volume.path is not None and not volume.unidentified
    return volume.identity() if known else ""


def read_receipt(path: Path) -> Receipt | None:
    """Return the receipt of a file; None if it is absent or damaged."""
    try:
        saved = read_json(journal_dir(path) / RECEIPT)
        receipt = typed(Receipt, saved)
    except (OSError, ValueError):
        return None
    return receipt if receipt.files and saved.get("format") == FORMAT else None


def keep_receipt(path: Path, receipt: Receipt) -> None:
    """Write the receipt of a file beside it.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    folder = journal_dir(path)
    folder.mkdir(exist_ok=True)
    write_json(folder / RECEIPT, {"format": FORMAT, **asdict(receipt)})


def file_sum(path: Path) -> FileSum:
    """Return the sum of a file, which is read from front to back.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    found = FileSum()
    with path.open("rb") as file:
        while data := file.read(PIECE_BYTES):
            found = found.of(data)
    return found


def fault_of(path: Path, receipt: Receipt) -> str:
    """Return how a file differs from its receipt; ``""`` if it does not."""
    sizes = [one.size for one in receipt.files]
    try:
        size = path.stat().st_size
        if size not in sizes:
            return f"it has {size} bytes, expected {sizes[0]}"
        return "" if file_sum(path) in receipt.files else "its checksum differs"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read, {(error.strerror or str(error)).lower()}"


def foreign_voxels(path: Path, volume: Source) -> str:
    """Return how the voxels of a file differ from a volume's; ``""`` if they do not."""
    if path.name.lower().endswith((".nii", ".nii.gz")):
        import_nibabel()
    try:
        source = open_source(path)
        lead = volume.ndim - len(source.shape)  # NIfTI drops a single channel
        if volume.shape != (1,) * lead + tuple(source.shape):
            return f"its voxels are {tuple(source.shape)}, those of the volume {volume.shape}"
        plane_bytes = volume.shape[-1] * volume.shape[-2] * volume.dtype.itemsize
        for roi, voxels in source.slabs(min(volume.piece[-3], 1 + SLAB_BYTES // plane_bytes)):
            stored = volume.read(Roi((0,) * lead + roi.start, (1,) * lead + roi.stop))
            if not np.array_equal(stored.reshape(voxels.shape), voxels, equal_nan=True):
                return f"its voxels differ from the volume's, from {roi.start} on"
    except Unreadable:  # raised by the volume
        raise
    except InvalidInput as error:  # damaged, or cut short
        return str(error)
    return ""


def stored_behind(path: str | os.PathLike[str]) -> Path | None:
    """Return the volume that `predict` wrote before it exported a file; None if there is none."""
    if "://" in os.fspath(path):
        return None
    kept = journal_dir(path) / BEHIND
    return kept if kept.is_dir() else None
