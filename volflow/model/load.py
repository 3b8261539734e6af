"""Make modules from import paths, callables and exported programs, and load weights."""

from __future__ import annotations

import importlib
import inspect
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from volflow.errors import Damaged, InvalidInput
from volflow.model.imports import search_here

__all__ = [
    "Exported",
    "Wrapped",
    "as_module",
    "fit_weights",
    "import_named",
    "load_exported",
    "read_weights",
]

_TRUST = "pass trust=True (--trust) if you trust its source"
_WRAPPERS = ("state_dict", "model_state_dict", "network_weights", "model")


class Wrapped(nn.Module):
    """A plain function of one tensor, as a module.

    Examples
    --------
    >>> Wrapped(torch.neg)(torch.ones(1))
    tensor([-1.])
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, image: Tensor) -> Any:
        """Return what the function makes of the image."""
        return self.function(image)


class Exported(nn.Module):
    """A program of `torch.export`, with the methods of a module that such programs lack.

    It can be put in eval mode (its mode was fixed at export), pickled, and called with any
    batch size if it was exported for a batch of one.
    """

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        shape = _input_shape(program)
        if shape[0] not in (None, 1):
            raise InvalidInput(
                f"the exported model takes batches of exactly {shape[0]}; export it with a batch"
                " of 1, or with a dynamic batch (dynamic_shapes)"
            )
        self._program = program
        self.single = shape[0] == 1
        self.sides = shape[2:]
        self.graph_text = str(program.graph_module.code)
        self.graph = program.module()

    def forward(self, image: Tensor) -> Any:
        """Return the program's outputs, with one run per sample if it takes single ones."""
        if not self.single or len(image) == 1:
            return self.graph(image)
        return _joined([self.graph(sample) for sample in image.split(1)])

    def train(self, mode: bool = True) -> Exported:
        """Record the mode; the program itself keeps the mode of its export."""
        self.training = mode
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        archive = io.BytesIO()
        torch.export.save(self._program, archive)
        return _unpickle_exported, (archive.getvalue(),)


def _unpickle_exported(archive: bytes) -> Exported:
    return Exported(torch.export.load(io.BytesIO(archive)))


def _input_shape(program: torch.export.ExportedProgram) -> tuple[int | None, ...]:
    """Return the sizes of the program's only input; None for dynamic dims."""
    inputs = program.graph_signature.user_inputs
    values = [n.meta.get("val") for n in program.graph.nodes if n.name in inputs]
    if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].ndim < 3:
        raise InvalidInput(
            f"the exported model must take one tensor (batch, channels, …); it takes"
            f" {len(inputs)} inputs: {', '.join(map(str, inputs))}"
        )
    sides: tuple[Any, ...] = tuple(values[0].shape)  # a dynamic size is a SymInt
    return tuple(side if isinstance(side, int) else None for side in sides)


def _joined(outputs: list[Any]) -> Any:
    """Join the outputs of single samples along the batch, within dicts and tuples too."""
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.cat(outputs)
    if isinstance(first, Mapping):
        return {key: _joined([each[key] for each in outputs]) for key in first}
    return tuple(_joined(list(each)) for each in zip(*outputs, strict=True))


def load_exported(path: Path, trust: bool) -> Exported:
    """Load a ``.pt2`` archive of `torch.export.save`.

    Such archives hold pickles (example inputs, at times weights and constants) that
    ``torch.export.load`` unpickles in full, so they are opened only with ``trust=True``.
    """
    if not trust:
        raise InvalidInput(
            f"opening the torch.export archive {path} can run code hidden in it; {_TRUST}, or"
            " save the network as a bundle (vf.save_model)"
        )
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise InvalidInput(f"{path} is not a torch.export archive: {_line(error)}") from error
    return Exported(program)


def import_named(name: str) -> Any:
    """Return the object that ``"package.module:attribute"`` names.

    The current directory is searched, too, after all installed packages.

    Examples
    --------
    >>> import_named("torch.nn:ReLU").__name__
    'ReLU'
    """
    module_name, _, attribute = name.partition(":")
    search_here()
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        raise InvalidInput(
            f"model {name!r}: importing {module_name!r} failed: {_line(error)}; run where it can"
            " be imported, or install it"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise InvalidInput(
                f"model {name!r}: {module_name!r} has no {attribute!r}; name a module, or a"
                " function or class that makes one"
            ) from error
    return found


def as_module(thing: Any, name: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a module made from a module, a factory, or a function of one tensor.

    Parameters
    ----------
    thing
        A module is returned as it is. A callable that can be called with ``arguments`` alone
        is called, and must return a module or a function; one that needs a positional
        argument is taken for a function of a tensor. Modules made here are in eval mode.
    name
        Name in messages.
    arguments
        Keyword arguments of the callable.

    Examples
    --------
    >>> as_module(torch.nn.ReLU, "relu")
    ReLU()
    >>> as_module(lambda image: image + 1, "plus one")(torch.ones(1))
    tensor([2.])
    """
    if isinstance(thing, nn.Module) and not arguments:
        return thing
    if not callable(thing):
        raise InvalidInput(
            f"model {name} is a {type(thing).__name__}; give a torch.nn.Module, a function of a"
            ' tensor, a bundle, or "package.module:callable"'
        )
    if not isinstance(thing, type) and not arguments and _takes(thing, None):
        return Wrapped(thing).eval()
    if not _takes(thing, **(arguments or {})):
        raise InvalidInput(
            f"model {name} cannot be called with {dict(arguments or {}) or 'no arguments'}: its"
            f" signature is {inspect.signature(thing)}; name a function that needs none and"
            " returns the network"
        )
    try:
        made = thing(**(arguments or {}))
    except Exception as error:
        raise InvalidInput(f"model {name}: calling it failed: {_line(error)}") from error
    if isinstance(made, nn.Module):
        return made.cpu().eval()
    if callable(made):
        return Wrapped(made).eval()
    raise InvalidInput(f"model {name} returned a {type(made).__name__}, not a torch.nn.Module")


def _takes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
    """Return True if a call fits the signature and needs all positional arguments."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return bool(args)  # a built-in such as torch.relu: a function of a tensor
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    if not args:
        return True
    try:
        signature.bind(**kwargs)
    except TypeError:
        return True
    return False


def read_weights(path: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` file, or of a PyTorch checkpoint.

    A checkpoint is read without running code (``weights_only``); the usual wrapping
    (``{"state_dict": …}``, ``module.`` before all names) is taken off.
    """
    if not path.is_file():
        raise InvalidInput(f"weights {path} do not exist")
    if path.suffix == ".safetensors":
        try:
            # Copied: load_file maps the file, whose later change would change the model.
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
        except OSError as error:
            raise InvalidInput(f"weights {path} cannot be read: {_line(error)}") from error
        except Exception as error:  # a header may claim tensors that torch cannot make
            raise Damaged(f"weights {path} cannot be read: {_line(error)}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise InvalidInput(
            f"weights {path} hold more than tensors, and unpickling can run code; save the"
            f" state_dict with safetensors, or {_TRUST}"
        ) from error
    except OSError as error:
        raise InvalidInput(f"weights {path} cannot be read: {_line(error)}") from error
    except Exception as error:
        raise Damaged(f"weights {path} cannot be read: {_line(error)}") from error
    return _unwrap(loaded, path)


def _unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, nn.Module):
        loaded = loaded.state_dict()
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise InvalidInput(f"weights {path} hold no state_dict (tensors by name)")
    prefix = "module." if all(str(name).startswith("module.") for name in loaded) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in loaded.items()}


def fit_weights(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a module; InvalidInput in one line if they do not fit.

    Examples
    --------
    >>> fit_weights(torch.nn.Linear(2, 1), {"weight": torch.zeros(1, 3)}, "w.pt")
    Traceback (most recent call last):
    ...
    volflow.errors.InvalidInput: weights w.pt do not fit Linear: missing bias; weight has shape
    (1, 3), the model's has (1, 2)
    """
    own = module.state_dict()
    problems = [
        f"{what} {_some(sorted(names))}"
        for what, names in (("missing", own.keys() - state), ("unexpected", state.keys() - own))
        if names
    ]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, the model's has {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and not is_lazy(tensor) and tensor.shape != state[name].shape
    ][:1]
    if problems:
        kind = type(module).__name__
        raise InvalidInput(f"weights {where} do not fit {kind}: {'; '.join(problems)}")
    # Assigned, not copied, if the module is on the meta device.
    outline = any(tensor.is_meta for tensor in own.values())
    try:
        module.load_state_dict(state, assign=outline)
    except Exception as error:  # a dtype that no parameter can have
        raise InvalidInput(f"weights {where} do not fit: {_line(error)}") from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _line(error: BaseException) -> str:
    """Return an exception's type and the first line of its message."""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
