"""The devices that tests of the GPU path run on, and small predictions on them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import volflow as vf
from tests.gpu.stand_in import stand_in
from volflow.geometry.roi import Roi
from volflow.infer.patches import method as patches
from volflow.infer.patches.tiling import Tiling
from volflow.model import places, resident, search
from volflow.store.create import create
from volflow.store.meta import Meta, VolumeSpec


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The stand-in: two devices, cuda:0 and cuda:1; at its end nothing may have raced.

    No other process has a place on it, and no trial was made on an earlier one. Its times mean
    nothing, so each forward takes as long as any other: the layout stays contiguous, and a batch
    grows while it fits.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(places, "_places", {})
    monkeypatch.setattr(resident, "_residents", {})
    monkeypatch.setattr(search, "timed", lambda device, run, most: 1.0 if run() else 2.0)
    with stand_in() as machine:
        yield machine
    for one in places._places.values():
        one.leave()


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def device(request):
    """The name of a device: of the stand-in, and of a real one with ``-m gpu``.

    A test that counts asks for ``gpu`` alone, which is never a real one.
    """
    if request.param == "stand-in":
        request.getfixturevalue("gpu")
    elif not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return "cuda"


@pytest.fixture
def scan(tmp_path):
    """Stores a volume in small chunks, so that rows are read in several segments."""

    def store(name="scan.zarr", dtype="uint16", shape=(20, 14, 18), high=2000):
        rng = np.random.default_rng(len(name))
        meta = Meta(axes=("c", "z", "y", "x")[-len(shape) :], orientation="SAR")
        volume = create(tmp_path / name, VolumeSpec.of(shape, dtype, meta, chunk=8, shard=8))
        volume.write(Roi.full(shape), (rng.random(shape) * high).astype(dtype))
        return volume

    return store


@pytest.fixture
def predicted(tmp_path):
    """Predicts on a device; returns the result's arrays by output."""
    numbers = itertools.count()

    def run(volume, net, device, **options):
        out = tmp_path / f"out-{next(numbers)}.zarr"
        small = {"patch": 8, "precision": "float32", "chunk": 8, "shard": 8}
        found = vf.predict(
            volume, net, out, device=device, cluster="threads", progress=False, **small | options
        )
        volumes = found if isinstance(found, dict) else {"": found}
        return {name: np.asarray(one) for name, one in volumes.items()}

    return run


@pytest.fixture
def agree(predicted, request):
    """Predicts on the CPU and on the device, and compares: on the stand-in, bit for bit."""
    tolerance = 1e-4 if "real" in request.node.name else 0.0

    def compare(volume, net, device, *, within=0.0, **options):
        expected = predicted(volume, net, "cpu", **options)
        found = predicted(volume, net, device, **options)
        assert found.keys() == expected.keys()
        for name, voxels in expected.items():
            assert found[name].dtype == voxels.dtype
            assert voxels.min() < voxels.max()
            wide = max(within, tolerance)
            np.testing.assert_allclose(found[name], voxels, rtol=wide, atol=wide)
        return found

    return compare


@pytest.fixture
def in_tiles(monkeypatch):
    """Cuts volumes into tiles of several blocks, as a tight budget would."""

    def force(block=(8, 8, 16), *, host_sums=False):
        tiling = Tiling(block, (8, 8, 8), 1, 1, 0, host_sums)
        monkeypatch.setattr(patches, "place_sums", lambda *_: tiling)

    return force
