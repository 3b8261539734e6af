"""What aggregation asks of a stream: cases, their grids of patches, and where results go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from volflow.errors import InvalidInput
from volflow.geometry.frame import Frame
from volflow.geometry.grid import PatchGrid
from volflow.sampling.cases.named_arrays import Case
from volflow.sampling.stream import PatchStream
from volflow.store.create import check_target
from volflow.store.journal.journal import journal_dir
from volflow.store.journal.outputs import check_apart
from volflow.store.meta import Meta
from volflow.store.volume import described
from volflow.volumes.arrays.inputs import VolumeLike
from volflow.volumes.arrays.turned import TurnedSource
from volflow.volumes.write import grid_of

__all__ = ["as_stored", "grids_of", "metas_of", "targets_of"]


def grids_of(stream: PatchStream) -> dict[str, PatchGrid]:
    """Return the grid of patches of each case, by name.

    Raises
    ------
    InvalidInput
        Where patches are drawn at random, or go to several processes.
    """
    sampler = stream.sampler
    if not hasattr(sampler, "grid"):
        raise InvalidInput(
            f"an aggregator needs the patches of a grid, and {type(sampler).__name__} draws them at"
            " random; make the stream with vf.GridSampler(patch, overlap)"
        )
    if (stream.world_size or 1) > 1:
        raise InvalidInput(
            f"all patches of a case must reach one process, but the stream shares them among"
            f" {stream.world_size}; gather outputs, location and case on one"
            " (torch.distributed.gather_object), and make its aggregator with a stream of"
            " rank=0, world_size=1"
        )
    return {case.name: sampler.grid(case) for case in stream.cases}


def as_stored(case: Case) -> tuple[Case, Frame]:
    """Return a case as it is stored, and the frame in which a stream shows it."""
    sources = getattr(case, "sources", {})
    turned = {name: one for name, one in sources.items() if isinstance(one, TurnedSource)}
    if not turned:
        return case, Frame()
    plain = {name: turned[name].source if name in turned else sources[name] for name in sources}
    return replace(case, sources=plain), next(iter(turned.values())).frame


def metas_of(
    cases: Sequence[Case], like: VolumeLike | Mapping[str, VolumeLike] | None
) -> dict[str, Meta]:
    """Return the metadata of each case's grid, by name.

    Raises
    ------
    InvalidInput
        Where ``like`` names no case, lies on another grid, or is one volume for several cases.
    """
    metas = {case.name: case.meta for case in cases}
    if like is None:
        return metas
    if not isinstance(like, Mapping):
        if len(cases) > 1:
            raise InvalidInput(
                f"like= must name a volume for each of {len(cases)} cases by its name, as in"
                f' like={{"{cases[0].name}": "scan.zarr"}}; given one {type(like).__name__}'
            )
        like = {cases[0].name: like}
    unknown = [name for name in like if name not in metas]
    if unknown:
        raise InvalidInput(
            f"like= names {', '.join(map(str, unknown))}, but the cases are {', '.join(metas)}"
        )
    shapes = {case.name: tuple(case.shape) for case in cases}
    for name, one in like.items():
        grid = described(grid_of(one, shapes[name]))
        metas[name] = replace(grid, axes=("z", "y", "x"), channels=(), kind="image", colors=())
    return metas


def targets_of(template: str, cases: Sequence[Case], *, overwrite: bool) -> dict[str, Path]:
    """Return the path of each case's volume, by name; nothing is changed.

    Raises
    ------
    InvalidInput
        Where a name does not do for a path, two cases share one, or something is there already.
    """
    journal_dir(template)  # refuses URLs
    if len(cases) > 1 and "{case}" not in template:
        raise InvalidInput(
            f"the path of {len(cases)} cases must contain {{case}}, which stands for their names,"
            f' like "out/{{case}}.zarr"; got {template}'
        )
    targets: dict[str, Path] = {}
    for case in cases:
        if "{case}" in template and (set(case.name) & set("/\\\0") or not case.name.strip(".")):
            raise InvalidInput(
                f"case {case.name!r} cannot be part of a path, as it would leave its folder; give"
                " the case another name"
            )
        target = template.replace("{case}", case.name)
        for source in getattr(case, "sources", {}).values():
            check_apart(target, source.path)
        targets[case.name] = Path(check_target(target, overwrite=overwrite))
    return targets
