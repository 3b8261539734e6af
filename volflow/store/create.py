"""Make a new, empty OME-Zarr volume."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from volflow.errors import InvalidInput
from volflow.store.aside import folder_aside, replace_folder, sweep
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.lease import check_lease
from volflow.store.meta import Level, VolumeSpec
from volflow.store.ngff import write_group
from volflow.store.opening import is_zarr, open_node
from volflow.store.remote.address import Address, Location, location, remove_tree
from volflow.store.unfinished.root import ROOT, WITHHELD, is_unfinished, withheld_group, withhold
from volflow.store.volume import Volume, open_volume

__all__ = ["add_array", "check_target", "create", "create_store", "open_begun"]

LEFT_OVER = re.compile(r"(.+/)?(zarr\.json(\.unfinished)?|c(/\d+)+)")  # metadata and shards


def create(
    path: str | os.PathLike[str],
    spec: VolumeSpec,
    *,
    overwrite: bool = False,
    finished: bool = True,
) -> Volume:
    """Make an OME-Zarr 0.5 volume whose voxels are all 0; shards of zeros take no space.

    Level 0 is the array ``"0"`` of the group. The store appears under its name when it is complete.

    Parameters
    ----------
    path
        Path of the new directory, or a URL.
    spec
        Shape (``zyx`` or ``czyx``), dtype, layout and metadata.
    overwrite
        Replace an existing volume. Anything other than a Zarr image is never replaced.
    finished
        False for the output of a run: its root metadata are withheld until `publish`, and until
        then only `open_begun` opens it.

    Raises
    ------
    InvalidInput
        If an argument is invalid; anything at the path is unchanged then.
    Superseded
        If this process held the lease on the output, and another driver took it over.

    Examples
    --------
    >>> import tempfile
    >>> from volflow.store.meta import Meta
    >>> folder = tempfile.mkdtemp()
    >>> spec = VolumeSpec.of((200, 300, 300), "uint8", Meta(unit="millimeter"), shard=128)
    >>> create(f"{folder}/a.zarr", spec)
    Volume(a.zarr, zyx 200×300×300 uint8, spacing 1×1×1 millimeter, chunks 64×64×64,
           shards 128×128×128)
    """
    meta = spec.meta
    target = check_target(path, overwrite=overwrite)

    def fill(place: str | MemoryStore) -> None:
        group = zarr.create_group(place)
        add_array(group, "0", spec, spec.dtype.type(0).item())
        write_group(group, meta, [Level("0", meta.spacing, meta.translation)])

    _make(location(target), fill, overwrite=overwrite, finished=finished)
    return open_volume(target) if finished else open_begun(target)


def create_store(path: Location) -> None:
    """Make a store of several outputs, whose root is withheld until `publish`.

    Raises
    ------
    InvalidInput
        If it cannot be made.
    Superseded
        As `create`.
    """
    _make(path, zarr.create_group, overwrite=False, finished=False)


def open_begun(path: str | os.PathLike[str]) -> Volume:
    """Open an output as its own run does, be it finished or not.

    Raises
    ------
    InvalidInput
        If it is not a volume, or its metadata are damaged.
    """
    at = location(path).absolute()
    # Of several volumes, one may be in place already while the store around them is not.
    begun = isinstance(at, Address) or is_unfinished(at) or is_unfinished(at.parent)
    return open_volume(withheld_group(at) if begun else at)


def add_array(group: zarr.Group, name: str, spec: VolumeSpec, fill_value: Any) -> zarr.Array[Any]:
    """Create the Zarr array of a level, with the spec's shape and dtype."""
    return group.create_array(
        name,
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=spec.chunk,
        shards=spec.shard,
        compressors=ZstdCodec(level=1),
        fill_value=fill_value,
        dimension_names=spec.meta.axes,
    )


def check_target(path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
    """Return the absolute path or URL of a new volume, checked; nothing is changed.

    Raises
    ------
    InvalidInput
        If the name has the suffix of another format, the parent folder is missing, or the path
        exists and may not be replaced.
    """
    target = os.fspath(path)
    if isinstance(at := location(target), Address):
        _check_name(PurePosixPath(target))
        return _check_address(at, overwrite)
    local = Path(target.removeprefix("file://")).expanduser().absolute()
    if not is_zarr(local.parent):  # inside a store any name is allowed
        _check_name(local)
    if not local.parent.is_dir():
        raise InvalidInput(f"the folder {local.parent} does not exist; make it first")
    if not local.exists() or (local.is_dir() and not any(local.iterdir())):
        return str(local)
    if not overwrite:
        raise InvalidInput(f"{local} exists; choose another name or overwrite=True")
    if local.is_symlink() or not local.is_dir() or not is_zarr(local) or not _replaceable(local):
        raise InvalidInput(
            f"{local} exists and is not a Zarr image, so it is not overwritten; remove it "
            "yourself or choose another name"
        )
    return str(local)


def _check_address(at: Address, overwrite: bool) -> str:
    opens = _opens(str(at))
    if opens and not overwrite:
        raise InvalidInput(f"{at} exists; choose another name or overwrite=True")
    if not opens and next(iter(at.glob("*")), None) is not None and not _is_left_over(at):
        raise InvalidInput(
            f"{at} holds objects and is not a Zarr image, so it is not overwritten; remove them"
            " yourself or choose another name"
        )
    return str(at)


def _is_left_over(at: Address) -> bool:
    """Return True of what is left of an output of ours, such as when its deletion was cut off."""
    journal = Address(f"{at}.volflow")
    if not (journal / "plan.json").exists():
        return False
    return all(LEFT_OVER.fullmatch(one.relative_to(at)) for one, _ in at.below())


def _make(at: Location, fill: Callable[[Any], object], *, overwrite: bool, finished: bool) -> None:
    """Make what ``fill`` writes appear at once, on a disk; on a store what makes it one, last."""
    try:
        if isinstance(at, Address):
            kept: dict[str, Any] = {}
            fill(MemoryStore(kept))
            check_lease(at)
            if overwrite:
                remove_tree(at)
            _upload(at, kept, finished=finished)
        else:
            # Written under a temporary name, renamed at the end: interrupted, it leaves nothing.
            sweep(at)
            with folder_aside(at) as aside:
                fill(str(aside))
                if not finished:
                    withhold(aside)
                replace_folder(aside, at)
    except OSError as error:
        raise InvalidInput(
            f"{at} cannot be created: {error.strerror or error}; choose another path"
        ) from error


def _upload(at: Address, objects: Mapping[str, Any], *, finished: bool) -> None:
    """Write the metadata of a volume, last what makes it one."""
    for key in sorted(objects, key=lambda key: (-key.count("/"), key)):
        name = WITHHELD if key == ROOT and not finished else key
        (at / name).write_bytes(objects[key].to_bytes())


def _check_name(path: PurePath) -> None:
    """Refuse a name with the suffix of another format; a number after a dot is not a suffix."""
    if re.fullmatch(r"(?!\.zarr$)\.[a-z]\w*", path.suffix, re.IGNORECASE):
        stem = re.sub(r"\.(nii|tar|ome)$", "", path.stem, flags=re.IGNORECASE)
        raise InvalidInput(
            f'{path.name} cannot name a Zarr volume: "{path.suffix}" is the suffix of another'
            f' format; write to "{stem}.zarr", and export the result for'
            " .nii.gz, .tif, .h5 and others (vf.export, volflow export)"
        )


def _replaceable(path: Path) -> bool:
    """Return True of an image, and of several outputs that a journal beside them vouches for."""
    return _opens(str(path)) or (journal_dir(path) / "plan.json").exists()


def _opens(path: str) -> bool:
    """Return True if the path holds an image or array, even one that volflow cannot read."""
    if is_unfinished(location(path)):
        return True
    try:
        node = open_node(path)[1]
    except InvalidInput:
        return False
    if isinstance(node, zarr.Array):
        return True
    attributes: dict[str, Any] = node.attrs.asdict()
    ome = attributes.get("ome", attributes)
    return isinstance(ome, dict) and "multiscales" in ome
