"""Rolling sums against sums over the whole volume at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from volflow.geometry.grid import PatchGrid
from volflow.geometry.roi import Roi
from volflow.geometry.windows import weights
from volflow.infer.patches import device_rolling
from volflow.infer.patches.device_rolling import DeviceBlend
from volflow.infer.patches.rolling import RollingBlend

BLENDS = ("crop", "average", "hann", "gaussian")


def scores_of(grid: PatchGrid, index, channels: int) -> np.ndarray:
    """Scores that differ from patch to patch."""
    rng = np.random.default_rng([*index, channels])
    return rng.standard_normal((channels, *grid.patch), "float32")


def whole(grid: PatchGrid, blend: str, channels: int, left_out=()) -> tuple[np.ndarray, np.ndarray]:
    """Blended scores of the whole volume in float64, and which voxels are covered."""
    sums = np.zeros((channels, *grid.shape))
    norm = np.zeros(grid.shape)
    weight = weights(blend, grid.patch).astype("f8")
    for index in np.ndindex(*grid.counts):
        if index in left_out:
            continue
        roi = grid.roi(index)
        box = roi.clip(grid.shape)
        if blend == "crop":
            owned = [grid.owned[a][i] for a, i in enumerate(index)]
            box = Roi(tuple(o[0] for o in owned), tuple(o[1] for o in owned))
        inside = box.relative_to(roi.start).slices()
        part = weight[inside] if blend != "crop" else 1.0
        sums[(slice(None), *box.slices())] += (
            part * scores_of(grid, index, channels)[(slice(None), *inside)]
        )
        norm[box.slices()] += part
    return sums / np.where(norm > 0, norm, 1), norm > 0


def roll(grid, tile, blend, channels, *, dtype="float32", skipping=False, left_out=()):
    """What a run over a tile emits: all of its rows, put together; and what they cover."""
    options = {"channels": channels, "dtype": dtype, "skipping": skipping}
    blending = RollingBlend(grid, tile, blend, **options)
    return rolled(blending, lambda scores: scores, left_out)


def roll_tensors(grid, tile, blend, finish_rows, *, skipping=False, left_out=(), dtype="float32"):
    """The same of tensors, with as many rows finished at once."""
    weight = torch.from_numpy(weights(blend, grid.patch).astype(dtype))
    options = {"channels": 3, "dtype": dtype, "skipping": skipping, "finish_rows": finish_rows}
    blending = DeviceBlend(grid, tile, blend, weight, **options)
    return rolled(blending, torch.from_numpy, left_out)


def rolled(blending, shown, left_out=()):
    """What a blend emits, given scores that are shown to it."""
    grid, tile, channels = blending.grid, blending.tile, blending.channels
    found, covered, rows = [], [], []
    for layer in blending.layers:
        for row in blending.rows:
            for column in blending.columns:
                index = (layer, row, column)
                if index not in left_out:
                    scores = scores_of(grid, index, channels).astype(blending.dtype)
                    blending.add(index, shown(scores))
        for first, scores, seen in blending.finish(layer):
            rows += range(first, first + scores.shape[1])
            found.append(np.asarray(scores).copy())
            covered.append(
                np.ones(scores.shape[1:], bool) if seen is None else np.asarray(seen).copy()
            )
        blending.advance(layer)
    # Every row comes once, in order.
    assert rows == list(range(tile.start[0], tile.stop[0]))
    return np.concatenate(found, 1), np.concatenate(covered, 0)


@st.composite
def grids(draw):
    patch = draw(st.tuples(*[st.integers(1, 6)] * 3))
    stride = tuple(draw(st.integers(1, p)) for p in patch)
    shape = draw(st.tuples(*[st.integers(1, 14)] * 3))
    return PatchGrid(shape, patch, stride, draw(st.tuples(*[st.booleans()] * 3)))


@st.composite
def tiles(draw, shape):
    ends = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in shape]
    return Roi(
        tuple(min(a, n - 1) for (a, _), n in zip(ends, shape, strict=True)),
        tuple(min(n, max(b, a + 1)) for (a, b), n in zip(ends, shape, strict=True)),
    )


@given(grids(), st.sampled_from(BLENDS), st.integers(1, 3))
def test_a_run_over_the_whole_volume_blends_it(grid, blend, channels):
    found, covered = roll(grid, Roi.full(grid.shape), blend, channels)
    expected, _ = whole(grid, blend, channels)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert covered.all()


@given(st.data(), grids(), st.sampled_from(BLENDS), st.booleans())
def test_a_tile_has_the_same_bits_as_the_whole(data, grid, blend, skipping):
    tile = data.draw(tiles(grid.shape))
    everything, _ = roll(grid, Roi.full(grid.shape), blend, 2, skipping=skipping)
    part, _ = roll(grid, tile, blend, 2, skipping=skipping)
    assert np.array_equal(part, everything[(slice(None), *tile.slices())])


@given(grids(), st.sampled_from(BLENDS))
def test_summing_weights_as_patches_come_gives_the_same_bits(grid, blend):
    tile = Roi.full(grid.shape)
    plain, _ = roll(grid, tile, blend, 1)
    summed, covered = roll(grid, tile, blend, 1, skipping=True)
    assert np.array_equal(plain, summed)
    assert covered.all()


@given(st.data(), grids(), st.sampled_from(BLENDS))
def test_patches_may_be_missing(data, grid, blend):
    every = list(np.ndindex(*grid.counts))
    left_out = set(data.draw(st.lists(st.sampled_from(every), max_size=len(every))))
    found, covered = roll(
        grid, Roi.full(grid.shape), blend, 2, left_out=left_out, skipping=True
    )  # fmt: skip
    expected, expected_cover = whole(grid, blend, 2, left_out)
    assert np.array_equal(covered, expected_cover)
    np.testing.assert_allclose(found[:, covered], expected[:, covered], atol=2e-5)
    assert (found[:, ~covered] == 0).all()


@pytest.mark.parametrize("blend", BLENDS)
def test_float64_is_kept(blend):
    grid = PatchGrid((9, 9, 9), (4, 5, 4), (3, 2, 4))
    found, _ = roll(grid, Roi.full(grid.shape), blend, 1, dtype="float64")
    assert found.dtype == np.float64
    # The window is rounded to float32 once, and then taken exactly.
    np.testing.assert_allclose(found, whole(grid, blend, 1)[0], atol=1e-13)


def test_crop_needs_only_the_owners():
    grid = PatchGrid((1, 1, 100), (1, 1, 10), (1, 1, 1))
    tile = Roi((0, 0, 40), (1, 1, 50))
    options = {"channels": 1, "dtype": "float32"}
    assert len(RollingBlend(grid, tile, "crop", **options).columns) == 10
    assert len(RollingBlend(grid, tile, "average", **options).columns) == 19


class TestOnADevice:
    @given(st.data(), grids(), st.sampled_from(BLENDS), st.booleans(), st.integers(1, 9))
    def test_the_bits_are_the_same(self, data, grid, blend, skipping, finish_rows):
        tile = data.draw(tiles(grid.shape))
        every = list(np.ndindex(*grid.counts))
        left_out = data.draw(st.sets(st.sampled_from(every))) if skipping else set()
        options = {"skipping": skipping, "left_out": left_out}
        expected, covered = roll(grid, tile, blend, 3, **options)
        found, seen = roll_tensors(grid, tile, blend, finish_rows, **options)
        assert np.array_equal(found, expected)
        assert np.array_equal(seen, covered)

    def test_some_channels_are_weighted_at_once(self, monkeypatch):
        grid = PatchGrid((9, 9, 9), (4, 5, 4), (3, 2, 4))
        tile = Roi.full(grid.shape)
        monkeypatch.setattr(device_rolling, "PRODUCT_BYTES", 2 * 80 * 8)
        expected, _ = roll(grid, tile, "hann", 3, dtype="float64")
        found, _ = roll_tensors(grid, tile, "hann", 2, dtype="float64")
        assert np.array_equal(found, expected)

    def test_the_sums_of_weights_are_those_of_the_layer_before_where_they_repeat(self, monkeypatch):
        summed, plain = [], RollingBlend._full_norm

        def counted(blending, rows):
            summed.append(rows)
            return plain(blending, rows)

        monkeypatch.setattr(RollingBlend, "_full_norm", counted)
        grid = PatchGrid((43, 4, 4), (8, 4, 4), (5, 4, 4))
        roll_tensors(grid, Roi.full(grid.shape), "hann", 3)
        # The first layer's rows, those of any other, and those that only the last layer reaches.
        assert [(r.start, len(r)) for r in summed] == [
            (0, 3), (3, 2), (5, 3), (8, 2), (38, 3), (41, 2)
        ]  # fmt: skip
