"""Files that keep what was measured of a volume: beside it, or else in the user's cache.

A sidecar only saves time: one that is absent, damaged or of another state of the volume is made
anew, and where none can be written there is none.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from volflow.store.aside import sweep
from volflow.store.atomic import write_file
from volflow.store.journal.journal import journal_dir
from volflow.store.slabs import Array
from volflow.store.volume import Volume

__all__ = ["keep", "load_arrays", "part_of", "save_arrays", "sidecar_paths"]

MOST_BYTES = 2**33  # of unpacked arrays; the class counts of 10 TB in cells of 64³ take 1 GB


def sidecar_paths(path: str | None, name: str) -> Iterator[Path]:
    """Where a sidecar may lie; nowhere for a volume in memory, which has no path.

    Examples
    --------
    >>> [str(place) for place in sidecar_paths("/data/a.zarr", "statistics.json")][0]
    '/data/a.zarr.volflow/statistics.json'
    """
    if path is None:
        return
    inside = any((Path(path).parent / marker).exists() for marker in ("zarr.json", ".zgroup"))
    # A directory of ours inside somebody's store would be a foreign body.
    if "://" not in path and not inside:
        yield journal_dir(path) / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volflow"
    yield cache / hashlib.sha256(path.encode()).hexdigest()[:32] / name


def part_of(volume: Volume) -> str:
    """What the names of sidecars add for a coarser level or a later timepoint."""
    level = f"-level{volume.level}" if volume.level else ""
    return level + (f"-t{volume.timepoint}" if volume.timepoint else "")


def keep(places: Iterable[Path], write: Callable[[Path], object]) -> Path | None:
    """Write a sidecar at the first place where that can be; None where it cannot."""
    for path in places:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path)
            write(path)
        except OSError:
            continue  # read-only or full
        return path
    return None


def save_arrays(
    places: Iterable[Path], fingerprint: str, arrays: Mapping[str, Array]
) -> Path | None:
    """Keep arrays, packed into one ``.npz`` file, with the state of the volume that they describe.

    Parameters
    ----------
    places
        See `sidecar_paths`.
    fingerprint
        Of the volume, and of the meaning of the arrays.
    arrays
        By name, of any dtype but objects.
    """
    packed = io.BytesIO()
    columns: dict[str, Any] = {"fingerprint": np.array(fingerprint), **arrays}
    np.savez_compressed(packed, **columns)
    return keep(places, lambda path: write_file(path, packed.getvalue()))


def load_arrays(places: Iterable[Path], fingerprint: str) -> dict[str, Array] | None:
    """The arrays kept under that fingerprint; None where there are none."""
    for path in places:
        try:
            # Of a damaged file that it opened itself NumPy would leave the handle open.
            with np.load(io.BytesIO(_packed(path)), allow_pickle=False) as saved:
                if saved["fingerprint"] == fingerprint:
                    return {name: saved[name] for name in saved.files if name != "fingerprint"}
        except Exception:  # absent, or damaged in whatever way
            continue
    return None


def _packed(path: Path) -> bytes:
    """The bytes of a packed file; a ValueError where it, or what it unpacks to, is too large."""
    with zipfile.ZipFile(path) as archive:
        if sum(max(member.file_size, 0) for member in archive.infolist()) > MOST_BYTES:
            raise ValueError("it claims more than any sidecar holds")
    return path.read_bytes()
