"""Measure the effect of patch seams: predictions of regions beside the network run whole."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client

from volflow.engine.cluster import connect, memory_per_worker
from volflow.errors import InvalidInput, MemoryRefused
from volflow.geometry.grid import PatchGrid, stride_of
from volflow.geometry.roi import Roi
from volflow.geometry.views import views
from volflow.infer.exact.plan import slack_bytes
from volflow.infer.exact.seen import dropped_axis
from volflow.infer.methods import checked_options, open_request
from volflow.infer.options import PredictOptions
from volflow.infer.predict import plan_predict, predict
from volflow.infer.request import Request, convert_inputs, normalized
from volflow.infer.seams.certificate import Certificate, Plane, Region, Seams
from volflow.infer.seams.regions import busy_regions, fitting_sides, memory_of
from volflow.infer.seams.whole_run import WholeRun, run_whole
from volflow.model.bundle import ModelLike, evaluating
from volflow.model.forward import pick_device
from volflow.store.create import create
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Meta
from volflow.store.volume import Volume
from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["certify_seams"]

Array = npt.NDArray[Any]
Variant = tuple[str, Any]
# Per stored axis: where patches begin and end inside a region, from its low edge.
Borders = tuple[tuple[int, ...], ...]

EXACT: Variant = ("exact", None)

SIDE = 160  # of a region, unless patches are so large that it holds no seams
DEVICE_SHARE = 0.7  # of what is free on a GPU
# Of what the whole run takes: memory for an exact run, so that it has blocks.
SHARES = (1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True)
class Bench:
    """The settings that all runs on a volume share.

    Parameters
    ----------
    request
        The volume and the network; values are normalised by constants of the whole volume.
    client, folder, device, memory_bytes
        Where runs happen, and the budget.
    variants
        Blends and overlaps.
    """

    request: Request
    client: Client
    folder: Path
    device: str
    memory_bytes: int
    variants: tuple[Variant, ...]

    @property
    def room_bytes(self) -> int:
        """Memory for a whole run, which takes place on one device."""
        if not self.device.startswith("cuda"):
            return self.memory_bytes
        free = torch.cuda.mem_get_info(torch.device(self.device))[0]
        return min(self.memory_bytes, int(DEVICE_SHARE * free))

    def options(self) -> dict[str, Any]:
        """Return what every prediction of a region is given; the region is normalised."""
        options = self.request.options
        return {
            "patch": options.sides,
            "frame": options.frame,
            "device": self.device,
            "precision": "float32",
            "cluster": self.client,
            "memory": max(1, self.memory_bytes),
        }


def certify_seams(  # noqa: PLR0913 - a public journey takes flat options
    volume: VolumeLike | Mapping[str, VolumeLike],
    model: ModelLike,
    *,
    patch: int | tuple[int, int, int] | None = None,
    overlaps: Sequence[float | tuple[float, float, float]] = (0, 0.25, 0.5),
    blends: Sequence[str] = ("gaussian",),
    regions: int = 2,
    frame: str | None = None,
    normalize: str | Callable[[Any], Any] | None = None,
    activation: str | Callable[[Any], Any] | None = None,
    device: str = "auto",
    weights: str | os.PathLike[str] | None = None,
    trust: bool = False,
    memory: str | int | None = None,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
) -> Certificate:
    """Measure the effect of patch seams on a result, on regions of a volume.

    Each region is treated as a volume of its own: the network is run on it whole, by the exact
    blend in small blocks, and by each blend at each overlap, as `predict` does it. Everything is
    computed in float32 (float64 of a network in float64), in this process, in a temporary folder.

    Parameters
    ----------
    volume, model, patch, frame, normalize, activation, device, weights, trust, memory
        As in `predict`. Values are normalised by statistics of the whole volume.
    overlaps, blends
        Measured in all combinations.
    regions
        How many, those with the most structure; 160 voxels per side (one and a half patches
        where that is more), fewer where memory or the volume is smaller.
    seed
        Of the draw of the regions that are considered, in a large volume.
    progress
        Gets a line of text before each run.

    Returns
    -------
    Certificate
        Plain data; ``describe()`` is a table. `volflow.report.pictures.seams_figure.seams_figure`
        draws it.

    Raises
    ------
    InvalidInput
        Before any run, as `predict`; or where a network cannot be run on a region whole.
    MemoryRefused
        Where no region fits in memory whole.

    Examples
    --------
    >>> scan = np.random.default_rng(0).random((12, 12, 12), "float32")
    >>> found = certify_seams(scan, torch.nn.Conv3d(1, 2, 3, padding=1), patch=6, overlaps=[0])
    >>> exact, blended = found.regions[0].exact, found.regions[0].blends[0]
    >>> exact.largest < 1e-5 < blended.largest
    True
    """
    variants = _checked(overlaps, blends, regions=regions, seed=seed)
    given = PredictOptions(
        patch, overlaps[0], blends[0], frame, normalize, activation, "scores", device=device,
        precision="float32", weights=weights, trust=trust,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="volflow-seams-") as place:
        folder = Path(place)
        request = open_request(volume, model, folder / "seams.zarr", given)
        for blend, overlap in variants:  # refused before work
            checked_options(replace(given, blend=blend, overlap=overlap), request.model.spec)
        with evaluating(request.model.module), connect("threads") as client:
            needed, halo, no_rule = memory_of(request, len(variants))
            options = {"cluster": client, "memory": memory, "progress": False}
            request = normalized(convert_inputs(request, False, **options)[0], **options)
            memory_bytes = memory_per_worker(client, memory)
            on = str(pick_device(device))
            bench = Bench(request, client, folder, on, memory_bytes, variants)
            most = [max(SIDE, 3 * p // 2) for p in request.options.sides]
            sides = fitting_sides(request.inputs.shape, most, needed, bench.room_bytes)
            dtype = request.forward("cpu", "float32").dtype
            boxes = busy_regions(request.inputs, dtype, sides, regions, seed)
            measured = [
                _measure(bench, number, box, exact=halo is not None, told=progress or _unheard)
                for number, box in enumerate(boxes, 1)
            ]
        first, asked = request.inputs.specs[0], request.options
        by = asked.activation
        return Certificate(
            volume=request.named(),
            model=request.model.name,
            shape=first.spatial_shape,
            spacing=first.meta.spacing,
            unit=first.meta.unit,
            orientation=first.meta.orientation,
            frame=asked.frame,
            patch=asked.sides,
            activation=getattr(by, "__name__", "a function") if callable(by) else by,
            device=on,
            dtype=dtype,
            classes=request.model.spec.classes,
            margin=None if halo is None else halo.margin,
            statistics=0 if halo is None else halo.statistics,
            no_rule=no_rule,
            regions=tuple(region for region, _ in measured),
            plane=max(
                (plane for _, plane in measured),
                key=lambda plane: sum(float(one.mean()) for one in plane.differences),
            ),
        )


def _unheard(line: str) -> None:
    """Take a line of progress that nobody asked for."""


def _checked(overlaps: Any, blends: Any, *, regions: Any, seed: Any) -> tuple[Variant, ...]:
    """Return every blend at every overlap; refuses what is neither."""
    for name, value, least in (("regions", regions, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise InvalidInput(f"{name} must be a whole number from {least}, given {value!r}")
    for name, values in (("overlaps", overlaps), ("blends", blends)):
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise InvalidInput(
                f"{name} must be one or more of them in a list, given {values!r}; for example"
                f" {name}={[0, 0.25] if name == 'overlaps' else ['gaussian']}"
            )
    if "exact" in blends:
        raise InvalidInput("the exact blend is measured beside all others; leave it out of blends")
    return tuple((blend, overlap) for blend in blends for overlap in overlaps)


def _measure(
    bench: Bench, number: int, box: Roi, *, exact: bool, told: Callable[[str], object]
) -> tuple[Region, Plane]:
    """Run a region whole, exactly and in patches; pick the plane in which blends differ most."""
    request, frame = bench.request, bench.request.inputs.frame
    image = request.inputs.read(box, request.forward("cpu", "float32").dtype)
    told(f"region {number}: {'×'.join(map(str, box.shape))} voxels whole")
    whole = run_whole(request, image, bench.device)
    image = frame.store(image)
    folder = bench.folder / str(number)
    folder.mkdir()
    orientation = request.inputs.specs[0].meta.orientation
    meta = Meta(("c", "z", "y", "x"), orientation=orientation)
    region = create(folder / "region.zarr", image.shape, image.dtype, meta)
    region.write(Roi.full(image.shape), np.ascontiguousarray(image))
    left = bench.memory_bytes - image.nbytes - whole.nbytes
    bench = replace(bench, folder=folder, memory_bytes=left)

    blocked = None
    if exact:
        told(f"region {number}: exact")
        blocked = _exact(bench, region, whole)
    blends, differences = [], []
    for blend, overlap in bench.variants:
        told(f"region {number}: {blend}, overlap {overlap}")
        seams, away = _run(bench, region, whole, (blend, overlap))
        blends.append(seams)
        differences.append(away)
    stored = frame.stored_roi(box, request.inputs.specs[0].spatial_shape)
    done = Region(
        start=stored.start,
        stop=stored.stop,
        padded=whole.padded,
        scores=whole.score_range(),
        cpu_seconds=whole.cpu_seconds,
        exact=blocked,
        blends=tuple(blends),
    )
    grids = [_grid(request, box, whole, overlap) for _, overlap in bench.variants]
    borders = tuple(_borders(request, grid) for grid in grids)
    return done, _plane(request, done, number, image[0], whole, differences, borders)


def _exact(bench: Bench, region: Volume, whole: WholeRun) -> Seams:
    """Run the exact blend, in blocks as small as a small part of the memory makes them."""
    out, module = bench.folder / "planned.zarr", bench.request.model.module
    amply = plan_predict(region, module, out, blend="exact", **bench.options()).peak_bytes
    slack = slack_bytes(bench.request.forward("cpu", "float32").dtype)
    for share in SHARES:
        memory = slack + int(share * (amply - slack))
        try:
            return _run(replace(bench, memory_bytes=memory), region, whole, EXACT)[0]
        except MemoryRefused:
            continue
    return _run(bench, region, whole, EXACT)[0]


def _run(bench: Bench, region: Volume, whole: WholeRun, variant: Variant) -> tuple[Seams, Array]:
    """Predict a region and compare; also returns each voxel's largest difference, ``ZYX``."""
    blend, overlap = variant
    out = bench.folder / f"{blend}-{overlap}.zarr"
    began = time.process_time()
    made = predict(
        region, bench.request.model.module, out, blend=blend, overlap=overlap, progress=False,
        **bench.options(),
    )  # fmt: skip
    took = time.process_time() - began
    away, mean, changed = whole.compared({"": made} if isinstance(made, Volume) else made)
    if variant == EXACT:
        forwards = len(Journal(journal_dir(out)).done())
    else:
        box = Roi.full(bench.request.inputs.frame.reorder(region.spatial_shape))
        forwards = len(_grid(bench.request, box, whole, overlap))
    return Seams(blend, overlap, forwards, float(away.max()), mean, changed, took), away


def _grid(request: Request, box: Roi, whole: WholeRun, overlap: Any) -> PatchGrid:
    """Return the patches of a region at an overlap, in the frame."""
    sides = request.options.sides
    stride = stride_of(sides, overlap, whole.scale)
    return PatchGrid(box.shape, sides, stride, tuple(s > 1 for s in whole.scale))


def _borders(request: Request, grid: PatchGrid) -> Borders:
    """Return where patches begin and end; nowhere across slices that are seen one by one."""
    frame, dropped = request.inputs.frame, dropped_axis(request)
    found: list[tuple[int, ...]] = []
    for axis, (n, flip) in enumerate(zip(grid.shape, frame.flips, strict=True)):
        ends = {int(e) for s in grid.starts[axis] for e in (s, s + grid.patch[axis])}
        inside = {n - e if flip else e for e in ends if 0 < e < n and axis != dropped}
        found.append(tuple(sorted(inside)))
    return frame.restore(found)


def _plane(
    request: Request,
    region: Region,
    number: int,
    image: Array,
    whole: WholeRun,
    differences: Sequence[Array],
    borders: tuple[Borders, ...],
) -> Plane:
    """Pick the slice that tells most: where blends differ most, but in no seam itself.

    In a slice between two layers of patches everything differs, and no border is to be seen.

    Parameters
    ----------
    request, region, number, whole
        The region and its whole run.
    image, differences
        ``ZYX``: the first channel, and per blend each voxel's largest difference.
    borders
        Per blend.
    """
    frame, dropped = request.inputs.frame, dropped_axis(request)
    if dropped is None:  # slices as people look at them
        planes = views(request.inputs.specs[0].meta.orientation)
        axis = next((view for view in planes if view.is_area(image.shape)), planes[0]).normal
    else:
        axis = frame.axes[dropped]
    size, scale = image.shape[axis], frame.restore(whole.scale)[axis]
    others = tuple(a for a in range(3) if a != axis)
    along = np.sum([away.sum(axis=others, dtype=np.float64) for away in differences], axis=0)
    middles = np.minimum((np.arange(len(along)) + 0.5) * scale, size - 0.5)
    if frame.restore(frame.flips)[axis]:
        middles = size - middles[::-1]
    edges = [edge for one in borders for edge in one[axis]]
    clear = np.min([np.abs(middles - e) for e in edges] or [np.full(len(along), np.inf)], axis=0)
    patch = frame.restore(request.options.sides)[axis]
    at = int(np.argmax(np.where(clear >= min(patch // 8, clear.max()), along, -1)))
    index = int(middles[at])
    return Plane(
        region=number,
        axis=axis,
        index=region.start[axis] + index,
        image=image.take(index, axis),
        whole=whole.slice(axis, at),
        differences=tuple(away.take(at, axis) for away in differences),
        borders=borders,
    )
