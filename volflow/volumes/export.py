"""Export: a volume back into one file, streamed in the order of the file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from volflow.errors import InvalidInput, MemoryRefused, RunFailed, SourceChanged
from volflow.geometry.budget import format_bytes, parse_bytes
from volflow.geometry.grid import BlockGrid
from volflow.geometry.strips import widened
from volflow.option import journey
from volflow.store.aside import file_aside, sweep
from volflow.store.atomic import read_json
from volflow.store.formats.exported import (
    RECEIPT,
    FileSum,
    Receipt,
    fault_of,
    file_sum,
    foreign_voxels,
    keep_receipt,
    read_receipt,
    state_of,
)
from volflow.store.formats.sources import open_source
from volflow.store.formats.taken.piecewise import Piecewise
from volflow.store.formats.written import WRITERS, writer_of
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.records import typed
from volflow.store.opening import is_url
from volflow.store.remote.address import Address, Location, check_answers, location
from volflow.store.slabs import Source
from volflow.store.volume import Volume
from volflow.volumes.arrays.inputs import VolumeLike, open_input
from volflow.volumes.older_zarr import check_older, write_older

__all__ = ["check_export", "check_file", "export", "refuse_changed", "write_file"]

MOVE = (
    "move it away, and the same command writes it anew from the stored volume; or compute all anew"
    " with overwrite=True (--overwrite)"
)
KEEP = "keep it under another name, or replace it with overwrite=True (--overwrite)"


@journey
def export(
    volume: VolumeLike,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    memory: str | int = "1GiB",
    like: str | os.PathLike[str] | None = None,
    ngff: str | None = None,
) -> Location:
    """Write a volume as one ``.nii.gz``, ``.nrrd``, ``.mha``, ``.tif``, ``.h5``, ``.dcm``, … file.

    A volume that came from a NIfTI file goes back onto that file's axes, orientation and affine. A
    ``.tif`` is what Fiji opens with its spacing, OME-TIFF where ImageJ's own format cannot hold it;
    ``.ome.tif`` always is; classes are deflated in it. A ``.h5`` file has the dataset ``data`` with
    ``element_size_um``.
    The file appears under its name when it is complete, and its checksum is kept beside it, in
    ``<out>.volflow/``, for `verify`. A file that holds the volume already is left alone, one that
    was changed since is refused. Where a format knows no float16 or no bool, these become float32
    and uint8. A ``.dcm`` is a DICOM segmentation of classes, which refers to the series on whose
    grid it lies.

    Parameters
    ----------
    volume
        Any `VolumeLike`.
    out
        Name of the file, or its URL on an object store; the suffix decides the format.
    overwrite
        Replace a file that is there.
    memory
        What the slabs in memory may take.
    like
        The DICOM series that a ``.dcm`` refers to, where it is not the one that the volume was
        made from, or has moved since.
    ngff
        ``"0.4"`` for a ``.zarr`` with all levels, in the older form of OME-Zarr (Zarr v2, a file
        for each chunk) that most software reads; never in the place of another.

    Returns
    -------
    Path or Address
        The file, or the folder of the ``.zarr``.

    Raises
    ------
    InvalidInput
        Where the format is unknown, the file exists and does not hold the volume, or the volume
        cannot be opened.
    MemoryRefused
        Where not even one plane fits into the memory.
    RunFailed
        Where the disk is full or the volume damaged; no partial file is left.

    Examples
    --------
    >>> import tempfile, zarr
    >>> from volflow.store.volume import open_volume
    >>> ones = open_volume(zarr.ones(shape=(4, 5, 6), dtype="uint8"))
    >>> np.load(export(ones, f"{tempfile.mkdtemp()}/ones.npy")).shape
    (4, 5, 6)
    """
    path = check_export(out, overwrite=overwrite, ngff=ngff)
    if ngff is not None and isinstance(path, Path):
        return write_older(open_input(volume), path, memory)
    opened = open_input(volume) if like is None else _referring(open_input(volume), like, path.name)
    if isinstance(path, Address):
        return _send_file(opened, path, overwrite=overwrite, memory=memory)
    return write_file(opened, path, overwrite=overwrite, memory=memory)


def _referring(volume: Source, like: str | os.PathLike[str], name: str) -> Source:
    """Return a volume as if it had been made from a DICOM series."""
    series = open_source(like)
    info = series.meta.source
    if info is None or info.format != "dicom" or not name.lower().endswith(".dcm"):
        raise InvalidInput(
            f"like= (--like) is the DICOM series that a .dcm refers to, given {like} for {name};"
            " leave it out"
        )
    return replace(volume, meta=replace(volume.meta, source=info))  # type: ignore[type-var]


def write_file(
    volume: Source,
    path: Path,
    *,
    overwrite: bool = False,
    renew: bool = False,
    remedy: str = KEEP,
    memory: str | int = "1GiB",
) -> Path:
    """Write a volume as a file, unless that holds it already, and keep a receipt of it.

    Parameters
    ----------
    volume, path, memory
        As in `export`.
    overwrite
        Replace whatever is there.
    renew
        Replace what an earlier export wrote and nobody changed; a file without a receipt is taken
        for that where its voxels are the volume's.
    remedy
        What helps where the file is refused.

    Raises
    ------
    InvalidInput
        Where the file is not what was exported, or holds another volume.
    SourceChanged
        Where the volume is changed meanwhile.
    """
    fill = _filling(volume, path, parse_bytes(memory))
    sweep(path)
    state = state_of(volume)
    before = None if overwrite or not path.exists() else _standing(path, volume, remedy)
    if before is not None and before.state == state != "" and len(before.files) == 1:
        return path
    with _one_line(path), file_aside(path) as (part, raw):
        total = fill(raw)
        raw.flush()
        total = total or file_sum(part)
        if state_of(volume) != state:
            raise SourceChanged(
                f"{volume.path} was changed while {path.name} was written from it; run the same"
                " command again when it is whole"
            )
        receipt = Receipt((total,), str(volume.path or ""), state)
        if before is None or total != file_sum(path):
            if before is not None and not renew:
                raise InvalidInput(
                    f"{path} holds what {before.volume or 'a volume'} was before; {remedy}"
                )
            old = read_receipt(path)
            keep_receipt(path, replace(receipt, files=(total, *(old.files if old else ()))))
            part.replace(path)
        keep_receipt(path, receipt)
    return path


def check_export(
    out: str | os.PathLike[str], *, overwrite: bool = False, ngff: str | None = None
) -> Location:
    """Return where a file is to be written, on a disk as `check_file`, or on an object store."""
    if ngff is not None:
        return check_older(out, ngff)
    at = location(out)
    if isinstance(at, Path):
        return check_file(out, overwrite=overwrite)
    _check_format(at.name)
    check_answers(at)
    return at


def _send_file(volume: Source, at: Address, *, overwrite: bool, memory: str | int) -> Address:
    """Write a volume as a file in the folder for temporary ones, and send it to a store."""
    receipt = at.with_name(f"{at.name}.volflow") / RECEIPT
    if not overwrite and at.exists():
        with suppress(OSError, ValueError):
            before = typed(Receipt, read_json(receipt))
            if before.state == state_of(volume) != "" and before.files[0].size == at.stat().st_size:
                return at
        raise InvalidInput(f"{at} exists; choose another name or overwrite=True (--overwrite)")
    with TemporaryDirectory(prefix="volflow-") as folder:
        path = write_file(volume, Path(folder, at.name), memory=memory)
        try:
            at.upload(path)
            receipt.write_bytes((journal_dir(path) / RECEIPT).read_bytes())
        except OSError as error:
            raise RunFailed(
                f"{at} cannot be written: {error.strerror or error}; run the same command again"
                " when the store answers"
            ) from error
    return at


def refuse_changed(path: Path, remedy: str = KEEP) -> None:
    """Refuse to go on where a file is not what was exported; of a file without receipt, nothing.

    Raises
    ------
    InvalidInput
        Naming it, how it differs, and the remedy.
    """
    receipt = read_receipt(path) if path.exists() else None
    fault = "" if receipt is None else fault_of(path, receipt)
    if fault:
        raise InvalidInput(f"{path} is not what was exported, {fault}; {remedy}")


def refuse_taken(path: Path, *, begun: bool) -> None:
    """Refuse a file in the place of one that a run is to export, unless it is that run's own.

    Parameters
    ----------
    path
        The file.
    begun
        Whether the volume behind it is there, of a run that is resumed.

    Raises
    ------
    InvalidInput
        Where it is another's, or was changed.
    """
    if path.exists() and not begun:
        raise InvalidInput(f"{path} exists; use overwrite=True (--overwrite) or another output")
    refuse_changed(path, MOVE)


def _standing(path: Path, volume: Source, remedy: str) -> Receipt:
    """The receipt of a file that nobody changed."""
    receipt = read_receipt(path)
    if receipt is None:  # written by a version that kept none
        if fault := foreign_voxels(path, volume):
            raise InvalidInput(f"{path} is not what was exported, {fault}; {remedy}")
        receipt = Receipt((file_sum(path),), str(volume.path or ""), state_of(volume))
        keep_receipt(path, receipt)
    refuse_changed(path, remedy)
    return receipt


def check_file(out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """The absolute path of a file to be written, or a refusal; nothing is changed.

    A file that was exported is not refused here: whether it still is what it was, `refuse_changed`
    says.
    """
    if is_url(os.fspath(out)):
        raise InvalidInput(
            f"{out} is a URL, and this file is written to a disk; copy it from there"
        )
    path = Path(out).expanduser().absolute()
    _check_format(path.name)
    if not path.parent.is_dir():
        raise InvalidInput(f"the folder {path.parent} does not exist; make it first")
    if path.is_dir() or (path.exists() and not overwrite and read_receipt(path) is None):
        raise InvalidInput(f"{path} exists; choose another name or overwrite=True (--overwrite)")
    return path


def _check_format(name: str) -> None:
    if name.lower().endswith(".zarr"):
        raise InvalidInput(
            f"{name} names a Zarr volume, and export writes other formats; copy it with convert, or"
            ' give ngff="0.4" (--ngff 0.4) for software that does not know OME-Zarr 0.5'
        )
    if writer_of(name) is None:
        known = ", ".join(end for one in WRITERS for end in one.suffixes)
        raise InvalidInput(f"{name} names no format that can be written; use {known}")


def _filling(volume: Source, path: Path, budget: int) -> Callable[[IO[bytes]], FileSum | None]:
    """Return what fills a file, and sums it up where it does so from front to back.

    What is refused is so now.
    """
    writer = writer_of(path)
    assert writer is not None  # as `check_file` saw
    if writer.placed:
        _check_place(volume, writer.name)
    together = volume.channels_count if writer.interleaves else 1
    volume, depth = _in_slabs(volume, writer.dtype(volume.dtype), budget, together)
    if writer.write is not None:
        return partial(writer.write, volume, depth)
    assert writer.pieces is not None
    pieces = writer.pieces(volume, depth)

    def fill(raw: IO[bytes]) -> FileSum:
        file = _Summed(raw)
        for piece in pieces:
            file.write(piece)
        return file.sum

    return fill


def _check_place(volume: Source, kind: str) -> None:
    """Refuse what `GridAggregator` made of arrays whose place in space was not known."""
    meta = volume.meta
    computed = meta.source is not None and meta.source.format == "dask"
    if isinstance(volume, Volume) and computed and not meta.orientation and not meta.affine:
        raise InvalidInput(
            f"{volume.path} was made from arrays that know neither spacing nor orientation, and as"
            f" {kind} it would lie mirrored beside its scan; aggregate it again with"
            ' GridAggregator(…, like="scan.zarr"), or export a .npy'
        )


def _in_slabs(
    volume: Source, dtype: np.dtype[Any], budget: int, together: int
) -> tuple[Source, int]:
    """Return a volume as it is read, and planes per slab: a layer of chunks where it fits.

    Each chunk is then decoded once. In less memory a slab of a Zarr volume is put together out of
    boxes, as zarr holds all chunks that a box cuts.
    """
    size_y, size_x = volume.shape[-2:]
    # Beside a slab lies one plane in the file's dtype.
    plane = together * size_y * size_x * max(volume.dtype.itemsize, dtype.itemsize)
    fits = (budget // plane - 1) // 2  # a slab is held twice while it is read
    if fits < 1:
        channels = f" in {together} channels" if together > 1 else ""
        raise MemoryRefused(
            f"a plane of {size_y} × {size_x} voxels{channels} needs memory of"
            f" {format_bytes(3 * plane)}, given {format_bytes(budget)}; raise memory= (--memory)"
        )
    if not isinstance(volume, Volume):
        return volume, min(fits, volume.piece[-3])
    # Packed, unpacked, as a part of a shard, and in its place in the box.
    cost = 4 * volume.dtype.itemsize
    chunk = BlockGrid(volume.shape, volume.chunks)
    beside = (budget - cost * math.prod(chunk.block)) // plane - 1
    # Where not even a chunk fits, one is read all the same.
    depth = min(fits, beside if beside > 0 else fits, volume.piece[-3])
    room = (budget - (depth + 1) * plane) // cost
    slab = (together, *volume.chunks[-3:-2], size_y, size_x)[-volume.ndim :]
    reach = widened(chunk, slab, lambda reach: math.prod(chunk.block) * math.prod(reach) <= room)
    box = tuple(side * count for side, count in zip(chunk.block, reach, strict=True))
    return Piecewise(volume, box), depth


class _Summed:
    """A file that sums up what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sum = file, FileSum()

    def write(self, data: Any) -> None:
        """Write bytes."""
        written = bytes(data)
        self.sum = self.sum.of(written)
        self.file.write(written)


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(
            f"{path} cannot be written: {error.strerror or error}; nothing is left of it, free "
            "space or choose another place"
        ) from error
