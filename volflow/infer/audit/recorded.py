"""A prediction as its journal records it: kept by `predict`, opened again to be recomputed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from volflow.errors import InvalidInput
from volflow.geometry.windows import SIGMA_SCALE
from volflow.infer.input_copies import dropped_copies
from volflow.infer.methods import checked_options
from volflow.infer.predict_options import PredictOptions, VerifyOptions
from volflow.infer.ready_inputs import convert_inputs, trusting
from volflow.infer.request import Request, make_request
from volflow.model.bundle import ModelLike, load_model
from volflow.option import from_keywords
from volflow.store.atomic import differences, plain
from volflow.store.formats.exported import read_receipt, stored_behind
from volflow.store.formats.written import is_foreign
from volflow.store.journal.complete import begun_store
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.store.journal.provenance import Provenance, keep_provenance, read_provenance
from volflow.store.journal.records import change_between
from volflow.store.remote.address import Address, location
from volflow.store.volume import Volume

__all__ = ["Recorded", "keep_request", "open_recorded"]

MOST_LINES = 4  # listed in a refusal


@dataclass(frozen=True)
class Recorded:
    """A prediction that was run: what would be predicted again, and the record of the run.

    Parameters
    ----------
    request
        Of the same inputs, model and options.
    record
        Of the first run, whose settings are adopted.
    """

    request: Request
    record: Record

    @property
    def journal(self) -> Journal:
        """The journal of the stored volume."""
        return Journal(journal_dir(self.request.out))

    @property
    def total(self) -> int:
        """Number of blocks."""
        return math.prod(self.record.settings["grid"])


def keep_request(journal: Journal, request: Request) -> None:
    """Note beside the journal where the inputs and the model are, as far as they have names."""
    volumes: Any = request.inputs.volumes
    mask: Any = request.inputs.mask
    options, name, given = request.options, request.model.name, request.given or {}
    if Path(name).expanduser().exists():
        name = str(Path(name).expanduser().absolute())
    elif ":" not in name:  # the type of a module that only this process has
        name = ""
    found = Provenance(
        {key: _place(x) or type(x).__name__ for key, x in given.items()},
        {key: volume.path or "" for key, volume in zip(given, volumes, strict=True)},
        None if mask is None else mask.path or "",
        name,
        "" if options.weights is None else _place(options.weights),
    )
    keep_provenance(journal, found, request.sidecar)


def _place(x: Any) -> str:
    """Return the absolute path of what was named by one, or its URL; "" of what was not."""
    if not isinstance(x, str | os.PathLike):
        return ""
    text = os.fspath(x)
    return text if "://" in text else str(Path(text).expanduser().absolute())


def open_recorded(path: Any, options: VerifyOptions) -> Recorded:
    """Open the inputs and the model of a prediction again, and check that they are the same.

    Parameters
    ----------
    path
        The output: a volume, or a file that was exported.
    options
        Inputs and model, where the record cannot name them or names other places.

    Raises
    ------
    InvalidInput
        If it is no output of `predict`, if an input or the model is not found, or is not what the
        record says; nothing was computed.
    """
    place = _audited(path)
    journal = Journal(journal_dir(stored_behind(place) or place))
    record = journal.recorded()
    if record is None or record.operation != "predict":
        wrote = "has no journal" if record is None else f"was written by {record.operation}"
        raise InvalidInput(
            f"{place} {wrote}, and only what predict wrote can be computed anew; leave recompute"
            " out (--recompute) to compare it with its checksums alone"
        )
    noted = read_provenance(journal)
    given = _options(record, noted, options)
    model = load_model(_model(place, noted, options), options.weights or _weights(noted, options),
                       trust=options.trust)  # fmt: skip
    inputs = _inputs(place, noted, options)
    request = make_request(inputs, model, place, checked_options(given, model.spec))
    recorded = Recorded(_converted(request), record)
    _check_same(place, recorded)
    return recorded


def _audited(path: Any) -> Path:
    """Return what was predicted: the volume itself, a file, or the volume that it was made from."""
    named = path.path if isinstance(path, Volume) else path
    if not isinstance(named, str | os.PathLike):
        raise InvalidInput(
            f"only outputs on disk can be computed anew, given a {type(path).__name__} in memory"
        )
    place = location(named)
    if isinstance(place, Address):
        raise InvalidInput(
            f"{place} lies on a store, and only outputs on disk can be computed anew; leave"
            " recompute out (--recompute) to compare it with its checksums alone"
        )
    if is_foreign(place) and not place.is_dir() and stored_behind(place) is None:
        receipt = read_receipt(place)
        if receipt is not None and receipt.volume:
            return Path(begun_store(Path(receipt.volume)))
    return place


def _options(record: Record, noted: Provenance, asked: VerifyOptions) -> PredictOptions:
    """Return the options of the run, as a user would give them again."""
    saved = record.fingerprint.get("options")
    if not isinstance(saved, dict):
        raise InvalidInput("the journal does not say with which options it was made")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()
    }
    for name in ("normalize", "activation"):
        own, was = getattr(asked, name), values.get(name)
        if own is None and str(was).startswith("function "):
            raise InvalidInput(
                f"{name} was a function, which a journal cannot hold; give it in Python:"
                f" vf.verify(…, {name}=…)"
            )
        values[name] = was if own is None else own
    if values["normalize"] is None:
        values["normalize"] = "none"  # whatever the bundle would say
    values.setdefault("padding", 0)
    values["spacing"] = tuple(record.fingerprint.get("spacing", ())) or "stored"
    if str(values.get("blend")).startswith("weights "):
        if asked.blend is None:
            raise InvalidInput(
                "blend was a weight map, of which a journal holds the hash; give it: blend="
                " (--blend)"
            )
        values["blend"] = asked.blend
    elif values.get("blend") == "gaussian":
        values.setdefault("sigma_scale", SIGMA_SCALE)
    mask: Any = asked.mask
    if mask is None and noted.mask is not None:
        mask = _found(noted.mask, "the mask", "mask")
    running = {"cluster": asked.cluster, **asked.connection, "progress": False}
    # Of inputs that cannot be identified it is trusted that they are the same: voxels will show it.
    return from_keywords(PredictOptions, {**values, **running, "mask": mask, "resume": True})


def _model(place: Path, noted: Provenance, options: VerifyOptions) -> ModelLike:
    if options.model is not None:
        return options.model
    if not noted.model:
        raise InvalidInput(
            f"{place} was made by a model that its journal cannot name; give it: model= (--model)"
        )
    return noted.model if ":" in noted.model else _found(noted.model, "the model", "model")


def _weights(noted: Provenance, options: VerifyOptions) -> str | None:
    """Return the weights that go with the recorded model."""
    if options.model is not None or not noted.weights:
        return None
    return _found(noted.weights, "the weights", "weights")


def _inputs(place: Path, noted: Provenance, options: VerifyOptions) -> Any:
    if options.input is not None:
        return options.input
    if not noted.inputs:
        raise InvalidInput(f"{place} does not record its input; give it: input= (--input)")
    found = {
        name: _found(_first(path, noted.given.get(name, "")), f"the input {name}".rstrip(), "input")
        for name, path in noted.inputs.items()
    }
    return found[""] if set(found) == {""} else found


def _first(path: str, given: str) -> str:
    """Return the path of what was read or, where that was a copy and is gone, of what was given."""
    gone = "://" not in path and not Path(path).exists()
    return given if gone and ("://" in given or Path(given).is_absolute()) else path


def _found(path: str, what: str, option: str) -> str:
    if path and ("://" in path or Path(path).exists()):
        return path
    where = f"is not at {path} any more" if path else "has no place on disk"
    raise InvalidInput(f"{what} {where}; give it: {option}= (--{option})")


def _converted(request: Request) -> Request:
    """Return the request with the copies that `predict` made of what is no Zarr array."""
    sources = dict(zip(request.given or {}, request.inputs.volumes, strict=True))
    dropped = dropped_copies(request)
    if request.inputs.mask is not None:
        sources["mask"] = request.inputs.mask
    for name, source in sources.items():
        kept = request.copy_of(name)
        if not isinstance(source, Volume) and not kept.exists() and name not in dropped:
            raise InvalidInput(
                f"{kept}, the copy of the input that the model saw, is not there; predict it again"
            )
    return convert_inputs(request, False, progress=False)[0]


def _check_same(place: Path, recorded: Recorded) -> None:
    """Refuse inputs, a model or options that are not those of the record, naming them."""
    request, record = recorded.request, recorded.record
    now = replace(record, fingerprint=plain(request.fingerprint()))
    now = trusting(request, now, record)
    if not change_between(record, now):
        return
    if record.fingerprint.get("version") != now.fingerprint.get("version"):
        raise InvalidInput(f"{place} was made {change_between(record, now)}")
    names = tuple(request.given or {})
    before, after = (_parts(one.fingerprint, names) for one in (record, now))
    shown = "; ".join(differences(before, after)[:MOST_LINES])
    raise InvalidInput(
        f"{place} was not made from this: {shown}; give the input and the model that made it"
        " (input=, model=; --input, --model)"
    )


def _parts(fingerprint: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a fingerprint with its parts as a user calls them: each input by its name, a model."""
    parts = dict(fingerprint)
    found, model = parts.pop("input", None), parts.pop("weights", None)
    if isinstance(found, list) and len(found) == len(names):
        found = found[0] if names == ("",) else dict(zip(names, found, strict=True))
    return {"input": found, "model": model, **parts}
