"""What a user may say about a prediction, checked and merged with what the model says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.normalize import check_normalization
from volflow.geometry.outside import ZEROS
from volflow.geometry.windows import SIGMA_SCALE
from volflow.infer.predict_options import PredictOptions
from volflow.model.digest import digest_of, identity_of
from volflow.model.imports import Code
from volflow.model.spec import Spec

__all__ = ["check_choice", "code_of", "merge_options", "order_inputs", "settings_of"]

# What a model may say of them, too.
INHERITED = (
    "patch", "overlap", "blend", "sigma_scale", "padding", "frame", "normalize", "activation",
    "output",
)  # fmt: skip


def settings_of(options: PredictOptions) -> dict[str, Any]:
    """Return the options that decide the result, for the fingerprint."""
    named = ("overlap", "frame", "output", "dtype", "flips", "skip_below", "fill")
    padding, sigma = options.outside, options.sigma_scale
    return {
        "patch": None if options.patch is None else list(options.sides),
        **{name: getattr(options, name) for name in named},
        "blend": None if options.blend is None else str(options.blend),
        "normalize": _name_of(options.normalize),
        "activation": _name_of(options.activation),
        # Outputs are known by these: those that were made before it could be chosen, too.
        **({} if padding == ZEROS else {"padding": padding.given}),
        **({} if sigma in (None, SIGMA_SCALE) else {"sigma_scale": float(sigma)}),
    }


def code_of(options: PredictOptions) -> Code:
    """Return the code that functions among the options run."""
    functions = [f for f in (options.normalize, options.activation) if callable(f)]
    return Code().joined(*(identity_of(function)[1] for function in functions))


def _name_of(choice: Any) -> Any:
    return f"function {digest_of(choice)[:16]}" if callable(choice) else choice


def merge_options(given: PredictOptions, spec: Spec) -> PredictOptions:
    """Fill what was not given from the model, then from the house defaults; refuse nonsense.

    What one method alone makes of them, that method checks (`Method.check`).

    Raises
    ------
    InvalidInput
        Naming the option, its value and what is allowed.

    Examples
    --------
    >>> merge_options(PredictOptions(patch=64), Spec()).overlap
    0.25
    """
    defaults = {"overlap": 0.25, "blend": "gaussian", "output": "scores", "padding": 0}
    merged: dict[str, Any] = {}
    for name in INHERITED:
        value = getattr(given, name)
        if value is None:
            value = getattr(spec, name)
        merged[name] = defaults.get(name) if value is None else value
    if merged["normalize"] == "none":
        merged["normalize"] = None
    if merged["blend"] != "gaussian":  # the model's is that of its own blend
        merged["sigma_scale"] = given.sigma_scale
    options = replace(given, **merged)
    if options.fill is None:
        options = replace(options, fill=spec.background if options.output == "classes" else 0)
    if options.dtype is None and options.output == "classes":
        many = len(spec.classes) > 256
        options = replace(options, dtype="uint16" if many else "uint8")
    _check(options)
    if options.dtype is not None:  # one name for "f4", numpy.float32 and "float32"
        options = replace(options, dtype=np.dtype(options.dtype).name)
    return options


def _check(options: PredictOptions) -> None:
    if options.frame is not None:
        Frame.between("RAS", options.frame)
    check_choice("output", options.output, ("scores", "classes"))
    if not callable(options.activation):
        check_choice("activation", options.activation, (None, "softmax", "sigmoid"))
    if options.normalize is not None:
        check_normalization(options.normalize)
    _ = options.outside  # refuses what is none
    _check_sigma(options)
    check_choice("precision", options.precision, ("auto", "float32", "bfloat16", "float16", "tf32"))
    if options.precision == "float16" and options.blend == "exact":
        raise InvalidInput(
            "precision 'float16' is for patches, which are run again in float32 where they"
            " overflow; blend 'exact' takes 'float32', 'bfloat16' or 'tf32'"
        )
    if options.device_bytes and options.device == "cpu":
        raise InvalidInput(
            f"device_memory {options.device_memory!r} is that of a GPU, and the device is cpu;"
            " leave one of them out"
        )
    flips: Any = options.flips
    if not isinstance(flips, str) or set(flips) - set("zyx") or len(set(flips)) != len(flips):
        raise InvalidInput(f"flips must name model axes among z, y, x, each once; got {flips!r}")
    for name in ("skip_below", "fill"):
        value = getattr(options, name)
        number = isinstance(value, int | float | np.number)
        if value is not None and (not number or (name == "skip_below" and np.isnan(value))):
            raise InvalidInput(f"{name} must be a number; got {value!r}")
    batch = options.batch_size
    if batch != "auto" and not (isinstance(batch, int) and batch >= 1):
        raise InvalidInput(f'batch_size must be "auto" or a whole number from 1; got {batch!r}')
    _check_dtype(options)


def _check_sigma(options: PredictOptions) -> None:
    sigma: Any = options.sigma_scale
    if sigma is None:
        return
    number = isinstance(sigma, int | float | np.number) and not isinstance(sigma, bool)
    if not number or not 0 < sigma < np.inf:
        raise InvalidInput(
            f"sigma_scale must be a positive number, a part of the patch's side; got {sigma!r}; the"
            " default is 0.125"
        )
    if options.blend != "gaussian":
        raise InvalidInput(
            f"sigma_scale {sigma} is that of blend 'gaussian', and the blend is {options.blend!r};"
            " leave one of them out"
        )


def _check_dtype(options: PredictOptions) -> None:
    if options.dtype is None:
        return
    try:
        dtype = np.dtype(options.dtype)
    except TypeError:
        dtype = np.dtype("O")
    allowed = "iu" if options.output == "classes" else "fiu"
    if dtype.kind not in allowed:
        kinds = "an integer" if allowed == "iu" else "a floating or integer"
        raise InvalidInput(f"dtype of {options.output} must be {kinds} type; got {options.dtype!r}")
    if dtype.kind in "iu" and options.fill is not None:
        limits = np.iinfo(dtype)
        if not limits.min <= options.fill <= limits.max or options.fill != int(options.fill):
            raise InvalidInput(f"fill {options.fill} does not fit in {dtype}; choose another")


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Refuse what is none of the choices of an option."""
    if value not in allowed:
        known = ", ".join(str(a) for a in allowed)
        raise InvalidInput(f"unknown {name} {value!r}; use one of {known}")


def order_inputs(volume: Any, spec: Spec) -> dict[str, Any]:
    """Return the volumes by name, in the order in which the model takes them."""
    if not isinstance(volume, Mapping):
        return {"": volume}
    if not volume:
        raise InvalidInput("no input volume was given")
    if spec.channels is None:
        return dict(volume)
    if set(volume) != set(spec.channels):
        raise InvalidInput(
            f"the model wants the volumes {', '.join(spec.channels)};"
            f" got {', '.join(str(name) for name in volume)}"
        )
    return {name: volume[name] for name in spec.channels}
