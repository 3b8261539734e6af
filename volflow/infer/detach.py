"""A prediction that its cluster drives: refused here as any other, then handed over or found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client

from volflow.engine.detached.detached_run import DetachedRun
from volflow.engine.detached.hand_over import (
    DetachedCall,
    hand_over,
    lasting_cluster,
    refuse_watching,
)
from volflow.engine.time_limit import TimeLimit, current_limit, limited
from volflow.infer.methods import open_request, working
from volflow.infer.predict_options import PredictOptions
from volflow.infer.prediction import perform, plan_on
from volflow.infer.request import Request
from volflow.model.spec import Model
from volflow.store.atomic import plain
from volflow.store.journal.journal import journal_of
from volflow.store.remote.address import Location
from volflow.store.volume import Volume

__all__ = ["detached", "named", "travelling"]

# Options that make another call of the same output, beside those of the fingerprint.
OWN = ("batch_size", "device", "precision", "chunk", "shard", "levels")


@dataclass(frozen=True)
class DrivenPrediction:
    """A prediction as it travels to its driver: inputs by name, with absolute paths."""

    given: Mapping[str, Any]
    model: Model
    out: Location
    options: PredictOptions
    limit: TimeLimit | None

    def __call__(self, client: Client, begun: bool) -> dict[str, str]:
        """Run it on a client, and return the paths of its outputs by name."""
        volume = self.given[""] if set(self.given) == {""} else self.given
        # The model is loaded; where its weights were is noted all the same.
        options = replace(self.options, cluster=client, weights=None)
        with limited(self.limit):
            request = open_request(volume, self.model, self.out, options)
            noted = replace(request.options, weights=self.options.weights)
            result = perform(replace(request, options=noted), begun=begun)
        volumes = result if isinstance(result, dict) else {"": result}
        return {name: str(volume.path) for name, volume in volumes.items()}


def detached(request: Request, options: PredictOptions) -> DetachedRun:
    """Hand a prediction over to its cluster, or find that the same call has done so.

    Parameters
    ----------
    request
        Checked.
    options
        As they were given.

    Raises
    ------
    InvalidInput
        Where it cannot work, or the cluster would end with this process.
    Locked
        Where another run holds the output.
    """
    refuse_watching(options.progress)
    cluster, out = lasting_cluster(options.cluster), request.file or request.out
    driven = DrivenPrediction(
        _travelling(request), named(request.model), out, _absolute(request, options),
        current_limit(),
    )  # fmt: skip
    call = DetachedCall(
        DetachedRun.operation, str(out), journal_of(out), _digest(request), driven,
        store=str(request.out),
    )  # fmt: skip
    with working(replace(request, options=replace(request.options, cluster=cluster))) as client:
        key = hand_over(client, call, check=partial(plan_on, request, client))
    return DetachedRun(str(out), key, cluster)


def _digest(request: Request) -> str:
    """Return the digest of all that decides the result and its layout."""
    asked = {name: getattr(request.options, name) for name in OWN}
    text = json.dumps([plain(request.fingerprint()), plain(asked)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _travelling(request: Request) -> dict[str, Any]:
    """Return the inputs by name as they travel."""
    volumes: Any = request.inputs.volumes
    pairs = zip((request.given or {}).items(), volumes, strict=True)
    return {name: travelling(x, source) for (name, x), source in pairs}


def travelling(x: Any, source: Any) -> Any:
    """Return an input as it travels: a volume as where it lies, an array whole.

    Parameters
    ----------
    x, source
        As it was given, and as it was opened; a path need not be.
    """
    if isinstance(x, str | os.PathLike):
        return _whole_path(x)
    return source if isinstance(source, Volume) else x


def _whole_path(x: str | os.PathLike[str]) -> str:
    text = os.fspath(x)
    return text if "://" in text else str(Path(text).expanduser().absolute())


def named(model: Model) -> Model:
    """Return a model whose name, if it is a path, holds on any machine."""
    path = Path(model.name).expanduser()
    return replace(model, name=str(path.absolute())) if path.exists() else model


def _absolute(request: Request, options: PredictOptions) -> PredictOptions:
    """Return the options as they travel: absolute paths, and no bar on a worker's terminal."""
    mask, weights = options.mask, options.weights
    return replace(
        options,
        mask=None if mask is None else travelling(mask, request.inputs.mask),
        weights=None if weights is None else _whole_path(weights),
        cluster=None,
        progress=options.progress is True,
    )
