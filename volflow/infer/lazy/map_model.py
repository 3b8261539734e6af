"""A network over a volume as a Dask array: the lazy twin of ``predict``.

Each block of the result is one task that slides the network over the patches that reach into it.
A block of a stored volume reads them itself; one of a computed array gets them from its
neighbours. Patches at seams are computed for each block they reach into, which ``predict`` avoids.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import dask.array as da
import numpy as np
import torch
import zarr

from volflow.errors import InvalidInput
from volflow.infer.call import check_weights
from volflow.infer.exact.window import exact_window
from volflow.infer.lazy.blocks import BlockFunction, Hull, over_computed, over_stored
from volflow.infer.options import PredictOptions, merge_options, order_inputs
from volflow.infer.patches.sliding import SlidingWindow, read_hull
from volflow.infer.request import Request, check_classes, make_request, normalized
from volflow.model.bundle import load_model
from volflow.model.forward import Forward, Output, output_shapes, probe, usual_batch
from volflow.model.precision import has_half_weights
from volflow.model.resident import ModelPlugin, lent
from volflow.model.spec import Model
from volflow.store.formats.sources import Source, VolumeSource
from volflow.store.meta import Meta
from volflow.store.volume import Volume, open_volume
from volflow.volumes.arrays.inputs import VolumeLike, lazy_array, open_input
from volflow.volumes.overlap.map_overlap import Block
from volflow.volumes.write import grid_of

__all__ = ["map_model"]


def map_model(  # noqa: PLR0913 - the options of predict
    x: VolumeLike | Mapping[str, VolumeLike],
    model: Any,
    *,
    patch: int | tuple[int, int, int] | None = None,
    overlap: float | tuple[float, float, float] | None = None,
    blend: str | None = None,
    frame: str | None = None,
    normalize: str | Callable[[Any], Any] | None = None,
    activation: str | Callable[[Any], Any] | None = None,
    output: str | None = None,
    dtype: str | None = None,
    batch_size: int | str = 1,
    device: str = "auto",
    precision: str = "auto",
    flips: str = "",
    mask: Any = None,
    skip_below: float | None = None,
    fill: float | None = None,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    like: VolumeLike | None = None,
    block: Block = None,
) -> da.Array:
    """Run a network over overlapping patches, lazily: a Dask array equal to what `predict` stores.

    For a region, for a threshold or a filter behind it, or for an array that Dask computes.
    A whole volume goes faster, with bounded memory and resumably, through `predict`.

    Parameters
    ----------
    x
        Any `VolumeLike`, also several by name as for `predict`. Chunks of a computed array that
        are thinner than what a block needs of its neighbours are merged first.
    model
        As in `predict`. A module is copied, so that training it further changes no result. With
        ``blend="exact"`` statistics that it needs of a stored volume are measured once, now.
    patch, overlap, blend, frame, activation, output, dtype, flips, mask, skip_below, fill
        As in `predict`.
    normalize
        As in `predict`: the name of a normalisation measures a volume once, now. An array that
        Dask computes has no such statistics: give a function, or ``"none"``.
    batch_size, device, precision
        As in `predict`, but for the batch, which is not searched for: ``"auto"`` takes as many
        patches as make up 64³ voxels. One forward at a time runs
        on a device, and two blocks at a time are worked on in a process, whatever the number of
        its threads.
    weights, trust
        As in `predict`.
    like
        A volume whose spacing and orientation arrays share; an ``xarray.DataArray`` says its own.
    block
        Voxels per block of the result, for stored volumes: large ones compute fewer patches twice,
        small ones compute a small region sooner. By default a shard, about 256³ voxels.

    Returns
    -------
    dask.array.Array
        Scores, ``czyx``, or classes, ``zyx``. Store it with `volflow.write`.

    Raises
    ------
    InvalidInput
        For options, arrays or models that cannot work together.

    Examples
    --------
    >>> import numpy as np, torch
    >>> scan = np.random.default_rng(0).random((20, 30, 40), "float32")
    >>> scores = map_model(scan, torch.nn.Identity(), patch=16)
    >>> scores
    dask.array<map_model, shape=(1, 20, 30, 40), dtype=float32, ...>
    >>> bool(np.allclose(scores[0, 5:7].compute(), scan[5:7]))
    True
    """
    loaded = _snapshot(model, load_model(model, weights, trust=trust))
    check_weights(loaded.module)
    options = merge_options(
        PredictOptions(
            patch, overlap, blend, frame, normalize, activation, output, dtype, batch_size, device,
            precision, flips, mask, skip_below, fill,
        ),
        loaded.spec,
    )  # fmt: skip
    named = {name: open_input(one) for name, one in order_inputs(x, loaded.spec).items()}
    volumes = {name: one.volume for name, one in named.items() if isinstance(one, VolumeSource)}
    if len(volumes) == len(named):
        request = normalized(make_request(volumes, mask, loaded, options, Path()))
        return over_stored(request, _block_function(request, batch_size)[0], block)
    if isinstance(options.normalize, str):
        raise InvalidInput(
            f"normalize {options.normalize!r} needs statistics of the whole volume, which a"
            " computed array does not have; store it first with vf.write, or give"
            ' normalize="none" or a function'
        )
    if like is not None:
        named = {name: _placed(one, like) for name, one in named.items()}
    grids = {name: _stand_in(one.shape, one.dtype, one.meta) for name, one in named.items()}
    first = next(iter(make_request(grids, mask, loaded, options, Path()).inputs.volumes))
    array = _stacked([lazy_array(one) for one in named.values()])
    joined = _stand_in(array.shape, array.dtype, first.meta)
    request = make_request({"": joined}, mask, loaded, options, Path())
    request = replace(request, inputs=replace(request.inputs, normalize=(options.normalize,)))
    return over_computed(array, request, *_block_function(request, batch_size, computed=True))


def _block_function(
    request: Request, batch_size: int | str, *, computed: bool = False
) -> tuple[BlockFunction, Hull]:
    """What computes blocks, and from which voxels."""
    if request.options.exact:
        exact, hull = exact_window(request, measurable=not computed)
        _one_output(request, exact.outputs)
        return exact, hull
    window = _window(request, batch_size)
    return window, partial(read_hull, window)


def _snapshot(given: Any, loaded: Model) -> Model:
    if not isinstance(given, torch.nn.Module):
        return loaded
    try:
        module = copy.deepcopy(loaded.module)
    except RuntimeError:  # after training weight_norm keeps a tensor that only pickle copies
        module = cloudpickle.loads(cloudpickle.dumps(loaded.module))
    return replace(loaded, module=module.eval())


def _placed(source: Source, like: VolumeLike) -> Source:
    """An array on the grid of another volume."""
    if isinstance(source, VolumeSource):
        return source
    meta = replace(grid_of(like, source.shape).meta, axes=source.meta.axes)
    return replace(source, meta=meta)  # type: ignore[type-var]


def _stacked(parts: list[da.Array]) -> da.Array:
    """One array ``czyx`` of all channels, in one chunk along them."""
    joined = da.concatenate([part if part.ndim == 4 else part[None] for part in parts])
    array: da.Array = joined.rechunk({0: -1})
    return array


def _stand_in(shape: Sequence[int], dtype: np.dtype[Any], meta: Meta) -> Volume:
    """A volume without voxels for the checks that a request needs."""
    sizes = tuple(int(n) for n in shape)
    volume = open_volume(zarr.create_array({}, shape=sizes, chunks=sizes, dtype=dtype))
    return replace(volume, meta=replace(meta, axes=volume.axes))


def _window(request: Request, batch_size: int | str) -> SlidingWindow:
    """What decides the voxels; one output only."""
    forward = request.forward(request.options.device, request.options.precision)
    outputs = _outputs(forward, request.model)
    _one_output(request, outputs)
    batch = usual_batch(forward.patch) if batch_size == "auto" else int(batch_size)
    return request.window(outputs, forward, batch)


def _one_output(request: Request, outputs: tuple[Output, ...]) -> None:
    if len(outputs) > 1 or outputs[0].name:
        names = ", ".join(output.name for output in outputs)
        raise InvalidInput(
            f"the model returns outputs by name ({names}), and an array holds one: wrap it so that"
            " it returns a tensor, or use predict"
        )
    check_classes(request.options, outputs)


def _outputs(forward: Forward, model: Model) -> tuple[Output, ...]:
    # Without values a network is not asked whether it takes float32 beside weights of another.
    known = None if has_half_weights(model.module) else output_shapes(forward, model.module)
    if known is not None:
        return known
    with lent(ModelPlugin(model.module, model.digest)):
        return probe(forward, 1, 2**62, torch.get_num_threads()).outputs
