"""Sidecars: files that cache measurements of a volume, beside it or in the user's cache.

A sidecar only saves time: if it is absent, damaged or outdated it is computed again, and if none
can be written there is none.
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
from volflow.store.opening import is_zarr
from volflow.store.slabs import Array
from volflow.store.volume import Volume

__all__ = ["keep", "load_arrays", "part_of", "save_arrays", "sidecar_paths"]

MOST_BYTES = 2**33  # of unpacked arrays; class counts of 10 TB in cells of 64³ take 1 GB


def sidecar_paths(path: str | None, name: str) -> Iterator[Path]:
    """Yield the paths at which a sidecar may lie; none for a volume in memory.

    Examples
    --------
    >>> [str(place) for place in sidecar_paths("/data/a.zarr", "statistics.json")][0]
    '/data/a.zarr.volflow/statistics.json'
    """
    if path is None:
        return
    inside = is_zarr(Path(path).parent)
    # Nothing of ours is written inside another software's store.
    if "://" not in path and not inside:
        yield journal_dir(path) / name
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "volflow"
    yield cache / hashlib.sha256(path.encode()).hexdigest()[:32] / name


def part_of(volume: Volume) -> str:
    """Return the suffix of sidecar names for a coarser level or a later timepoint."""
    level = f"-level{volume.level}" if volume.level else ""
    return level + (f"-t{volume.timepoint}" if volume.timepoint else "")


def keep(places: Iterable[Path], write: Callable[[Path], object]) -> Path | None:
    """Write a sidecar at the first writable place and return its path; None if there is none."""
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
    """Store arrays in one ``.npz`` file, with a fingerprint of the volume that they describe.

    Parameters
    ----------
    places
        See `sidecar_paths`.
    fingerprint
        Identifies the volume's state and the meaning of the arrays.
    arrays
        By name; any shape, any dtype but object.
    """
    packed = io.BytesIO()
    columns: dict[str, Any] = {"fingerprint": np.array(fingerprint), **arrays}
    np.savez_compressed(packed, **columns)
    return keep(places, lambda path: write_file(path, packed.getvalue()))


def load_arrays(places: Iterable[Path], fingerprint: str) -> dict[str, Array] | None:
    """Return the arrays stored with this fingerprint, by name; None if there are none."""
    for path in places:
        try:
            # NumPy leaves the handle open if it opened a damaged file itself.
            with np.load(io.BytesIO(_packed(path)), allow_pickle=False) as saved:
                if saved["fingerprint"] == fingerprint:
                    return {name: saved[name] for name in saved.files if name != "fingerprint"}
        except Exception:  # absent, or damaged in any way
            continue
    return None


def _packed(path: Path) -> bytes:
    """Return the bytes of an ``.npz`` file; ValueError if it, packed or unpacked, is too large."""
    with zipfile.ZipFile(path) as archive:
        if sum(max(member.file_size, 0) for member in archive.infolist()) > MOST_BYTES:
            raise ValueError("it is larger than any sidecar")
    return path.read_bytes()
