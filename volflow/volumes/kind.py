"""What a stored volume is taken for: an image, or a label map; only its metadata change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from volflow.errors import InvalidInput
from volflow.store.journal.levels import finest_of, own_group
from volflow.store.journal.outputs import discard_levels
from volflow.store.ngff import write_group
from volflow.store.volume import Volume, open_volume

__all__ = ["set_kind"]


def set_kind(volume: Any, kind: str) -> Volume:
    """Take a stored volume for a label map, or for an image; its voxels stay as they are.

    Coarser levels were made for what it was before, means of an image or commonest classes, so
    they are removed; `pyramid` makes them again.

    Parameters
    ----------
    volume
        Path of a volume that volflow wrote, or the `Volume`.
    kind
        ``"classes"`` or ``"image"``.

    Returns
    -------
    Volume
        As it is now.

    Raises
    ------
    InvalidInput
        Where volflow did not write it, or a label map would hold floats.
    Locked
        Where a run is writing it.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> from volflow.store.create import create
    >>> from volflow.store.meta import Meta, VolumeSpec
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = create(f"{folder}/a.zarr", VolumeSpec.of((8, 8, 8), "uint8", Meta()))
    ...     set_kind(made, "classes").meta.kind
    'classes'
    """
    finest, place = finest_of(volume)
    if finest.meta.kind == kind:
        return finest
    if kind == "classes" and finest.dtype.kind == "f":
        raise InvalidInput(
            f"{finest.path} holds {finest.dtype}, and a label map holds integers; convert its"
            " source again as one: labels=True, --labels"
        )
    with place.run.lock():
        # The levels are no longer listed before they go: nobody may take means for classes.
        write_group(own_group(finest), replace(finest.meta, kind=kind), finest.levels[:1])
        discard_levels(place, 0)
    return open_volume(str(finest.path))
