"""A call of `predict` before anything is opened, and its inputs as volumes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from volflow.errors import Damaged, InvalidInput, ResumeRefused
from volflow.infer.options import PredictOptions, merge_options, order_inputs
from volflow.model.bundle import load_model
from volflow.model.spec import Model
from volflow.store.create import create
from volflow.store.formats.sources import VolumeSource
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.outputs import check_apart
from volflow.store.volume import Volume
from volflow.volumes.arrays.inputs import VolumeLike, open_input
from volflow.volumes.convert import as_volume
from volflow.volumes.export import is_foreign

__all__ = ["Call", "Converted", "check_weights", "converted_inputs", "make_call", "placeholders"]


@dataclass(frozen=True)
class Call:
    """A call of `predict` before anything is opened: inputs by name, merged options, places.

    Where the output is a foreign file, the volume behind it lies in the sidecar folder.
    """

    inputs: dict[str, Any]
    model: Model
    options: PredictOptions
    out: Path

    @property
    def sidecar(self) -> Path:
        """The folder beside the output."""
        return journal_dir(self.out)

    @property
    def store(self) -> Path:
        """The volume that is written."""
        return self.sidecar / "output.zarr" if is_foreign(self.out) else self.out

    def named(self) -> str:
        """The inputs as they were given, for people."""
        shown = {
            name: os.fspath(x) if isinstance(x, str | os.PathLike) else type(x).__name__
            for name, x in self.inputs.items()
        }
        return ", ".join(f"{name}={x}" if name else x for name, x in shown.items())


def make_call(
    volume: Any, model: Any, out: Any, weights: Any, trust: bool, given: PredictOptions
) -> Call:
    """Load the model, merge the options, and refuse what cannot be meant."""
    loaded = load_model(model, weights, trust=trust)
    options = merge_options(given, loaded.spec)
    inputs = order_inputs(volume, loaded.spec)
    journal_dir(out)  # refuses a URL
    place = Path(os.fspath(out)).expanduser().absolute()
    if not place.parent.is_dir():
        raise InvalidInput(f"the folder {place.parent} does not exist; make it first")
    for name, one in inputs.items():
        _check_input(name or "volume", one)
    if options.mask is not None:
        _check_input("mask", options.mask)
    check_apart(place, options.mask, *inputs.values())
    check_weights(loaded.module)
    return Call(inputs, loaded, options, place)


def _check_input(name: str, one: VolumeLike) -> None:
    if isinstance(one, str | os.PathLike):
        if "://" not in str(one) and not Path(one).exists():
            raise InvalidInput(f"{one} does not exist")
        return
    try:
        open_input(one)
    except InvalidInput as error:
        raise type(error)(f"input {name}: {error}") from error


def check_weights(module: torch.nn.Module) -> None:
    """Refuse weights that are NaN: nothing that they compute is a number."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise Damaged(
                f"the model's {name} holds NaN; train it again, or load weights that are numbers"
            )


@contextmanager
def placeholders(call: Call) -> Iterator[tuple[dict[str, Any], Any]]:
    """Volumes of the inputs' shape without voxels, for plans of what is not converted yet."""
    with tempfile.TemporaryDirectory() as folder:

        def stand_in(x: Any, name: str) -> Any:
            source = open_input(x)
            if isinstance(source, VolumeSource):
                return source.volume
            return create(f"{folder}/{name}.zarr", source.shape, source.dtype, source.meta)

        named = {name: stand_in(x, name or "input") for name, x in call.inputs.items()}
        mask = call.options.mask
        yield named, None if mask is None else stand_in(mask, "mask")


@dataclass(frozen=True)
class Converted:
    """The inputs as volumes on disk, and whether one that had been begun was begun anew."""

    named: dict[str, Volume]
    mask: Volume | None
    anew: bool


def converted_inputs(call: Call, overwrite: bool, **options: Any) -> Converted:
    """The inputs as volumes on disk; what is none yet is converted into the sidecar folder."""
    anew = False

    def converted(x: Any, name: str, labels: bool | None) -> Volume:
        nonlocal anew
        keep = call.sidecar / f"{name}.zarr"
        before = _begun(keep)
        try:
            volume = as_volume(x, keep, labels=labels, **options)
        except ResumeRefused:  # what was converted before is another input
            if not overwrite:
                raise
            volume = as_volume(x, keep, labels=labels, overwrite=True, **options)
        anew |= before not in (None, _begun(keep))
        return volume

    mask = call.options.mask
    call.sidecar.mkdir(exist_ok=True)
    try:
        # A network reads the values of its inputs, whatever their files say of them.
        named = {name: converted(x, name or "input", False) for name, x in call.inputs.items()}
        return Converted(named, None if mask is None else converted(mask, "mask", None), anew)
    except InvalidInput:
        with suppress(OSError):  # there is something in it
            call.sidecar.rmdir()
        raise


def _begun(volume: Path) -> int | None:
    """When the run that makes a volume was recorded first; None where none was."""
    try:
        return (journal_dir(volume) / "plan.json").stat().st_mtime_ns
    except OSError:
        return None
