"""What the seams of patches do to a result: blended runs beside the network run whole."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client

from volflow.engine.cluster import connect, memory_per_worker
from volflow.errors import InvalidInput, MemoryRefused
from volflow.geometry.roi import Roi
from volflow.infer.exact.plan import slack_bytes
from volflow.infer.methods import checked_options, open_request
from volflow.infer.options import PredictOptions
from volflow.infer.predict import plan_predict, predict
from volflow.infer.request import Request, convert_inputs, normalized
from volflow.infer.seams.certificate import Certificate, Plane, Region, Seams
from volflow.infer.seams.plane import Place
from volflow.infer.seams.regions import busy_regions, fitting_sides
from volflow.infer.seams.whole import difference, memory_of, run_whole, score_range
from volflow.model.bundle import evaluating
from volflow.model.forward import pick_device
from volflow.partition.reach import Halo
from volflow.store.create import create
from volflow.store.journal.journal import Journal, journal_dir
from volflow.store.meta import Meta
from volflow.store.volume import Volume

__all__ = ["certify"]

Array = npt.NDArray[Any]
Variant = tuple[str, Any]

EXACT: Variant = ("exact", None)

SIDE = 160  # of a region, unless patches are so large that it holds no seams
DEVICE_SHARE = 0.7  # of what is free on a GPU
# Of what the whole run takes: memory for an exact run, so that it has blocks.
SHARES = (1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True)
class Bench:
    """What all runs on a volume share.

    Parameters
    ----------
    request
        The volume and the network; its values are normalised by constants of the whole volume.
    client, folder, device, memory_bytes
        Where runs happen, and what they may take.
    variants
        Blends and overlaps.
    exact
        Whether there is an exact blend.
    told
        Hears what is done next.
    """

    request: Request
    client: Client
    folder: Path
    device: str
    memory_bytes: int
    variants: tuple[Variant, ...]
    exact: bool
    told: Callable[[str], object]


def certify(  # noqa: PLR0913 - a public journey takes flat options
    volume: Any,
    model: Any,
    *,
    patch: int | tuple[int, int, int] | None = None,
    overlaps: Sequence[Any] = (0, 0.25, 0.5),
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
    """Measure what the seams of patches do to a result, on regions of a volume.

    Each region is treated as a volume of its own: the network is run on it whole, by the exact
    blend in small blocks, and by each blend at each overlap, as `predict` does it. Everything is
    computed in float32 (float64 of a network in float64), in this process, in a temporary folder.

    Parameters
    ----------
    volume, model, patch, frame, normalize, activation, device, weights, trust, memory
        As in `predict`. What is normalised is so by statistics of the whole volume.
    overlaps, blends
        Measured in all combinations.
    regions
        How many, those with the most structure; 160 voxels per side (one and a half patches
        where that is more), fewer where memory or the volume is smaller.
    seed
        Of the draw of the regions that are looked at, in a large volume.
    progress
        Gets a line of text before each run.

    Returns
    -------
    Certificate
        Plain data; ``describe()`` is a table, `seams_figure` draws it.

    Raises
    ------
    InvalidInput
        Before any run, as `predict`; or where a network cannot be run on a region whole.
    MemoryRefused
        Where no region fits in memory whole.

    Examples
    --------
    >>> scan = np.random.default_rng(0).random((12, 12, 12), "float32")
    >>> found = certify(scan, torch.nn.Conv3d(1, 2, 3, padding=1), patch=6, overlaps=[0])
    >>> exact, blended = found.regions[0].exact, found.regions[0].blends[0]
    >>> exact.largest < 1e-5 < blended.largest
    True
    """
    variants = _checked(overlaps, blends, regions=regions, seed=seed)
    given = PredictOptions(
        patch, overlaps[0], blends[0], frame, normalize, activation, "scores", device=device,
        precision="float32", weights=weights, trust=trust,
    )  # fmt: skip
    told: Callable[[str], object] = _nobody if progress is None else progress
    with tempfile.TemporaryDirectory(prefix="volflow-seams-") as place:
        folder = Path(place)
        request = open_request(volume, model, folder / "seams.zarr", given)
        for blend, overlap in variants:  # refused before work
            checked_options(replace(given, blend=blend, overlap=overlap), request.model.spec)
        with evaluating(request.model.module), connect("threads") as client:
            needed, found, no_rule = memory_of(request)
            options = {"cluster": client, "memory": memory, "progress": False}
            request, _ = convert_inputs(request, False, **options)
            bench = Bench(
                normalized(request, **options), client, folder, str(pick_device(device)),
                memory_per_worker(client, memory), variants, found is not None, told,
            )  # fmt: skip
            most = [max(SIDE, 3 * p // 2) for p in request.options.sides]
            shape = request.inputs.shape
            sides = fitting_sides(shape, most, needed, _room(bench))
            dtype = request.forward("cpu", "float32").dtype
            boxes = busy_regions(bench.request.inputs, dtype, sides, regions, seed)
            measured = [_measure(bench, *numbered) for numbered in enumerate(boxes, 1)]
        return _certificate(bench, request.named(), found, no_rule, measured)


def _nobody(line: str) -> None:
    """Hear nothing."""


def _room(bench: Bench) -> int:
    """Memory for a whole run, which takes place on a device at once."""
    if not bench.device.startswith("cuda"):
        return bench.memory_bytes
    free = torch.cuda.mem_get_info(torch.device(bench.device))[0]
    return min(bench.memory_bytes, int(DEVICE_SHARE * free))


def _checked(overlaps: Any, blends: Any, *, regions: Any, seed: Any) -> tuple[Variant, ...]:
    """Every blend at every overlap; refuses what is none."""
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


def _certificate(
    bench: Bench,
    volume: str,
    found: Halo | None,
    no_rule: str,
    measured: Sequence[tuple[Region, Plane]],
) -> Certificate:
    request = bench.request
    first, options, spec = request.inputs.specs[0], request.options, request.model.spec
    activation = options.activation
    return Certificate(
        volume=volume,
        model=request.model.name,
        shape=first.spatial_shape,
        spacing=first.meta.spacing,
        unit=first.meta.unit,
        orientation=first.meta.orientation,
        frame=options.frame,
        patch=options.sides,
        activation=getattr(activation, "__name__", "a function")
        if callable(activation)
        else activation,
        device=bench.device,
        dtype=request.forward("cpu", "float32").dtype,
        classes=spec.classes,
        margin=None if found is None else found.margin,
        statistics=0 if found is None else found.statistics,
        no_rule=no_rule,
        regions=tuple(region for region, _ in measured),
        plane=max((plane for _, plane in measured), key=_weight),
    )


def _weight(plane: Plane) -> float:
    return sum(float(one.mean()) for one in plane.differences)


def _measure(bench: Bench, number: int, box: Roi) -> tuple[Region, Plane]:
    """One region: the whole run, the exact one, the blends, and the plane that differs most."""
    request, folder = bench.request, bench.folder / str(number)
    dtype = request.forward("cpu", "float32").dtype
    image = request.inputs.read(box, dtype)
    bench.told(f"region {number}: {'×'.join(map(str, box.shape))} voxels whole")
    whole = run_whole(request, image, bench.device)
    folder.mkdir()
    region = create(folder / "region.zarr", image.shape, dtype, Meta(("c", "z", "y", "x")))
    region.write(Roi.full(image.shape), image)
    held = image.nbytes + sum(s.nbytes for s in whole.scores.values())
    bench = replace(bench, folder=folder, memory_bytes=bench.memory_bytes - held)
    place = Place(request, number, box, image, whole)

    exact = None
    if bench.exact:
        bench.told(f"region {number}: exact")
        exact = _exact(bench, region, place)
    runs = []
    for blend, overlap in bench.variants:
        bench.told(f"region {number}: {blend}, overlap {overlap}")
        runs.append(_run(bench, region, place, (blend, overlap)))
    stored = request.inputs.frame.stored_roi(box, request.inputs.specs[0].spatial_shape)
    done = Region(
        start=stored.start,
        stop=stored.stop,
        padded=whole.padded,
        scores=score_range(whole, request),
        cpu_seconds=whole.cpu_seconds,
        exact=exact,
        blends=tuple(seams for _, seams, _ in runs),
    )
    overlaps = [overlap for _, overlap in bench.variants]
    at = place.telling(np.sum([along for *_, along in runs], axis=0), overlaps)
    return done, place.plane(at, [result for result, *_ in runs], overlaps)


def _exact(bench: Bench, region: Volume, place: Place) -> Seams:
    """The exact blend, in blocks as small as a small part of the memory makes them."""
    out, module = bench.folder / "planned.zarr", bench.request.model.module
    amply = plan_predict(region, module, out, blend="exact", **_options(bench)).peak_bytes
    slack = slack_bytes(bench.request.forward("cpu", "float32").dtype)
    for share in SHARES:
        memory = slack + int(share * (amply - slack))
        try:
            return _run(replace(bench, memory_bytes=memory), region, place, EXACT)[1]
        except MemoryRefused:
            continue
    return _run(bench, region, place, EXACT)[1]


def _run(
    bench: Bench, region: Volume, place: Place, variant: Variant
) -> tuple[dict[str, Volume], Seams, Array]:
    """The region by `predict`: its result, what it says, and where that differs."""
    blend, overlap = variant
    out = bench.folder / f"{blend}-{overlap}.zarr"
    began = time.process_time()
    made = predict(
        region, bench.request.model.module, out, blend=blend, overlap=overlap, progress=False,
        **_options(bench),
    )  # fmt: skip
    took = time.process_time() - began
    result = {"": made} if isinstance(made, Volume) else made
    found = difference(place.whole, result, bench.request, place.normal)
    exact = variant == EXACT
    forwards = len(Journal(journal_dir(out)).done()) if exact else len(place.grid(overlap))
    seams = Seams(blend, overlap, forwards, found.largest, found.mean, found.changed, took)
    return result, seams, found.along


def _options(bench: Bench) -> dict[str, Any]:
    """What every run is given; the region is in the network's frame, and normalised."""
    return {
        "patch": bench.request.options.sides,
        "device": bench.device,
        "precision": "float32",
        "cluster": bench.client,
        "memory": max(1, bench.memory_bytes),
    }
