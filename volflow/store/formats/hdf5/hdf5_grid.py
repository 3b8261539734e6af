"""What attributes in HDF5 files say of a dataset: its axes, and the size of its voxels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, first_line
from volflow.geometry.units import metres, unit_name
from volflow.store.atomic import parse_json
from volflow.store.journal.records import typed
from volflow.store.meta import LONGEST, Affine, Meta, Vector, check_spacing

__all__ = ["OWN", "axes_of", "grid_of", "own_note"]

OWN = "volflow"  # the attribute that `export` writes
MATLAB = "MATLAB_class"


def axes_of(dataset: Any, path: str) -> str:
    """Return a letter for each axis of a dataset; ``"1"`` for one of one voxel that has none.

    Its ``axistags`` (ilastik) or the labels of its dimensions say them. Without them axes are
    z, y, x, with channels in front of four, as in a ``.npy`` file, and further ones of one voxel
    do not count. MATLAB stores an array ``V(y, x, z, c)`` with its axes reversed: as c, z, x, y.

    Raises
    ------
    InvalidInput
        If a volume has not these axes.
    """
    shape = dataset.shape
    said = _tagged(dataset, path) or "".join(one.label or " " for one in dataset.dims).lower()
    if len(said) == len(shape) and set(said) <= set("tczyx") and len(set(said)) == len(said):
        axes = said
    elif MATLAB in dataset.attrs:
        axes = _counted(shape, "czxy")
    else:
        axes = _counted(shape, "czyx")
    if not axes or not {"x", "y"} <= set(axes):
        raise InvalidInput(
            f"{path} has {dataset.name.strip('/')} of shape {shape} with axes"
            f" {said.strip() or 'without names'}; a volume has z, y, x and channels, named by"
            " axistags"
        )
    return axes


def _tagged(dataset: Any, path: str) -> str:
    """Return the axes that vigra's tags name, ``""`` if there are none."""
    tags = dataset.attrs.get("axistags")
    if tags is None:
        return ""
    try:
        found = parse_json(tags.encode() if isinstance(tags, str) else bytes(tags))
        return "".join(str(axis["key"]) for axis in found["axes"])
    except (ValueError, TypeError, KeyError, LookupError) as error:
        raise Damaged(
            f"{path} has damaged axistags at {dataset.name.strip('/')} ({first_line(error)});"
            " repair them"
        ) from error


def _counted(shape: Sequence[int], names: str) -> str:
    """Return axes by their number; those of one voxel in front, then behind, may be too many."""
    kept = list(range(len(shape)))
    while len(kept) > 3 and shape[kept[0]] == 1:
        del kept[0]
    while len(kept) > 3 and shape[kept[-1]] == 1:
        del kept[-1]
    if not 2 <= len(kept) <= 4:
        return ""
    named = dict(zip(kept, names[4 - len(kept) :] if len(kept) > 2 else names[2:], strict=True))
    return "".join(named.get(axis, "1") for axis in range(len(shape)))


@dataclass(frozen=True)
class _Note:
    """What `export` notes beside a dataset, as JSON."""

    spacing: Vector
    unit: str | None = None
    translation: Vector = (0.0, 0.0, 0.0)
    orientation: str | None = None
    affine: Affine | None = None
    channels: tuple[str, ...] = ()
    kind: str = "image"
    colors: tuple[str, ...] = ()


def own_note(meta: Meta) -> str:
    """Return the attribute that keeps all of the metadata but the source.

    Examples
    --------
    >>> own_note(Meta(spacing=(2, 1, 1)))[:40]
    '{"spacing": [2.0, 1.0, 1.0], "unit": nul'
    """
    kept = {name: getattr(meta, name) for name in _Note.__dataclass_fields__}
    return json.dumps(asdict(_Note(**kept)))


def grid_of(dataset: Any, path: str) -> Meta:
    """Return spacing, unit and place of a dataset, as it or a group that holds it says them.

    Known are the note that `export` writes; ``element_size_um`` (along z, y, x, in micrometres;
    Fiji, ilastik, Luxendo); ``resolution`` or ``voxel_size`` with ``offset``, in nanometres unless
    ``units`` says another (CREMI). Sizes that are not positive do not count.

    Raises
    ------
    Damaged
        If the note is damaged.
    """
    for place in _upwards(dataset):
        known = place.attrs
        if OWN in known:
            return _noted(known[OWN], path)
        if (size := _sizes(known.get("element_size_um"))) is not None:
            return Meta(spacing=size, unit="micrometer")
        if (size := _sizes(known.get("resolution", known.get("voxel_size")))) is not None:
            offset = _numbers(known.get("offset")) or Meta.translation
            return Meta(
                spacing=size, unit=_unit(known.get("units")) or "nanometer", translation=offset
            )
    return Meta()


def _upwards(dataset: Any) -> Iterator[Any]:
    place = dataset
    yield place
    while place.name not in ("/", None):
        place = place.parent
        yield place


def _noted(text: Any, path: str) -> Meta:
    try:
        note = typed(_Note, parse_json(str(text).encode()))
        return replace(Meta(), **vars(note))
    except ValueError as error:
        raise Damaged(
            f"{path} has a damaged attribute {OWN} ({first_line(error)}); delete it"
        ) from error


def _numbers(values: Any) -> Vector | None:
    """Return the last three of some numbers, in their shortest decimals; None if there are none."""
    found = np.atleast_1d(np.asarray(0.0 if values is None else values))
    if found.dtype.kind not in "iuf" or found.ndim != 1 or not 2 <= len(found) <= 5:
        return None
    z, y, x = [1.0, *(float(str(value)) for value in found)][-3:]
    return (z, y, x) if all(abs(value) <= LONGEST for value in (z, y, x)) else None


def _sizes(values: Any) -> Vector | None:
    """Return voxel sizes, None if they are none."""
    found = _numbers(values)
    try:
        check_spacing(found or (0.0,))
    except InvalidInput:
        return None
    return found


def _unit(values: Any) -> str | None:
    """Return the one unit of all axes, if it is a length."""
    texts = {
        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for value in np.atleast_1d(np.asarray("" if values is None else values)).tolist()
    }
    unit = unit_name(texts.pop()) if len(texts) == 1 else None
    return unit if metres(unit) else None
