"""A prediction that its cluster drives: refused here as any other, then handed over or found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Client

from volflow.engine.detached.hand_over import (
    DetachedCall,
    find_run,
    hand_over,
    lasting_cluster,
    require_lasting,
)
from volflow.engine.detached.handle import DetachedRun
from volflow.engine.observing.performance import is_reporting
from volflow.engine.progress import is_watched
from volflow.engine.time_limit import TimeLimit, current_limit, limited
from volflow.errors import InvalidInput
from volflow.infer.methods import open_request, working
from volflow.infer.predict_options import PredictOptions
from volflow.infer.prediction import perform, plan_on
from volflow.infer.request import Request
from volflow.model.spec import Model
from volflow.store.atomic import plain
from volflow.store.volume import Volume

__all__ = ["detached"]

# Options that make another call of the same output, beside those of the fingerprint.
OWN = ("batch_size", "device", "precision", "chunk", "shard", "levels")


@dataclass(frozen=True)
class DrivenPrediction:
    """A prediction as it travels to its driver: inputs by name, with absolute paths."""

    given: Mapping[str, Any]
    model: Model
    out: Path
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
    _refuse_watching(options)
    out = request.file or request.out
    if not isinstance(request.out, Path) or not isinstance(out, Path):
        raise InvalidInput(
            f"a detached run keeps notes beside its output, for which it needs a folder; got {out};"
            " write to a folder that all workers share, and copy that to the store"
        )
    cluster = lasting_cluster(options.cluster)
    call = DetachedCall(
        "predict", out, request.out, _digest(request),
        DrivenPrediction(
            _travelling(request), _named(request.model), out, _absolute(request, options),
            current_limit(),
        ),
    )  # fmt: skip
    with working(replace(request, options=replace(request.options, cluster=cluster))) as client:
        require_lasting(client)
        found = find_run(client, cluster, call)
        if found is not None:
            return found
        plan_on(request, client)
        return hand_over(client, cluster, call)


def _refuse_watching(options: PredictOptions) -> None:
    """Refuse what would watch a run in this process, where there is none."""
    if callable(options.progress):
        raise InvalidInput(
            "progress cannot be a function of a detached run, which no process of yours drives;"
            " leave it out and ask the handle: status()"
        )
    if is_watched() or is_reporting():
        raise InvalidInput(
            "observe (--metrics, --performance-report) sees the runs of its own process, and a"
            " detached run is driven by the cluster; use volflow status OUT --metrics FILE"
        )


def _digest(request: Request) -> str:
    """Return the digest of all that decides the result and its layout."""
    asked = {name: getattr(request.options, name) for name in OWN}
    text = json.dumps([plain(request.fingerprint()), plain(asked)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _travelling(request: Request) -> dict[str, Any]:
    """Return the inputs by name as they travel: volumes as where they lie, arrays whole."""
    volumes: Any = request.inputs.volumes
    pairs = zip((request.given or {}).items(), volumes, strict=True)
    return {name: _placed(x, source) for (name, x), source in pairs}


def _placed(x: Any, source: Any) -> Any:
    if isinstance(x, str | os.PathLike):
        return _whole_path(x)
    return source if isinstance(source, Volume) else x


def _whole_path(x: str | os.PathLike[str]) -> str:
    text = os.fspath(x)
    return text if "://" in text else str(Path(text).expanduser().absolute())


def _named(model: Model) -> Model:
    """Return a model whose name, if it is a path, holds on any machine."""
    path = Path(model.name).expanduser()
    return replace(model, name=str(path.absolute())) if path.exists() else model


def _absolute(request: Request, options: PredictOptions) -> PredictOptions:
    """Return the options as they travel: absolute paths, and no bar on a worker's terminal."""
    mask, weights = options.mask, options.weights
    return replace(
        options,
        mask=None if mask is None else _placed(mask, request.inputs.mask),
        weights=None if weights is None else _whole_path(weights),
        cluster=None,
        progress=options.progress is True,
    )
