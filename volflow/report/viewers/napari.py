"""A script that opens volumes in napari, aligned; napari itself is not needed to write it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import zarr

from volflow.errors import InvalidInput
from volflow.geometry.units import metres
from volflow.report.grey_range import Window
from volflow.report.viewers.appearance import (
    CLASS_OPACITY,
    SCORE_OPACITY,
    Appearance,
    appearances,
    direction,
)
from volflow.store.volume import Volume

__all__ = ["napari_snippet"]

HEAD = """# Opens {names} in napari, aligned.
# Needs: pip install "napari[all]>=0.6" volflow

import napari
import volflow as vf

viewer = napari.Viewer()
"""
TAIL = """
if __name__ == "__main__":
    napari.run()
"""


def napari_snippet(
    *volumes: str | os.PathLike[str] | Volume | zarr.Array[Any], window: Window = None
) -> str:
    """Return a Python script that opens volumes in napari, the first as the ground.

    Each lies where its metadata say, in its true size, with every level of its pyramid; napari
    reads only what it shows. Colours and windows are those of `volflow.view`.

    Parameters
    ----------
    volumes
        As in `volflow.view`, but arrays, which no script can hold.
    window
        As in `volflow.view`.

    Returns
    -------
    str
        A complete script, which runs wherever napari, volflow and these paths are.

    Raises
    ------
    InvalidInput
        If there is no volume, one is not a local volume, or their orientations differ.

    Examples
    --------
    >>> import tempfile
    >>> import zarr
    >>> import volflow as vf
    >>> path = tempfile.mkdtemp() + "/scan.zarr"
    >>> array = zarr.create_array(path, shape=(8, 8, 8), chunks=(8, 8, 8), dtype="uint8")
    >>> script = vf.napari_snippet(path)
    >>> print(script[script.index("viewer.add") : script.index("if __name__")].rstrip())
    viewer.add_image(
        vf.open('...scan.zarr').dask(),
        name='scan',
        scale=(1.0, 1.0, 1.0),
        translate=(0.0, 0.0, 0.0),
        axis_labels=('z', 'y', 'x'),
        contrast_limits=(0, 1),
        colormap='gray',
    )
    """
    shown = appearances(volumes, window)
    if any(one.volume.path is None for one in shown):
        raise InvalidInput(
            "a script for napari opens volumes from disk, given one in memory or lazy; store it"
            ' first, vf.write(array, "scores.zarr", like="scan.zarr"), or give it to napari itself'
        )
    unit = next((one.unit for one in shown if metres(one.unit)), None)
    names = " and ".join(dict.fromkeys(one.name for one in shown))
    head = HEAD.format(names=" ".join(names.split()))
    orientation = next((o for one in shown if (o := one.volume.orientation)), None)
    return head + "".join(_call(one, unit) for one in shown) + _upright(orientation) + TAIL


def _upright(orientation: str | None) -> str:
    """Return the line that turns the patient's head up and shows left and right truly in 3-D."""
    if orientation is None:
        return ""
    upwards = orientation[1] in "AS"
    axes = np.stack([direction(orientation, letter) for letter in "RAS"])
    right = (np.linalg.det(axes) > 0) == upwards
    turned = ("towards", "up" if upwards else "down", "right" if right else "left")
    return f"viewer.camera.orientation = {turned!r}\n"


def _call(one: Appearance, unit: str | None) -> str:
    """Return the call that adds a layer."""
    volume, method, at = one.volume, "add_labels", ""
    options = {"name": one.layer, **_placed(one, unit)}
    if one.window is None:
        options |= _classes(one)
    else:
        method, at = "add_image", f"[{one.channel}]" if "c" in volume.axes else ""
        options |= {"contrast_limits": one.window, "colormap": one.color or "gray"}
        if one.number:  # what lies over an image hides it where it is strong
            clear, full = f"{one.color}00", f"{one.color}FF"
            options["colormap"] = _Code(f"napari.utils.Colormap([{clear!r}, {full!r}])")
            options["opacity"] = SCORE_OPACITY
        elif one.channel:
            options["blending"] = "additive"
        if not one.visible:
            options["visible"] = False
    where = repr(volume.path) + (f", timepoint={volume.timepoint}" if volume.timepoint else "")
    data = f"vf.open({where}).dask(){at}"
    if len(volume.levels) > 1:
        data = f"[vf.open({where}, level=n).dask(){at} for n in range({len(volume.levels)})]"
        options = {"multiscale": True, **options}
    lines = [data, *(f"{name}={value!r}" for name, value in options.items())]
    return f"viewer.{method}(\n" + "".join(f"    {line},\n" for line in lines) + ")\n"


def _placed(one: Appearance, unit: str | None) -> dict[str, Any]:
    """Return the size of a voxel and the place of the first, in the unit of all layers."""
    mine, ours = metres(one.unit), metres(unit)
    factor = mine / ours if mine and ours else 1.0
    placed: dict[str, Any] = {
        "scale": tuple(factor * size for size in one.volume.spacing),
        "translate": tuple(factor * shift for shift in one.volume.meta.translation),
        "axis_labels": ("z", "y", "x"),
    }
    return placed | ({"units": (unit,) * 3} if unit else {})


def _classes(one: Appearance) -> dict[str, Any]:
    """Return colours and names of classes; other values are grey."""
    options: dict[str, Any] = {"opacity": CLASS_OPACITY}
    if one.colors:
        colors = {None: "gray", 0: "transparent"}
        colors |= {value: color for value, color in enumerate(one.colors) if value}
        options["colormap"] = _Code(f"napari.utils.DirectLabelColormap(color_dict={colors!r})")
    if one.labels:
        options["features"] = {"index": list(range(len(one.labels))), "class": list(one.labels)}
    return options


class _Code(str):
    """Code that stands in the script without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
