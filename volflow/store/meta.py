"""Metadata of a volume: axes, spacing, orientation, origin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.store.layout import check_dtype, resolve_layout

__all__ = [
    "Affine",
    "Level",
    "Meta",
    "SourceInfo",
    "Vector",
    "VolumeSpec",
    "check_spacing",
    "is_color",
]

# No image has smaller or larger lengths in any unit, and their squares fit into a float.
SHORTEST, LONGEST = 1e-30, 1e30
MOST_RATIO = 1e9  # between two sides of a voxel

Vector = tuple[float, float, float]
Affine = tuple[tuple[float, ...], ...]
Sizes = int | Sequence[int] | None

_ORDERS = ("zyx", "czyx", "tzyx", "tczyx", "yx", "cyx", "tyx", "tcyx")
_PAIRS = {"R": "RL", "L": "RL", "A": "AP", "P": "AP", "S": "SI", "I": "SI"}


@dataclass(frozen=True)
class SourceInfo:
    """The file that a volume was made from, as `export` needs it to write the volume back.

    Parameters
    ----------
    format
        ``"nifti1"``, ``"nifti2"``, ``"npy"``, …
    dtype
        Stored dtype of the file, before any scaling.
    header
        The file's own header, byte for byte, if the format has one.
    """

    format: str
    dtype: str
    header: bytes = b""


@dataclass(frozen=True)
class Meta:
    """Metadata of a volume: everything but its voxels.

    Parameters
    ----------
    axes
        ``("z", "y", "x")`` or ``("c", "z", "y", "x")``; files of other software may add
        ``"t"`` in front or lack ``"z"``.
    spacing
        Voxel size along z, y, x.
    unit
        Unit of the spacing as NGFF spells it (``"millimeter"``), None if unknown.
    translation
        Centre of the first voxel, in the same unit, along the array's own axes.
    orientation
        Three letters for z, y, x: the direction in which the index grows, e.g. ``"SAR"``.
    affine
        4 x 4, voxel (x, y, z) to world (right, anterior, superior), as in NIfTI.
    channels
        One name per channel, or ().
    kind
        ``"image"`` or ``"classes"``.
    colors
        Hex colours ("RRGGBB"), one per channel of an image or per class, or ().
    source
        The file the volume was made from.
    made
        Which model and settings computed the voxels, as JSON; ``""`` if no model did.

    Raises
    ------
    InvalidInput
        If a field is malformed.

    Examples
    --------
    >>> meta = Meta(("z", "y", "x"), (2, 1, 1), unit="millimeter", orientation="SAR")
    >>> meta.regrid((2, 2, 2)).spacing, meta.regrid((2, 2, 2)).translation
    ((4.0, 2.0, 2.0), (1.0, 0.5, 0.5))
    """

    axes: tuple[str, ...] = ("z", "y", "x")
    spacing: Vector = (1.0, 1.0, 1.0)
    unit: str | None = None
    translation: Vector = (0.0, 0.0, 0.0)
    orientation: str | None = None
    affine: Affine | None = None
    channels: tuple[str, ...] = ()
    kind: str = "image"
    colors: tuple[str, ...] = ()
    source: SourceInfo | None = None
    # Not in its text, by which volumes are identified.
    made: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "axes", tuple(self.axes))
        put(self, "spacing", _vector("spacing", self.spacing))
        put(self, "translation", _vector("translation", self.translation))
        put(self, "channels", tuple(str(name) for name in self.channels))
        put(self, "colors", tuple(str(color) for color in self.colors))
        if "".join(self.axes) not in _ORDERS:
            raise InvalidInput(
                f"axes must be z, y, x with c and t before them, given {', '.join(self.axes)}; "
                "transpose the array"
            )
        check_spacing(self.spacing)
        if not all(abs(t) <= LONGEST for t in self.translation):
            raise InvalidInput(
                f"translation must be finite and at most {LONGEST:g}, given {self.translation}"
            )
        if self.kind not in ("image", "classes"):
            raise InvalidInput(f'kind must be "image" or "classes", given {self.kind!r}')
        if not all(map(is_color, self.colors)):
            raise InvalidInput(f'colors must be hexadecimal like "00FF00", given {self.colors}')
        if self.orientation is not None:
            put(self, "orientation", _orientation(self.orientation))
        if self.affine is not None:
            put(self, "affine", _affine(self.affine))

    @property
    def knows_spacing(self) -> bool:
        """Whether the spacing is known, not the default of a bare array."""
        return self.unit is not None or self.spacing != Meta.spacing

    def regrid(self, factors: Sequence[float], offset: Sequence[float] | None = None) -> Meta:
        """Return the metadata of a grid with voxels ``factors`` times as long.

        Parameters
        ----------
        factors
            Ratio of the new to the old voxel size along z, y, x.
        offset
            Centre of the new first voxel counted in old voxels; by default the new voxels
            cover the old ones from the first on: ``(factor - 1) / 2``.
        """
        offset = [(f - 1) / 2 for f in factors] if offset is None else offset
        affine = self.affine
        if affine is not None:
            step = np.diag([*reversed(factors), 1.0])
            step[:3, 3] = list(reversed(offset))
            affine = _nested(np.asarray(affine) @ step)
        return replace(
            self,
            spacing=_vector("spacing", [s * f for s, f in zip(self.spacing, factors, strict=True)]),
            translation=_vector(
                "translation",
                [t + o * s for t, o, s in zip(self.translation, offset, self.spacing, strict=True)],
            ),
            affine=affine,
        )


@dataclass(frozen=True)
class Level:
    """One array of a pyramid: its path in the group, and its grid along z, y, x."""

    path: str
    scale: Vector
    translation: Vector = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class VolumeSpec:
    """A volume without its voxels, as plans use it.

    A `Volume` has one; so has a file of another format before it is converted.

    Parameters
    ----------
    shape
        Voxels per axis, ``zyx`` or ``czyx`` as ``meta.axes``.
    dtype
        Dtype of the voxels, in the machine's byte order.
    chunk
        The smallest piece that is read, per axis.
    shard
        The stored object that holds chunks, per axis; None if unsharded.
    meta
        Axes, spacing, unit, orientation.

    Examples
    --------
    >>> two = Meta(("c", "z", "y", "x"))
    >>> spec = VolumeSpec((2, 30, 40, 50), np.dtype("uint16"), (1, 8, 8, 8), None, two)
    >>> spec.spatial_shape, spec.channels, spec.voxel_bytes
    ((30, 40, 50), 2, 4)
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    meta: Meta

    @classmethod
    def of(
        cls, shape: Sequence[int], dtype: Any, meta: Meta, chunk: Sizes = None, shard: Sizes = None
    ) -> VolumeSpec:
        """Return the spec of a new volume, whose chunks and shards hold one channel.

        Parameters
        ----------
        shape, dtype, meta
            Shape ``zyx`` or ``czyx`` as ``meta.axes``; dtype bool, integer or float.
        chunk, shard
            Voxels per axis; the shard is a multiple of the chunk. By default about 64³ and 256³,
            following the spacing.

        Raises
        ------
        InvalidInput
            If a volume cannot have this shape, dtype or layout.

        Examples
        --------
        >>> VolumeSpec.of((200, 300, 300), "uint8", Meta(), shard=128).chunk
        (64, 64, 64)
        """
        sizes = tuple(int(n) for n in shape)
        if len(sizes) != len(meta.axes) or any(n < 1 for n in sizes):
            raise InvalidInput(
                f"shape must have one positive size for each of {', '.join(meta.axes)}, given"
                f" {shape}"
            )
        if "".join(meta.axes) not in ("zyx", "czyx"):
            raise InvalidInput(f"a volume is stored as zyx or czyx, given {', '.join(meta.axes)}")
        try:
            kind = check_dtype(dtype, "the new volume").newbyteorder("=")
        except TypeError:
            raise InvalidInput(f"dtype must be a NumPy dtype, given {dtype!r}") from None
        return cls(sizes, kind, *resolve_layout(sizes, meta.spacing, kind, chunk, shard), meta)

    @property
    def spatial_shape(self) -> tuple[int, ...]:
        """Voxels along z, y, x."""
        return self.shape[-3:]

    @property
    def channels(self) -> int:
        """Number of channels; 1 if there is no channel axis."""
        return self.shape[0] if "c" in self.meta.axes else 1

    @property
    def voxel_bytes(self) -> int:
        """Bytes of one voxel in all channels."""
        return self.channels * self.dtype.itemsize


def check_spacing(sizes: Sequence[float]) -> None:
    """Refuse voxel sizes that are not positive and finite, or too extreme to compute with.

    Raises
    ------
    InvalidInput
        If a size is refused, naming all of them.

    Examples
    --------
    >>> check_spacing((1e-300, 1, 1))
    Traceback (most recent call last):
    volflow.errors.InvalidInput: spacing must be positive and finite, 1e-30 to 1e+30 and at most
    1e+09 times as long along one axis as along another, given (1e-300, 1, 1)
    """
    lengths = all(SHORTEST <= s <= LONGEST for s in sizes)
    if not lengths or max(sizes) > MOST_RATIO * min(sizes):
        raise InvalidInput(
            f"spacing must be positive and finite, {SHORTEST:g} to {LONGEST:g} and at most"
            f" {MOST_RATIO:g} times as long along one axis as along another, given {sizes}"
        )


def is_color(text: str) -> bool:
    """Return True if a text is a colour in NGFF's form: six hexadecimal digits."""
    return re.fullmatch("[0-9A-Fa-f]{6}", text) is not None


def _vector(name: str, values: Sequence[float]) -> Vector:
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3:
        raise InvalidInput(f"{name} needs one number for each of z, y, x, given {numbers}")
    return numbers


def _orientation(letters: str) -> str:
    letters = letters.upper()
    if len(letters) != 3 or {_PAIRS.get(x) for x in letters} != {"RL", "AP", "SI"}:
        raise InvalidInput(
            f'orientation needs one letter of R/L, A/P, S/I each, like "SAR", given "{letters}"'
        )
    return letters


def _affine(rows: Any) -> Affine:
    matrix = np.asarray(rows, dtype=float)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InvalidInput(f"affine must be a finite 4 x 4 matrix, given shape {matrix.shape}")
    if abs(matrix).max() > LONGEST or np.linalg.matrix_rank(matrix[:3, :3]) < 3:
        raise InvalidInput(
            f"affine must map voxels to a space of three axes with entries up to {LONGEST:g},"
            f" given {matrix.tolist()}"
        )
    return _nested(matrix)


def _nested(matrix: np.ndarray[Any, Any]) -> Affine:
    return tuple(tuple(float(v) for v in row) for row in matrix)
