"""Opens HDF5 files: which dataset is meant."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.hdf5.hdf5_file import check_dataset, import_h5py, opened_hdf5, own
from volflow.store.formats.hdf5.hdf5_grid import axes_of, grid_of
from volflow.store.formats.hdf5.hdf5_source import Hdf5Source, pieces_of
from volflow.store.formats.hdf5.imaris import is_imaris, open_imaris
from volflow.store.meta import SourceInfo

__all__ = ["open_hdf5"]

MOST_NAMED = 12
HIDDEN = ("#refs#", "#subsystem#")  # what MATLAB keeps for itself
# BigDataViewer stores integers without a sign as if they had one.
BIG_DATA_VIEWER = re.compile(r"t\d{5}/s\d{2}/\d+/cells")


def open_hdf5(path: str, choice: ImageChoice) -> Hdf5Source:
    """Open a dataset of an HDF5 file, the only one of three axes or more if none is named.

    Of a file of Imaris all channels at a level and timepoint. Axes are named as `axes_of` says,
    voxel sizes as `grid_of` does; what MATLAB stores is read as an array V(y, x, z, c) of it.

    Raises
    ------
    InvalidInput
        If it is no HDF5 file, none of several datasets was chosen, or a volume cannot hold it.
    Damaged
        If it is cut short or broken.
    """
    with opened_hdf5(path) as file:
        if choice.dataset is None and is_imaris(file, path):
            return open_imaris(file, path, choice)
        dataset = _chosen(file, path, choice.dataset)
        check_dataset(dataset, path)
        choice.at_level(1, path)
        axes = axes_of(dataset, path)
        sizes = dict(zip(axes, dataset.shape, strict=True))
        space = (sizes.get("z", 1), sizes["y"], sizes["x"])
        channels = sizes.get("c", 1)
        shape = (channels, *space) if channels > 1 else space
        name = dataset.name.strip("/")
        dtype = dataset.dtype.newbyteorder("=")
        if BIG_DATA_VIEWER.fullmatch(name) and dtype == np.int16:
            dtype = np.dtype(np.uint16)
        return Hdf5Source(
            path=path,
            shape=shape,
            dtype=dtype,
            meta=replace(
                grid_of(dataset, path),
                axes=("c", "z", "y", "x")[-len(shape) :],
                source=SourceInfo("hdf5", str(dataset.dtype.newbyteorder("="))),
            ),
            datasets=(name,),
            axes=axes,
            timepoint=choice.at_time(sizes.get("t", 1), path),
            decoded=pieces_of(dataset, axes, shape),
        )


def _chosen(file: Any, path: str, name: str | None) -> Any:
    """Return the dataset that is meant; a group stands for the only one in it."""
    place = file if name is None else own(file, name, path)
    if isinstance(place, import_h5py().Dataset):
        return place
    found = _volumes(file if place is None else place)
    if len(found) == 1 and place is not None:
        return found[0]
    given = "" if name is None else f", given {name}"
    if not found:
        raise InvalidInput(
            f"{path} holds no dataset of three axes{given}; name one as {path}::NAME"
        )
    more = f", … {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    count = f"{len(found)} dataset{'s' * (len(found) > 1)}"
    raise InvalidInput(
        f"{path} holds {count}{given}; choose one with dataset= (--dataset, or"
        f" {path}::{_name(found[0])}): {', '.join(map(_in_words, found[:MOST_NAMED]))}{more}"
    )


def _volumes(group: Any) -> list[Any]:
    """Return the numeric datasets of three axes or more below a group, links not followed."""
    found: list[Any] = []
    kind = import_h5py().Dataset

    def look(_: str, one: Any) -> None:
        if not isinstance(one, kind) or one.name.strip("/").startswith(HIDDEN):
            return
        numbers = one.dtype.kind in "biuf" and one.dtype.itemsize <= 8
        if numbers and sum(side > 1 for side in one.shape or ()) >= 3:
            found.append(one)

    group.visititems(look)
    return found


def _name(dataset: Any) -> str:
    return str(dataset.name).strip("/")


def _in_words(dataset: Any) -> str:
    return f"{_name(dataset)} {' × '.join(map(str, dataset.shape))} {dataset.dtype}"
