"""A result as one line of text that is equal where the result is."""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import torch

import volflow as vf


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]


def array_line(values: np.ndarray[Any, Any]) -> str:
    data = np.ascontiguousarray(values)
    return f"{data.dtype} {data.shape} {sha(data.tobytes())}"


def facts_of(volume: Any) -> str:
    spacing = tuple(round(float(v), 9) for v in volume.spacing)
    known = (*volume.axes, spacing, volume.unit, volume.orientation, volume.chunks, volume.shards)
    affine = None if volume.affine is None else np.round(volume.affine, 9).tolist()
    levels = [(level.path, tuple(level.scale)) for level in volume.levels]
    return f"{known} {affine} {levels}"


def files_of(folder: Path) -> str:
    """A hash of the files of a store, with no trace of where it lies."""
    digest = hashlib.sha256()
    root = os.path.realpath(Path.cwd()).encode()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".json" or path.name.startswith(".z"):
            data = data.replace(root, b"")
        digest.update(f"{path.relative_to(folder)} {len(data)}\n".encode() + data)
    return digest.hexdigest()[:24]


def rounded(values: Any) -> np.ndarray[Any, Any]:
    """To a millionth, without negative zeros."""
    return np.round(np.asarray(values, "float64"), 6) + 0.0


def line_of(result: Any) -> str:
    """What a result is, in one line that is equal where the result is."""
    if isinstance(result, vf.Volume):
        text = f"{array_line(result[:])} {facts_of(result)}"
        local = result.path is not None and Path(result.path).is_dir()
        coarse = [vf.open(result.path, level=n)[:] for n in range(1, len(result.levels))]
        text += "".join(f" {array_line(level)}" for level in coarse)
        return text + (f" files {files_of(Path(result.path))}" if local else "")
    if isinstance(result, da.Array):
        return f"{array_line(result.compute(scheduler='threads'))} {result.chunks}"
    if isinstance(result, torch.Tensor):
        return array_line(result.numpy())
    if isinstance(result, np.ndarray):
        return array_line(result)
    if isinstance(result, Path):
        packed = result.name.endswith(".gz")
        data = gzip.decompress(result.read_bytes()) if packed else result.read_bytes()
        return f"{result.name} {len(data)} {sha(data)}"
    if isinstance(result, dict):
        return "{" + ", ".join(f"{key}: {line_of(value)}" for key, value in result.items()) + "}"
    if isinstance(result, list | tuple):
        return "[" + ", ".join(line_of(value) for value in result) + "]"
    return str(result)
