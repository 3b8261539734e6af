"""`vf.sample`: patches as a Dask array, one task for those that share storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from volflow.engine.cluster import Cluster
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.sampling.cases.cases import open_cases
from volflow.sampling.epoch.draw import draw, looks_at
from volflow.sampling.epoch.field import Field, GridField
from volflow.sampling.epoch.open_field import open_field
from volflow.sampling.samplers import Sampler
from volflow.sampling.stream_checks import seed_of, whole
from volflow.volumes.arrays.graphs import carried

__all__ = ["sample"]


@dataclass(frozen=True, eq=False)
class Groups:
    """Patches of one array, in groups that are cut from one superchunk each."""

    field: Field
    superchunks: npt.NDArray[np.int64]
    quotas: npt.NDArray[np.int64]
    array: str
    seed: int
    token: str

    def __dask_tokenize__(self) -> Any:
        return self.token


def sample(
    x: Any,
    sampler: Sampler,
    n: int | None = None,
    *,
    seed: int = 0,
    array: str | None = None,
    classes: Sequence[str] | None = None,
    cluster: Cluster = None,
) -> da.Array:
    """Patches of a volume or of cases as a Dask array, for notebooks and for work on patches.

    The law is that of `PatchStream`: how many patches come from where is counted out exactly, and
    which they are is a pure function of the seed. Patches come in groups that share storage, one
    task each; with few patches of a large volume each has a place of its own.

    Parameters
    ----------
    x
        As in `PatchStream`: a volume, a case, or several.
    sampler
        Which patches.
    n
        How many; of a `GridSampler` all there are.
    seed
        Of all randomness.
    array
        Which array of the case; by default the first.
    classes, cluster
        As in `PatchStream`; ``cluster`` counts labels or weights where they are not known.

    Returns
    -------
    dask.array.Array
        ``(n, C, *patch)`` in the stored dtype.

    Raises
    ------
    InvalidInput
        For cases, samplers or numbers that do not fit together.

    Examples
    --------
    >>> from volflow.sampling.samplers import UniformSampler
    >>> scan = np.arange(20**3, dtype="int16").reshape(20, 20, 20)
    >>> patches = sample(scan, UniformSampler((1, 8, 8)), n=32, seed=1)
    >>> patches.shape, np.diff(patches[3, 0, 0, 0].compute()).tolist()
    ((32, 1, 1, 8, 8), [1, 1, 1, 1, 1, 1, 1])
    """
    cases, seed = open_cases(x, classes=classes), seed_of(seed)
    name = array or cases[0].lead
    if name not in cases[0].sources:
        raise InvalidInput(f'there is no array "{name}"; the cases have {list(cases[0].sources)}')
    field = open_field(cases, sampler, cluster=cluster)
    if isinstance(field, GridField):
        if n is not None:
            raise InvalidInput("a GridSampler gives all its patches; leave out n")
        visits = field.line
    else:
        n = whole(n, "n must be a positive number of patches")
        visits = field.visits((n,), 1, seed, 0, split=False)
    shape, dtype = (cases[0].channels(name), *field.patch), cases[0].dtype(name)
    token = tokenize([case.identity() for case in cases], sampler, n, seed, name)
    quotas = np.asarray(visits.quota)
    groups = Groups(field, np.asarray(visits.superchunk), quotas, name, seed, token)
    patches: da.Array = da.map_blocks(
        _cut,
        carried(groups, f"groups-{token}"),
        name=f"sample-{token}",
        chunks=(tuple(quotas.tolist()), *((n,) for n in shape)),
        new_axis=list(range(1 + len(shape))),
        dtype=dtype,
        meta=np.empty((0,) * (1 + len(shape)), dtype),
    )
    return patches


def _cut(carrier: npt.NDArray[Any], block_id: tuple[int, ...]) -> npt.NDArray[Any]:
    """The patches of one group."""
    groups, visit = carrier.item(), block_id[0]
    field = groups.field
    superchunk, quota = int(groups.superchunks[visit]), int(groups.quotas[visit])
    case = field.cases[field.locate(superchunk)[0]]
    roi = field.reads(superchunk)
    looked_at = {name: case.read(name, roi) for name in looks_at(field)}
    draws = draw(field, superchunk, quota, looked_at, (groups.seed, 0, visit))
    first = draws.starts.min(axis=0)
    # Few patches lie in a small part of the superchunk: no more is read.
    hull = Roi(tuple(first.tolist()), tuple((draws.starts.max(axis=0) + field.patch).tolist()))
    voxels = case.read(groups.array, hull)
    patches = np.empty((quota, len(voxels), *field.patch), voxels.dtype)
    for patch, low in zip(patches, draws.starts - first, strict=True):
        box = (slice(a, a + p) for a, p in zip(low.tolist(), field.patch, strict=True))
        patch[...] = voxels[(slice(None), *box)]
    return patches
