"""Cases on disk, and superchunks small enough for them to have many."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stores import store
from volflow.sampling.epoch import superchunks


@pytest.fixture
def small_superchunks(monkeypatch):
    """Volumes of a few thousand voxels then have many superchunks, as large ones do."""

    def set_to(voxels):
        monkeypatch.setattr(superchunks, "HELD_VOXELS", voxels)

    set_to(24**3)
    return set_to


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    """Two cases of an image and labels, of different sizes, in chunks of 16; only read."""
    folder = tmp_path_factory.mktemp("cases")
    rng = np.random.default_rng(0)
    made = {}
    for name, shape in {"a": (40, 30, 20), "b": (17, 50, 33)}.items():
        image = rng.integers(0, 60000, shape).astype("u2")
        label = (rng.random(shape) > 0.9).astype("u1") * rng.integers(1, 4, shape).astype("u1")
        made[name] = {
            "image": store(folder / f"{name}-image.zarr", image),
            "label": store(folder / f"{name}-label.zarr", label),
        }
    return made
