"""A prediction, checked once: what goes in, through which model, with which options, where to."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch

import volflow
from volflow.errors import Damaged, InvalidInput
from volflow.geometry.frame import Frame
from volflow.infer.finish import Finish
from volflow.infer.merge import code_of, order_inputs, settings_of
from volflow.infer.predict_options import PredictOptions
from volflow.model.forward import Forward, Output, compute_dtype
from volflow.model.resident import ModelPlugin
from volflow.model.spec import Model
from volflow.store.formats.sources import split_part
from volflow.store.formats.written import is_foreign
from volflow.store.journal.journal import journal_dir, journal_of
from volflow.store.journal.outputs import check_apart
from volflow.store.layout import resolve_layout
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.remote.address import Address, Location, location
from volflow.store.slabs import Source
from volflow.volumes.arrays.grids import difference_of_grids, shared_grid
from volflow.volumes.arrays.inputs import VolumeLike, open_input
from volflow.volumes.framed import FramedImage, on_scale
from volflow.volumes.normalizing import constants_of
from volflow.volumes.resample.model_grid import ModelGrid, grid_of_model
from volflow.volumes.resample.target_grid import wanted_spacing

__all__ = [
    "Request",
    "check_classes",
    "check_weights",
    "framed_image",
    "make_request",
    "model_grid",
    "normalized",
    "output_meta",
    "stored_bytes",
    "stored_layout",
]

# Raised when the same inputs give other voxels than before; part of the fingerprint. By blend,
# where one has been raised alone.
PREDICT_VERSION, VERSIONS = 2, {"exact": 3}


@dataclass(frozen=True)
class Request:
    """A prediction, checked.

    Parameters
    ----------
    inputs
        What the network sees; sources stand where volumes are still to be converted.
    model, options
        The network, and what is asked for.
    out
        The volume that is written.
    given
        The inputs by name, as they were handed over.
    file
        The file of another format that the volume is exported to, if one was asked for.
    copies
        By name of the input, the identity of a copy that was deleted, where what is read now, or
        would be, is a copy of the same.
    grid
        On which the network sees the inputs; None where it is their own.
    """

    inputs: FramedImage
    model: Model
    options: PredictOptions
    out: Location = Path()
    given: Mapping[str, Any] | None = None
    file: Path | None = None
    copies: Mapping[str, str] = field(default_factory=dict)
    grid: ModelGrid | None = None

    @property
    def plugin(self) -> ModelPlugin:
        """What holds the model on workers."""
        return ModelPlugin(self.model.module, self.model.digest, self.options.device)

    @property
    def folder(self) -> Path:
        """The folder in which the output lies, for methods that keep files there."""
        return Path(self.out.parent)

    @property
    def sidecar(self) -> Location:
        """The folder beside the output that the user named, where inputs are converted to."""
        return journal_of(self.file or self.out).directory

    def copy_of(self, name: str) -> Location:
        """Return the place of a copy of an input, or of the mask, beside the output."""
        return self.sidecar / f"{name or 'input'}.zarr"

    @property
    def unidentified(self) -> str:
        """Why it cannot be told whether a stored input is what it was; ``""`` where it can."""
        inputs: Any = (*self.inputs.volumes, self.inputs.mask)
        return next((one.unidentified for one in inputs if one and one.unidentified), "")

    def named(self) -> str:
        """Return the inputs as they were handed over, for people."""
        shown = {
            name: os.fspath(x) if isinstance(x, str | os.PathLike) else type(x).__name__
            for name, x in (self.given or {}).items()
        }
        return ", ".join(f"{name}={x}" if name else x for name, x in shown.items())

    def out_shape(self, scale: tuple[int, ...]) -> tuple[int, ...]:
        """Return the output's voxels along the stored axes; ``scale`` counts along the frame's."""
        sides = (-(-n // s) for n, s in zip(self.inputs.shape, scale, strict=True))
        return self.inputs.frame.restore(tuple(sides))

    def forward(self, device: str, precision: str, layout: str = "contiguous") -> Forward:
        """Return the forward of a patch through the model on a device."""
        return Forward(
            self.model.digest,
            (0, 0, 0) if self.options.patch is None else self.options.sides,
            self.inputs.channels,
            device,
            precision,
            compute_dtype(self.model.module),
            self.options.flip_axes,
            layout,
        )

    def finish(self, computed: str) -> Finish:
        """Return the finish of scores of a dtype."""
        options = self.options
        return Finish(
            options.output or "scores",
            options.activation,
            options.stored_dtype(computed),
            options.fill or 0,
        )

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the voxels of the result, by part."""
        volumes: Any = self.inputs.volumes
        names = tuple(self.given or ()) or ("",) * len(volumes)
        mask: Any = self.inputs.mask
        code = self.model.code.joined(code_of(self.options))
        return {
            "input": [
                self.copies.get(name) or volume.identity()
                for name, volume in zip(names, volumes, strict=True)
            ],
            "mask": None if mask is None else mask.identity(),
            "weights": self.model.digest,
            "code": code.modules,
            "packages": code.packages,
            "options": settings_of(self.options),
            # However it was asked for, or the model's own.
            **({} if self.grid is None else self.grid.identity()),
            "version": VERSIONS.get(str(self.options.blend), PREDICT_VERSION),
        }


def make_request(volume: Any, model: Model, out: Any, options: PredictOptions) -> Request:
    """Open the inputs and check them against each other, the model, the options and the output.

    Parameters
    ----------
    volume
        A `VolumeLike`, or several by name.
    model
        Loaded.
    out
        Path of the result.
    options
        Merged with the model's own.

    Raises
    ------
    InvalidInput
        For what cannot work together.
    """
    given = order_inputs(volume, model.spec)
    masked = {} if options.mask is None else {"mask": options.mask}
    place = location(out).expanduser().absolute()
    if isinstance(place, Address):
        _check_on_store(place, options)
    elif not place.parent.is_dir():
        raise InvalidInput(f"the folder {place.parent} does not exist; make it first")
    for one in (*given.values(), *masked.values()):
        named = os.fspath(one) if isinstance(one, str | os.PathLike) else "://"
        if "://" not in named and not split_part(named)[0].exists():
            raise InvalidInput(f"{one} does not exist")
    check_apart(place, *masked.values(), *given.values())
    check_weights(model.module)
    sources = {name: _opened(name or "volume", one) for name, one in given.items()}
    mask = None if options.mask is None else _opened("mask", options.mask)
    image = framed_image(sources, mask, model, options)
    grid = model_grid(image, model, options)
    if grid is not None and isinstance(place, Address):
        raise InvalidInput(
            f"{place} lies on a store, and scores of a volume of another spacing than the network's"
            " are kept beside the output, which needs a folder; write to a folder and copy the"
            " result to the store (vf.convert, volflow convert)"
        )
    if isinstance(place, Path) and is_foreign(place):
        store = journal_dir(place) / "output.zarr"
        return Request(image, model, options, store, given, place, grid=grid)
    return Request(image, model, options, place, given, grid=grid)


def _check_on_store(out: Address, options: PredictOptions) -> None:
    if is_foreign(out):
        raise InvalidInput(
            f"{out} is a file, which predict does not write to a store; predict {out.parent}/"
            f"{out.name.partition('.')[0]}.zarr and export that (vf.export, volflow export)"
        )
    if options.blend == "exact":
        raise InvalidInput(
            f'blend="exact" keeps activations beside its output, which needs a folder; got {out};'
            " write to a folder and copy the result to the store (vf.convert, volflow convert)"
        )


def _opened(name: str, one: VolumeLike) -> Source:
    try:
        return open_input(one)
    except InvalidInput as error:
        if isinstance(one, str | os.PathLike):  # which it names
            raise
        raise type(error)(f"input {name}: {error}") from error


def check_weights(module: torch.nn.Module) -> None:
    """Refuse weights that are NaN: nothing that they compute is a number."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise Damaged(
                f"the model's {name} holds NaN; train it again, or load weights that are numbers"
            )


def framed_image(
    sources: Mapping[str, Source], mask: Source | None, model: Model, options: PredictOptions
) -> FramedImage:
    """Put opened inputs on one grid, in the frame of the model.

    Raises
    ------
    InvalidInput
        Where they lie on several grids, or the model does not take their channels.
    """
    specs = {name: source.spec for name, source in sources.items()}
    others = dict(specs)
    if mask is not None:
        others["mask"] = mask.spec
        axes = others["mask"].meta.axes
        if len(axes) != 3:
            raise InvalidInput(f"mask must have axes zyx; got {', '.join(axes)}")
    _check_one_grid(others)
    grid = shared_grid([spec.meta for spec in specs.values()])
    frame = Frame.between(grid.orientation, options.frame)
    wanted = model.spec.channels
    channels = sum(spec.channels for spec in specs.values())
    if wanted is not None and channels != len(wanted):
        raise InvalidInput(
            f"the model wants {len(wanted)} channels ({', '.join(wanted)}); the input has"
            f" {channels}"
        )
    return FramedImage(
        tuple(specs.values()),
        tuple(sources.values()),
        (None,) * len(specs),
        frame,
        mask,
        options.skip_below,
        options.outside,
    )


def _check_one_grid(specs: Mapping[str, VolumeSpec]) -> None:
    """Refuse inputs that differ in shape, spacing or orientation; unknown ones fit any."""
    differing = difference_of_grids({name: (x.shape, x.meta) for name, x in specs.items()})
    if differing is not None:
        what, first, value, name, other = differing
        raise InvalidInput(
            f"inputs must lie on one grid: {name or 'the volume'} has {what} {other},"
            f" {first or 'the volume'} {value}; resample one onto the other's grid, or correct"
            " its metadata"
        )


def model_grid(image: FramedImage, model: Model, options: PredictOptions) -> ModelGrid | None:
    """Return the grid on which the network sees the inputs; None where it is their own.

    The voxel size is the one asked for, in the unit of the inputs, or the model's own.
    """
    asked: Any = options.spacing
    if asked == "stored":
        return None
    if asked is not None:
        return grid_of_model(image, wanted_spacing(asked, image.meta), None)
    wanted = model.spec.spacing
    return None if wanted is None else grid_of_model(image, wanted, model.spec.unit)


def check_classes(options: PredictOptions, outputs: tuple[Output, ...]) -> None:
    """Refuse a dtype that cannot hold every class that a model has."""
    most = max(o.channels for o in outputs)
    if options.output == "classes" and most - 1 > np.iinfo(options.dtype or "uint8").max:
        raise InvalidInput(
            f"{options.dtype} holds no class {most - 1}, and the model has {most} classes; use"
            f' dtype="{np.min_scalar_type(most - 1)}"'
        )


def normalized(request: Request, **options: Any) -> Request:
    """Return the request with its normalisation as constants of the whole volume.

    Parameters
    ----------
    request
        Whose inputs are volumes.
    **options
        Of `statistics`, which reads a volume once; what was measured before is not read again.
    """
    choice = request.options.normalize
    if choice is None:
        return request
    volumes: Any = request.inputs.volumes
    parts = tuple(constants_of(choice, volume, **options) for volume in volumes)
    return replace(request, inputs=replace(request.inputs, normalize=parts))


def output_meta(request: Request, output: Output) -> Meta:
    """Return the metadata of an output: axes, spacing, origin, names."""
    inputs, options, spec = request.inputs, request.options, request.model.spec
    meta, frame = inputs.meta, inputs.frame
    meta = on_scale(meta, frame, inputs.shape, output.scale)
    classes = options.output == "classes"
    names = spec.classes if len(spec.classes) == output.channels else ()
    axes = ("z", "y", "x") if classes else ("c", "z", "y", "x")
    kind = "classes" if classes else "image"
    made = json.dumps(_made_by(request))
    return replace(meta, axes=axes, kind=kind, channels=names, colors=(), made=made)


def _made_by(request: Request) -> dict[str, Any]:
    """Return which model and settings make the voxels, for whoever has them without a journal."""
    grid = request.grid
    return {
        "volflow": volflow.__version__,
        "model": PurePath(request.model.name).name,
        "weights": request.model.digest,
        **({} if grid is None else {"spacing": list(grid.spacing)}),
        "options": {
            name: value for name, value in settings_of(request.options).items() if value is not None
        },
    }


def stored_layout(
    request: Request, output: Output, computed: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the chunk and shard of an output of scores of a dtype: as asked for, or the usual."""
    options, shape = request.options, request.out_shape(output.scale)
    spacing, dtype = output_meta(request, output).spacing, options.stored_dtype(computed)
    return resolve_layout(shape, spacing, dtype, options.chunk, options.shard)


def stored_bytes(request: Request, outputs: tuple[Output, ...], computed: str) -> int:
    """Return the bytes of one voxel of all outputs, for scores of a dtype."""
    classes = request.options.output == "classes"
    values = sum(1 if classes else output.channels for output in outputs)
    return values * np.dtype(request.options.stored_dtype(computed)).itemsize
