"""The formats of other software that are read: by which names and bytes each is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from volflow.store.formats.choice import ImageChoice
from volflow.store.formats.chunked.n5 import holds_n5, open_n5
from volflow.store.formats.chunked.precomputed import holds_precomputed, open_precomputed
from volflow.store.formats.dicom.series import holds_dicom, open_dicom
from volflow.store.formats.hdf5.hdf5 import open_hdf5
from volflow.store.formats.itk.metaimage import open_metaimage
from volflow.store.formats.itk.nrrd import open_nrrd
from volflow.store.formats.nifti import open_nifti
from volflow.store.formats.npy import open_npy
from volflow.store.formats.tiff.plane_files import is_plane_folder
from volflow.store.formats.tiff.tiff import open_tiff
from volflow.store.slabs import Source

__all__ = ["FORMATS", "Format", "format_of"]


@dataclass(frozen=True)
class Format:
    """A format of other software.

    Parameters
    ----------
    name
        As people call it, for messages.
    open
        Opens a file or folder, given its absolute path and which image of it; reads no voxel.
    suffixes
        Of its files, in lower case.
    magic
        Where in a file which bytes stand, by which one without a suffix is known.
    folder
        Says whether a folder is one of this format.
    takes
        The fields of `ImageChoice` that it knows beside the channel; the first is what a path names
        behind ``::``.
    """

    name: str
    open: Callable[[str, ImageChoice], Source]
    suffixes: tuple[str, ...] = ()
    magic: tuple[tuple[int, bytes], ...] = ()
    folder: Callable[[Path], bool] | None = None
    takes: tuple[str, ...] = ()

    def begins(self, start: bytes) -> bool:
        """Return True if the first bytes of a file are those of the format."""
        return any(start[at : at + len(text)] == text for at, text in self.magic)


FORMATS = (
    Format(
        "NIfTI",
        lambda path, _: open_nifti(path),
        (".nii", ".nii.gz"),
        ((344, b"n+1"), (4, b"n+2")),
    ),
    Format("NumPy", lambda path, _: open_npy(path), (".npy",), ((0, b"\x93NUMPY"),)),
    Format("N5", open_n5, (".n5",), (), holds_n5, ("dataset", "level", "timepoint")),
    Format(
        "Neuroglancer precomputed",
        open_precomputed,
        (".precomputed",),
        (),
        holds_precomputed,
        ("level",),
    ),
    Format(
        "HDF5",
        open_hdf5,
        (".h5", ".hdf5", ".hdf", ".ims", ".mat"),
        ((0, b"\x89HDF\r\n\x1a\n"),),
        takes=("dataset", "level", "timepoint"),
    ),
    Format(
        "DICOM", open_dicom, (".dcm", ".dicom", ".ima"), ((128, b"DICM"),), holds_dicom, ("series",)
    ),
    Format("NRRD", lambda path, _: open_nrrd(path), (".nrrd", ".nhdr"), ((0, b"NRRD000"),)),
    Format(
        "MetaImage",
        lambda path, _: open_metaimage(path),
        (".mha", ".mhd"),
        ((0, b"ObjectType = Image"),),
    ),
    # The last of those that know folders: pictures may lie beside images of any format.
    Format(
        "TIFF",
        open_tiff,
        (".tif", ".tiff"),
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        is_plane_folder,
        ("series", "level", "timepoint"),
    ),
)


def format_of(path: Path) -> Format | None:
    """Return the format of a file, by its suffix, else by its first bytes, or of a folder.

    Examples
    --------
    >>> found = format_of(Path("scan.NII.gz"))
    >>> found.name if found else ""
    'NIfTI'
    """
    if path.is_dir():
        return next((one for one in FORMATS if one.folder is not None and one.folder(path)), None)
    name = path.name.lower()
    for one in FORMATS:
        if name.endswith(one.suffixes):
            return one
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError:
        return None
    return next((one for one in FORMATS if one.begins(start)), None)
