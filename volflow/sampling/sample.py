"""`vf.sample`: patches as a Dask array, one task for those that share storage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize
from dask.delayed import delayed

from volflow.engine.cluster import Cluster
from volflow.errors import InvalidInput
from volflow.geometry.roi import Roi
from volflow.sampling.cases import open_cases
from volflow.sampling.draw import draw, looks_at
from volflow.sampling.field import Field, GridField
from volflow.sampling.open_field import open_field
from volflow.sampling.samplers import Sampler
from volflow.sampling.stream_checks import seed_of, whole

__all__ = ["sample"]


@dataclass(frozen=True, eq=False)
class Group:
    """Patches of one array that are cut from one superchunk."""

    field: Field
    superchunk: int
    quota: int
    array: str
    seed: int
    visit: int

    def __dask_tokenize__(self) -> Any:
        return (self.superchunk, self.quota, self.array, self.seed, self.visit)


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
    parts = []
    for visit, (superchunk, quota) in enumerate(
        zip(visits.superchunk.tolist(), visits.quota.tolist(), strict=True)
    ):
        group = Group(field, superchunk, quota, name, seed, visit)
        # Not an argument: Dask would look for arrays in it, and compute those of its cases whole.
        cut = delayed(partial(_cut, group), pure=True, traverse=False)
        task = cut(dask_key_name=f"cut-{token}-{visit}")
        part = da.from_delayed(task, (quota, *shape), dtype, name=f"sample-{token}-{visit}")
        parts.append(part)
    patches: da.Array = da.concatenate(parts)
    return patches


def _cut(group: Group) -> npt.NDArray[Any]:
    """The patches of one group."""
    field = group.field
    case = field.cases[field.locate(group.superchunk)[0]]
    roi = field.reads(group.superchunk)
    looked_at = {name: case.read(name, roi) for name in looks_at(field)}
    draws = draw(field, group.superchunk, group.quota, looked_at, (group.seed, 0, group.visit))
    first = draws.starts.min(axis=0)
    # Few patches lie in a small part of the superchunk: no more is read.
    hull = Roi(tuple(first.tolist()), tuple((draws.starts.max(axis=0) + field.patch).tolist()))
    voxels = case.read(group.array, hull)
    patches = np.empty((group.quota, len(voxels), *field.patch), voxels.dtype)
    for patch, low in zip(patches, draws.starts - first, strict=True):
        box = (slice(a, a + p) for a, p in zip(low.tolist(), field.patch, strict=True))
        patch[...] = voxels[(slice(None), *box)]
    return patches
