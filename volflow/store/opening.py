"""Open and check the Zarr array of a volume; each refusal is one line with the reason."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import zarr
from zarr.errors import NodeNotFoundError
from zarr.storage import LocalStore, MemoryStore, ObjectStore

from volflow.errors import Damaged, InvalidInput, RunFailed, Unreadable, VolflowError, first_line
from volflow.geometry.roi import Roi
from volflow.store.atomic import read_json
from volflow.store.frames import check_frames
from volflow.store.layout import check_dtype
from volflow.store.meta import Level, Meta
from volflow.store.remote.access import check_reachable, is_remote, listed
from volflow.store.remote.address import Address, Location
from volflow.store.remote.fetched import fetched
from volflow.store.remote.zarr_store import Remote, can_list
from volflow.store.unfinished.root import WITHHELD, refuse_unfinished

__all__ = [
    "absent",
    "check_array",
    "files_below",
    "identity_lines",
    "is_listed",
    "is_url",
    "is_zarr",
    "label",
    "level_array",
    "local_folder",
    "local_path",
    "nodes_below",
    "open_node",
    "plain_meta",
    "read_stored",
    "spatial_meta",
    "stored_objects",
]

Node = zarr.Array[Any] | zarr.Group

_MARKERS = ("zarr.json", ".zarray", ".zgroup")
_DOCUMENTS = (*_MARKERS, ".zattrs")
MOST_CLAIMED = 2**62  # bytes of an array or of a chunk, countable in 64 bits
SMALL_CHUNK = 2**24  # voxels
MOST_INDEXED = 2**22  # chunks of a shard, whose index is read whole
THIS_PROCESS = uuid.uuid4().hex  # in the identity of what cannot be listed
_PLAIN_AXES = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}


def is_url(path: str) -> bool:
    """Return True if a path is a URL that does not name a local file."""
    return "://" in path and not path.startswith("file://")


def is_zarr(path: Location) -> bool:
    """Return True if a directory, or what lies at an address, is a Zarr group or array.

    Also if it is an unfinished output.
    """
    return any((path / name).is_file() for name in (*_MARKERS, WITHHELD))


def open_node(path: str) -> tuple[str, Node]:
    """Open a Zarr array or group at a path or URL, for reading and writing.

    Returns
    -------
    path
        Absolute if it is local, so that it is the same for every worker.
    node
        The array or group there.

    Raises
    ------
    InvalidInput
        If there is no array or group, its metadata are damaged, or its run has not ended.
    """
    if is_remote(path):
        return _open_remote(path.rstrip("/"))
    if not is_url(path):
        local = Path(path.removeprefix("file://")).expanduser().absolute()
        try:
            _check_local(local)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidInput(f"{path:.99} cannot be opened: {reason.lower()}") from error
        _check_documents(local)
        path = str(local)
    try:
        # Consolidated metadata go stale; the nodes' own never do.
        return path, zarr.open(path, mode="r+", use_consolidated=False)
    except NodeNotFoundError:
        raise InvalidInput(f"{path} is not a Zarr array or group; check the address") from None
    except ImportError as error:
        raise InvalidInput(
            f'{path} needs a package that is not installed ({error}); pip install "volflow[cloud]"'
        ) from error
    except Exception as error:  # zarr raises various errors for broken JSON
        text = f"{path} cannot be opened: {type(error).__name__}: {first_line(error)}"
        if is_url(path):
            raise InvalidInput(f"{text}; check the address") from error
        raise Damaged(f"{text}; its metadata are damaged") from error


def _open_remote(url: str) -> tuple[str, Node]:
    try:
        return url, _node_at(url)
    except VolflowError:
        raise
    except NodeNotFoundError:
        raise InvalidInput(f"{url} is not a Zarr array or group; check the address") from None
    except (PermissionError, FileNotFoundError) as error:
        reason = error.strerror or first_line(error)
        raise InvalidInput(f"{url} cannot be opened: {reason}; check the address") from error
    except OSError as error:
        raise RunFailed(
            f"{url} cannot be opened: {error.strerror or first_line(error)}; run the same command"
            " again when the store answers"
        ) from error
    except Exception as error:  # zarr raises various errors for broken JSON
        raise Damaged(
            f"{url} cannot be opened: {type(error).__name__}: {first_line(error)}; its metadata are"
            " damaged"
        ) from error


def _node_at(url: str) -> Node:
    """Return the node at a URL; that its run has not ended is asked only where there is none."""
    at = Address(url)
    try:
        known: Any = 3 if check_reachable(url) else None
        node = zarr.open(Remote(url), mode="r+", use_consolidated=False, zarr_format=known)
    except (NodeNotFoundError, PermissionError):
        refuse_unfinished(at)
        raise
    if known and isinstance(node, zarr.Array) and at.name.isdecimal():  # perhaps a level
        refuse_unfinished(at.parent)
    return node


def _check_documents(path: Path) -> None:
    """Refuse metadata that are not JSON or too large, before zarr reads them."""
    for name in _DOCUMENTS:
        try:
            read_json(path / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidInput(
                f"{path} cannot be opened: {name}: {(error.strerror or str(error)).lower()}"
            ) from error
        except ValueError as error:
            raise Damaged(
                f"{path} cannot be opened: {name}: {first_line(error)}; its metadata are damaged"
            ) from error


def absent(path: Path) -> InvalidInput:
    """Return the error of a path at which there is nothing; of a pattern it says what it is."""
    remedy = "check the path"
    if "{case}" in str(path):
        remedy = "this takes one volume, not a pattern"
    elif "*" in str(path):
        remedy = "many volumes, where they are taken, are written with {case}"
    return InvalidInput(f"{path} does not exist; {remedy}")


def _check_local(path: Path) -> None:
    if not path.exists():
        raise absent(path)
    if not path.is_dir():
        raise InvalidInput(
            f'{path.name} is a file, not a Zarr store; convert it first: vf.convert("{path}", '
            f'"volume.zarr"), or volflow convert {path} volume.zarr (which formats, they say)'
        )
    refuse_unfinished(path)
    if not is_zarr(path):
        inside = nodes_below(path)
        files = "a file in it, or a folder of DICOM or TIFF slices, can be converted"
        remedy = f"open one inside: {inside}" if inside else files
        raise InvalidInput(f"{path} is a directory, but not a Zarr array or group; {remedy}")


def nodes_below(path: Path) -> str:
    """Return the first few Zarr arrays and groups in a local directory, for a message."""
    names = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and is_zarr(entry))
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def local_folder(node: Node) -> Path | None:
    """Return the absolute folder of a node; None if it is not on this machine."""
    store: Any = node.store
    if isinstance(store, LocalStore):
        return (Path(store.root) / node.path).absolute()
    # Dask opens paths through fsspec, which wraps local files in an asynchronous interface.
    files = getattr(getattr(store, "fs", None), "sync_fs", getattr(store, "fs", None))
    protocol = getattr(files, "protocol", ())
    if "file" in ((protocol,) if isinstance(protocol, str) else protocol):
        return (Path(store.path) / node.path).absolute()
    return None


def local_path(node: Node) -> str | None:
    """Return the absolute path of a node, its address if it is remote, None if in memory."""
    if (folder := local_folder(node)) is not None:
        return str(folder)
    address = str(node.store_path)
    return None if address.startswith("memory:") else address


def label(node: Node) -> str:
    """Return the name of a node for a message."""
    return local_path(node) or "the array in memory"


def level_array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Return the array of a level; the metadata may name one that does not exist."""
    try:
        if isinstance(group.store, LocalStore) and ".." not in PurePosixPath(name).parts:
            _check_documents(Path(group.store.root) / group.path / name.strip("/"))
        array = group[name]
    except Exception as error:  # missing, or damaged in any way
        if isinstance(group.store, Remote) and isinstance(error, OSError):
            raise RunFailed(
                f"level {name!r} of {label(group)} cannot be opened: {error.strerror}; run the same"
                " command again when the store answers"
            ) from error
        raise Damaged(
            f"level {name!r} of {label(group)} cannot be opened "
            f"({type(error).__name__}: {first_line(error)}); the store is incomplete or damaged"
        ) from error
    if not isinstance(array, zarr.Array):
        raise Damaged(f"level {name!r} of {label(group)} is a group, not an array")
    return array


def plain_meta(array: zarr.Array[Any]) -> Meta:
    """Return the metadata of a plain array: axes by its dimension names, else by their number."""
    names = getattr(array.metadata, "dimension_names", None)
    if names and all(names):
        try:
            return Meta(tuple(str(name).lower() for name in names))
        except InvalidInput as error:
            # Names such as dim_0 are ignored; x, y, z in another order are refused.
            if set("".join(map(str, names)).lower()) <= set("tczyx"):
                raise InvalidInput(f"{label(array)}: {error}") from None
    if array.ndim not in _PLAIN_AXES:
        raise InvalidInput(
            f"{label(array)} has {array.ndim} axes; a volume has 3 (z, y, x) or 4 (c, z, y, x)"
        )
    return Meta(tuple(_PLAIN_AXES[array.ndim]))


def spatial_meta(meta: Meta, levels: Sequence[Level], level: int) -> Meta:
    """Return the metadata of a level on its own grid, without t and with z."""
    axes = tuple(axis for axis in "czyx" if axis in meta.axes or axis == "z")
    here, first = levels[level], levels[0]
    if level:
        pairs = list(zip(meta.spacing, first.translation, here.translation, strict=True))
        meta = meta.regrid(
            [b / a for a, b in zip(first.scale, here.scale, strict=True)],
            [(there - origin) / size for size, origin, there in pairs],
        )
    return replace(meta, axes=axes)


def check_array(array: zarr.Array[Any], axes: Sequence[str], timepoint: int | None) -> int | None:
    """Return the timepoint to read (None without a time axis); refuse what is not a volume."""
    _check_sizes(array)
    check_dtype(array.dtype, label(array))
    if array.ndim != len(axes):
        raise Damaged(
            f"{label(array)} has {array.ndim} axes, but its metadata name {', '.join(axes)}; "
            "the store is damaged"
        )
    if 0 in array.shape:
        raise InvalidInput(f"{label(array)} of shape {array.shape} is empty")
    count = array.shape[0] if axes[0] == "t" else 0
    if timepoint is None:
        timepoint = 0 if count == 1 else None
        if count > 1:
            raise InvalidInput(
                f"{label(array)} has {count} timepoints; choose one with timepoint=0 to {count - 1}"
                " in vf.open or vf.convert (volflow convert --timepoint)"
            )
    elif not 0 <= timepoint < count:
        given = f"has {count} timepoints" if count else "has no time axis"
        raise InvalidInput(f"{label(array)} {given}, given timepoint {timepoint}")
    return timepoint


def _check_sizes(array: zarr.Array[Any]) -> None:
    """Refuse impossible sizes of an array, its chunks and shards, before computing with them."""
    try:
        shape, chunk, shard = array.shape, array.chunks, array.shards or array.chunks
        voxel = max(1, int(array.dtype.itemsize))
        wrong = min((*chunk, *shard), default=1) < 1 or any(
            math.prod(sizes) * voxel > MOST_CLAIMED for sizes in (shape, chunk, shard)
        )
        wrong = wrong or math.prod(shard) // math.prod(chunk) > MOST_INDEXED
    except Exception as error:  # irregular chunks, dtypes without a size
        raise InvalidInput(
            f"{label(array)} has no regular chunks of numbers ({type(error).__name__}:"
            f" {first_line(error)}); store it again with regular chunks"
        ) from error
    if wrong:
        raise Damaged(
            f"{label(array)} claims shape {shape}, chunks {chunk} and shards {shard}, which is"
            " impossible; its metadata are damaged"
        )


def read_stored(
    array: zarr.Array[Any], index: tuple[int | slice, ...], box: Roi, path: str | None
) -> Any:
    """Return the voxels that an index selects, in the stored dtype.

    Raises
    ------
    Unreadable
        If the stored bytes are damaged.
    RunFailed
        If the store cannot be reached.
    """
    try:
        check_frames(array, index)
        return fetched(array, index).get_basic_selection(index)
    except Exception as error:  # codecs and stores raise errors of any class
        # For small chunks there is enough memory: the request came from damaged bytes.
        if isinstance(error, MemoryError) and math.prod(array.chunks) > SMALL_CHUNK:
            raise
        # A disk or a network may recover; damaged bytes stay damaged.
        kind = RunFailed if isinstance(error, OSError) else Unreadable
        raise kind(
            f"{path} cannot be read at {box.start}:{box.stop} ({type(error).__name__}:"
            f" {error}); restore the file or write the volume again"
        ) from error


def is_listed(array: zarr.Array[Any]) -> bool:
    """Return True if `stored_objects` can tell whether an array is what it was."""
    if isinstance(array.store, ObjectStore):
        return can_list(array.store, array.path)
    return isinstance(array.store, MemoryStore) or local_folder(array) is not None


def stored_objects(array: zarr.Array[Any]) -> list[str] | None:
    """Return what identifies every stored object of an array; None if they cannot be listed.

    Of a local file its name, size and time, of an object its key, size and ETag.

    Raises
    ------
    RunFailed
        If the store does not answer.
    """
    root = local_folder(array)
    if root is not None:
        return files_below(root)
    if isinstance(array.store, MemoryStore):
        return [str(array.store_path)]
    try:
        return listed(array.store, array.path) if is_listed(array) else None
    except OSError as error:
        raise RunFailed(
            f"{label(array)} cannot be listed: {error.strerror or first_line(error)}; run the same"
            " command again when the store answers"
        ) from error


def files_below(root: Path) -> list[str]:
    """Return a line for each file below a folder, with its name, size and time."""
    lines, pending = [], [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif not entry.name.endswith(".partial"):  # zarr's unfinished files
                    stat = entry.stat()
                    name = Path(entry.path).relative_to(root).as_posix()
                    lines.append(f"{name} {stat.st_size} {stat.st_mtime_ns}\n")
    return sorted(lines)


def identity_lines(array: zarr.Array[Any]) -> list[str]:
    """Return `stored_objects`; where they cannot be listed, what no other process returns."""
    lines = stored_objects(array)
    return [str(array.store_path), THIS_PROCESS] if lines is None else lines
