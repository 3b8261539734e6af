"""`vf.sample`: patches as a Dask array, one task for those that share a superchunk."""

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
from volflow.sampling.cases.open_cases import CasesLike, open_cases
from volflow.sampling.cases.shown import Choice, Shown, shown_cases
from volflow.sampling.epoch.catalog import GridCatalog, PatchCatalog, open_catalog
from volflow.sampling.epoch.cutting import draw_positions
from volflow.sampling.epoch.order import Visits
from volflow.sampling.samplers import Sampler, guide_of
from volflow.sampling.stream_options import check_seed, check_whole
from volflow.volumes.arrays.graphs import carried

__all__ = ["sample"]


@dataclass(frozen=True, eq=False)
class _PatchGroups:
    """Patches of one array, in groups that are cut from one superchunk each."""

    catalog: PatchCatalog
    visits: Visits
    array: str
    seed: int
    token: str

    def __dask_tokenize__(self) -> Any:
        return self.token


def sample(  # noqa: PLR0913 - a public journey takes flat options
    x: CasesLike,
    sampler: Sampler,
    n: int | None = None,
    *,
    seed: int = 0,
    array: str | None = None,
    classes: Sequence[str] | None = None,
    cluster: Cluster = None,
    skip_bad: bool = False,
    allow_mixed_spacing: bool = False,
    frame: str | None = None,
    normalize: Choice = None,
    padding: float | str = 0,
) -> da.Array:
    """Patches of a volume or of cases as a Dask array, for notebooks and for work on patches.

    The law is that of `PatchStream`: how many patches come from each superchunk is exact, and
    which they are is a pure function of the seed. Patches come in groups that share storage, one
    task each; with few patches of a large volume each has a place of its own.

    Parameters
    ----------
    x
        As in `PatchStream`: a volume, a case, or several.
    sampler
        Which patches.
    n
        How many patches; a `GridSampler` gives all there are.
    seed
        The seed of all randomness.
    array
        Which array of the case; by default the first.
    classes, cluster, skip_bad, allow_mixed_spacing
        As in `PatchStream`; ``cluster`` counts labels or weights where they are not known.
    frame, normalize, padding
        As in `PatchStream`, of the array that is asked for.

    Returns
    -------
    dask.array.Array
        ``(n, C, *patch)`` in the stored dtype; float32 where they are normalised.

    Raises
    ------
    InvalidInput
        If cases, sampler and numbers do not fit together.

    Examples
    --------
    >>> from volflow.sampling.samplers import UniformSampler
    >>> scan = np.arange(20**3, dtype="int16").reshape(20, 20, 20)
    >>> patches = sample(scan, UniformSampler((1, 8, 8)), n=32, seed=1)
    >>> patches.shape, np.diff(patches[3, 0, 0, 0].compute()).tolist()
    ((32, 1, 1, 8, 8), [1, 1, 1, 1, 1, 1, 1])
    """
    opened, seed = open_cases(x, classes=classes, skip_bad=skip_bad), check_seed(seed)
    name = array or opened[0].lead
    if name not in opened[0].sources:
        raise InvalidInput(f'there is no array "{name}"; the cases have {list(opened[0].sources)}')
    shown = Shown(frame, None if normalize is None else {name: normalize}, padding)
    cases, sampler = shown_cases(opened, sampler, shown, mixed=allow_mixed_spacing, cluster=cluster)
    catalog = open_catalog(cases, sampler, cluster=cluster)
    if isinstance(catalog, GridCatalog):
        if n is not None:
            raise InvalidInput("a GridSampler gives all its patches; leave out n")
        visits = catalog.all_visits
    else:
        n = check_whole(n, "n must be a positive number of patches")
        visits = catalog.visits((n,), 1, seed, 0, split=False)
    shape, dtype = (cases[0].channels(name), *catalog.patch), cases[0].dtype(name)
    seen = [(case.identity(), case.normalize, case.padding) for case in cases]
    token = tokenize(seen, sampler, n, seed, name)
    groups = _PatchGroups(catalog, visits, name, seed, token)
    patches: da.Array = da.map_blocks(
        _cut_group,
        carried(groups, f"groups-{token}"),
        name=f"sample-{token}",
        chunks=(tuple(visits.quota.tolist()), *((side,) for side in shape)),
        new_axis=list(range(1 + len(shape))),
        dtype=dtype,
        meta=np.empty((0,) * (1 + len(shape)), dtype),
    )
    return patches


def _cut_group(carrier: npt.NDArray[Any], block_id: tuple[int, ...]) -> npt.NDArray[Any]:
    """Cut the patches of one group, ``(patches, C, z, y, x)``."""
    groups, visit = carrier.item(), block_id[0]
    catalog = groups.catalog
    superchunk, quota = int(groups.visits.superchunk[visit]), int(groups.visits.quota[visit])
    case, guide = catalog.case_of(superchunk), guide_of(catalog.sampler)
    arrays = {} if guide is None else {guide: case.read(guide, catalog.reads(superchunk))}
    starts, _ = draw_positions(catalog, superchunk, quota, arrays, (groups.seed, 0, visit))
    first = starts.min(axis=0)
    # Few patches lie in a small part of the superchunk: no more is read.
    hull = Roi(tuple(first.tolist()), tuple((starts.max(axis=0) + catalog.patch).tolist()))
    voxels = case.read(groups.array, hull)
    patches = np.empty((quota, len(voxels), *catalog.patch), voxels.dtype)
    for patch, low in zip(patches, starts - first, strict=True):
        box = (slice(a, a + p) for a, p in zip(low.tolist(), catalog.patch, strict=True))
        patch[...] = voxels[(slice(None), *box)]
    return patches
