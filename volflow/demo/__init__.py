"""Demonstrations: the data and the score of a real brain scan, and two runs that segment a volume.

The scan is the ICBM 2009a nonlinear symmetric template of the Montreal Neurological Institute:
an average of 152 brains at 1 mm, already stripped of the skull, with maps of the probability of
grey and white matter. The PyPI package ``nilearn`` carries the three files. Left and right are
mirror images of each other, so the network is tested on the front of the brain after training
on the back: on y, which runs from posterior to anterior.

It is an easy scan: even two well-chosen thresholds on its intensity reach a Dice of 0.96.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from volflow.errors import InvalidInput

__all__ = [
    "BUNDLE",
    "CLASSES",
    "HELD_OUT_Y",
    "TRAINED_Y",
    "Mni",
    "held_out_dice",
    "load_mni",
    "tissue_classes",
    "true_classes",
]

CLASSES = ("background", "grey matter", "white matter")

# Along y (voxel 0 is the most posterior): training read nothing at or beyond TRAINED_Y, save
# the extremes of intensity that normalise the whole; the score counts HELD_OUT_Y and beyond.
# The brain lies in 27 <= y < 208.
TRAINED_Y = 135
HELD_OUT_Y = 145

# The directory of the demo's network.
BUNDLE = Path(__file__).with_name("bundle")

_FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"


class Mni(NamedTuple):
    """Paths of the template: the T1 image and the maps of grey and of white matter."""

    t1: Path
    gm: Path
    wm: Path


def load_mni(directory: str | Path | None = None) -> Mni:
    """Find the three files of the template; nothing is downloaded.

    Parameters
    ----------
    directory
        The folder that holds them; by default they are sought in the installed package
        ``nilearn``.

    Raises
    ------
    InvalidInput
        If one of them is not found.

    Examples
    --------
    >>> load_mni("nowhere")
    Traceback (most recent call last):
    ...
    volflow.errors.InvalidInput: the MNI152 template is not in nowhere: mni_icbm152_t1_tal_...
    """
    if directory is None:
        # Found without importing nilearn, which would load pandas and scikit-learn.
        spec = importlib.util.find_spec("nilearn")
        places = spec.submodule_search_locations if spec else None
        if not places:
            raise InvalidInput(
                "the demo's brain scan comes with the package nilearn, which is not installed;"
                ' pip install "volflow[demo]"'
            )
        directory = Path(places[0]) / "datasets" / "data"
    found = Mni(*(Path(directory) / _FILE.format(part) for part in ("t1", "gm", "wm")))
    for path in found:
        if not path.is_file():
            raise InvalidInput(
                f"the MNI152 template is not in {directory}: {path.name} is missing;"
                ' pip install "volflow[demo]" brings a nilearn that carries it'
            )
    return found


def tissue_classes(gm: npt.NDArray[np.uint8], wm: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the class of each voxel: the tissue whose probability is above one half.

    Parameters
    ----------
    gm, wm
        Probability of grey and of white matter from 0 to 255, of any one shape. Together they are
        at most 255, so that at most one is above one half. Where none is, as in fluid, the voxel
        is background.

    Examples
    --------
    >>> tissue_classes(np.uint8([0, 200, 127]), np.uint8([0, 55, 128]))
    array([0, 1, 2], dtype=uint8)
    """
    return np.where(wm > 127, 2, gm > 127).astype(np.uint8)


def true_classes(mni: Mni) -> npt.NDArray[np.uint8]:
    """Return the classes of the template as uint8, ``zyx``.

    Raises
    ------
    InvalidInput
        If nibabel is not installed.
    """
    from volflow.store.formats.nifti import import_nibabel  # loads Zarr

    image = import_nibabel().Nifti1Image
    gm, wm = (np.asarray(image.from_filename(path).dataobj) for path in (mni.gm, mni.wm))
    return tissue_classes(gm, wm).transpose(2, 1, 0)


def held_out_dice(predicted: npt.NDArray[Any], truth: npt.NDArray[Any]) -> dict[str, float]:
    """Return the Dice score of each tissue on the part of the brain that the network never saw.

    Parameters
    ----------
    predicted, truth
        Class numbers of the whole template, ``zyx`` or ``xyz``.

    Raises
    ------
    InvalidInput
        If their shapes differ.

    Examples
    --------
    >>> truth = np.zeros((2, 200, 2), np.uint8)
    >>> truth[:, 150:160] = 1
    >>> truth[:, 160:] = 2
    >>> held_out_dice(np.where(truth == 2, 2, 0), truth)
    {'grey matter': 0.0, 'white matter': 1.0}
    """
    if predicted.shape != truth.shape:
        raise InvalidInput(
            f"predicted classes have shape {predicted.shape}, the template has {truth.shape}"
        )
    found, true = predicted[:, HELD_OUT_Y:], truth[:, HELD_OUT_Y:]
    scores = {}
    for number, name in enumerate(CLASSES[1:], start=1):
        a, b = found == number, true == number
        scores[name] = 2 * float((a & b).sum()) / max(1, int(a.sum()) + int(b.sum()))
    return scores
