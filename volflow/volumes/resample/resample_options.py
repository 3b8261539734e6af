"""The options of `resample`; what each means stands in the function of its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volflow.errors import InvalidInput
from volflow.option import numbers, option
from volflow.volumes.volume_options import ChunkOptions

if TYPE_CHECKING:
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["ResampleOptions", "lengths", "orders"]


def lengths(name: str, text: str) -> Any:
    """A voxel size, or one per axis, as typed: numbers, and texts with a unit.

    Examples
    --------
    >>> lengths("spacing", "0.5mm"), lengths("spacing", "2,1,1")
    ('0.5mm', (2, 1, 1))
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 3) or not all(parts):
        raise InvalidInput(
            f"{name} must be one voxel size or three with commas (z,y,x), given {text!r}; write for"
            " example 1 or 2mm,0.5mm,0.5mm"
        )
    found = tuple(_length(part) for part in parts)
    return found[0] if len(found) == 1 else found


def _length(text: str) -> float | str:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def orders(name: str, text: str) -> Any:
    """An order, one per axis, or a word such as ``nnunet``, as typed; `resample` refuses others.

    Examples
    --------
    >>> orders("order", "3"), orders("order", "0,3,3"), orders("order", "nnunet")
    (3, (0, 3, 3), 'nnunet')
    """
    try:
        return numbers(name, text)
    except InvalidInput:
        return text


@dataclass(frozen=True)
class ResampleOptions(ChunkOptions):
    """The options of `resample`."""

    spacing: float | str | Sequence[float | str] | None = option(
        None,
        "Voxel size along z,y,x: 1, or 2mm,0.5mm,0.5mm; a number is in the unit of the volume.",
        read=lengths,
    )
    like: VolumeLike | None = option(
        None, "A volume or file on whose grid the voxels shall lie, of another orientation, too."
    )
    order: int | str | Sequence[int] = option(
        1,
        "0: nearest, 1: linear (of classes the likeliest), 3: cubic B-spline; or one each for"
        " z,y,x; or nnunet: 3, but 0 through thick slices.",
        read=orders,
    )
    antialias: bool = option(
        False, "Smooth before voxels become larger, as skimage.transform.resize does."
    )
    fill: float | None = option(None, "Value of voxels outside of the volume. Default: 0.")
    dtype: str | None = option(
        None,
        "Data type to store, such as float32. Default: the volume's own; integers are rounded.",
    )
    labels: bool | None = option(
        None,
        "Take the volume for a label map, or for an image. Default: what it says.",
        names=("--labels/--image",),
    )
    levels: bool = option(False, "Write coarser levels of the result, too, as pyramid does.")
