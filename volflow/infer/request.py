"""A prediction, checked: what goes in, through which model, with which options, where to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.grid import PatchGrid, stride_of
from volflow.geometry.normalize import normalization
from volflow.infer.finish import Finish
from volflow.infer.options import PredictOptions
from volflow.infer.patches.feed import Inputs
from volflow.infer.patches.sliding import SlidingWindow
from volflow.model.forward import Forward, Output
from volflow.model.precision import compute_dtype
from volflow.model.spec import Model
from volflow.store.journal.complete import open_complete
from volflow.store.meta import Meta
from volflow.store.volume import Volume
from volflow.volumes.statistics import statistics

__all__ = ["Request", "check_classes", "make_request", "normalized", "output_meta"]

# Raised when the same inputs give other voxels than before; part of the fingerprint.
PREDICT_VERSION = 2


@dataclass(frozen=True)
class Request:
    """A prediction, checked: what goes in, through which model, with which options, where to."""

    inputs: Inputs
    model: Model
    options: PredictOptions
    out: Path

    @property
    def grid(self) -> PatchGrid:
        """The grid of a model whose output is as large as its input."""
        sides = self.options.sides
        return PatchGrid(self.inputs.shape, sides, stride_of(sides, self.options.overlap))

    def grid_for(self, scale: tuple[int, ...]) -> PatchGrid:
        """The grid of a model that reduces its input by ``scale``."""
        sides = self.options.sides
        stride = stride_of(sides, self.options.overlap, scale)
        return PatchGrid(self.inputs.shape, sides, stride, tuple(s > 1 for s in scale))

    def out_shape(self, scale: tuple[int, ...]) -> tuple[int, ...]:
        """Voxels of the output along the stored axes, of ``scale`` input voxels in the frame."""
        sides = (-(-n // s) for n, s in zip(self.inputs.shape, scale, strict=True))
        return self.inputs.frame.restore(tuple(sides))

    def forward(self, device: str, precision: str) -> Forward:
        """How patches go through the model on a device."""
        return Forward(
            self.model.digest,
            (0, 0, 0) if self.options.patch is None else self.options.sides,
            self.inputs.channels,
            device,
            precision,
            compute_dtype(self.model.module),
            self.options.flip_axes,
        )

    def window(
        self, outputs: tuple[Output, ...], forward: Forward, batch_size: int
    ) -> SlidingWindow:
        """What decides the voxels, once it is known what the model returns."""
        scale = outputs[0].scale
        return SlidingWindow(
            self.inputs,
            self.grid_for(scale),
            scale,
            forward,
            batch_size,
            self.options.blending,
            self.finish(forward.dtype),
            outputs,
        )

    def finish(self, computed: str) -> Finish:
        """What becomes of scores of a dtype."""
        options = self.options
        return Finish(
            options.output or "scores",
            options.activation,
            options.stored_dtype(computed),
            options.fill or 0,
        )

    def fingerprint(self) -> dict[str, Any]:
        """What decides the voxels of the result, by part."""
        volumes = [v.identity() for v in self.inputs.volumes]
        mask = self.inputs.mask.identity() if self.inputs.mask is not None else None
        code = self.model.code.joined(self.options.code())
        return {
            "input": volumes,
            "mask": mask,
            "weights": self.model.digest,
            "code": code.modules,
            "packages": code.packages,
            "options": self.options.settings(),
            "version": PREDICT_VERSION,
        }


def make_request(
    named: dict[str, Any], mask: Any, model: Model, options: PredictOptions, out: Path
) -> Request:
    """Check opened volumes against each other, the model and the options."""
    volumes = {name: open_complete(v) for name, v in named.items()}
    first_name, first = next(iter(volumes.items()))
    others = dict(volumes)
    if mask is not None:
        mask = open_complete(mask)
        if mask.ndim != 3:
            raise InvalidInput(f"mask must have axes zyx; got {', '.join(mask.axes)}")
        others["mask"] = mask
    for name, volume in others.items():
        if volume.spatial_shape != first.spatial_shape:
            raise InvalidInput(
                f"inputs must lie on one grid: {name or 'the volume'} has shape"
                f" {volume.spatial_shape}, {first_name or 'the volume'} {first.spatial_shape}"
            )
        if not np.allclose(volume.spacing, first.spacing, rtol=1e-3):
            raise InvalidInput(
                f"inputs must lie on one grid: {name or 'the volume'} has spacing"
                f" {volume.spacing}, {first_name or 'the volume'} {first.spacing}"
            )
        if None not in (a := (volume.orientation, first.orientation)) and len(set(a)) > 1:
            raise InvalidInput(
                f"inputs must lie on one grid: {name or 'the volume'} is oriented"
                f" {volume.orientation}, {first_name or 'the volume'} {first.orientation}"
            )
    frame = Frame.between(first.orientation, options.frame)
    _check_spacing(first, frame, model)
    _check_channels(volumes, model)
    inputs = Inputs(
        tuple(volumes.values()), (None,) * len(volumes), frame, mask, options.skip_below
    )
    return Request(inputs, model, options, out)


def check_classes(options: PredictOptions, outputs: tuple[Output, ...]) -> None:
    """Refuse a dtype that cannot hold every class that a model has."""
    most = max(o.channels for o in outputs)
    if options.output == "classes" and most - 1 > np.iinfo(options.dtype or "uint8").max:
        raise InvalidInput(
            f"{options.dtype} holds no class {most - 1}, and the model has {most} classes; use"
            f' dtype="{np.min_scalar_type(most - 1)}"'
        )


def normalized(request: Request, **options: Any) -> Request:
    """The request with its normalisation turned into constants of the whole volume.

    Parameters
    ----------
    request
        A prediction, checked.
    **options
        Of `statistics`, which reads a volume once; what was measured before is not read again.
    """
    choice = request.options.normalize
    if choice is None:
        return request
    parts = tuple(
        choice if callable(choice) else normalization(choice, statistics(volume, **options))
        for volume in request.inputs.volumes
    )
    return replace(request, inputs=replace(request.inputs, normalize=parts))


def _check_spacing(volume: Volume, frame: Frame, model: Model) -> None:
    wanted = model.spec.spacing
    if wanted is None:
        return
    given = frame.reorder(volume.spacing)
    same_unit = None in (volume.unit, model.spec.unit) or volume.unit == model.spec.unit
    if not same_unit or not np.allclose(given, wanted, rtol=0.02):
        raise InvalidInput(
            f"the model was trained at spacing {tuple(wanted)} {model.spec.unit or ''} but the"
            f" volume has {given} {volume.unit or ''}; resample the volume, or use a model for"
            " its spacing"
        )


def _check_channels(volumes: dict[str, Volume], model: Model) -> None:
    wanted = model.spec.channels
    given = sum(v.channels_count for v in volumes.values())
    if wanted is not None and given != len(wanted):
        raise InvalidInput(
            f"the model wants {len(wanted)} channels ({', '.join(wanted)}); the input has {given}"
        )


def output_meta(request: Request, output: Output) -> Meta:
    """Axes, spacing, origin and names of an output."""
    inputs, options, spec = request.inputs, request.options, request.model.spec
    meta = inputs.volumes[0].meta
    frame = inputs.frame
    offsets = []
    for n, s, flip in zip(inputs.shape, output.scale, frame.flips, strict=True):
        centre = (s - 1) / 2
        offsets.append(n - 1 - (-(-n // s) - 1) * s - centre if flip else centre)
    meta = meta.regrid(frame.restore(output.scale), frame.restore(offsets))
    classes = options.output == "classes"
    names = spec.classes if len(spec.classes) == output.channels else ()
    axes = ("z", "y", "x") if classes else ("c", "z", "y", "x")
    kind = "classes" if classes else "image"
    return replace(meta, axes=axes, kind=kind, channels=names, colors=())
