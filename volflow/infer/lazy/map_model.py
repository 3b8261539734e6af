"""A network over a volume as a Dask array: the lazy twin of ``predict``.

Each block of the result is one task that slides the network over the patches that reach into it.
A block of a stored volume reads them itself; one of a computed array gets them from its
neighbours. Patches at seams are computed for each block they reach into, which ``predict`` avoids.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import dask.array as da
import numpy.typing as npt
import torch

from volflow.errors import InvalidInput
from volflow.geometry.normalize import normalization
from volflow.infer.lazy.blocks import over_computed, over_stored
from volflow.infer.merge import order_inputs
from volflow.infer.method import BoxFunction, Hull
from volflow.infer.methods import checked_options, method_of
from volflow.infer.predict_options import PredictOptions
from volflow.infer.request import (
    Request,
    check_classes,
    check_weights,
    framed_image,
    model_grid,
    normalized,
)
from volflow.model.bundle import ModelLike, load_model
from volflow.model.placed import snapshot
from volflow.model.places import note_current
from volflow.model.spec import Model
from volflow.option import from_keywords, journey
from volflow.store.journal.complete import open_complete
from volflow.store.meta import VolumeSpec
from volflow.store.slabs import Source
from volflow.store.volume import Volume, described
from volflow.volumes.arrays.inputs import VolumeLike, lazy_array, open_input
from volflow.volumes.framed import FramedImage
from volflow.volumes.overlap.map_overlap import Block
from volflow.volumes.write import grid_of

__all__ = ["map_model"]


@journey
def map_model(  # noqa: PLR0913 - the options of predict
    x: VolumeLike | Mapping[str, VolumeLike],
    model: ModelLike,
    *,
    patch: int | tuple[int, int, int] | None = None,
    overlap: float | tuple[float, float, float] | None = None,
    blend: str | npt.ArrayLike | None = None,
    sigma_scale: float | None = None,
    padding: float | str | None = None,
    spacing: float | str | tuple[float | str, ...] | None = None,
    frame: str | None = None,
    normalize: str | Callable[[Any], Any] | None = None,
    activation: str | Callable[[Any], Any] | None = None,
    output: str | None = None,
    dtype: str | None = None,
    batch_size: int | str = 1,
    device: str = "auto",
    precision: str = "auto",
    flips: str = "",
    mask: VolumeLike | None = None,
    skip_below: float | None = None,
    fill: float | None = None,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    like: VolumeLike | None = None,
    block: Block = None,
) -> da.Array | dict[str, da.Array]:
    """Run a network over overlapping patches, lazily: a Dask array equal to what `predict` stores.

    For a region, for a threshold or a filter behind it, or for an array that Dask computes.
    A slice of the array, ``scores[1, 90:110, 40:80, 40:80]``, computes the patches that reach into
    it and no whole blocks: slice first, then do the rest. A whole volume goes faster, with bounded
    memory and resumably, through `predict`.

    Parameters
    ----------
    x
        Any `VolumeLike`, also several by name as for `predict`. Chunks of a computed array that
        are thinner than what a block needs of its neighbours are merged first.
    model
        As in `predict`. A module is copied, so that training it further changes no result. With
        ``blend="exact"`` statistics that it needs of a stored volume are measured once, now.
    patch, overlap, blend, sigma_scale, padding, spacing, frame, activation, output, dtype, flips
        As in `predict`.
    mask, skip_below, fill
        As in `predict`.
    normalize
        As in `predict`: what needs statistics measures a volume once, now. An array that Dask
        computes has none: give a window, a scale, a function, or ``"none"``.
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
        small ones take less memory. By default a shard, about 256³ voxels.

    Returns
    -------
    dask.array.Array
        Scores, ``czyx``, or classes, ``zyx``. Store it with `volflow.write`. Slices of it that are
        computed together share no patches: compute the region that holds them, and slice that.
        By name where the model returns several outputs, as in `predict`; computed together
        (``dask.compute``), they share each forward.

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
    given = from_keywords(PredictOptions, locals())
    note_current()
    loaded = _snapshot(model, load_model(model, weights, trust=trust))
    check_weights(loaded.module)
    options = checked_options(given, loaded.spec)
    named = {name: open_input(one) for name, one in order_inputs(x, loaded.spec).items()}
    masked = None if mask is None else open_complete(mask)
    stored = all(isinstance(one, Volume) for one in named.values())
    if not stored and like is not None:
        named = {name: _placed(one, like) for name, one in named.items()}
    inputs = framed_image(named, masked, loaded, options)
    grid = model_grid(inputs, loaded, options)
    if stored:
        request = normalized(Request(inputs, loaded, options, grid=grid))
        arrays = over_stored(request, *_boxes(request, computed=False), block)
        return arrays.get("", arrays)
    array = _stacked([lazy_array(one) for one in named.values()])
    request = Request(_stacked_image(inputs, array, options), loaded, options, grid=grid)
    arrays = over_computed(array, request, *_boxes(request, computed=True))
    return arrays.get("", arrays)


def _snapshot(given: Any, loaded: Model) -> Model:
    if not isinstance(given, torch.nn.Module):
        return loaded
    return replace(loaded, module=snapshot(loaded.module).eval())


def _placed(source: Source, like: VolumeLike) -> Source:
    """Return an array with the metadata of a volume on the same grid."""
    if isinstance(source, Volume):
        return source
    meta = replace(described(grid_of(like, source.shape)), axes=source.meta.axes)
    return replace(source, meta=meta)  # type: ignore[type-var]


def _stacked(parts: list[da.Array]) -> da.Array:
    """Return one array ``czyx`` of all channels, in one chunk along them."""
    joined = da.concatenate([part if part.ndim == 4 else part[None] for part in parts])
    array: da.Array = joined.rechunk({0: -1})
    return array


def _stacked_image(image: FramedImage, array: da.Array, options: PredictOptions) -> FramedImage:
    """Return the inputs as one image of all channels; each block brings its own voxels."""
    meta = replace(image.meta, axes=("c", "z", "y", "x"))
    shape = tuple(int(n) for n in array.shape)
    spec = VolumeSpec(shape, array.dtype, shape, None, meta)
    normalize: Any = options.normalize
    if isinstance(normalize, str):
        normalize = normalization(normalize, shape[0], partial(_refuse_measuring, normalize))
    return replace(image, specs=(spec,), volumes=(), normalize=(normalize,))


def _refuse_measuring(name: str, foreground: bool) -> Any:
    raise InvalidInput(
        f"normalize {name!r} needs statistics of the whole volume, which a"
        " computed array does not have; store it first with vf.write, or give"
        ' normalize="none" or a function'
    )


def _boxes(request: Request, *, computed: bool) -> tuple[BoxFunction, Hull]:
    """Return the box function and its hull."""
    window, hull = method_of(request).boxes(request, computed=computed)
    check_classes(request.options, window.outputs)
    return window, hull
