"""A plain global sliding window over a whole array: what `predict` must equal."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from volflow.geometry.grid import PatchGrid, stride_of
from volflow.geometry.windows import weights


def sliding_window(
    image_CZYX: np.ndarray,
    model: torch.nn.Module,
    patch: tuple[int, int, int],
    overlap: float | tuple = 0.25,
    blend: str = "gaussian",
    scale: tuple[int, int, int] = (1, 1, 1),
    padding: float | str = 0,
    sigma_scale: float = 0.125,
) -> np.ndarray:
    """Blended scores ``CZYX`` in float64; padding and starts written out without volflow's grid."""
    shape = image_CZYX.shape[1:]
    stride = stride_of(patch, overlap, scale)
    starts = []
    for n, p, s, q in zip(shape, patch, stride, scale, strict=True):
        if q > 1:
            axis = [0]
            while axis[-1] + p < n:
                axis.append(axis[-1] + s)
        elif n <= p:
            axis = [-((p - n) // 2)]
        else:
            axis = [*range(0, n - p, s), n - p]
        starts.append(axis)
    margin = [max(p, 1) for p in patch]
    padded = padded_by(padding, image_CZYX, [(0, 0), *((m, m) for m in margin)])
    out_shape = [-(-n // q) for n, q in zip(shape, scale, strict=True)]
    total = norm = None
    owners = [
        owned([c // q for c in a], p // q, n)
        for a, p, n, q in zip(starts, patch, out_shape, scale, strict=True)
    ]
    sides = [p // q for p, q in zip(patch, scale, strict=True)]
    weight = weights(blend, sides, sigma_scale)
    for index in itertools.product(*(range(len(a)) for a in starts)):
        corner = [a[i] for a, i in zip(starts, index, strict=True)]
        box = tuple(slice(c + m, c + m + p) for c, m, p in zip(corner, margin, patch, strict=True))
        with torch.inference_mode():
            tensor = torch.from_numpy(np.ascontiguousarray(padded[(slice(None), *box)]))[None]
            scores = model(tensor)[0].numpy().astype(np.float64)
        if total is None:
            total = np.zeros(
                (len(scores), *(n + 2 * m for n, m in zip(out_shape, margin, strict=True)))
            )
            norm = np.zeros(total.shape[1:])
        w = weight.astype(np.float64)
        if blend == "crop":
            masks = [
                (np.arange(p // q) + c // q >= o[i][0]) & (np.arange(p // q) + c // q < o[i][1])
                for p, c, o, i, q in zip(patch, corner, owners, index, scale, strict=True)
            ]
            w = w * masks[0][:, None, None] * masks[1][None, :, None] * masks[2][None, None, :]
        place = tuple(
            slice(c // q + m, c // q + m + p // q)
            for c, q, m, p in zip(corner, scale, margin, patch, strict=True)
        )
        total[(slice(None), *place)] += w * scores
        norm[place] += w
    inside = tuple(slice(m, m + n) for m, n in zip(margin, out_shape, strict=True))
    return total[(slice(None), *inside)] / norm[inside]


def padded_by(padding: float | str, array: np.ndarray, widths: list) -> np.ndarray:
    """The whole array, padded by NumPy."""
    if isinstance(padding, str):
        return np.pad(array, widths, mode=padding)
    return np.pad(array, widths, constant_values=padding)


def owned(starts: list[int], p: int, n: int) -> list[tuple[int, int]]:
    """Who owns what under crop: neighbours meet in the middle, the odd voxel to the lower."""
    cuts = [0]
    for a, b in itertools.pairwise(starts):
        overlap = a + p - b
        cuts.append(b + overlap // 2 + overlap % 2)
    cuts.append(n)
    return list(itertools.pairwise(cuts))


def grid_of(shape: tuple[int, ...], patch: tuple[int, ...], overlap: float) -> PatchGrid:
    return PatchGrid(shape, patch, stride_of(patch, overlap))
