"""A file of every kind that volflow reads, and what may be done to its bytes and values."""

from __future__ import annotations

import copy
import gzip
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tensorstore
import tifffile
import torch
import zarr
from pydicom.uid import JPEGLSLossless

from tests import dicom_files
from volflow.engine.observing.run_facts import run_facts
from volflow.geometry.roi import Roi
from volflow.infer.predict import predict
from volflow.model.bundle import load_model, save_model
from volflow.model.load import read_weights
from volflow.model.unet import UNet
from volflow.report.facts.card import volume_html
from volflow.report.facts.info import facts_of, facts_text
from volflow.report.facts.run_state import run_text
from volflow.report.viewers.appearance import appearances
from volflow.report.viewers.napari import napari_snippet
from volflow.report.viewers.neuroglancer import fragment, viewer_state
from volflow.sampling.counts.per_cell import count_classes
from volflow.store.create import create, open_begun
from volflow.store.formats.sources import open_source
from volflow.store.journal.complete import open_complete
from volflow.store.journal.detachment import (
    Detachment,
    Ending,
    keep_detachment,
    keep_ending,
)
from volflow.store.meta import Meta, VolumeSpec
from volflow.store.unfinished.root import WITHHELD
from volflow.store.verify import verify
from volflow.store.volume import open_volume
from volflow.volumes.convert import convert
from volflow.volumes.distribution import load_statistics
from volflow.volumes.export import export
from volflow.volumes.statistics import statistics

SHAPE = (6, 10, 12)

# What stands in the place of a value: the edges of what formats and machines can say.
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, -(2**63), 2**63, 10**15, 10**400, 0.5, -0.0, 1e-300,
    1e300, float("nan"), float("inf"), float("-inf"), "", "a", "../../etc/passwd", "/etc", "0",
    "9" * 50, "\ud800", "\x1b[2J\x00", "$x_{", [], [[]], [0], [-1], [10**13], ["a"], {}, {"a": 1},
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A file in a folder, and what reads it.

    Parameters
    ----------
    file
        What is damaged, below the folder.
    use
        Reads it as volflow's users do; given the folder.
    cache
        Whether it only saves time: damaged, it must be made anew and never be refused.
    """

    file: str
    use: Callable[[Path], Any]
    cache: bool = False


def scan() -> np.ndarray[Any, Any]:
    """Voxels that no gzip makes small."""
    return np.random.default_rng(0).integers(0, 200, SHAPE, "i2")


def make_files(folder: Path) -> dict[str, Sample]:
    """Write the files, and say by name what each is."""
    image = nib.Nifti1Image(scan().transpose(), np.diag([1, 1, 2, 1]).astype(float))
    nib.save(image, folder / "a.nii")
    (folder / "a.nii.gz").write_bytes(gzip.compress((folder / "a.nii").read_bytes(), mtime=0))
    nib.save(nib.Nifti2Image(scan().transpose(), np.eye(4)), folder / "b.nii")
    np.save(folder / "a.npy", scan())
    head = dicom_files.image(RescaleSlope=1, RescaleIntercept=-9)
    dicom_files.save(dicom_files.put_voxels(head, scan()[:1]), folder / "a.dcm")
    frames = dicom_files.enhanced(scan(), JPEGLSLossless)
    dicom_files.save(frames, folder / "b.dcm")
    dicom_files.segmentation([frames], scan().astype("u1") % 3).save_as(folder / "seg.dcm")
    convert(folder / "a.nii", folder / "a.zarr", chunk=4, shard=8, progress=False)
    statistics(folder / "a.zarr", progress=False)
    note = Detachment("predict", "a.zarr", "tcp://far:8786", "key", "a", 1.0)
    keep_detachment(folder / "a.zarr.volflow", note)
    keep_ending(folder / "a.zarr.volflow", Ending("key", "RunFailed", "no space is left"))
    export(folder / "a.zarr", folder / "e.npy")
    export(folder / "a.zarr", folder / "a.nrrd")
    export(folder / "a.zarr", folder / "a.mha")
    export(folder / "a.zarr", folder / "a.tif")
    export(folder / "a.zarr", folder / "a.ome.tif")
    export(folder / "a.zarr", folder / "a.h5")
    options = {"tile": (16, 16), "compression": "zlib", "photometric": "minisblack"}
    tifffile.imwrite(folder / "packed.tif", scan(), **options)
    np.save(folder / "labels.npy", scan() % 3)
    _count(folder)
    _foreign(folder)
    _chunked(folder)
    create(folder / "u.zarr", VolumeSpec.of(SHAPE, "i2", Meta(), chunk=4, shard=8), finished=False)
    net = UNet(1, 2, features=(2, 4), norm="none")
    save_model(net, folder / "bundle", patch=8, channels=["t1"], classes=["no", "yes"])
    torch.save(net.state_dict(), folder / "a.pt")
    return {
        "nii": Sample("a.nii", lambda f: _read_source(f / "a.nii")),
        "nii2": Sample("b.nii", lambda f: _read_source(f / "b.nii")),
        "nii.gz": Sample("a.nii.gz", lambda f: _read_source(f / "a.nii.gz")),
        "npy": Sample("a.npy", lambda f: _read_source(f / "a.npy")),
        "dicom": Sample("a.dcm", lambda f: _read_source(f / "a.dcm")),
        "dicom frames": Sample("b.dcm", lambda f: _read_source(f / "b.dcm")),
        "dicom segments": Sample("seg.dcm", lambda f: _read_source(f / "seg.dcm")),
        "nrrd": Sample("a.nrrd", lambda f: _read_source(f / "a.nrrd")),
        "mha": Sample("a.mha", lambda f: _read_source(f / "a.mha")),
        "n5": Sample("a.n5/s0/attributes.json", lambda f: _read_box(f / "a.n5")),
        "n5 group": Sample("a.n5/attributes.json", lambda f: _read_box(f / "a.n5")),
        "n5 chunk": Sample("a.n5/s0/0/0/0", lambda f: _read_box(f / "a.n5")),
        "info": Sample("pre/info", lambda f: _read_box(f / "pre")),
        "tif": Sample("a.tif", lambda f: _read_source(f / "a.tif")),
        "ome.tif": Sample("a.ome.tif", lambda f: _read_source(f / "a.ome.tif")),
        "packed tif": Sample("packed.tif", lambda f: _read_source(f / "packed.tif")),
        "hdf5": Sample("a.h5", lambda f: _read_box(f / "a.h5")),
        "group": Sample("a.zarr/zarr.json", lambda f: _read_volume(f / "a.zarr")),
        "withheld": Sample(f"u.zarr/{WITHHELD}", lambda f: open_begun(f / "u.zarr")),
        "array": Sample("a.zarr/0/zarr.json", lambda f: _read_volume(f / "a.zarr")),
        "shard": Sample("a.zarr/0/c/0/0/0", lambda f: _read_volume(f / "a.zarr")),
        "v2 array": Sample("v2.zarr/s/.zarray", lambda f: _read_volume(f / "v2.zarr")),
        "v2 attributes": Sample("v2.zarr/.zattrs", lambda f: _read_volume(f / "v2.zarr")),
        "v2 chunk": Sample("v2.zarr/s/0.0.0", lambda f: _read_volume(f / "v2.zarr")),
        "plan": Sample("a.zarr.volflow/plan.json", _read_run),
        "block": Sample("a.zarr.volflow/done/00000000.json", _read_run),
        "receipt": Sample("e.npy.volflow/export.json", _read_export),
        "lock": Sample("a.zarr.volflow/lock", _read_run),
        "detached": Sample("a.zarr.volflow/detached.json", _read_run),
        "ended": Sample("a.zarr.volflow/ended.json", _read_run),
        "statistics": Sample("a.zarr.volflow/statistics-all.json", _read_statistics, cache=True),
        "counts": Sample("labels.npy.volflow/classes-4x4x4.npz", _count, cache=True),
        "bundle": Sample("bundle/bundle.json", lambda f: load_model(f / "bundle")),
        "weights": Sample("bundle/weights.safetensors", lambda f: load_model(f / "bundle")),
        "checkpoint": Sample("a.pt", lambda f: read_weights(f / "a.pt")),
    }


def make_runs(folder: Path) -> dict[str, Sample]:
    """Runs that go on, or do not, from what `make_files` wrote."""
    _predict(folder)
    _exact(folder)
    return {
        "convert run": Sample("a.zarr.volflow/plan.json", _convert),
        "predict run": Sample("p.zarr.volflow/plan.json", _predict),
        "exact run": Sample("e.zarr.volflow/plan.json", _exact),
    }


def _foreign(folder: Path) -> None:
    """An OME-Zarr 0.4 as others write it."""
    group = zarr.create_group(folder / "v2.zarr", zarr_format=2)
    group.create_array("s", shape=SHAPE, chunks=SHAPE, dtype="i2")[:] = scan()
    steps = [{"type": "scale", "scale": [2.0, 1.0, 1.0]}]
    axes = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    levels = [{"path": "s", "coordinateTransformations": steps}]
    channels = [{"label": "dapi", "color": "00FF00", "window": {"start": 0, "end": 9}}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": levels}]
    group.attrs["omero"] = {"channels": channels}


def _chunked(folder: Path) -> None:
    """An N5 container and a precomputed volume."""
    store = {"driver": "file", "path": f"{folder / 'a.n5/s0'}"}
    said = {"dimensions": SHAPE, "blockSize": SHAPE, "dataType": "int16"}
    made = {"driver": "n5", "kvstore": store, "metadata": said | {"compression": {"type": "gzip"}}}
    tensorstore.open(made, create=True).result()[...] = scan()
    group = {"resolution": [2, 1, 1], "units": ["nm"] * 3, "scales": [[1, 1, 1]]}
    (folder / "a.n5/attributes.json").write_text(json.dumps(group))
    scale = {"key": "1_1_2", "resolution": [1, 1, 2], "encoding": "raw", "size": SHAPE}
    info = {"data_type": "int16", "num_channels": 1, "type": "image"}
    made = {"driver": "neuroglancer_precomputed", "kvstore": {**store, "path": f"{folder / 'pre'}"}}
    made |= {"scale_metadata": scale | {"chunk_size": SHAPE}, "multiscale_metadata": info}
    tensorstore.open(made, create=True).result()[...] = scan()[..., None]


def _read_source(path: Path) -> None:
    facts_text(facts_of(path))
    source = open_source(path)
    for _ in source.slabs(4):
        pass
    if not source.sequential:
        source.read(Roi.full(source.shape))


def _read_box(path: Path) -> None:
    """Of a file whose voxels need not all have been written."""
    facts_text(facts_of(path))
    source = open_source(path)
    source.read(Roi((0,) * source.ndim, tuple(min(n, 12) for n in source.shape)))


def _read_volume(path: Path) -> None:
    facts_text(facts_of(path))
    volume = open_complete(path)
    box = Roi(tuple(0 for _ in volume.shape), tuple(min(n, 12) for n in volume.shape))
    volume.read(box)
    volume_html(volume)
    fragment(viewer_state(appearances([path]), "http://localhost"))
    napari_snippet(path)


def _read_run(folder: Path) -> None:
    run_text(run_facts(folder / "a.zarr"))
    open_complete(folder / "a.zarr")
    found = verify(folder / "a.zarr")
    str(found), found.map()


def _read_export(folder: Path) -> None:
    str(verify(folder / "e.npy"))


def _read_statistics(folder: Path) -> None:
    volume = open_volume(folder / "a.zarr")
    found = load_statistics(volume, volume.identity(), False)
    if found is not None:
        str(found), found.to_dict()


def _convert(folder: Path) -> None:
    convert(folder / "a.nii", folder / "a.zarr", progress=False)


def _predict(folder: Path) -> None:
    options = {"blend": "gaussian", "memory": "1GiB", "progress": False}
    predict(folder / "a.zarr", folder / "bundle", folder / "p.zarr", **options)


def _exact(folder: Path) -> None:
    options = {"blend": "exact", "memory": "1GiB", "progress": False}
    predict(folder / "a.zarr", folder / "bundle", folder / "e.zarr", **options)


def _count(folder: Path) -> None:
    source = open_source(folder / "labels.npy")
    count_classes(source, 4, Roi.full(SHAPE), progress=False).boxes((1, 1, 1), [0, 1])


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value inside of a JSON value, and to the whole."""
    yield at
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*at, key))


def replaced(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """The JSON value with another one at a place."""
    if not at:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = new
    return value


def without(value: Any, at: tuple[Any, ...]) -> Any:
    """The JSON value without what stands at a place."""
    if not at:
        return None
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    del inner[at[-1]]
    return value


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below, but for the lock, which says who reads."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            if name != "lock":
                path = Path(root) / name
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found
