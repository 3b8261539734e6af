"""Bundles: a directory of ``bundle.json`` and ``weights.safetensors``, safe to open.

::

    {
      "version": 1,
      "architecture": "unet",                     the built-in U-Net; or "package.module:callable"
      "arguments": {"in_channels": 1, …},         its keyword arguments
      "channels": ["t1"], "classes": ["background", …], "patch": 64, …       see Spec
    }

Opening a bundle of the built-in U-Net runs no code from it. An import path names code to run, so
such a bundle is opened only with ``trust=True``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from volflow.engine.pages import prepare_allocators
from volflow.errors import Damaged, InvalidInput
from volflow.model.digest import identity_of
from volflow.model.load import (
    as_module,
    fit_weights,
    import_named,
    load_exported,
    read_weights,
)
from volflow.model.spec import Model, Spec, make_spec
from volflow.model.unet import UNet
from volflow.store.aside import folder_aside, replace_folder, sweep
from volflow.store.atomic import read_json

__all__ = ["Model", "ModelLike", "Spec", "evaluating", "load_model", "save_model"]

VERSION = 1
CARD = "bundle.json"
WEIGHTS = "weights.safetensors"

_IMPORT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")

ModelLike = Model | nn.Module | Callable[..., Any] | str | os.PathLike[str]
"""A network as every function takes it.

A `Model` from `load_model`, a ``torch.nn.Module``, a function of one tensor, the path of a bundle
or of a ``torch.export`` archive, or ``"package.module:callable"``.
"""


def load_model(
    model: ModelLike,
    weights: str | os.PathLike[str] | None = None,
    *,
    trust: bool = False,
) -> Model:
    """Load a network from a module, a function, a file or an import path.

    Parameters
    ----------
    model
        A ``torch.nn.Module``, used as it is: its mode and device are left alone, so run it
        inside `evaluating`. A function of one tensor. A bundle directory. A ``.pt2`` archive
        of ``torch.export``. Or ``"package.module:callable"``, naming a module, a class or
        function that makes one without arguments, or a function of one tensor.
    weights
        For a network that an import path names: ``.safetensors``, or a PyTorch checkpoint.
    trust
        Allow running code that a file contains or names: ``.pt2`` archives, checkpoints that
        hold more than tensors, bundles whose architecture is an import path.

    Raises
    ------
    InvalidInput
        If it cannot be loaded; one line with the remedy.

    Examples
    --------
    >>> load_model("torch.nn:Identity").module
    Identity()
    """
    if isinstance(model, (str, os.PathLike)):
        prepare_allocators(own=False)  # this may be torch's first allocation
        return _load_named(os.fspath(model), None if weights is None else Path(weights), trust)
    if weights is not None:
        raise InvalidInput(
            'weights= goes with a model named as "package.module:callable"; load them into this'
            " one before handing it over"
        )
    if isinstance(model, Model):
        return model
    kind = model if hasattr(model, "__qualname__") else type(model)
    name = f"{kind.__module__}.{kind.__qualname__}"
    return _model(as_module(model, name), Spec(), name)


def save_model(
    module: nn.Module | Model,
    path: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **spec: Any,
) -> Model:
    """Save a network as a bundle, and return it as loaded from there.

    Parameters
    ----------
    module
        A `UNet`, or any module that ``architecture`` builds; a `Model` has its own spec.
    path
        The directory to make; it appears complete or not at all.
    architecture, arguments
        ``"package.module:callable"`` and its keyword arguments, for other modules than `UNet`;
        opening such a bundle requires ``trust=True``.
    overwrite
        Replace an existing bundle; nothing else is ever replaced.
    **spec
        The fields of `Spec`: ``channels``, ``classes``, ``patch``, ``overlap``, ``frame``,
        ``spacing``, ``normalize``, ``output`` and so on.

    Raises
    ------
    InvalidInput
        If a field is wrong, the architecture does not build this module, or the path is
        taken; nothing is written then.

    Examples
    --------
    >>> import tempfile
    >>> net = UNet(1, 2, features=(4, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = save_model(net, Path(folder) / "bundle", patch=32, classes=["no", "yes"])
    ...     load_model(Path(folder) / "bundle").digest == saved.digest
    True
    """
    path = Path(path).expanduser().resolve()
    if isinstance(module, Model):
        spec = {**_card_of(module.spec), **spec}
        module = module.module
    if isinstance(module, UNet) and architecture is None:
        architecture, arguments = "unet", module.arguments
    if architecture is None:
        raise InvalidInput(
            f"a bundle cannot name the architecture of {type(module).__name__} by itself; pass"
            ' architecture="package.module:callable" and its arguments='
        )
    checked = make_spec(spec, "save_model")
    # Cloned: safetensors refuses tensors that share memory.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in module.state_dict().items()}
    _build(architecture, arguments or {}, state, checked, "to save")
    card = {
        "version": VERSION,
        "architecture": architecture,
        "arguments": dict(arguments or {}),
        **_card_of(checked),
    }
    try:
        text = json.dumps(card, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"arguments must be plain JSON values: {error}") from error
    _check_place(path, overwrite)
    _write(path, text, state)
    return load_model(path, trust=True)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Put a module in eval mode within a block; every layer gets its own mode back.

    Examples
    --------
    >>> net = torch.nn.Dropout()
    >>> with evaluating(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for layer, mode in modes:
            layer.training = mode


def _model(module: nn.Module, spec: Spec, name: str, imported: str = "") -> Model:
    """Return the network as a `Model`; ``imported`` is the import path of its factory."""
    code = imported.partition(":")[0]
    digest, known = identity_of(module, [code] if code else [])
    return Model(module, spec, digest, name, known)


def _load_named(name: str, weights: Path | None, trust: bool) -> Model:
    path = Path(name).expanduser()
    if path.name == CARD and path.is_file():
        path = path.parent
    if not path.exists() and _IMPORT.fullmatch(name):
        module = as_module(import_named(name), name)
        if weights is not None:
            fit_weights(module, read_weights(weights.expanduser(), trust), str(weights))
        return _model(module.cpu().eval(), Spec(), name, name)
    if not path.exists():
        raise InvalidInput(
            f"model {name!r} does not exist; give a bundle directory, a .pt2 archive or"
            ' "package.module:callable"'
        )
    if weights is not None:
        raise InvalidInput(f"model {name!r} includes its weights; leave weights= out")
    if path.is_dir():
        return _load_bundle(path, trust)
    if path.suffix == ".pt2":
        exported = load_exported(path, trust)
        sides = exported.sides
        fixed = len(sides) == 3 and None not in sides
        return _model(exported.eval(), Spec(patch=sides if fixed else None), name)  # type: ignore[arg-type]
    raise InvalidInput(
        f"model {name!r} is neither a bundle directory nor a .pt2 archive; weights alone"
        ' need their network: model="package.module:callable", weights=this file'
    )


def _load_bundle(path: Path, trust: bool) -> Model:
    where = path / CARD
    try:
        card = read_json(where)
    except FileNotFoundError as error:
        raise InvalidInput(f"{str(path)!r} is not a model bundle: {CARD} is missing") from error
    except OSError as error:
        raise InvalidInput(f"{where} cannot be read: {error}") from error
    except ValueError as error:
        raise Damaged(f"{where} cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("version") != VERSION:
        version = card.get("version") if isinstance(card, dict) else None
        raise InvalidInput(
            f"{where} has version {version!r:.40}; this volflow reads version {VERSION}"
        )
    rest = {k: v for k, v in card.items() if k not in ("version", "architecture", "arguments")}
    spec = make_spec(rest, str(where))
    architecture, arguments = card.get("architecture"), card.get("arguments", {})
    if not isinstance(architecture, str) or not isinstance(arguments, dict):
        raise InvalidInput(f"{where}: architecture must be a string, arguments a JSON object")
    if architecture != "unet" and not trust:
        raise InvalidInput(
            f"{where} would run the code {architecture!r:.99}; pass trust=True (--trust) if you"
            " trust its source"
        )
    weights = path / WEIGHTS
    module = _build(architecture, arguments, read_weights(weights), spec, str(weights))
    return _model(module, spec, str(path), "" if architecture == "unet" else architecture)


def _build(
    architecture: str,
    arguments: Mapping[str, Any],
    state: Mapping[str, Tensor],
    spec: Spec,
    where: str,
) -> nn.Module:
    """Return the network of a bundle with its weights, in eval mode."""
    if architecture == "unet":
        try:
            # On the meta device first: sizes are compared before memory is allocated.
            with torch.device("meta"):
                unet = UNet(**arguments)
        except TypeError as error:
            raise InvalidInput(f"the U-Net's arguments do not fit: {error}") from error
        _check_counts(unet, spec)
        module: nn.Module = unet
    elif _IMPORT.fullmatch(architecture):
        module = as_module(import_named(architecture), architecture, arguments)
    else:
        raise InvalidInput(
            f'unknown architecture {architecture!r}; use "unet" or "package.module:callable"'
        )
    fit_weights(module, state, where)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in module.parameters()):
        module.float()  # weights may be stored in half precision; autocast is the caller's choice
    return module.cpu().eval()


def _check_counts(unet: UNet, spec: Spec) -> None:
    given, made = unet.arguments["in_channels"], unet.arguments["out_channels"]
    if spec.channels is not None and len(spec.channels) != given:
        raise InvalidInput(f"{len(spec.channels)} channels are named, the U-Net takes {given}")
    if spec.output == "classes" and spec.classes and len(spec.classes) != made:
        raise InvalidInput(f"{len(spec.classes)} classes are named, the U-Net scores {made}")


def _card_of(spec: Spec) -> dict[str, Any]:
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return {name: value for name, value in values.items() if value is not None}


def _check_place(path: Path, overwrite: bool) -> None:
    if not path.exists():
        return
    if not overwrite:
        raise InvalidInput(f"{path} exists; pass overwrite=True or another path")
    if not path.is_dir() or {p.name for p in path.iterdir()} - {CARD, WEIGHTS}:
        raise InvalidInput(f"{path} is not a bundle, so it is not overwritten; pass another path")


def _write(path: Path, card: str, state: dict[str, Tensor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        with folder_aside(path) as aside:
            save_file(state, aside / WEIGHTS)
            (aside / CARD).write_text(card, encoding="utf-8")
            # safetensors makes its file readable by the owner only; the user's umask should decide.
            (aside / WEIGHTS).chmod((aside / CARD).stat().st_mode)
            replace_folder(aside, path)
    except (OSError, SafetensorError) as error:
        raise InvalidInput(f"bundle {path} cannot be written: {error}") from error
