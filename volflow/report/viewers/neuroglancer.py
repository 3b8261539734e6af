"""The state with which Neuroglancer shows volumes: layers, colours, windows, place, direction.

It is plain data, as https://neuroglancer-docs.web.app/json/api/ describes it, and travels in the
fragment of a link.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.units import NGFF_UNITS, metres
from volflow.report.viewers.appearance import CLASS_OPACITY, SCORE_OPACITY, Appearance, direction
from volflow.report.viewers.computed_chunks import ComputedStore
from volflow.store.atomic import read_json
from volflow.store.volume import Volume

__all__ = ["as_bytes", "class_names", "fragment", "viewer_state"]

State = dict[str, Any]

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float32")
CODECS = {
    "blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zlib", "zstd",
}  # fmt: skip
VERSIONS = ("0.4", "0.5")
PANEL_PIXELS = 420  # of one of four panels of a browser's window; the volume fits it

CONTROLS = """#uicontrol invlerp normalized
#uicontrol vec3 color color(default="{color}")
"""
# Channels of one image add up; what lies over an image hides it where it is strong.
ADDED = CONTROLS + "void main() {{ emitRGB(color * normalized()); }}\n"
OVERLAID = CONTROLS + "void main() {{ emitRGBA(vec4(color, normalized())); }}\n"


def viewer_state(shown: Sequence[Appearance], address: str) -> State:
    """Return the state that shows layers over each other, cut through the middle of the first.

    Parameters
    ----------
    shown
        The first is the ground.
    address
        Of the server: it has the volumes at ``/volumes/0/``, ``/volumes/1/``, …, and what
        `class_names` says of them at ``/names/0/info``, ….

    Returns
    -------
    dict
        Scales are in metres. Lengths count voxels of the first volume, as Neuroglancer does.

    Raises
    ------
    InvalidInput
        If Neuroglancer cannot show a volume.
    """
    # What belongs to a volume is done once, however many channels it has.
    volumes = [one for one in shown if one.channel == 0]
    for one in volumes:
        _check(one.volume)
    sources = {one.number: _source(one, f"{address}/volumes/{one.number}") for one in volumes}
    ground = shown[0].volume
    space = [axis for axis in "xyz" if axis in ground.stored_axes]
    dimensions, corner = _dimensions(shown[0]), _corner(ground)
    sizes = dict(zip("zyx", ground.spatial_shape, strict=True))
    # In shortest sides of a voxel, as Neuroglancer counts what a pixel of the screen shows.
    longest = float(max(np.multiply(ground.spatial_shape, ground.spacing)) / min(ground.spacing))
    state: State = {
        "title": " + ".join(one.name for one in volumes),
        "dimensions": {axis: dimensions[axis] for axis in space},
        # The middle of the middle voxel.
        "position": [corner[axis] + sizes[axis] // 2 + 0.5 for axis in space],
        "crossSectionScale": longest / PANEL_PIXELS,
        "projectionScale": longest * 1.6,
        "layers": [_layer(one, sources[one.number], address) for one in shown],
        "layout": "4panel" if len(space) == 3 else "xy",
        "crossSectionBackgroundColor": "#000000",
        "projectionBackgroundColor": "#000000",
        "showDefaultAnnotations": False,
    }
    named = [one.name for one in shown if one.labels]
    if named:  # the names of its classes stand beside the panels
        state["selectedLayer"] = {"layer": named[-1], "visible": True}
    orientation = next((o for one in shown if (o := one.volume.orientation)), None)
    if orientation and len(space) == 3:
        state["crossSectionOrientation"] = _turn(orientation, down="P", away="I")
        state["projectionOrientation"] = _turn(orientation, down="I", away="P")
    return state


def fragment(state: State) -> str:
    """Return a state as the part of a link after ``#``.

    Examples
    --------
    >>> fragment({"layout": "xy", "title": "a b"})
    '!%7B%22layout%22:%22xy%22,%22title%22:%22a%20b%22%7D'
    """
    text = json.dumps(state, separators=(",", ":"), ensure_ascii=False)
    return "!" + quote(text, safe="~@$&()*!+=:;,.?/'")


def class_names(one: Appearance) -> State:
    """Return the names of classes, without the background, as Neuroglancer's segment properties."""
    values = [value for value in range(len(one.labels)) if value]
    names = [one.labels[value] for value in values]
    return {
        "@type": "neuroglancer_segment_properties",
        "inline": {
            "ids": [str(value) for value in values],
            "properties": [{"id": "label", "type": "label", "values": names}],
        },
    }


def as_bytes(one: Appearance) -> dict[str, str]:
    """Return the metadata of a mask by their paths: what is stored as bool is read as uint8.

    One byte holds a voxel of either, and Neuroglancer knows no bool.
    """
    texts: dict[str, str] = {}
    volume = one.volume
    if volume.dtype.kind != "b":
        return texts
    store = volume.array.store
    if isinstance(store, ComputedStore):
        stored = store.metadata | {"data_type": "uint8", "fill_value": 0}
        return {f"/volumes/{one.number}/zarr.json": json.dumps(stored)}
    v2 = volume.array.metadata.zarr_format == 2
    name, key, dtype = (".zarray", "dtype", "|u1") if v2 else ("zarr.json", "data_type", "uint8")
    for level in volume.levels:
        within = "/".join(filter(None, [level.path.strip("/"), name]))
        stored = read_json(Path(str(volume.path)) / within)
        stored |= {key: dtype, "fill_value": int(bool(stored.get("fill_value")))}
        texts[f"/volumes/{one.number}/{within}"] = json.dumps(stored)
    return texts


def _check(volume: Volume) -> None:
    """Refuse what Neuroglancer cannot show, in one line."""
    # Masks are served as bytes. Of Zarr v2 it takes int64 for unsigned, of v3 it refuses it.
    dtypes = (*DTYPES, "bool", *(["int64"] if volume.array.metadata.zarr_format == 2 else []))
    unknown = sorted(set(_codecs(volume.array.metadata.to_dict())) - CODECS)
    if volume.dtype.name not in dtypes:
        what = f"holds {volume.dtype}, which Neuroglancer cannot show ({', '.join(dtypes)})"
    elif unknown:
        what = f"is compressed with {', '.join(unknown)}, which Neuroglancer cannot read"
    else:
        return
    if volume.path is None:
        raise InvalidInput(f'an array {what}; give it in one of these: array.astype("int32")')
    raise InvalidInput(f"{volume.path} {what}; look at it in napari: volflow view --napari")


def _codecs(metadata: Any) -> Iterator[str]:
    """Yield the names of all codecs in the metadata of an array of either Zarr format."""
    if metadata.get("zarr_format") == 2:
        given = [metadata.get("compressor"), *(metadata.get("filters") or ())]
        yield from (codec["id"] for codec in given if codec)
        return
    for codec in (*metadata.get("codecs", ()), *metadata.get("index_codecs", ())):
        yield codec["name"]
        yield from _codecs(codec.get("configuration") or {})


def _dimensions(one: Appearance) -> dict[str, list[Any]]:
    """Return scale and unit of each stored axis, by its name in the viewer.

    An apostrophe makes a dimension that belongs to one layer alone.
    """
    factor = metres(one.unit)
    sizes = {
        axis: [size * (factor or 1.0), "m" if factor else ""]
        for axis, size in zip("zyx", one.volume.spacing, strict=True)
    }
    return {
        axis if axis in sizes else f"{axis}'": sizes.get(axis, [1.0, ""])
        for axis in one.volume.stored_axes
    }


def _corner(volume: Volume) -> dict[str, float]:
    """Return where the first voxel begins, counted in voxels: half of one before its centre."""
    meta = volume.meta
    places = zip("zyx", meta.translation, meta.spacing, strict=True)
    return {axis: shift / size - 0.5 for axis, shift, size in places}


def _layer(one: Appearance, source: State, address: str) -> State:
    layer: State = {"name": one.layer, "source": source, **_local(one)}
    if one.window is None:
        layer |= {"type": "segmentation", "source": [source], "selectedAlpha": CLASS_OPACITY}
        if one.colors:
            layer["segmentColors"] = {str(n): color for n, color in enumerate(one.colors) if n}
        if one.labels:
            layer["source"].append(f"precomputed://{address}/names/{one.number}")
            layer["segments"] = class_names(one)["inline"]["ids"]
            layer["tab"] = "segments"
        return layer
    window, overlay = list(one.window), one.number > 0
    layer |= {"type": "image", "opacity": SCORE_OPACITY if overlay else 1}
    layer["shaderControls"] = {"normalized": {"range": window, "window": window}}
    if one.color:
        layer["shader"] = (OVERLAID if overlay else ADDED).format(color=one.color)
    if one.channel and not overlay:
        layer["blend"] = "additive"
    if not one.visible:
        layer["visible"] = False
    return layer


def _local(one: Appearance) -> State:
    """Return the channel and timepoint of a layer, if the array has such axes."""
    volume = one.volume
    at = {"c": one.channel, "t": volume.timepoint or 0}
    axes = [axis for axis in volume.stored_axes if axis in at]
    if not axes:
        return {}
    return {
        "localDimensions": {f"{axis}'": [1, ""] for axis in axes},
        "localPosition": [at[axis] for axis in axes],
    }


def _source(one: Appearance, url: str) -> State:
    """Return the address of a layer's voxels, and the names and scales of its axes."""
    volume = one.volume
    transform: State = {"outputDimensions": _dimensions(one)}
    url = f"zarr{volume.array.metadata.zarr_format}://{url}/"
    if not _reads_levels(volume):
        # The finest level alone, given its scales and put in its place.
        url += f"{quote(volume.levels[0].path)}/" if volume.levels[0].path else ""
        corner, axes = _corner(volume), volume.stored_axes
        scales = transform["outputDimensions"].values()
        transform["inputDimensions"] = dict(zip(_own_names(volume), scales, strict=True))
        transform["matrix"] = [
            [float(row == column) for column in axes] + [corner.get(row, -0.5)] for row in axes
        ]
    return {"url": url, "transform": transform}


def _own_names(volume: Volume) -> list[str]:
    """Return the names that Neuroglancer gives the axes of an array without a pyramid."""
    metadata, count = volume.array.metadata, volume.array.ndim
    if metadata.zarr_format == 2:  # where anything may stand in the attributes
        prefix, names = "d", volume.array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    else:
        prefix, names = "dim_", metadata.dimension_names
    given = names if isinstance(names, list | tuple) and len(names) == count else [None] * count
    return [
        name if isinstance(name, str) and name else f"{prefix}{number}"
        for number, name in enumerate(given)
    ]


def _reads_levels(volume: Volume) -> bool:
    """Return True if Neuroglancer understands the metadata of the pyramid."""
    if not volume.levels[0].path:
        return False
    group = zarr.open_group(volume.path, mode="r", use_consolidated=False)
    attributes: dict[str, Any] = group.attrs.asdict()
    ome: Any = attributes.get("ome", attributes)
    image = ome["multiscales"][0]
    version = ome.get("version") if "ome" in attributes else image.get("version")
    # As they are spelled there: it refuses others.
    units = {axis.get("unit") for axis in image["axes"] if axis.get("type") == "space"}
    return version in VERSIONS and units <= {None, *NGFF_UNITS}


def _turn(orientation: str, *, down: str, away: str) -> list[float]:
    """Return the rotation that turns ``down`` to the screen's lower edge and ``away`` into it.

    Parameters
    ----------
    orientation
        Of the index along z, y, x.
    down, away
        Letters of directions.

    Returns
    -------
    list of float
        A quaternion x, y, z, w. It turns without mirroring: which of left and right is on the
        right of the screen follows from the voxels' own order.
    """
    downwards, inwards = direction(orientation, down), direction(orientation, away)
    turn = np.stack([np.cross(downwards, inwards), downwards, inwards], axis=1)
    skew, trace = turn - turn.T, np.trace(turn)
    vector = np.array([skew[2, 1], skew[0, 2], skew[1, 0]])
    # Four times the outer product of the quaternion with itself (Shepperd 1978): its row with the
    # largest diagonal is the quaternion but for its length.
    square = turn + turn.T + (1 - trace) * np.eye(3)
    rows = np.block([[square, vector[:, None]], [vector, 1 + trace]])
    row = rows[int(np.argmax(np.diag(rows)))]
    return [float(value) for value in row / np.linalg.norm(row)]
