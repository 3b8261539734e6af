"""Metadata of a model: its expected input and the meaning of its output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.units import metres
from volflow.geometry.windows import Blend
from volflow.model.imports import Code

__all__ = ["Model", "Spec", "make_spec"]

Whole = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Side = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
# Strict: 1.0 must not become one voxel, nor 1 a fraction.
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
Size = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Value = Annotated[float, Field(allow_inf_nan=False, strict=True)]

_EXPECTED = {
    "channels": "a list of names",
    "classes": "a list of names",
    "background": "a class number",
    "patch": "a whole number from 1, or three of them",
    "overlap": "whole voxels from 0, a fraction of the patch below 1, or three of these",
    "blend": "crop, average, gaussian, hann or exact",
    "sigma_scale": "a positive number",
    "padding": "a finite number, edge or reflect",
    "spacing": "three positive sizes along its axes, such as [3, 1, 1]",
    "output": '"scores" or "classes"',
}


@dataclass(frozen=True)
class Spec:
    """Expected input of a model and meaning of its output; None leaves a choice to the caller.

    Values per axis are in the model's own axis order: that of ``frame`` if given, else ``zyx``.
    Make one with `make_spec`, which checks the values.

    Parameters
    ----------
    channels
        Names of the input channels, in order.
    classes
        Names of the output classes, by number.
    background
        The class of voxels that the model does not see.
    patch
        Voxels per axis of the model's input; 1 on an axis means slices.
    overlap
        Overlap of neighbouring patches: voxels, or a fraction of the patch below 1.
    blend
        How overlapping outputs are combined, or ``"exact"``.
    sigma_scale
        Of the gaussian blend: its sigma as a part of the patch's side.
    padding
        What a patch holds outside of the volume: a normalised value, ``"edge"`` or ``"reflect"``.
    frame
        Three letters such as ``"RAS"``: the directions the model's axes point to.
    spacing, unit
        Voxel size the model was trained at.
    normalize, activation
        Normalisation of the input with whole-volume statistics, activation after blending.
    output
        ``"scores"`` per channel, or ``"classes"``, their argmax.
    description
        Free text, such as data, licence, authors.

    Examples
    --------
    >>> make_spec({"classes": ["background", "liver"], "patch": 96, "frame": "RAS"}).patch
    96
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    channels: tuple[str, ...] | None = None
    classes: tuple[str, ...] = ()
    background: Whole = 0
    patch: Side | tuple[Side, Side, Side] | None = None
    overlap: Whole | Share | tuple[Whole | Share, Whole | Share, Whole | Share] | None = None
    blend: Blend | Literal["exact"] | None = None
    sigma_scale: Size | None = None
    padding: Value | Literal["edge", "reflect"] | None = None
    frame: str | None = None
    spacing: tuple[Size, Size, Size] | None = None
    unit: str | None = None
    normalize: str | None = None
    activation: str | None = None
    output: Literal["scores", "classes"] = "scores"
    description: str = ""

    def __post_init__(self) -> None:
        if self.frame is not None:
            Frame.between("RAS", self.frame)
        if self.unit is not None and metres(self.unit) is None:
            raise InvalidInput(
                f"unit must be one of length, such as millimeter or mm, got {self.unit!r}"
            )
        for name in ("channels", "classes"):
            names = getattr(self, name) or ()
            if len(set(names)) < len(names):
                raise InvalidInput(f"{name} must have different names, got {list(names)}")
        if self.classes and self.background >= len(self.classes):
            raise InvalidInput(
                f"background is class {self.background}, but there are {len(self.classes)} classes"
            )
        if self.sigma_scale is not None and self.blend not in (None, "gaussian"):
            raise InvalidInput(
                f"sigma_scale is that of blend gaussian, and blend is {self.blend}; leave it out"
            )
        if self.channels == ():
            raise InvalidInput("channels must name at least one channel, or be left out")


@dataclass(frozen=True, eq=False)
class Model:
    """A network with its spec, digest and code.

    Parameters
    ----------
    module
        The network. If it was loaded or built here it is in eval mode and on the CPU; a module
        that was passed in is unchanged, so run it inside `volflow.model.bundle.evaluating`.
    spec
        Expected input and meaning of the output.
    digest
        sha256 of weights and architecture.
    name
        Its origin, for messages and reports.
    code
        The modules and packages that it runs.
    """

    module: torch.nn.Module
    spec: Spec
    digest: str
    name: str
    code: Code

    def __repr__(self) -> str:
        return f"Model({self.name}, digest {self.digest[:12]})"


_adapter = TypeAdapter(Spec)


def make_spec(values: Mapping[str, Any], where: str = "model spec") -> Spec:
    """Check values and make a `Spec` of them.

    Parameters
    ----------
    values
        Values by field name; JSON lists become tuples.
    where
        Name of their origin, for the message.

    Raises
    ------
    InvalidInput
        If a field is unknown or a value cannot be used; one line.

    Examples
    --------
    >>> make_spec({"patches": 64})
    Traceback (most recent call last):
    ...
    volflow.errors.InvalidInput: model spec: unknown key 'patches'; known are channels, ...
    """
    try:
        return _adapter.validate_python(dict(values))
    except ValidationError as error:
        raise InvalidInput(f"{where}: {_problem(error, values)}") from error


def _problem(error: ValidationError, values: Mapping[str, Any]) -> str:
    """Return the first problem on one line."""
    first = error.errors()[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "unexpected_keyword_argument":
        known = ", ".join(field.name for field in fields(Spec))
        return f"unknown key {key!r}; known are {known}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    return f"{key} is {values.get(key)!r:.80}; expected {_EXPECTED.get(key, 'a text')}"
