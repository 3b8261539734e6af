"""Which values a volume holds, told without reading all of it."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from volflow.geometry.histogram import measure
from volflow.geometry.roi import Roi
from volflow.report.facts.value_counts import value_counts
from volflow.store.create import create
from volflow.store.meta import Level, Meta, VolumeSpec
from volflow.store.ngff import write_group
from volflow.store.volume import Volume, open_volume
from volflow.volumes.distribution import Statistics, save_statistics


def test_a_small_volume_is_counted_whole(tmp_path):
    array = np.random.default_rng(0).integers(0, 99, (2, 20, 30, 40)).astype("u2")
    meta = Meta(("c", "z", "y", "x"))
    volume = create(tmp_path / "a.zarr", VolumeSpec.of(array.shape, "u2", meta, chunk=16, shard=32))
    volume.write(Roi.full(volume.shape), array)
    assert value_counts(volume) == [measure(array[0]), measure(array[1])]


def test_of_a_large_volume_a_few_chunks_are_read(tmp_path, monkeypatch):
    volume = create(
        tmp_path / "large.zarr",
        VolumeSpec.of((4096, 4096, 4096), "u2", Meta(), chunk=64, shard=256),
    )
    read, boxes = Volume.read, []

    def counted(self, roi):
        boxes.append(roi)
        return read(self, roi)

    monkeypatch.setattr(Volume, "read", counted)
    (counts,) = value_counts(volume)
    assert counts.count == 27 * 64**3
    assert len(set(boxes)) == 27
    assert all(start % 64 == 0 for box in boxes for start in box.start)
    assert boxes[0].start == (2048, 2048, 2048)  # nearest to the middle
    for axis in range(3):
        assert {box.start[axis] for box in boxes} == {640, 2048, 3392}


@pytest.mark.slow
def test_many_channels_are_sampled_less(tmp_path, monkeypatch):
    meta = Meta(("c", "z", "y", "x"))
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((64, 512, 512, 512), "f4", meta, chunk=64, shard=256)
    )
    read, voxels = Volume.read, []

    def counted(self, roi):
        voxels.append(self._box(roi).size)
        return read(self, roi)

    monkeypatch.setattr(Volume, "read", counted)
    assert len(value_counts(volume)) == 64
    assert sum(voxels) * 4 == 2**26  # one chunk of each


def test_a_chunk_too_large_to_decode_is_not_read(tmp_path, monkeypatch):
    shape = (1024, 1024, 1024)
    zarr.create_array(tmp_path / "a.zarr", shape=shape, chunks=shape, dtype="u2")
    monkeypatch.delattr(Volume, "read")
    assert value_counts(open_volume(tmp_path / "a.zarr")) == [None]


def test_the_coarsest_level_is_read(tmp_path):
    volume = create(
        tmp_path / "a.zarr", VolumeSpec.of((32, 32, 32), "u1", Meta(), chunk=16, shard=32)
    )
    group = zarr.open_group(tmp_path / "a.zarr")
    coarse = group.create_array("1", shape=(16, 16, 16), chunks=(16, 16, 16), dtype="u1")
    coarse[:8] = 200
    levels = (volume.levels[0], Level("1", (2, 2, 2), (0.5, 0.5, 0.5)))
    write_group(group, volume.meta, levels)
    assert value_counts(open_volume(tmp_path / "a.zarr")) == [measure(coarse[:])]


def test_statistics_are_used_while_they_are_of_these_voxels(tmp_path):
    volume = create(tmp_path / "a.zarr", VolumeSpec.of((8, 8, 8), "u1", Meta(), chunk=8))
    known = measure(np.arange(100, dtype="u1"))
    for foreground in (False, True):
        save_statistics(volume, volume.identity(), Statistics((known,), foreground))
        assert value_counts(volume) == [known]
    volume.write(Roi.full(volume.shape), np.full(volume.shape, 7, "u1"))
    assert value_counts(volume) == [measure(volume[:])]


def test_files_are_not_listed_for_nothing(tmp_path, monkeypatch):
    volume = create(tmp_path / "a.zarr", VolumeSpec.of((8, 8, 8), "u1", Meta(), chunk=8))
    monkeypatch.delattr(Volume, "identity")
    assert value_counts(volume) == [measure(np.zeros((8, 8, 8), "u1"))]
