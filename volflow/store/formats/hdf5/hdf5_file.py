"""HDF5 files as h5py opens them, and the datasets that lie in them and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from volflow.errors import Damaged, InvalidInput, VolflowError, first_line
from volflow.store.layout import check_dtype

__all__ = ["check_dataset", "import_h5py", "load_filters", "opened_hdf5", "own"]

MOST_LINKS = 32  # that lead to each other


def import_h5py() -> Any:
    """Return the module h5py; InvalidInput with the remedy if it is not installed."""
    try:
        import h5py
    except ImportError:
        raise InvalidInput(
            'HDF5 files need h5py, which is not installed; pip install "volflow[hdf5]"'
        ) from None
    return h5py


@contextmanager
def opened_hdf5(path: str) -> Iterator[Any]:
    """Open an HDF5 file to read; locked as far as its file system knows locks.

    Raises
    ------
    InvalidInput
        If it is no HDF5 file, or another program is writing it.
    Damaged
        If HDF5 cannot open it, or finds it broken later on.
    """
    h5py = import_h5py()
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from error
    if not h5py.is_hdf5(path):
        matlab = "; MATLAB writes one with save('-v7.3')" if path.lower().endswith(".mat") else ""
        raise InvalidInput(f"{path} is not an HDF5 file{matlab or '; check the path'}")
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            yield file
    except VolflowError:
        raise
    except Exception as error:  # of any class
        if "lock file" in str(error):
            raise InvalidInput(
                f"{path} is open in another program that writes it; close it there first"
            ) from error
        raise Damaged(f"{path} is damaged HDF5 ({first_line(error)}); copy it again") from error


def own(file: Any, name: str, path: str) -> Any:
    """Return what a name in a file stands for, if it lies in this file; None if there is none.

    Raises
    ------
    InvalidInput
        If a link leads to another file: such a link may name any file of this machine.
    """
    h5py = import_h5py()
    left, found, links = [part for part in name.split("/") if part], file, 0
    while left:
        part, left = left[0], left[1:]
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if link is None:
            return None
        if isinstance(link, h5py.ExternalLink):
            raise InvalidInput(
                f"{path} has {name} in another file, {link.filename}, which is not followed; open"
                " that file"
            )
        if not isinstance(link, h5py.SoftLink):
            found = found[part]
            continue
        links += 1
        if links > MOST_LINKS:
            raise Damaged(f"{path} has links at {name} that lead in a circle; repair it")
        if link.path.startswith("/"):
            found = file
        left = [*(step for step in link.path.split("/") if step not in ("", ".")), *left]
    return found


def check_dataset(dataset: Any, path: str) -> None:
    """Refuse a dataset that is no volume, or whose voxels cannot be had from its file.

    Raises
    ------
    InvalidInput
        If its voxels lie in other files or are of a kind that a volume cannot hold, or a filter
        is missing.
    """
    name = dataset.name.strip("/")
    if dataset.is_virtual or dataset.external:
        raise InvalidInput(
            f"{path} has the voxels of {name} in other datasets or files, which are not opened;"
            " copy them into one dataset"
        )
    check_dtype(dataset.dtype, f"{path}::{name}")
    if not dataset.shape or 0 in dataset.shape:
        raise InvalidInput(f"{path} has an empty dataset {name}; choose another")
    load_filters(dataset, path)


def load_filters(dataset: Any, path: str) -> None:
    """Load the filters that unpack a dataset.

    Raises
    ------
    InvalidInput
        If one is not installed.
    """
    available = import_h5py().h5z.filter_avail
    made = dataset.id.get_create_plist()
    for number in range(made.get_nfilters()):
        code, _, _, name = made.get_filter(number)
        if available(code):
            continue
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401 - brings filters
        if not available(code):
            called = name.decode(errors="replace").partition(" ")[0] or f"filter {code}"
            raise InvalidInput(
                f"{path} holds {dataset.name.strip('/')} packed by {called}, which is not"
                " installed; pip install hdf5plugin"
            )
