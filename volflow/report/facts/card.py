"""The card of a volume in a notebook: a small picture of its middle, and a table of facts.

It is cheap whatever the volume: little is decoded, few files are counted, nothing raises.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from html import escape
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput, first_line
from volflow.geometry.budget import format_bytes
from volflow.geometry.units import unit_sign
from volflow.geometry.views import View, views
from volflow.report.colors import (
    PERCENTILES,
    class_color,
    class_numbers,
    shades,
    tinted,
    window,
)
from volflow.report.facts.grid_facts import counted, file_sizes, lengths, short_name, times
from volflow.report.facts.run_state import unfinished

if TYPE_CHECKING:
    from volflow.store.volume import Volume

__all__ = ["decoded_bytes", "png", "thumbnail", "volume_html"]

Array = npt.NDArray[Any]

MOST_DECODED = 2**26  # bytes for a thumbnail
MOST_FILES = 2000
MOST_NAMES = 32
USEFUL = 160  # pixels along the longer side, below which a level shows too little
SHARP, SIDE = 400, 200  # of the thumbnail: pixels at most, and how large it is shown

_TABLE = "border-collapse:collapse;background:transparent;color:inherit;margin:0"
_CELL = "text-align:left;vertical-align:top;border:none;background:transparent;padding:1px 0"
_NAME = f"{_CELL};padding-right:14px;opacity:.65;white-space:nowrap"
_ROW = "background:transparent"
_SWATCH = (
    "display:inline-block;width:.75em;height:.75em;border-radius:2px;margin-right:5px;"
    "border:1px solid rgba(128,128,128,.6);background:"
)


def volume_html(volume: Volume) -> str:
    """Return a volume as HTML that is legible on light and on dark ground.

    Examples
    --------
    >>> import zarr
    >>> from volflow.store.volume import open_volume
    >>> html = volume_html(open_volume(zarr.ones(shape=(30, 40, 50), dtype="uint8")))
    >>> "<img" in html, "z 30 × y 40 × x 50" in html
    (True, True)
    """
    rows = "".join(
        f'<tr style="{_ROW}"><td style="{_NAME}">{name}</td><td style="{_CELL}">{value}</td></tr>'
        for name, value in _facts(volume)
        if value
    )
    name = short_name(volume.path) if volume.path else "in memory"
    heading = f'title="{_text(volume.path or "")}">{_text(name)}'
    html = (
        '<div style="display:flex;flex-wrap:wrap;gap:18px;align-items:flex-start">'
        f"{_picture(volume)}"
        '<div style="flex:1 1 260px;min-width:0">'
        f'<div style="font-weight:bold;padding-bottom:3px" {heading}</div>'
        f'<table style="{_TABLE}"><tbody>{rows}</tbody></table></div></div>'
    )
    return html.encode("utf-8", "replace").decode()  # names of files may hold anything


def _facts(volume: Volume) -> list[tuple[str, str]]:
    """Return the names and values of the table, the values as HTML."""
    meta, unit, shape = volume.meta, volume.unit, volume.shape
    levels = "; ".join(times(level.scale) for level in volume.levels)
    rows = {
        "shape": " × ".join(f"{a} {n}" for a, n in zip(volume.axes, shape, strict=True)),
        "dtype": volume.dtype,
        "voxel": lengths(volume.spacing, unit),
        "box": lengths(np.multiply(volume.spatial_shape, volume.spacing).tolist(), unit),
        "orientation": volume.orientation or "",
        "level": f"{volume.level} of {len(volume.levels)}: {levels} {unit_sign(unit)}"
        if len(volume.levels) > 1
        else "",
        "chunks": _pieces(volume, volume.chunks),
        "shards": _pieces(volume, volume.shards),
        "size": f"{format_bytes(math.prod(shape) * volume.dtype.itemsize)} in memory"
        + _stored(volume),
        "run": unfinished(volume.path) if volume.path else "",
    }
    names = "classes" if meta.kind == "classes" else "channels"
    return [*((name, _text(value)) for name, value in rows.items()), (names, _names(volume))]


def _text(value: object) -> str:
    return escape(str(value).strip(), quote=True)


def _pieces(volume: Volume, sizes: tuple[int, ...] | None) -> str:
    """Return how many chunks or shards there are and how large they are."""
    if sizes is None:
        return ""
    count = math.prod(-(-n // size) for n, size in zip(volume.shape, sizes, strict=True))
    each = format_bytes(math.prod(sizes) * volume.dtype.itemsize)
    return f"{counted(count)} of {times(sizes)}, {each} each"


def _stored(volume: Volume) -> str:
    """Return the bytes and files of all levels; "" if the volume is not local."""
    if volume.path is None or not Path(volume.path).is_dir():
        return ""
    try:
        sizes = list(islice(file_sizes(volume.path), MOST_FILES + 1))
    except OSError:
        return ", cannot be counted"
    if len(sizes) > MOST_FILES:
        return f", more than {MOST_FILES} files stored, not counted"
    levels = f" of {len(volume.levels)} levels" if len(volume.levels) > 1 else ""
    return f", {format_bytes(sum(sizes))} stored in {len(sizes)} files{levels}"


def _names(volume: Volume) -> str:
    """Return the names of channels or classes, with their colours."""
    meta = volume.meta
    parts = []
    for number, name in enumerate(meta.channels[:MOST_NAMES]):
        color = ""
        if meta.kind == "classes":
            color = class_color(number, meta.colors) if number else "transparent"
        elif number < len(meta.colors):
            color = f"#{meta.colors[number]}"
        swatch = f'<span style="{_SWATCH}{_text(color)}"></span>' if color else ""
        parts.append(f'<span style="white-space:nowrap">{swatch}{_text(name)}</span>')
    more = len(meta.channels) - len(parts)
    return " &ensp; ".join([*parts, f"… and {more} more"] if more else parts)


def _picture(volume: Volume) -> str:
    """Return the thumbnail with its caption, or the reason why there is none."""
    try:
        pixels, (wide, high), caption = thumbnail(volume)
    except Exception as error:  # a damaged store still has its facts
        style = f"width:{SIDE}px;opacity:.65;font-size:90%;overflow-wrap:anywhere"
        return f'<div style="{style}">no picture: {_text(first_line(error))}</div>'
    data = base64.b64encode(png(pixels)).decode()
    smooth = "pixelated" if volume.meta.kind == "classes" else "auto"
    style = f"width:{wide}px;height:{high}px;max-width:none;image-rendering:{smooth};margin:0"
    return (
        f'<div><img style="{style}" alt="{_text(caption)}" src="data:image/png;base64,{data}">'
        f'<div style="opacity:.65;font-size:90%">{_text(caption)}</div></div>'
    )


def thumbnail(volume: Volume) -> tuple[Array, tuple[int, int], str]:
    """Return the middle plane of the coarsest level that shows enough.

    Returns
    -------
    pixels
        Rows, columns, red, green and blue as uint8.
    size
        Width and height on the screen, in true proportions.
    caption
        Which plane it is.

    Raises
    ------
    InvalidInput
        If no plane is more than a line, or it costs too much to decode one.
    """
    from volflow.report.planes import read_planes

    view = next((v for v in views(volume.orientation) if v.is_area(volume.spatial_shape)), None)
    if view is None:
        raise InvalidInput("no plane is more than a line")
    level = _useful_level(volume, view)
    cost = format_bytes(decoded_bytes(level, view))
    if decoded_bytes(level, view) > MOST_DECODED:
        raise InvalidInput(f"a plane decodes {cost}; vf.pyramid adds levels that are quick to see")
    index = level.spatial_shape[view.normal] // 2
    classes = level.meta.kind == "classes"
    (plane,) = read_planes(level, [(view.normal, index)], pixels=SHARP, average=not classes)
    lengths = [
        level.spatial_shape[axis] * level.spacing[axis] for axis in (view.columns, view.rows)
    ]
    wide, high = (max(2, round(SIDE * length / max(lengths))) for length in lengths)
    caption = f"{view.name}, {view.axis} = {volume.spatial_shape[view.normal] // 2}"
    if any(view.edges):
        caption += f"; left {view.edges[0]}, up {view.edges[2]}"
    if volume.channels_count > 1:
        caption += f"; {volume.meta.channels[0] if volume.meta.channels else 'channel 0'}"
    return _painted(view.turn(plane), volume), (wide, high), caption


def _useful_level(volume: Volume, view: View) -> Volume:
    """Return the coarsest level that still shows enough, or a coarser, cheaper one."""
    from volflow.report.level_choice import at_level

    for number in range(volume.level + 1, len(volume.levels)):
        coarser = at_level(volume, number)
        longest = max(coarser.spatial_shape[view.rows], coarser.spatial_shape[view.columns])
        if longest < USEFUL and decoded_bytes(volume, view) <= MOST_DECODED:
            break
        volume = coarser
    return volume


def decoded_bytes(volume: Volume, view: View) -> int:
    """Return the bytes that are decoded to read one plane of one channel."""
    chunk = volume.chunks[-3:]
    touched = [-(-volume.spatial_shape[a] // chunk[a]) for a in (view.rows, view.columns)]
    # Of the stored chunks, which may hold channels and timepoints too.
    return math.prod(touched) * math.prod(volume.array.chunks) * volume.dtype.itemsize


def _painted(plane: Array, volume: Volume) -> Array:
    """Return a plane as RGB in uint8: classes in their colours, an image in grey."""
    if volume.meta.kind == "classes":
        labels = class_numbers(plane)
        present = [value for value in np.unique(labels).tolist() if value]
        return tinted(labels, {value: class_color(value, volume.meta.colors) for value in present})
    grey = (255 * shades(plane, *window(plane, PERCENTILES))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def png(pixels: Array) -> bytes:
    """Return a PNG file (https://www.w3.org/TR/png-3) of pixels, (rows, columns, RGB) in uint8."""
    high, wide, _ = pixels.shape
    # Each row begins with its filter, none.
    rows = np.pad(pixels.reshape(high, -1), ((0, 0), (1, 0)))
    parts = (
        b"IHDR" + struct.pack(">2I5B", wide, high, 8, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(rows.tobytes(), 6),
        b"IEND",
    )
    chunks = [
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in parts
    ]
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks])
