"""Scores do not depend on how volumes are cut, and equal those of plain NumPy and scipy."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.surface_oracle import whole_scores
from volflow.engine.task import Context
from volflow.store.formats.sources import open_source
from volflow.store.meta import Meta
from volflow.volumes.evaluate.class_scores import overlap_scores, surface_scores
from volflow.volumes.evaluate.compared_blocks import ComparedBlocks
from volflow.volumes.evaluate.label_pair import LabelPair
from volflow.volumes.evaluate.surface_distances import (
    SurfaceJob,
    cells_with_surface,
    measure_surfaces,
    merge_surfaces,
)
from volflow.volumes.evaluate.voxel_counts import CountVoxelsJob, count_voxels, merge_counts

SPACINGS = st.sampled_from([(1.0, 1.0, 1.0), (2.5, 0.7, 0.7), (0.3, 0.4, 1.1), (4.0, 4.0, 40.0)])


@st.composite
def pairs(draw):
    """Two label maps of 0, 1 and 2, from single voxels to noise, with flat axes, too."""
    shape = draw(hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=11))
    share = draw(st.sampled_from([0.01, 0.1, 0.5, 0.95]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return tuple(
        np.where(rng.random(shape) < share, rng.integers(1, 3, shape), 0).astype("uint8")
        for _ in range(2)
    )


@st.composite
def cuts(draw):
    """Side of a cell, cells per block along each axis, and halo."""
    return (
        draw(st.integers(1, 6)),
        draw(st.tuples(*[st.integers(1, 3)] * 3)),
        draw(st.integers(1, 4)),
    )


def measured(pred, truth, cut, spacing, bound=math.inf):
    """Counts and distances by the tasks themselves, block by block."""
    cell, many, halo = cut
    pair = _pair(pred, truth, spacing)
    block = tuple(min(n, cell * m) for n, m in zip(pred.shape, many, strict=True))
    blocks = ComparedBlocks(pred.shape, block, cell)
    numbers = tuple(range(len(blocks.grid)))
    steps = count_voxels(CountVoxelsJob(pair, blocks), numbers, Context())
    counts = merge_counts(step.result for step in steps)
    if not counts.cells[0].keys() & counts.cells[1].keys():
        return counts, {}
    cells = cells_with_surface(counts, blocks.cells)
    job = SurfaceJob(pair, blocks, cells, bound, halo)
    steps = measure_surfaces(job, blocks.blocks_of(job.busy_cells), Context())
    return counts, merge_surfaces(step.result for step in steps)


def _pair(pred, truth, spacing):
    meta = Meta(spacing=spacing, unit="millimeter")
    sources = [open_source(np.ascontiguousarray(x)) for x in (pred, truth)]
    return LabelPair(*(type(s)(s.array, meta) for s in sources))


def scores_of(found, label, tolerance):
    counts, distances = found
    pred, truth, both = (one[label] for one in (counts.pred, counts.truth, counts.both))
    present = pred > 0, truth > 0
    return overlap_scores(pred, truth, both) | surface_scores(
        distances.get(label), present, tolerance
    )


@given(pairs(), cuts(), SPACINGS, st.sampled_from([0.0, 0.7, 1.0, 2.1]))
def test_scores_equal_those_of_the_whole(pair, cut, spacing, tolerance):
    found = measured(*pair, cut, spacing)
    for label in (1, 2):
        expected = whole_scores(*pair, label, spacing, tolerance)
        given = scores_of(found, label, tolerance)
        for name, value in expected.items():
            np.testing.assert_allclose(given[name].value, value, rtol=1e-12, err_msg=name)
            assert given[name].known


@given(pairs(), cuts(), cuts(), SPACINGS, st.sampled_from([math.inf, 1.5, 3.0]))
def test_any_cut_gives_the_same(pair, cut, other, spacing, bound):
    one, two = (measured(*pair, c, spacing, bound) for c in (cut, other))
    assert (one[0].pred, one[0].truth, one[0].both) == (two[0].pred, two[0].truth, two[0].both)
    assert one[1].keys() == two[1].keys()
    for label, a in one[1].items():
        b = two[1][label]
        for mine, theirs in ((a.to_truth, b.to_truth), (a.to_pred, b.to_pred)):
            np.testing.assert_array_equal(mine.values, theirs.values)
            np.testing.assert_array_equal(mine.counts, theirs.counts)
            assert mine.beyond == theirs.beyond
        assert a.farthest == b.farthest


@given(pairs(), cuts(), SPACINGS, st.sampled_from([1.0, 2.0, 4.2]))
def test_with_a_bound_nothing_is_wrong(pair, cut, spacing, bound):
    """A score is that of the whole volumes, or it is said to be larger than something smaller."""
    found = measured(*pair, cut, spacing, bound)
    for label in (1, 2):
        expected = whole_scores(*pair, label, spacing, bound)
        for name, score in scores_of(found, label, bound).items():
            if score.known:
                np.testing.assert_allclose(score.value, expected[name], rtol=1e-12, err_msg=name)
            else:
                assert math.isnan(score.value)
                assert score.above <= expected[name] * (1 + 1e-12)
                assert name in ("hd95", "mean_surface_distance")
