"""Levels: finding those that fit, wherever the pyramid lies."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from volflow.errors import InvalidInput
from volflow.report.level_choice import at_level, fitting_level, level_like, low_edge
from volflow.store.meta import Level, Meta
from volflow.store.ngff import write_group
from volflow.store.volume import open_volume

META = Meta(spacing=(2, 1, 1), unit="millimeter")


def pyramid(group, shape=(20, 65, 40), count=3):
    levels = []
    for n in range(count):
        step = (1, 2**n, 2**n)
        sizes = [-(-size // s) for size, s in zip(shape, step, strict=True)]
        group.create_array(f"scale/{n}", data=np.full(sizes, n, "u1"), chunks=(8, 8, 8))
        scale = tuple(a * b for a, b in zip((2.0, 1.0, 1.0), step, strict=True))
        shift = tuple((s - m) / 2 for s, m in zip(scale, (2.0, 1.0, 1.0), strict=True))
        levels.append(Level(f"scale/{n}", scale, shift))
    write_group(group, META, levels)
    return group


@pytest.fixture(params=["path", "memory", "inside"])
def volume(request, tmp_path):
    if request.param == "path":
        pyramid(zarr.create_group(tmp_path / "a.zarr"))
        return open_volume(tmp_path / "a.zarr")
    outer = zarr.create_group(MemoryStore())
    return open_volume(pyramid(outer if request.param == "memory" else outer.create_group("x/y")))


def test_another_level_of_the_same_pyramid(volume):
    for number in (2, 0, 1):
        level = at_level(volume, number)
        assert (level.level, level[0, 0, 0], level.path) == (number, number, volume.path)
        assert level.spacing == (2, 2**number, 2**number)
        assert at_level(level, 0).shape == volume.shape
    assert at_level(volume, 0) is volume
    with pytest.raises(InvalidInput, match="level must be 0 to 2, given 3"):
        at_level(volume, 3)


def test_the_finest_level_that_fits(volume):
    assert fitting_level(volume, 65).level == 0
    assert fitting_level(volume, 64).level == 1
    assert fitting_level(volume, 1).level == 2  # the coarsest there is
    assert fitting_level(volume, 40, axes=(0, 2)).level == 0
    assert fitting_level(at_level(volume, 1), 999).level == 1


def test_the_level_of_like_voxels(volume):
    assert level_like(volume, (2, 1, 1)).level == 0
    assert level_like(volume, (2.1, 2.2, 1.9)).level == 1
    assert level_like(volume, (50, 50, 50)).level == 2


def test_all_levels_begin_at_one_edge(volume):
    assert {low_edge(at_level(volume, n)) for n in range(3)} == {(-1.0, -0.5, -0.5)}


def test_a_volume_without_levels_has_level_0_only():
    array = open_volume(zarr.ones(shape=(3, 4, 5), dtype="u1"))
    assert at_level(array, 0) is array
    assert fitting_level(array, 1) is array
    with pytest.raises(InvalidInput, match="level must be 0 to 0, given 1"):
        at_level(array, 1)


def test_a_missing_level_is_named(tmp_path):
    group = pyramid(zarr.create_group(tmp_path / "a.zarr"))
    del group["scale/2"]
    with pytest.raises(InvalidInput, match=r"level 'scale/2' of .*a\.zarr cannot be opened"):
        at_level(open_volume(tmp_path / "a.zarr"), 2)
