"""Neuroglancer's precomputed volumes as sources: one of the scales of a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from volflow.errors import Damaged, InvalidInput
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.chunked.tensorstore_source import (
    TensorStoreSource,
    below,
    chunked_source,
    json_object,
)
from volflow.store.meta import Meta, SourceInfo

__all__ = ["holds_precomputed", "open_precomputed"]

INFO = "info"
MOST_NAMED = 12  # in a message


def holds_precomputed(folder: Path) -> bool:
    """Return True if a folder has the ``info`` of a volume; meshes and skeletons have another."""
    try:
        with (folder / INFO).open("rb") as file:
            start = file.read(2**16)
    except OSError:
        return False
    return start.lstrip()[:1] == b"{" and (b'"scales"' in start or b"multiscale_volume" in start)


def open_precomputed(path: str, choice: ImageChoice) -> TensorStoreSource:
    """Open a scale of a precomputed volume, the first by default; reads no voxel.

    Raises
    ------
    InvalidInput
        If there is no such scale, or a volume cannot hold it.
    Damaged
        If its ``info`` is damaged.
    """
    info = json_object(Path(path) / INFO)
    try:
        scales = info["scales"]
        level = _level(path, scales, choice.level)
        meta = _meta(info, scales[0], scales[level])
        chunks = below(Path(path), str(scales[level]["key"]))
    except InvalidInput as error:
        raise type(error)(str(error) if path in str(error) else f"{path}: {error}") from None
    except Exception as error:  # any value may have any type
        raise Damaged(
            f"{path}: damaged info ({type(error).__name__}: {error!s:.200}); restore it"
        ) from error
    store = {"driver": "file", "path": f"{path}/"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": store, "scale_index": level}
    return chunked_source(path, spec, chunks, "xyzc", choice, meta)


def _level(path: str, scales: Any, wanted: Any) -> int:
    """Return the number of a scale, given it or its key; of none, the first."""
    keys = [str(scale["key"]) for scale in scales]
    if wanted in keys:
        return keys.index(wanted)
    number = int(wanted) if str(wanted).isdigit() else 0 if wanted is None else -1
    if not 0 <= number < len(keys):
        known = ", ".join(keys[:MOST_NAMED])
        raise InvalidInput(
            f"{path} has {len(keys)} levels, given level {wanted}; choose 0 to {len(keys) - 1}"
            f" ({known})"
        )
    return number


def _meta(info: Mapping[str, Any], first: Mapping[str, Any], scale: Mapping[str, Any]) -> Meta:
    """Return the metadata of space; lengths are nanometres, places those of voxels' centres."""
    x, y, z = (float(size) for size in scale["resolution"])
    begin = [float(voxel) for voxel in scale.get("voxel_offset", (0, 0, 0))]
    finest = [float(size) for size in first["resolution"]]
    places = [
        at * size + (size - fine) / 2
        for at, size, fine in zip(begin, (x, y, z), finest, strict=True)
    ]
    return Meta(
        spacing=(z, y, x),
        unit="nanometer",
        translation=(places[2], places[1], places[0]),
        kind="classes" if info.get("type") == "segmentation" else "image",
        source=SourceInfo("precomputed", str(info["data_type"])),
    )
