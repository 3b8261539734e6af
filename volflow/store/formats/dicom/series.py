"""Series of DICOM files: found in folders, told apart, and opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from volflow.errors import InvalidInput
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.dicom.image_file import (
    MAGIC,
    MAGIC_AT,
    ImageFile,
    import_pydicom,
    read_image_file,
)
from volflow.store.formats.dicom.segmentation import open_segmentation
from volflow.store.formats.dicom.slice_stack import open_stack
from volflow.store.slabs import Source

__all__ = ["holds_dicom", "open_dicom", "series_in"]

READERS = 4  # of headers at a time, which come from disks and networks
MOST_TRIED = 200  # files of a folder, before it is taken for one of another kind
MOST_LISTED = 20
_STORES = (".zarr", ".n5", ".volflow")  # folders of many files, none of which is DICOM


def holds_dicom(folder: Path) -> bool:
    """Return True if a folder, or a folder in it, has a DICOM file among its first files."""
    return any(_begins(path) for path in islice(_files_below(folder), MOST_TRIED))


def open_dicom(path: str, choice: ImageChoice) -> Source:
    """Open a file, or one of the series in a folder; no voxel is read.

    Raises
    ------
    InvalidInput
        If there are several series, listing them; if a series is no volume.
    Damaged
        If a file is cut short or its header damaged.
    """
    import_pydicom()
    found = series_in(path)
    if not found:
        raise InvalidInput(
            f"{path} holds no DICOM image, which has DICM at byte 128 and voxels; check the path"
        )
    files = _chosen(found, choice.series, path)
    unfit = next((one for one in files if one.unfit), None)
    if unfit is not None:
        raise InvalidInput(f"{unfit.path} {unfit.unfit}")
    if files[0].segmentation is not None:
        return open_segmentation(path, files)
    return open_stack(path, files)


def series_in(path: str) -> Mapping[str, Sequence[ImageFile]]:
    """Return the files of each series of a file or folder, by its UID, as they are numbered."""
    if Path(path).is_dir():
        with ThreadPoolExecutor(READERS) as pool:
            files = list(pool.map(read_image_file, map(str, _files_below(Path(path)))))
    else:
        files = [read_image_file(path)]
    found: dict[str, list[ImageFile]] = {}
    for one in files:
        if one is not None:
            found.setdefault(one.series, []).append(one)

    def number(uid: str) -> tuple[int, str]:
        text = found[uid][0].number
        return int(text) if text.isdecimal() else 2**31, uid

    return {uid: found[uid] for uid in sorted(found, key=number)}


def _files_below(folder: Path) -> Iterator[Path]:
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(one for one in folders if not one.endswith(_STORES))
        yield from (Path(at, name) for name in sorted(names) if not name.startswith("."))


def _begins(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def _chosen(
    found: Mapping[str, Sequence[ImageFile]], wanted: str | int | None, path: str
) -> Sequence[ImageFile]:
    """Return the only series, or the one with this number, UID or description."""
    every = list(found.values())
    chosen = [
        files
        for files in every
        if wanted is None or str(wanted) in (files[0].number, files[0].series, files[0].description)
    ]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        raise InvalidInput(
            f"{path} holds {len(chosen)} series; choose one by its number, UID or description"
            f" (--series 2, or {path}::2): {_listed(chosen)}"
        )
    raise InvalidInput(f"{path} has no series {wanted}; it holds {_listed(every)}")


def _listed(series: Sequence[Sequence[ImageFile]]) -> str:
    parts = []
    for files in series[:MOST_LISTED]:
        first, count = files[0], sum(len(one.slices) for one in files)
        stored = first.slices[0].stored
        parts.append(
            f"{first.number or 'without number'} {first.description!r} {first.modality}"
            f" {count} × {stored.rows} × {stored.columns} ({first.series})"
        )
    more = len(series) - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more else "")
