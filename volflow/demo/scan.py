"""The CT of the huge demo as a volume, written a few planes at a time.

``python -m volflow.demo.scan ct.zarr`` writes it in a process of its own and resumes it there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from volflow.demo.phantom import paint
from volflow.demo.torso import SHAPE, spacing_of, torso
from volflow.geometry.roi import Roi
from volflow.store.meta import Meta
from volflow.store.volume import Volume
from volflow.volumes.write import write

__all__ = ["write_scan"]

PLANES = 16  # that are painted at once
MEMORY = "360MiB"  # lets two shards be made at a time


def write_scan(out: str | os.PathLike[str], shape: Sequence[int] = SHAPE, seed: int = 0) -> Volume:
    """Write the CT; where an earlier call was interrupted, only what is left.

    Parameters
    ----------
    out
        Path of the volume.
    shape
        Voxels along z, y, x; the field of view stays the same.
    seed
        Seed of the vessels and of the noise.

    Returns
    -------
    Volume
        float32 ``zyx`` in HU, in chunks thin along z, so that few rows fill a layer of patches.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     volume = write_scan(f"{folder}/ct.zarr", (16, 24, 24))
    ...     volume.spacing, bool(volume[8].max() > 0 > volume[8].min())
    ((20.04375, 14.08, 14.08), True)
    """
    spacing, shapes = spacing_of(shape), torso(seed)

    def planes(block_info: Any = None) -> npt.NDArray[np.float32]:
        start, stop = zip(*block_info[None]["array-location"], strict=True)
        return paint(shapes, Roi(start, stop), spacing, seed)

    _, y, x = shape
    array = da.map_blocks(
        planes,
        # Named by what is painted, by which a second process knows what the first has written.
        name=f"volflow-demo-ct-{tokenize(shapes, spacing, seed)}",
        chunks=da.core.normalize_chunks((PLANES, y, x), tuple(shape)),
        dtype="float32",
        meta=np.empty((0, 0, 0), "float32"),
    )
    return write(
        array,
        out,
        meta=Meta(spacing=spacing, unit="millimeter", orientation="SPL"),
        chunk=(32, 64, 64),
        shard=(32, -(-y // 64) * 64, -(-x // 64) * 64),  # planes, in whole chunks
        memory=MEMORY,
        progress=False,
    )


if __name__ == "__main__":
    write_scan(sys.argv[1], tuple(map(int, sys.argv[2:])) or SHAPE)
