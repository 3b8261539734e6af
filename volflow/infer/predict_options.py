"""The options of `predict`, `halo`, `certify_seams` and `verify`; what each means stands there."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from volflow.engine.run_options import MEMORY, OutputOptions, WorkerOptions
from volflow.errors import InvalidInput
from volflow.option import lengths, number_or_word, numbers, option, value_or_word

if TYPE_CHECKING:
    import numpy.typing as npt

    from volflow.geometry.outside import Padding
    from volflow.geometry.windows import Blend, WeightMap
    from volflow.model.bundle import ModelLike
    from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["HaloOptions", "NetworkOptions", "PredictOptions", "SeamsOptions", "VerifyOptions"]

MODEL, PATCHES, RESULT, SEAMS = "Model", "Patches", "Result", "On a volume"
ANEW = "Computed anew"


@dataclass(frozen=True)
class ModelOptions:
    """How a model is loaded."""

    weights: str | os.PathLike[str] | None = option(
        None, "Weights for package.module:callable.", MODEL
    )
    trust: bool = option(False, "Allow model files that can run code.", MODEL)


@dataclass(frozen=True)
class NetworkOptions(ModelOptions):
    """How a network sees a volume, and where it runs."""

    frame: str | None = option(None, "The axes that the model expects, such as RAS.", MODEL)
    normalize: str | Callable[[Any], Any] | None = option(
        None,
        "minmax, zscore, zscore:foreground, percentile, window:-160,240 or scale:255; none leaves"
        " out what the bundle names.",
        MODEL,
    )
    activation: str | Callable[[Any], Any] | None = option(
        None, "After blending: softmax or sigmoid.", MODEL
    )
    device: str = option("auto", "cpu, cuda or cuda:1. Default: the best there is.", MODEL)
    device_memory: str | int | None = option(
        None,
        "What a task may take of a GPU's memory, such as 20GiB. Default: what is free, shared by"
        " the processes on it.",
        MODEL,
    )
    patch: int | tuple[int, int, int] | None = option(
        None, "The model's window in voxels: 96, or 96,96,48 (z,y,x).", PATCHES, read=numbers
    )

    @property
    def device_bytes(self) -> int | None:
        """Return the bytes of a GPU's memory that were asked for; refuses what is no amount."""
        from volflow.geometry.budget import parse_bytes

        asked = self.device_memory
        return None if asked is None else parse_bytes(asked, "device_memory")


@dataclass(frozen=True)
class PredictOptions(OutputOptions, NetworkOptions):
    """The options of `predict`."""

    batch_size: int | str = option(
        "auto", "Patches per forward. Default: found by a trial.", MODEL, read=number_or_word
    )
    precision: str = option(
        "auto",
        "float32, bfloat16, float16, or tf32 on a GPU. Default: bfloat16 where a GPU has it.",
        MODEL,
    )
    overlap: float | tuple[float, float, float] | None = option(
        None,
        "Of patches, in voxels or as a fraction below 1. Default: the bundle's, or 0.25.",
        PATCHES,
        read=numbers,
    )
    blend: str | npt.ArrayLike | None = option(
        None,
        "gaussian, hann, average or crop; a .npy file of a weight for each voxel of the patch;"
        " exact: no seams at all. Default: the bundle's, or gaussian.",
        PATCHES,
    )
    sigma_scale: float | None = option(
        None,
        "Sigma of the gaussian blend, as a part of the patch's side. Default: the bundle's, or"
        " 0.125.",
        PATCHES,
    )
    spacing: float | str | tuple[float | str, ...] | None = option(
        None,
        "Voxel size that the model expects along its axes, such as 1.5 or 1mm,1mm,3mm: a scan of"
        " another is resampled, and scores are brought back; stored: as it is. Default: the"
        " bundle's.",
        PATCHES,
        read=lengths,
    )
    padding: float | str | None = option(
        None,
        "What lies outside of the volume: a normalised value, edge or reflect. Default: the"
        " bundle's, or 0.",
        PATCHES,
        read=value_or_word,
    )
    flips: str = option("", "Average over copies mirrored along these axes, such as zyx.", PATCHES)
    mask: VolumeLike | None = option(None, "A volume; patches outside of it are skipped.", PATCHES)
    skip_below: float | None = option(
        None, "Skip patches whose voxels all lie below this.", PATCHES
    )
    fill: float | None = option(None, "Value of voxels that are skipped.", PATCHES)
    output: str | None = option(
        None, "classes or scores. Default: the bundle's, or scores.", RESULT
    )
    dtype: str | None = option(None, "Data type of the result, such as float16.", RESULT)
    chunk: int | tuple[int, int, int] | None = option(
        None, "Voxels of a compressed piece.", RESULT, read=numbers
    )
    shard: int | tuple[int, int, int] | None = option(
        None, "Voxels of a stored object.", RESULT, read=numbers
    )
    levels: bool = option(False, "Write coarser levels too, as volflow pyramid does.", RESULT)
    keep: bool = option(
        False, "Keep the copies of inputs beside a file that is written, such as a .nii.gz.", RESULT
    )
    # No command line names a Dask array, which this is about.
    resume: bool = False

    # What needs NumPy is imported where it is used: the help of a command does not.

    def __post_init__(self) -> None:
        """Turn one's own weights into a `WeightMap` at once: that is compared, and travels."""
        object.__setattr__(self, "blend", blend_of(self.blend))

    @property
    def sides(self) -> tuple[int, int, int]:
        """Return the patch, one side per axis of the frame."""
        from volflow.geometry.grid import per_axis

        z, y, x = per_axis(self.patch or 0, "patch")
        return z, y, x

    @property
    def blending(self) -> Blend | WeightMap:
        """Return the blend; refuses an unknown one."""
        from volflow.geometry.windows import WeightMap, check_blend

        blend: Any = self.blend or ""
        return blend if isinstance(blend, WeightMap) else check_blend(blend)

    @property
    def sigma(self) -> float:
        """Return the sigma of the gaussian in sides of the patch: the one asked for, or usual."""
        from volflow.geometry.windows import SIGMA_SCALE

        return self.sigma_scale or SIGMA_SCALE

    @property
    def outside(self) -> Padding:
        """Return what lies outside of the volume; refuses what is no padding."""
        from volflow.geometry.outside import Padding

        return Padding(self.padding or 0)

    @property
    def flip_axes(self) -> tuple[int, ...]:
        """Return the axes that are mirrored, counted from 0 in the frame."""
        return tuple("zyx".index(letter) for letter in self.flips)

    def stored_dtype(self, computed: str) -> str:
        """Return the dtype of the output: the one asked for, else that of the model's scores."""
        return self.dtype or computed


def blend_of(given: Any) -> Any:
    """Return the name of a blend or None as they are, and anything else as a `WeightMap`.

    Raises
    ------
    InvalidInput
        Where it is neither a name, nor an array of weights or a ``.npy`` file of one.
    """
    if given is None or (isinstance(given, str) and not given.endswith(".npy")):
        return given
    from volflow.geometry.windows import WeightMap, weight_map

    return given if isinstance(given, WeightMap) else weight_map(given)


def as_sides(name: str, text: str) -> tuple[int, ...]:
    """Sides of a volume or a slice, as typed.

    Examples
    --------
    >>> as_sides("shape", "512,512,300"), as_sides("shape", "64,64")
    ((512, 512, 300), (64, 64))
    """
    parts = text.split(",")
    if len(parts) not in (2, 3) or not all(part.strip().isdecimal() for part in parts):
        raise InvalidInput(
            f"{name} must be whole numbers z,y,x, or y,x of slices, given {text!r}; write for"
            " example 512,512,300"
        )
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class HaloOptions(ModelOptions):
    """The options of `halo`."""

    channels: int | None = option(
        None, "Channels of the input. Default: those of the bundle, or 1."
    )
    shape: Sequence[int] | None = option(
        None, "Sides of the volume, z,y,x (y,x of slices). Default: very large.", read=as_sides
    )


@dataclass(frozen=True)
class SeamsOptions(NetworkOptions):
    """The options of `certify_seams`."""

    overlaps: Sequence[float | tuple[float, float, float]] = option(
        (0, 0.25, 0.5),
        "Of patches, in voxels or as a fraction below 1; may be repeated.",
        SEAMS,
        names=("--overlap",),
        read=numbers,
        many=True,
    )
    blends: Sequence[str] = option(
        ("gaussian",),
        "gaussian, hann, average or crop; may be repeated.",
        SEAMS,
        names=("--blend",),
        many=True,
    )
    regions: int = option(2, "How many regions are measured.", SEAMS)
    seed: int = option(0, "Seed of the draw of regions.", SEAMS)
    memory: str | int | None = option(None, MEMORY, SEAMS)
    progress: Callable[[str], object] | None = None


@dataclass(frozen=True)
class VerifyOptions(WorkerOptions, ModelOptions):
    """The options of `verify`."""

    recompute: int = option(
        0, "Blocks of a prediction to compute anew and compare, drawn at random.", ANEW
    )
    seed: int | None = option(None, "Seed of the draw. Default: a new one, which is printed.", ANEW)
    input: VolumeLike | Mapping[str, VolumeLike] | None = option(
        None,
        "The input, where it is not where it was; several as name=path, the option once for each.",
        ANEW,
        many=True,
    )
    model: ModelLike | None = option(
        None, "The model, where the journal cannot name it.", ANEW, names=("--model", "-m")
    )
    mask: VolumeLike | None = option(None, "The mask, where it is not where it was.", ANEW)
    device: str = option("auto", "cpu, instead of the device that it was made on.", ANEW)
    blend: str | npt.ArrayLike | None = option(
        None, "The weight map, of a prediction with one: a .npy file.", ANEW
    )
    # No command line names functions, nor a function that counts blocks.
    normalize: Callable[[Any], Any] | None = None
    activation: Callable[[Any], Any] | None = None
    progress: bool | Callable[[int, int], object] | None = None
