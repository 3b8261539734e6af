"""Arrays that tensorstore reads, as sources; and what their folders may say."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from volflow.errors import Damaged, InvalidInput, RunFailed, Unreadable, first_line
from volflow.geometry.roi import Roi
from volflow.store.atomic import read_json
from volflow.store.formats.choice import ImageChoice
from volflow.store.layout import check_dtype
from volflow.store.meta import Meta
from volflow.store.opening import MOST_CLAIMED, files_below
from volflow.store.slabs import Array, Source

__all__ = ["TensorStoreSource", "below", "chunked_source", "json_object"]

MOST_CHUNK = 2**31  # bytes, as tensorstore allows in N5


@dataclass(frozen=True, repr=False, kw_only=True)
class TensorStoreSource(Source):
    """An array in a folder of chunks; opened for each read, in less than a millisecond.

    Parameters
    ----------
    path
        The folder that was named.
    shape, dtype, meta
        Voxels per axis, ``zyx`` or ``czyx``, their dtype and metadata.
    opens
        What tensorstore opens, as JSON.
    folder
        Where its chunks lie.
    chunk
        Voxels per axis of one.
    axes
        The array's own axes: of ``czyxt`` a letter for each.
    begin
        Where the array begins along each of its own axes; along t the timepoint.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    meta: Meta
    opens: str
    folder: str
    chunk: tuple[int, ...]
    axes: str
    begin: tuple[int, ...]

    @property
    def decoded(self) -> tuple[int, ...]:
        """The chunk."""
        return self.chunk

    def identity(self) -> str:
        """Return a hash of names, sizes and times of all files, which changes with the voxels."""
        said = f"{self.opens} {self.shape} {self.axes} {self.begin} {self.meta}\n"
        digest = hashlib.sha256(said.encode(errors="surrogatepass"))
        folder = Path(self.folder)  # of chunks that are all zero, there may be none
        for line in files_below(folder) if folder.is_dir() else ():
            digest.update(line.encode(errors="surrogatepass"))
        return digest.hexdigest()

    def read(self, roi: Roi) -> Array:
        """Return the voxels of a box; chunks that are missing are zero."""
        box = dict(zip(self.meta.axes, roi, strict=True))
        index = tuple(
            first if axis == "t" else slice(*(first + n for n in box.get(axis, (0, 1))))
            for axis, first in zip(self.axes, self.begin, strict=True)
        )
        np.empty(roi.shape, self.dtype)  # what memory cannot hold ends the process in tensorstore
        kept = self.axes.replace("t", "")
        order = [kept.index(axis) for axis in "czyx" if axis in kept]
        try:
            part = _opened(self.opens)[index].transpose(order)
            voxels: Array = part.read(order="C").result()
        except Exception as error:  # tensorstore raises ValueError for nearly everything
            kind = RunFailed if isinstance(error, OSError) else Unreadable
            raise kind(
                f"{self.path} cannot be read at {roi.start}:{roi.stop} ({_reason(error)}); restore"
                " the file"
            ) from error
        return voxels.reshape(roi.shape).astype(self.dtype, copy=False)


def chunked_source(
    path: str, spec: Mapping[str, Any], chunks: Path, axes: str, choice: ImageChoice, meta: Meta
) -> TensorStoreSource:
    """Return the array of a spec as a source.

    Parameters
    ----------
    path
        The folder that was named.
    spec
        What tensorstore opens.
    chunks
        The folder of its chunks.
    axes
        A letter of ``czyxt`` for each of its axes.
    choice
        Which timepoint is meant; needed only if there are several.
    meta
        Its metadata, but for the axes.

    Raises
    ------
    InvalidInput
        If tensorstore is not installed, or a volume cannot hold the array.
    Damaged
        If its metadata are damaged.
    """
    text = json.dumps(spec)
    try:
        store = _opened(text)
    except InvalidInput:
        raise
    except Exception as error:  # tensorstore raises ValueError for nearly everything
        raise Damaged(
            f"{path} cannot be opened ({_reason(error)}); its metadata are damaged"
        ) from error
    sizes, begin = tuple(store.shape), list(store.domain.inclusive_min)
    dtype = check_dtype(store.dtype.numpy_dtype, path)
    if min(sizes) < 1 or math.prod(sizes) * dtype.itemsize > MOST_CLAIMED:
        raise Damaged(f"{path} claims shape {sizes}, which is impossible; its metadata are damaged")
    piece = store.chunk_layout.read_chunk.shape
    if math.prod(piece) * dtype.itemsize > MOST_CHUNK:
        raise Damaged(
            f"{path} claims chunks of {piece} voxels, each of which is held whole; its metadata are"
            " damaged"
        )
    if "t" in axes:
        begin[axes.index("t")] += choice.at_time(sizes[axes.index("t")], path)
    elif choice.timepoint is not None:
        raise InvalidInput(
            f"{path} has no time axis, given timepoint {choice.timepoint}; leave it out"
        )
    own = dict(zip(axes, sizes, strict=True))
    chunk = dict(zip(axes, piece, strict=True))
    names = "czyx" if own.get("c", 1) > 1 else "zyx"
    return TensorStoreSource(
        path=path,
        shape=tuple(own.get(axis, 1) for axis in names),
        dtype=dtype.newbyteorder("="),
        meta=replace(meta, axes=tuple(names)),
        opens=text,
        folder=str(chunks),
        chunk=tuple(min(chunk.get(axis, 1), own.get(axis, 1)) for axis in names),
        axes=axes,
        begin=tuple(begin),
    )


def _opened(spec: str) -> Any:
    try:
        import tensorstore
    except ImportError:
        raise InvalidInput(
            "N5 and precomputed volumes need tensorstore, which is not installed; pip install"
            ' "volflow[n5]"'
        ) from None
    return tensorstore.open(json.loads(spec), read=True, open=True).result()


def _reason(error: Exception) -> str:
    """Return what tensorstore says, without its specs."""
    text = first_line(error).split(" [tensorstore_spec")[0].split(" [source locations")[0]
    return f"{type(error).__name__}: {text:.300}"


def json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, ``{}`` if there is no such file.

    Raises
    ------
    Damaged
        If it is none.
    """
    try:
        value = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise Damaged(f"{path} cannot be read ({first_line(error)}); restore it") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} holds no JSON object; restore it")
    return value


def below(folder: Path, name: str) -> Path:
    """Return a path below a folder, refusing one that leads out of it.

    Examples
    --------
    >>> below(Path("/data/a.n5"), "../b.n5")
    Traceback (most recent call last):
    volflow.errors.InvalidInput: '../b.n5' lies outside /data/a.n5, where nothing is read; name what
    lies in it
    """
    root = os.path.normpath(folder)
    path = Path(os.path.normpath(os.path.join(root, name)))  # noqa: PTH118 - as it is written
    if not path.is_relative_to(root):
        raise InvalidInput(
            f"{name!r:.99} lies outside {folder}, where nothing is read; name what lies in it"
        )
    return path
