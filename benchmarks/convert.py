"""Files of other formats to sharded Zarr, beside the ways that their libraries offer.

    python benchmarks/convert.py                       # all formats, 3 repeats, results filed
    python benchmarks/convert.py --formats nii,zarr --side 256 --repeats 1 --no-file

The scan is noise on smooth structures, uint16, ``--side`` voxels a side. Ways:

- volflow: ``vf.convert`` within ``--memory``, journalled, with the checksum of each shard.
- whole: the format's own library reads all of it, one assignment writes it to a Zarr array with
  the same chunks, shards and codec.
- dask: ``dask.array`` over what the library offers lazily, rechunked to shards, ``to_zarr``.
- rechunker, cubed (Zarr in planes only): both write chunks without shards, of the same size, and
  get as much memory. rechunker 0.5 works with Zarr 2 only, and is left out beside Zarr 3.

Every run is a fresh process that has converted a small file of the format before. Memory is the
peak of resident memory above what it was then. MB/s counts the voxels' bytes once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from machine import describe, file_result  # noqa: E402

CHUNK, SHARD = (64, 64, 64), (256, 256, 256)
FORMATS = ("npy", "nii", "nii.gz", "nrrd", "tif", "h5", "dcm", "zarr")
WAYS = ("volflow", "whole", "dask", "rechunker", "cubed")


def make_voxels(side: int):
    import numpy as np

    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:side, :side, :side]
    smooth = 900 + 500 * np.sin(z / 31) * np.cos(y / 43) * np.sin(x / 37)
    return (smooth + rng.normal(0, 12, (side,) * 3)).astype("uint16")


def make(kind: str, side: int, folder: Path) -> Path:
    """Store the scan in a format, as its users do."""
    import numpy as np

    path, voxels = folder / f"{side}.{kind}", make_voxels(side)
    if kind == "npy":
        np.save(path, voxels)
    elif kind.startswith("nii"):
        import nibabel

        nibabel.Nifti1Image(voxels.T, np.eye(4)).to_filename(path)
    elif kind == "nrrd":
        import nrrd

        nrrd.write(str(path), voxels.T, {"encoding": "gzip"}, compression_level=1)
    elif kind == "tif":
        import tifffile

        tifffile.imwrite(path, voxels, compression="zlib", photometric="minisblack")
    elif kind == "h5":
        import h5py

        with h5py.File(path, "w") as file:
            file.create_dataset(
                "raw", data=voxels, chunks=(64, 64, 64), compression="gzip", compression_opts=1
            )
    elif kind == "dcm":
        make_dicom(path, voxels)
    else:
        import zarr

        zarr.create_array(path, data=voxels, chunks=(1, side, side))
    return path


def make_dicom(path: Path, voxels) -> None:
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    path.mkdir()
    series, study = generate_uid(), generate_uid()
    for z, plane in enumerate(voxels):
        one = pydicom.Dataset()
        one.file_meta = pydicom.dataset.FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
        one.file_meta.MediaStorageSOPClassUID = CTImageStorage
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
        one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality = series, study, "CT"
        one.Rows, one.Columns = plane.shape
        one.PixelSpacing, one.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
        one.ImagePositionPatient = [0, 0, z]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated = one.BitsStored = 16
        one.HighBit, one.PixelRepresentation = 15, 0
        one.PixelData = plane.tobytes()
        one.save_as(path / f"{z}.dcm", enforce_file_format=True)


def read_whole(kind: str, path: Path):
    """All voxels, as the format's own library reads them."""
    import numpy as np

    if kind == "npy":
        return np.load(path)
    if kind.startswith("nii"):
        import nibabel

        return np.asarray(nibabel.load(path).dataobj).T
    if kind == "nrrd":
        import nrrd

        return nrrd.read(str(path))[0].T
    if kind == "tif":
        import tifffile

        return tifffile.imread(path)
    if kind == "h5":
        import h5py

        with h5py.File(path) as file:
            return file["raw"][:]
    if kind == "dcm":
        import pydicom

        slices = [pydicom.dcmread(one) for one in path.iterdir()]
        slices.sort(key=lambda one: one.ImagePositionPatient[2])
        return np.stack([one.pixel_array for one in slices])
    import zarr

    return zarr.open(path, mode="r")[:]


def read_lazily(kind: str, path: Path):
    """A Dask array over what the library offers; None where it offers nothing but the whole."""
    import dask.array as da
    import numpy as np

    if kind == "npy":
        return da.from_array(np.load(path, mmap_mode="r"), chunks=SHARD)
    if kind == "nii":
        import nibabel

        return da.from_array(nibabel.load(path).dataobj, chunks=SHARD).T
    if kind == "tif":
        import tifffile
        import zarr

        return da.from_zarr(zarr.open(tifffile.imread(path, aszarr=True), mode="r"))
    if kind == "h5":
        import h5py

        return da.from_array(h5py.File(path)["raw"], chunks=SHARD)
    if kind == "dcm":
        import pydicom

        def place(one: Path) -> float:
            return float(pydicom.dcmread(one, stop_before_pixels=True).ImagePositionPatient[2])

        def plane(one: Path):
            return pydicom.dcmread(one).pixel_array[None]

        from dask import delayed

        files = sorted(path.iterdir(), key=place)
        shape = pydicom.dcmread(files[0]).pixel_array.shape
        planes = [da.from_delayed(delayed(plane)(one), (1, *shape), "uint16") for one in files]
        return da.concatenate(planes)
    if kind == "zarr":
        return da.from_zarr(path)
    return None


def convert(way: str, kind: str, path: Path, out: Path, memory: str) -> bool:
    """Convert a file; returns False where the way does not exist."""
    import zarr

    layout = {"chunks": CHUNK, "shards": SHARD}
    if way == "volflow":
        import volflow as vf

        vf.convert(path, out, chunk=CHUNK, shard=SHARD, memory=memory, progress=False)
    elif way == "whole":
        voxels = read_whole(kind, path)
        array = zarr.create_array(out, shape=voxels.shape, dtype=voxels.dtype, **codec(layout))
        array[:] = voxels
    elif way == "dask":
        lazy = read_lazily(kind, path)
        if lazy is None:
            return False
        lazy = lazy.rechunk(tuple(min(s, n) for s, n in zip(SHARD, lazy.shape, strict=True)))
        array = zarr.create_array(out, shape=lazy.shape, dtype=lazy.dtype, **codec(layout))
        lazy.store(array, lock=False)
    elif kind != "zarr":
        return False
    elif way == "rechunker":
        from rechunker import rechunk

        source = zarr.open(path, mode="r")
        rechunk(source, CHUNK, memory, str(out), temp_store=f"{out}.tmp").execute()
    else:
        import cubed

        from volflow.geometry.budget import parse_bytes

        spec = cubed.Spec(str(out.parent), allowed_mem=parse_bytes(memory), reserved_mem="300MB")
        cubed.to_zarr(cubed.from_zarr(str(path), spec=spec).rechunk(CHUNK), str(out))
    return True


def codec(layout):
    import math

    from zarr.codecs import ZstdCodec

    assert all(math.gcd(s, c) == c for s, c in zip(SHARD, CHUNK, strict=True))
    return {**layout, "compressors": ZstdCodec(level=1)}


class Peak(threading.Thread):
    """The largest resident memory while it runs, above that in the beginning."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import psutil

        self.process, self.most = psutil.Process(), 0
        self.begin, self.ended = self.process.memory_info().rss, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.01):
            self.most = max(self.most, self.process.memory_info().rss - self.begin)


def measure(way: str, kind: str, path: Path, small: Path, memory: str) -> dict | None:
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        if not convert(way, kind, small, Path(name, "small.zarr"), memory):
            return None
        peak = Peak()
        peak.start()
        begin = time.perf_counter()
        convert(way, kind, path, Path(name, "out.zarr"), memory)
        seconds = time.perf_counter() - begin
        peak.ended.set()
        peak.join()
        return {"s": seconds, "growth": peak.most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--folder", default=None, help="where the files are kept while it runs")
    parser.add_argument("--no-file", action="store_true")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        way, kind, path, small = asked.one
        print(json.dumps(measure(way, kind, Path(path), Path(small), asked.memory)))
        return
    folder = Path(tempfile.mkdtemp(dir=asked.folder))
    try:
        rows = [row for kind in asked.formats.split(",") for row in table(kind, folder, asked)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    head = (
        "| format | way | MB/s | growth, MiB | volflow is times as fast |\n|---|---|---:|---:|---:|"
    )
    about = describe(
        ["zarr", "dask", "nibabel", "tifffile", "h5py", "pydicom", "rechunker", "cubed"]
    )
    side = asked.side
    size = f"{side}³ uint16, {2 * side**3 / 1e6:.0f} MB; volflow, rechunker and cubed in {asked.memory}"
    text = f"{about}\n\n    python benchmarks/convert.py\n\n{size}; medians of {asked.repeats}.\n\n"
    text += "\n".join([head, *rows])
    print(text)
    if not asked.no_file:
        print(file_result("convert", text))


def table(kind: str, folder: Path, asked) -> list[str]:
    path, small = (make(kind, side, folder) for side in (asked.side, 64))
    found: dict[str, list[dict]] = {}
    for _ in range(asked.repeats):
        for way in WAYS:
            words = [sys.executable, __file__, "--memory", asked.memory, "--one", way, kind]
            done = subprocess.run([*words, str(path), str(small)], capture_output=True, text=True)
            if done.returncode:
                print(f"{kind} {way}: {done.stderr.splitlines()[-1]}", file=sys.stderr)
                continue
            one = json.loads(done.stdout.splitlines()[-1])
            if one is not None:
                found.setdefault(way, []).append(one)
                print(f"{kind:7} {way:10} {one['s']:6.2f} s", file=sys.stderr)
    for one in (path, small):
        shutil.rmtree(one) if one.is_dir() else one.unlink()
    seconds = {way: statistics.median(one["s"] for one in ones) for way, ones in found.items()}
    rows = []
    for way, ones in found.items():
        growth = max(one["growth"] for one in ones) / 2**20
        ratio = f"{seconds[way] / seconds['volflow']:.2f}" if "volflow" in seconds else ""
        speed = 2 * asked.side**3 / 1e6 / seconds[way]
        rows.append(f"| {kind} | {way} | {speed:.0f} | {growth:.0f} | {ratio} |")
    return rows


if __name__ == "__main__":
    main()
