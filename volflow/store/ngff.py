"""OME-Zarr metadata: reads and writes versions 0.4, in Zarr v2, and 0.5.

Metadata that NGFF cannot express (the world affine, the header of the source file) are stored
under the group attribute ``"volflow"``.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore

from volflow.errors import Damaged, InvalidInput
from volflow.geometry.units import unit_name
from volflow.store.atomic import plain
from volflow.store.meta import Level, Meta, SourceInfo, Vector, check_spacing, is_color
from volflow.store.opening import label, nodes_below, open_node

__all__ = ["Level", "Meta", "SourceInfo", "image_in", "read_group", "write_group", "write_levels"]

# The letter names the direction in which the index grows (RFC-4 spells it out).
_DIRECTIONS = {
    "R": "left-to-right",
    "L": "right-to-left",
    "A": "posterior-to-anterior",
    "P": "anterior-to-posterior",
    "S": "inferior-to-superior",
    "I": "superior-to-inferior",
}
_LETTERS = {text: letter for letter, text in _DIRECTIONS.items()}
MOST_LEVELS = 64  # each halves an axis
MOST_LOOKED_AT, MOST_NAMED = 1000, 12  # nodes of a group; images in a message
_PALETTE = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


def write_group(group: zarr.Group, meta: Meta, levels: Sequence[Level]) -> None:
    """Write OME-Zarr image metadata, 0.5 into a Zarr v3 group, 0.4 into one of v2.

    Other attributes of the group are kept, except those that hold only for the other kind (image
    or label map). The level arrays must exist.

    Parameters
    ----------
    group
        A Zarr group.
    meta
        Metadata of level 0.
    levels
        The arrays, finest first.
    """
    array = group[levels[0].path]
    if not isinstance(array, zarr.Array):
        raise InvalidInput(f"level {levels[0].path!r} of {label(group)} is not an array")
    old: dict[str, Any] = group.attrs.asdict()
    ome: dict[str, Any] = dict(old["ome"]) if isinstance(old.get("ome"), Mapping) else {}
    for name in ("image-label", "omero"):  # at most one of them applies
        ome.pop(name, None)
    older = group.metadata.zarr_format == 2
    version = {"version": "0.4" if older else "0.5"}
    image = {
        "name": group.name.strip("/") or "image",
        "axes": [_axis(meta, name) for name in meta.axes],
        "datasets": [_dataset(meta, level) for level in levels],
    }
    ome["multiscales"] = [image | (version if older else {})]
    if meta.kind == "classes" and array.dtype.kind in "iu":
        ome["image-label"] = {**version, **_label_colors(meta)}
    elif meta.channels and "c" in meta.axes:
        ome["omero"] = {"channels": _channels(meta, array.dtype)}
    said = ome if older else {"ome": {**ome, **version}}
    group.update_attributes({**said, "volflow": _extra(meta)})


def write_levels(group: zarr.Group, meta: Meta, levels: Sequence[Level]) -> None:
    """Replace the list of levels in the metadata of an image; the rest is unchanged.

    Parameters
    ----------
    group, meta, levels
        As in `write_group`; ``group`` must have image metadata already.
    """
    ome: Any = plain(group.attrs["ome"])
    image = ome["multiscales"][0]
    image["datasets"] = [_dataset(meta, level) for level in levels]
    # Each level states its whole scale; the type says how the coarser ones were made.
    image.pop("coordinateTransformations", None)
    image["type"] = "mode" if meta.kind == "classes" else "mean"
    group.update_attributes({"ome": ome})


def image_in(group: zarr.Group, path: str | None) -> tuple[zarr.Group, str | None]:
    """Return the image that is meant by a group and its path: the group, or the one image in it.

    Images lie side by side in what bioformats2raw writes, and in a group of labels.

    Raises
    ------
    InvalidInput
        If several lie in it.
    """
    if _ome(group.attrs.asdict()).get("multiscales"):
        return group, path
    found = {name: image for name in _named(group) if (image := _image(group, name)) is not None}
    if len(found) > 1:
        listed = ", ".join(list(found)[:MOST_NAMED]) + (", …" if len(found) > MOST_NAMED else "")
        raise InvalidInput(
            f"{label(group)} holds several images; open one, as"
            f" {label(group)}/{next(iter(found))}; there are {listed}"
        )
    for name, image in found.items():
        return image, path and f"{path.rstrip('/')}/{name}"
    return group, path


def _named(group: zarr.Group) -> list[str]:
    """Return the names of what may be images in a group: as it says them, else of its folders."""
    ome = _ome(group.attrs.asdict())
    names = ome.get("labels")
    if names is None and "bioformats2raw.layout" in ome:
        node = _child(group, "OME")
        names = [] if node is None else _ome(node.attrs.asdict()).get("series")
    if names is None and isinstance(group.store, LocalStore):
        with os.scandir(label(group)) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir())
    names = names if isinstance(names, list) else []
    return [name for name in names if isinstance(name, str)][:MOST_LOOKED_AT]


def _image(group: zarr.Group, name: str) -> zarr.Group | None:
    node = _child(group, name)
    return node if node is not None and _ome(node.attrs.asdict()).get("multiscales") else None


def _child(group: zarr.Group, name: str) -> zarr.Group | None:
    """Return a group below another; None if there is none that can be read."""
    if ".." in PurePosixPath(name).parts:
        return None
    try:
        local = isinstance(group.store, LocalStore)
        node = open_node(f"{label(group)}/{name}")[1] if local else group[name]
    except Exception:  # missing, or damaged in any way
        return None
    return node if isinstance(node, zarr.Group) else None


def _ome(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what attributes say by NGFF: 0.5 keeps it under a name, 0.4 beside all others."""
    ome = attributes.get("ome", attributes)
    return ome if isinstance(ome, Mapping) else {}


def read_group(group: zarr.Group) -> tuple[Meta, tuple[Level, ...]]:
    """Read the metadata of an OME-Zarr 0.4 or 0.5 image or label image.

    Returns
    -------
    Meta
        Metadata of the first level.
    tuple of Level
        All levels, finest first.

    Raises
    ------
    InvalidInput
        If the group is not an image, or its metadata cannot be parsed.
    """
    attributes: dict[str, Any] = group.attrs.asdict()
    ome = _ome(attributes)
    multiscales = ome.get("multiscales")
    if not multiscales:
        inside = nodes_below(Path(label(group))) if isinstance(group.store, LocalStore) else ""
        raise InvalidInput(
            f"{label(group)} is a Zarr group, but not an image: it has no multiscales metadata; "
            + (f"open one inside: {inside}" if inside else "give the path of an array or image")
        )
    try:
        with np.errstate(all="ignore"):  # overflows are refused below, as infinite values
            return _parse(ome, multiscales[0], attributes.get("volflow") or {})
    except InvalidInput as error:
        raise type(error)(f"{label(group)}: {error}") from None
    except Exception as error:  # any value may have any type
        raise Damaged(
            f"{label(group)}: damaged OME-Zarr metadata ({type(error).__name__}: {error}); "
            "0.4 or 0.5 is expected"
        ) from error


def _parse(
    ome: Mapping[str, Any], image: Mapping[str, Any], extra: Mapping[str, Any]
) -> tuple[Meta, tuple[Level, ...]]:
    if "axes" not in image:
        datasets = image.get("datasets")
        first = datasets[0]["path"] if datasets else "0"
        raise InvalidInput(
            f"OME-Zarr before 0.4 does not say its axes; open its array {first!r} in it, which is"
            " read as t, c, z, y, x, and say its spacing"
        )
    axes: list[Mapping[str, Any]] = [
        {"name": axis} if isinstance(axis, str) else axis for axis in image["axes"]
    ]
    names = tuple(_axis_name(axis) for axis in axes)
    scale, shift = _transform(image.get("coordinateTransformations", ()), len(axes))
    datasets = image["datasets"]
    if len(datasets) > MOST_LEVELS:
        raise Damaged(f"it lists {len(datasets)} levels; at most {MOST_LEVELS} are possible")
    levels = []
    for dataset in datasets:
        own, moved = _transform(dataset.get("coordinateTransformations"), len(axes))
        levels.append(
            Level(
                str(dataset["path"]),
                _spatial(names, own * scale, 1.0),
                _spatial(names, moved * scale + shift, 0.0),
            )
        )
        check_spacing(levels[-1].scale)
    channels = list((ome.get("omero") or {}).get("channels") or ())
    colors = [str(channel.get("color")) for channel in channels]
    labels = [str(channel.get("label") or "") for channel in channels]
    if extra:  # our own group: omero then holds a default palette, not the user's colours
        colors = [str(color) for color in extra.get("colors", ())]
    meta = Meta(
        axes=names,
        spacing=levels[0].scale,
        unit=_read_unit(names, axes),
        translation=levels[0].translation,
        orientation=_read_orientation(names, axes),
        affine=extra.get("affine"),
        channels=tuple(extra.get("channels") or (labels if any(labels) else ())),
        kind=str(extra.get("kind", "classes" if "image-label" in ome else "image")),
        colors=tuple(colors) if all(map(is_color, colors)) else (),
        source=_read_source(extra.get("source")),
        made=_read_made(extra.get("made")),
    )
    return meta, tuple(levels)


def _read_unit(names: Sequence[str], axes: Sequence[Mapping[str, Any]]) -> str | None:
    known = [axis.get("unit") for name, axis in zip(names, axes, strict=True) if name in "zyx"]
    units = {unit_name(unit) for unit in known}
    if len(units) > 1:
        raise InvalidInput(
            f"the spatial axes have different units, {units}; write them in one in its metadata,"
            " or open one of its arrays and say spacing and unit"
        )
    return units.pop() if units else None


def _read_orientation(names: Sequence[str], axes: Sequence[Mapping[str, Any]]) -> str | None:
    """Return three letters, or None if an axis has no anatomical orientation."""
    letters = ""
    for name, axis in zip(names, axes, strict=True):
        value = axis.get("orientation")
        if name in "zyx" and isinstance(value, Mapping):
            letters += _LETTERS.get(str(value.get("value")), "")
    return letters if len(letters) == 3 else None


def _read_source(source: Mapping[str, Any] | None) -> SourceInfo | None:
    if not source:
        return None
    header = base64.b64decode(source["header"])
    return SourceInfo(str(source["format"]), str(source["dtype"]), header)


def _axis_name(axis: Mapping[str, Any]) -> str:
    """Return the one-letter name of an axis, by its type for channels and time."""
    kinds = {"channel": "c", "time": "t"}
    return kinds.get(str(axis.get("type")), str(axis["name"]).lower())


def _transform(
    steps: Sequence[Mapping[str, Any]] | None, ndim: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if steps is None:
        raise InvalidInput("a level has no coordinateTransformations, so its scale is unknown")
    scale, shift = np.ones(ndim), np.zeros(ndim)
    for step in steps:
        if step["type"] == "scale":
            factors = _entries(step["scale"], ndim)
            scale, shift = scale * factors, shift * factors
        elif step["type"] == "translation":
            shift = shift + _entries(step["translation"], ndim)
        elif step["type"] != "identity":
            raise InvalidInput(f"transformation {step['type']!r} is not scale or translation")
    return scale, shift


def _entries(values: Any, ndim: int) -> np.ndarray[Any, Any]:
    numbers = np.asarray(values, dtype=float)
    if numbers.shape != (ndim,):
        raise InvalidInput(
            f"a transformation must have one entry for each of {ndim} axes, given {values!r:.80}"
        )
    return numbers


def _spatial(names: Sequence[str], values: np.ndarray[Any, Any], missing: float) -> Vector:
    known = dict(zip(names, values.tolist(), strict=True))
    return (known.get("z", missing), known["y"], known["x"])


def _axis(meta: Meta, name: str) -> dict[str, Any]:
    if name not in "zyx":
        return {"name": name, "type": "channel" if name == "c" else "time"}
    axis: dict[str, Any] = {"name": name, "type": "space"}
    if meta.unit:
        axis["unit"] = meta.unit
    if meta.orientation:
        value = _DIRECTIONS[meta.orientation["zyx".index(name)]]
        axis["orientation"] = {"type": "anatomical", "value": value}
    return axis


def _dataset(meta: Meta, level: Level) -> dict[str, Any]:
    front = len(meta.axes) - 3
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * front + [*level.scale]}]
    if any(level.translation):
        steps.append({"type": "translation", "translation": [0.0] * front + [*level.translation]})
    return {"path": level.path, "coordinateTransformations": steps}


def _channels(meta: Meta, dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype.kind in "iu" else (0.0, 1.0)
    window = {"min": float(low), "max": float(high), "start": float(low), "end": float(high)}
    colors = meta.colors if len(meta.colors) == len(meta.channels) else _PALETTE
    return [
        {"label": name, "color": colors[n % len(colors)], "active": True, "window": window}
        for n, name in enumerate(meta.channels)
    ]


def _label_colors(meta: Meta) -> dict[str, Any]:
    colors = [
        {"label-value": n, "rgba": [*bytes.fromhex(color), 255 if n else 0]}
        for n, color in enumerate(meta.colors)
    ]
    return {"colors": colors} if colors else {}


def _read_made(saved: Any) -> str:
    """Return what made the voxels as text; ``""`` where it is not as `Meta.made` has it."""
    known = isinstance(saved, Mapping) and all(
        isinstance(saved.get(name), str) for name in ("model", "weights")
    )
    known = known and isinstance(saved.get("options", {}), Mapping)
    return json.dumps(saved) if known else ""


def _extra(meta: Meta) -> dict[str, Any]:
    extra: dict[str, Any] = {"kind": meta.kind}
    if meta.affine:
        extra["affine"] = [list(row) for row in meta.affine]
    if meta.channels:
        extra["channels"] = list(meta.channels)
    if meta.colors:
        extra["colors"] = list(meta.colors)
    if meta.source:
        extra["source"] = {
            "format": meta.source.format,
            "dtype": meta.source.dtype,
            "header": base64.b64encode(meta.source.header).decode(),
        }
    if meta.made:
        extra["made"] = json.loads(meta.made)
    return extra
