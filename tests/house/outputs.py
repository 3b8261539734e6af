"""Outputs of the version before, kept so that a test can open, verify and resume them.

    PYTHONPATH=/path/to/that/version python tests/house/outputs.py tests/data/outputs_before.zip

Makes a handful of tiny outputs in a scratch folder and packs them, with the time of each file to
the nanosecond, since fingerprints hold the times of inputs. One prediction is killed half-way.
Networks consist of torch's layers alone, whose fingerprints hold no code of this file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import dask.array as da
import nibabel
import numpy as np
import torch
from torch import nn

import volflow as vf

SHAPE = (44, 11, 12)
MANIFEST = "manifest.json"
LAYOUT: dict[str, Any] = {"chunk": 8, "shard": 16, "memory": "1GiB", "progress": False}
BLENDED: dict[str, Any] = {
    "patch": 8, "overlap": 0.25, "frame": "RAS", "normalize": "zscore", "batch_size": 2,
    "device": "cpu", **LAYOUT,
}  # fmt: skip
# So little memory that statistics, a node and the result take a pass each.
EXACT: dict[str, Any] = {
    **LAYOUT, "blend": "exact", "dtype": "float16", "device": "cpu", "memory": "52MiB",
}  # fmt: skip
HALF = 2  # blocks, of six
KILLED = 9


def exact_numbers(net: nn.Module) -> nn.Module:
    """Weights that no random generator changes."""
    with torch.no_grad():
        for weight in net.parameters():
            places = np.arange(weight.numel()) * 7919 % 101
            weight.copy_(torch.from_numpy((places - 50) / 64).reshape(weight.shape))
    return net.eval()


def net() -> nn.Module:
    """Two classes; its zero padding makes patches disagree at their borders."""
    layers = (nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))
    return exact_numbers(nn.Sequential(*layers))


def norm_net() -> nn.Module:
    """In float64, with statistics of the whole volume."""
    norm = nn.InstanceNorm3d(4, affine=True)
    layers = (nn.Conv3d(1, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))
    return exact_numbers(nn.Sequential(*layers)).double()


def waves() -> np.ndarray[Any, Any]:
    """Smooth, so that little is stored."""
    z, y, x = (np.arange(n) for n in SHAPE)
    found = np.sin(z[:, None, None] / 3) + np.cos(y[:, None] / 4) + np.sin(x / 5)
    return np.round(found * 100).astype("int16")


def computed() -> da.Array:
    """What is stored by `write`."""
    return da.from_array(waves(), chunks=9) * 2


def half(out: str = "half.zarr") -> Any:
    """The prediction that is killed, or goes on."""
    return vf.predict("scan.zarr", net(), out, **(BLENDED | {"frame": "SAR", "shard": 8}))


def killed_half_way() -> None:
    """The process ends while its prediction runs."""

    def watch() -> None:
        done = Path("half.zarr.volflow/done")
        while len(list(done.glob("*.json"))) < HALF:
            time.sleep(0.0002)
        os._exit(KILLED)

    threading.Thread(target=watch, daemon=True).start()
    half()


def make() -> None:
    """Everything, in the current folder, by relative paths."""
    affine = np.array([[-0.7, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1]])
    for name, values in {"scan": waves(), "truth": (waves() > 60).astype("uint8")}.items():
        nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), f"{name}.nii.gz")
    vf.convert("scan.nii.gz", "scan.zarr", **LAYOUT)
    vf.statistics("scan.zarr", progress=False)
    vf.convert("truth.nii.gz", "truth.zarr", labels=True, **LAYOUT)
    vf.pyramid("truth.zarr", levels=2, progress=False)
    vf.export("truth.zarr", "exported.nii.gz")
    case = {"image": "scan.zarr", "label": "truth.zarr"}
    vf.PatchStream(case, vf.LabelSampler(8), 10, progress=False)
    vf.write(computed(), "written.zarr", like="scan.zarr", **LAYOUT)
    vf.predict("scan.zarr", net(), "blended.zarr", output="classes", **BLENDED)
    vf.predict("scan.nii.gz", net(), "classes.nii.gz", output="classes", **BLENDED)
    vf.predict("scan.zarr", norm_net(), "exact.zarr", **EXACT)
    done = subprocess.run([sys.executable, __file__, "--half"], check=False)
    if done.returncode != KILLED:
        raise SystemExit(f"the prediction was not killed: {done.returncode}; run this again")
    # What the lock says of the dead process is nobody's business.
    Path("half.zarr.volflow/lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))


def hashes() -> dict[str, str]:
    """Of the voxels of each complete volume and level."""
    found = {}
    for path in sorted(Path().glob("*.zarr")):
        if path.name != "half.zarr":
            for level in range(len(vf.open(path).levels)):
                values = np.ascontiguousarray(vf.open(path, level=level)[:])
                found[f"{path.name}/{level}"] = hashlib.sha256(values.tobytes()).hexdigest()
    return found


def pack(archive: Path) -> None:
    """All files and what is known of them."""
    files = sorted(p for p in Path().rglob("*") if p.is_file())
    folders = sorted(str(p) for p in Path().rglob("*") if p.is_dir() and not any(p.iterdir()))
    known = {
        "versions": {"volflow": vf.__version__, "torch": torch.__version__},
        "times": {str(p): p.stat().st_mtime_ns for p in files},
        "empty folders": folders,
        "voxels": hashes(),
    }
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        packed.writestr(MANIFEST, json.dumps(known))
        for path in files:
            packed.write(path)


def unpack(archive: Path, folder: Path) -> dict[str, Any]:
    """The outputs as they were left, in a folder; returns what is known of them."""
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(folder)
    known: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    for name in known["empty folders"]:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, time_ns in known["times"].items():
        os.utime(folder / name, ns=(time_ns, time_ns))
    return known


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", nargs="?", type=Path, help="the .zip to write")
    parser.add_argument("--half", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.half:
        killed_half_way()
        return
    if options.archive is None:
        parser.error("the name of the archive is missing")
    archive = options.archive.absolute()
    with tempfile.TemporaryDirectory(prefix="outputs-") as folder:
        os.chdir(folder)
        make()
        pack(archive)
        os.chdir(archive.parent)
    print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
