"""The methods by blend, and a request whose options the chosen one has checked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client

from volflow.engine.cluster import connect
from volflow.engine.clusters.sight import check_sight
from volflow.geometry.windows import WeightMap
from volflow.infer.exact import method as exact
from volflow.infer.merge import check_choice, merge_options
from volflow.infer.method import Method
from volflow.infer.patches import method as patches
from volflow.infer.predict_options import PredictOptions
from volflow.infer.regrid.method import OnModelGrid
from volflow.infer.request import Request, make_request
from volflow.model.bundle import evaluating, load_model
from volflow.model.resident import held
from volflow.model.spec import Spec

__all__ = ["METHODS", "checked_options", "method_of", "open_request", "working"]

METHODS: dict[str, Method[Any]] = {
    blend: method for method in (patches, exact) for blend in method.BLENDS
}


def method_of(request: Request) -> Method[Any]:
    """Return the method of a prediction: that of its blend, or that on the network's own grid."""
    method = _blending(request.options)
    return method if request.grid is None else OnModelGrid(method)


def _blending(options: PredictOptions) -> Method[Any]:
    """Return the method of a blend; refuses one that no method knows."""
    blend: Any = options.blend
    if isinstance(blend, WeightMap):
        return patches
    check_choice("blend", blend, tuple(METHODS))
    return METHODS[blend]


def checked_options(given: PredictOptions, spec: Spec) -> PredictOptions:
    """Return the options merged with those of the model, checked by the method that they name.

    Raises
    ------
    InvalidInput
        Naming the option, its value and what is allowed.
    """
    options = merge_options(given, spec)
    return _blending(options).check(given, options)


def open_request(volume: Any, model: Any, out: Any, given: PredictOptions) -> Request:
    """Load the model, open the inputs, and check all of a call of `predict`, once.

    Parameters
    ----------
    volume, model, out
        As in `predict`.
    given
        Its options.

    Raises
    ------
    InvalidInput
        For what cannot work together; nothing is written.
    """
    loaded = load_model(model, given.weights, trust=given.trust)
    return make_request(volume, loaded, out, checked_options(given, loaded.spec))


@contextmanager
def working(request: Request) -> Iterator[Client]:
    """Connect to the cluster of a prediction, and keep its model in this process for its length."""
    options, model = request.options, request.model
    connected = connect(options.cluster, **options.connection)
    with evaluating(model.module), held(request.plugin), connected as client:
        given = (request.given or {}).values()
        check_sight(client, request.file or request.out, *given, options.mask)
        yield client
