"""Volumes without a network: conversions, levels, statistics, exports."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import dask.array as da
import nibabel
import numpy as np
import zarr
from bits_inputs import (
    QUIET,
    SHAPE,
    Cases,
    columns,
    labels,
    nifti,
    scan,
    stored,
    unused,
)
from bits_lines import array_line, line_of, sha

import volflow as vf


def npy(dtype: str) -> str:
    name = f"source-{dtype.replace('>', 'big-')}.npy"
    np.save(name, (scan() * 100).astype(dtype))
    return name


def scaled() -> str:
    """A file that holds a slope."""
    image = nibabel.Nifti1Image(columns().astype("float32") * 0.37, np.diag([1, 2, 3, 1]))
    image.header.set_data_dtype("int16")
    nibabel.save(image, "scaled.nii.gz")
    return "scaled.nii.gz"


def foreign(version: int) -> str:
    """Somebody else's array, with chunks of another kind."""
    name = f"foreign-{version}.zarr"
    more: dict[str, Any] = {"shards": (14, 10, 10)} if version == 3 else {}
    array = zarr.create_array(
        name, shape=SHAPE, dtype="uint16", chunks=(7, 10, 5), zarr_format=version, overwrite=True,
        **more,
    )  # fmt: skip
    array[:] = (scan() * 1000).astype("uint16")
    return name


def ome(version: int) -> str:
    """Somebody else's OME-Zarr 0.4 or 0.5."""
    name = f"ome-{version}.zarr"
    group = zarr.open_group(name, mode="w", zarr_format=2 if version == 4 else 3)
    array = group.create_array("s0", shape=(2, *SHAPE), dtype="uint8", chunks=(1, 8, 8, 8))
    array[:] = (scan((2, *SHAPE)) * 200).astype("uint8")
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"]
    scale = [{"type": "scale", "scale": [1, 2, 0.5, 0.5]}]
    sets = [{"path": "s0", "coordinateTransformations": scale}]
    known = {"multiscales": [{"version": f"0.{version}", "axes": axes, "datasets": sets}]}
    group.attrs.update(known if version == 4 else {"ome": {"version": "0.5", **known}})
    return name


def conversions() -> Cases:
    def convert(source: Any, **options: Any) -> Any:
        layout = {"chunk": 8, "shard": 16} | options
        return vf.convert(source, unused("converted"), **layout, **QUIET)

    for dtype in ("uint8", "int16", ">i4", "uint32", "int64", "float16", "float32", "float64"):
        yield f"convert/npy {dtype}", lambda d=dtype: convert(npy(d))
    yield "convert/usual layout", lambda: convert(npy("int16"), chunk=None, shard=None)
    yield "convert/channels", lambda: convert(scan((3, *SHAPE)))
    for name in ("tilted.nii", "tilted.nii.gz"):
        yield f"convert/{name}", lambda n=name: convert(nifti(n, columns(), "LAS", tilt=0.2))
    yield "convert/scaled nii.gz", lambda: convert(scaled())
    for version in (2, 3):
        yield f"convert/zarr v{version}", lambda v=version: convert(foreign(v))
    for version in (4, 5):
        yield f"convert/ome 0.{version}", lambda v=version: convert(ome(v))
        yield f"open/ome 0.{version}", lambda v=version: array_line(vf.open(ome(v))[:])
    yield "convert/labels", lambda: convert(labels().astype("float32"), labels=True)


def writes() -> Cases:
    def write(array: Any, **options: Any) -> Any:
        layout = {"chunk": 8, "shard": 16} | options
        return vf.write(array, unused("written"), **layout, **QUIET)

    uneven = da.from_array(scan(), chunks=((5, 10, 7), 19, (20, 5)))
    yield "write/uneven chunks", lambda: write(uneven * 2)
    yield "write/many chunks", lambda: write(da.from_array(scan(), chunks=4) + 1)
    yield "write/numpy", lambda: write(columns())
    alike = {"like": nifti("LPS.nii.gz", columns()), "chunk": None, "shard": None}
    yield "write/like", lambda: write(da.from_array(scan(), chunks=9), **alike)


def pyramids() -> Cases:
    def levels(values: Any, count: int | None = 2, **options: Any) -> Any:
        out = unused("levels")
        vf.convert(values, out, chunk=8, shard=16, **options, **QUIET)
        return vf.pyramid(out, levels=count, **QUIET)

    for dtype in ("uint8", "int16", "uint16", "int64", "float32", "float64"):
        values = (scan() * 100 - 50 * (dtype[0] != "u")).astype(dtype)
        yield f"pyramid/{dtype}", lambda v=values: levels(v)
    yield "pyramid/labels", lambda: levels(labels(), labels=True)
    yield "pyramid/many labels", lambda: levels(np.kron(labels(), [300, 7]), 3, labels=True)
    yield "pyramid/channels", lambda: levels(scan((2, *SHAPE)), 3)
    yield "pyramid/usual count", lambda: levels(scan((70, 20, 80)), None)
    thick = nifti("thick.nii.gz", (scan() * 100).astype("int16"), "RAS")
    yield "pyramid/thick slices", lambda: levels(thick, 3)

    def fewer() -> Any:
        found = levels(scan(), 3)
        return vf.pyramid(found.path, levels=1, **QUIET)

    yield "pyramid/fewer", fewer


def numbers() -> Cases:
    def known(values: Any, **options: Any) -> str:
        volume = stored(unused("known"), values)
        found = vf.statistics(volume, **options, **QUIET)
        return json.dumps(found.to_dict(), sort_keys=True)

    holes = scan()
    holes[3, 4:9] = np.nan
    holes[5, 5, 5] = np.inf
    for dtype in ("uint8", "int16", "uint32", "float32", "float64"):
        values = (scan() * 200 - 100 * (dtype[0] != "u")).astype(dtype)
        yield f"statistics/{dtype}", lambda v=values: known(v)
    yield "statistics/not finite", lambda: known(holes)
    yield "statistics/channels", lambda: known(scan((3, *SHAPE)))
    yield "statistics/nonzero", lambda: known(labels(), foreground=True)
    yield "statistics/above", lambda: known(scan(), foreground=0.5)

    def sidecar() -> str:
        """What is kept beside a volume, but for its identity."""
        volume = stored("kept.zarr", scan())
        vf.statistics(volume, **QUIET)
        (path,) = Path("kept.zarr.volflow").glob("statistics*.json")
        kept = json.loads(path.read_text())
        kept.pop("identity")
        return f"{path.name} {sha(json.dumps(kept, sort_keys=True).encode())}"

    yield "statistics/kept", sidecar


def exports() -> Cases:
    def back(suffix: str, codes: str, dtype: str = "int16") -> Path:
        """A file onto its own axes again, after a conversion."""
        source = nifti(f"back-{codes}-{dtype}.nii.gz", columns().astype(dtype), codes, tilt=0.1)
        volume = stored(f"back-{codes}-{dtype}.zarr", source)
        return Path(vf.export(volume, unused("exported", f".{suffix}"), overwrite=True))

    def named(path: Path) -> str:
        return line_of(path).split(" ", 1)[1]

    for suffix, codes in itertools.product(("nii.gz", "nii", "npy"), ("LPS", "PIR", "IAR")):
        yield f"export/{suffix} {codes}", lambda s=suffix, c=codes: named(back(s, c))
    for dtype in ("uint8", "float32", "float64"):
        yield f"export/nii.gz {dtype}", lambda d=dtype: named(back("nii.gz", "RAS", d))

    def plain(array: Any, suffix: str, **options: Any) -> str:
        volume = vf.convert(array, unused("plain"), **options, **QUIET)
        return named(Path(vf.export(volume, unused("plain", f".{suffix}"))))

    yield "export/labels", lambda: plain(labels(), "nii.gz", labels=True)
    yield "export/channels", lambda: plain(scan((2, *SHAPE)), "nii.gz")
    yield "export/float16", lambda: plain(scan().astype("float16"), "nii")
    yield "export/bool", lambda: plain(labels() > 1, "npy")
