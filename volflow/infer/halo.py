"""What exact inference of a model takes, whatever names the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from volflow.errors import InvalidInput
from volflow.geometry.grid import slice_axis
from volflow.model.bundle import ModelLike, evaluating, load_model
from volflow.model.spec import Spec
from volflow.option import journey
from volflow.partition.reach import Halo, halo_of

__all__ = ["halo"]


@journey
def halo(
    model: ModelLike,
    channels: int | None = None,
    shape: Sequence[int] | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
) -> Halo:
    """Return what exact inference of a model needs: margin, alignment, statistics, cost.

    Nothing is computed: the model is followed on a tensor without values.

    Parameters
    ----------
    model
        As in `predict`.
    channels
        Of its input; by default those that a bundle names, else 1.
    shape
        Of the volume, voxels per axis of the model; of a model of slices both sides of a slice,
        or three of which the one along its patch's 1 is left out. By default a very large volume.
    weights, trust
        As in `predict`.

    Returns
    -------
    Halo
        ``margin`` ((low, high) voxels per axis), ``alignment``, ``statistics``, ``scale``;
        ``overhead(block)`` and ``activation_bytes(block)``; ``describe()`` for people.

    Raises
    ------
    NoExactRule
        Where an op of the model cannot be cut into blocks, naming it.
    InvalidInput
        Where the model cannot be loaded, or does not take such a volume.

    Examples
    --------
    >>> import torch
    >>> found = halo(torch.nn.Conv3d(1, 2, 5, padding=2))
    >>> found.margin, found.statistics
    (((2, 2), (2, 2), (2, 2)), 0)
    """
    loaded = load_model(model, weights, trust=trust)
    if channels is None:
        channels = len(loaded.spec.channels or ("",))
    elif not _is_positive(channels):
        raise InvalidInput(f"channels must be a whole number from 1, given {channels!r}")
    sides = None if shape is None else _sides(shape, loaded.spec)
    with evaluating(loaded.module):
        return halo_of(loaded.module, channels, sides)


def _sides(shape: Any, spec: Spec) -> tuple[int, ...]:
    """Return the sides of the image that the network sees."""
    sides = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if len(sides) not in (2, 3) or not all(map(_is_positive, sides)):
        raise InvalidInput(
            "shape must be the sides of a volume (z, y, x), or of a slice for a model of slices,"
            f" whole numbers from 1; given {shape!r}"
        )
    patch = spec.patch if isinstance(spec.patch, tuple) else ()
    dropped = slice_axis(patch)
    if len(sides) == 3 and dropped is not None:
        sides = (*sides[:dropped], *sides[dropped + 1 :])
    return sides


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
