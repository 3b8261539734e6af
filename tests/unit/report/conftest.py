"""What tests of pictures share: a scan, a result over it, pyramids, the words of a figure."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Level, Meta, VolumeSpec
from volflow.store.ngff import write_group
from volflow.store.volume import Volume, open_volume

SCAN = Meta(spacing=(2, 1, 1), unit="millimeter", orientation="SAR")


@pytest.fixture
def stored(tmp_path):
    """Stores an array as a volume and returns its path."""

    def store(array, meta, name="volume.zarr", *, chunk=16):
        path = tmp_path / name
        volume = create(
            path, VolumeSpec.of(array.shape, array.dtype, meta, chunk=chunk, shard=2 * chunk)
        )
        volume.write(Roi.full(volume.shape), array)
        return path

    return store


@pytest.fixture
def pyramid(stored):
    """Stores an array with coarser levels of every second, fourth … voxel."""

    def store(array, meta, name="volume.zarr", *, count=3, chunk=8):
        path = stored(array, meta, name, chunk=chunk)
        group = zarr.open_group(path, mode="r+")
        levels = [Level("0", meta.spacing)]
        for n in range(1, count):
            step = 2**n
            coarse = array[..., ::step, ::step, ::step]
            group.create_array(str(n), data=coarse, chunks=(chunk,) * array.ndim)
            scale = tuple(s * step for s in meta.spacing)
            levels.append(Level(str(n), scale, tuple(s * (step - 1) / 2 for s in meta.spacing)))
        write_group(group, meta, levels)
        return path

    return store


@pytest.fixture
def scan(stored):
    z, y, x = np.ogrid[:20, :50, :60]
    return stored((z * 5.0 + y + x).astype("f4"), SCAN, "scan.zarr")


@pytest.fixture
def result(stored):
    labels = np.zeros((20, 50, 60), "u1")
    labels[12:16, 10:30, 20:40] = 1
    labels[13:15, 15:20, 25:30] = 2
    meta = Meta(
        spacing=(2, 1, 1), unit="millimeter", orientation="SAR", kind="classes",
        channels=("background", "liver", "tumour"),
    )  # fmt: skip
    return stored(labels, meta, "seg.zarr")


@pytest.fixture
def other(stored, result):
    """The same classes, the first one voxel further along y."""
    volume = open_volume(result)
    return stored(np.roll(volume[:], 1, axis=1), volume.meta, "other.zarr")


@pytest.fixture
def reads(monkeypatch):
    """Level and box of every read of a volume."""
    seen = []
    original = Volume.read

    def read(self, roi):
        seen.append((self.level, roi))
        return original(self, roi)

    monkeypatch.setattr(Volume, "read", read)
    return seen


@pytest.fixture
def words():
    """All texts of a figure."""

    def of(figure):
        found = [text.get_text() for text in figure.texts]
        return found + [text.get_text() for axes in figure.axes for text in axes.texts]

    return of
