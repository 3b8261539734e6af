"""Measure the effect of patch seams: predictions of regions beside the network run whole."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from volflow.engine.cluster import connect, memory_per_worker
from volflow.errors import InvalidInput, MemoryRefused
from volflow.geometry.grid import PatchGrid, stride_of
from volflow.geometry.roi import Roi
from volflow.geometry.views import views
from volflow.geometry.windows import check_blend
from volflow.infer.exact.choose import slack_bytes
from volflow.infer.exact.window import dropped_axis
from volflow.infer.methods import checked_options, open_request
from volflow.infer.predict import plan_predict, predict
from volflow.infer.predict_options import NetworkOptions, PredictOptions
from volflow.infer.ready_inputs import convert_inputs
from volflow.infer.request import Request, normalized
from volflow.infer.seams.certificate import Certificate, Plane, Region, Seams
from volflow.infer.seams.regions import busy_regions, fitting_sides, memory_of
from volflow.infer.seams.whole_run import WholeRun, run_whole
from volflow.model.bundle import ModelLike, evaluating
from volflow.model.device import device_memory as device_budget
from volflow.model.device import pick_device
from volflow.option import from_keywords, journey
from volflow.store.create import create
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.volume import Volume
from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["certify_seams"]

Array = npt.NDArray[Any]
# Per stored axis: where patches begin and end inside a region, from its low edge.
Borders = tuple[tuple[int, ...], ...]

SIDE = 160  # of a region, unless patches are so large that it holds no seams
# Of what the whole run takes: memory for an exact run, so that it has blocks.
SHARES = (1 / 8, 1 / 4, 1 / 2)


@journey
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
    device_memory: str | int | None = None,
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
    volume, model, patch, frame, normalize, activation, weights, trust
        As in `predict`. Values are normalised by statistics of the whole volume.
    device, device_memory, memory
        As in `predict`.
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
    network = from_keywords(NetworkOptions, locals())
    variants = _checked(overlaps, blends, regions=regions, seed=seed)
    given = PredictOptions(
        **vars(network), overlap=overlaps[0], blend=blends[0], output="scores", precision="float32"
    )
    with tempfile.TemporaryDirectory(prefix="volflow-seams-") as folder:
        request = open_request(volume, model, Path(folder) / "seams.zarr", given)
        if request.grid is not None:
            raise InvalidInput(
                f"the network expects voxels of {request.grid.spacing}, and those of the volume are"
                f" {request.inputs.meta.spacing}; resample it first (vf.resample)"
            )
        for blend, overlap in variants:  # refused before work
            checked_options(replace(given, blend=blend, overlap=overlap), request.model.spec)
        with evaluating(request.model.module), connect("threads") as client:
            needed, halo, no_rule = memory_of(request, len(variants))
            within: dict[str, Any] = {"cluster": client, "memory": memory, "progress": False}
            request = normalized(convert_inputs(request, False, **within)[0], **within)
            asked = replace(request.options, device=str(pick_device(device)), cluster=client)
            request = replace(request, options=asked)
            memory_bytes = memory_per_worker(client, memory)
            most = [max(SIDE, 3 * p // 2) for p in asked.sides]
            room = _room_bytes(asked, memory_bytes)
            sides = fitting_sides(request.inputs.shape, most, needed, room)
            dtype = request.forward("cpu", "float32").dtype
            boxes = busy_regions(request.inputs, dtype, sides, regions, seed)
            exact, told = halo is not None, progress or (lambda line: None)
            measured = [
                _measure(request, number, box, variants, memory_bytes, exact=exact, told=told)
                for number, box in enumerate(boxes, 1)
            ]
        inputs, by = request.inputs, asked.activation
        return Certificate(
            volume=request.named(),
            model=request.model.name,
            shape=inputs.specs[0].spatial_shape,
            spacing=inputs.meta.spacing,
            unit=inputs.meta.unit,
            orientation=inputs.meta.orientation,
            frame=asked.frame,
            patch=asked.sides,
            activation=getattr(by, "__name__", "a function") if callable(by) else by,
            device=asked.device,
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


def _checked(overlaps: Any, blends: Any, *, regions: Any, seed: Any) -> list[tuple[str, Any]]:
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
    for blend in blends:
        if isinstance(blend, str) and blend == "exact":
            raise InvalidInput(
                "the exact blend is measured beside all others; leave it out of blends"
            )
        check_blend(blend)
    return [(blend, overlap) for blend in blends for overlap in overlaps]


def _room_bytes(options: PredictOptions, memory_bytes: int) -> int:
    """Return the memory for a whole run, which takes place on one device."""
    device = torch.device(options.device)
    if device.type != "cuda":
        return memory_bytes
    return min(memory_bytes, device_budget(device, options.device_bytes))


def _measure(
    request: Request,
    number: int,
    box: Roi,
    variants: Sequence[tuple[str, Any]],
    memory_bytes: int,
    *,
    exact: bool,
    told: Callable[[str], object],
) -> tuple[Region, Plane]:
    """Run a region whole, exactly and in patches; pick the plane in which blends differ most.

    Predictions are made of the region as the network sees it: normalised, and in the frame.
    """
    asked, frame = request.options, request.inputs.frame
    folder = request.folder / str(number)
    folder.mkdir()
    image = request.inputs.read(box, request.forward("cpu", "float32").dtype)
    told(f"region {number}: {'×'.join(map(str, box.shape))} voxels whole")
    whole = run_whole(request, image, ruled=exact)
    spec = VolumeSpec.of(image.shape, image.dtype, Meta(("c", "z", "y", "x")))
    region = create(folder / "region.zarr", spec)
    region.write(Roi.full(image.shape), image)
    held = [*whole.scores.values(), *whole.classes.values()]
    run = partial(
        _run, whole, region, request.model.module, folder, patch=asked.sides,
        padding=asked.padding, device=asked.device,
        device_memory=asked.device_memory, precision="float32", cluster=asked.cluster,
        progress=False,
        memory=max(1, memory_bytes - image.nbytes - sum(one.nbytes for one in held)),
    )  # fmt: skip
    blocked = None
    if exact:
        told(f"region {number}: exact")
        blocked = _exact(run, region, request.model.module, folder)
    blends, differences, borders = [], [], []
    for blend, overlap in variants:
        told(f"region {number}: {blend}, overlap {overlap}")
        sigma = request.model.spec.sigma_scale if blend == "gaussian" else None
        seams, away = run(blend=blend, overlap=overlap, sigma_scale=sigma)
        stride = stride_of(asked.sides, overlap, whole.scale)
        grid = PatchGrid(box.shape, asked.sides, stride, tuple(s > 1 for s in whole.scale))
        blends.append(replace(seams, forwards=len(grid)))
        differences.append(frame.store(away))
        borders.append(_borders(request, grid))
    stored = frame.stored_roi(box, request.inputs.specs[0].spatial_shape)
    lows, highs = zip(
        *((float(s.min()), float(s.max())) for s in whole.scores.values()), strict=True
    )
    done = Region(
        start=stored.start,
        stop=stored.stop,
        padded=whole.padded,
        scores=(min(lows), max(highs)),
        cpu_seconds=whole.cpu_seconds,
        exact=blocked,
        blends=tuple(blends),
    )
    plane = _plane(request, whole, frame.store(image[0]), differences, borders)
    return done, replace(plane, region=number, index=stored.start[plane.axis] + plane.index)


def _run(
    whole: WholeRun, region: Volume, module: torch.nn.Module, folder: Path, **options: Any
) -> tuple[Seams, Array]:
    """Predict a region and compare; also returns each voxel's largest difference, ``ZYX``."""
    blend, overlap = options["blend"], options["overlap"]
    out, began = folder / f"{blend}-{overlap}.zarr", time.process_time()
    made: Any = predict(region, module, out, **options)
    took = time.process_time() - began
    away, mean, changed = whole.compared({"": made} if isinstance(made, Volume) else made)
    blocks = len(Journal(journal_dir(out)).done())
    return Seams(blend, overlap, blocks, float(away.max()), mean, changed, took), away


def _exact(
    run: partial[tuple[Seams, Array]], region: Volume, module: torch.nn.Module, folder: Path
) -> Seams:
    """Run the exact blend, in blocks as small as a small part of the memory makes them."""
    exact = partial(run, blend="exact", overlap=None, padding=None)
    amply = plan_predict(region, module, folder / "planned.zarr", **exact.keywords).peak_bytes
    slack = slack_bytes(str(region.dtype))
    for share in SHARES:
        with suppress(MemoryRefused):
            return exact(memory=slack + int(share * (amply - slack)))[0]
    return exact()[0]


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
    whole: WholeRun,
    image: Array,
    differences: Sequence[Array],
    borders: Sequence[Borders],
) -> Plane:
    """Pick the slice that tells most: where blends differ most, but in no seam itself.

    In a slice between two layers of patches everything differs, and no border is to be seen.

    Parameters
    ----------
    request, whole
        The volume and the network, and its run on the region.
    image, differences
        ``ZYX`` in stored axes: the first channel, and per blend each voxel's largest difference.
    borders
        Per blend.

    Returns
    -------
    Plane
        Of the region as if it were the volume, and the first.
    """
    frame, dropped = request.inputs.frame, dropped_axis(request)
    if dropped is None:  # slices as people look at them
        planes = views(request.inputs.meta.orientation)
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
    first, scores = next(iter(whole.scores.items()))
    shown = frame.store(whole.classes[first] if len(scores) > 1 else scores[0])
    return Plane(
        region=1,
        axis=axis,
        index=index,
        image=image.take(index, axis),
        whole=shown.take(at, axis),
        differences=tuple(away.take(at, axis) for away in differences),
        borders=tuple(borders),
    )
