from __future__ import annotations

import numpy as np
import pytest

from volflow.errors import InvalidInput
from volflow.geometry.grid import BlockGrid, PatchGrid, per_axis, stride_of
from volflow.geometry.roi import Roi


def line(n: int, patch: int, stride: int, pad_tail: bool = False) -> PatchGrid:
    """A grid of which only the last axis matters."""
    return PatchGrid((1, 1, n), (1, 1, patch), (1, 1, stride), (False, False, pad_tail))


class TestPerAxis:
    def test_one_for_all_or_one_each(self):
        assert per_axis(4, "patch") == (4, 4, 4)
        assert per_axis(np.int64(4), "patch") == (4, 4, 4)
        assert per_axis([1, 2, 3], "patch") == (1, 2, 3)
        assert per_axis(5, "block", 4) == (5, 5, 5, 5)

    @pytest.mark.parametrize(
        "value", [0, -3, (1, 2), (1, 2, 3, 4), (1, 2, 0), (1.5, 2, 3), 96.0, "abc", "9", None,
                  (1, None, 3), (1, float("nan"), 3)],
    )  # fmt: skip
    def test_refuses_the_rest(self, value):
        with pytest.raises(InvalidInput, match=r"patch must be a positive integer or 3 of them"):
            per_axis(value, "patch")


class TestStride:
    @pytest.mark.parametrize(
        ("patch", "overlap", "stride"),
        [
            (96, 0.25, 72),
            (96, 0.0, 96),
            (96, 0, 96),
            (10, 0.5, 5),
            (10, 0.99, 1),  # never 0
            (7, 0.5, 3),  # rounded down, as MONAI
            (8, 7 / 8, 1),
            (10, 3, 7),
            (10, 9, 1),
        ],
    )
    def test_voxels_or_a_fraction(self, patch, overlap, stride):
        assert stride_of((patch,), overlap, (1,)) == (stride,)

    def test_one_per_axis(self):
        assert stride_of((1, 10, 20), (0, 0.5, 4)) == (1, 5, 16)

    def test_is_a_multiple_of_the_scale(self):
        assert stride_of((8, 8, 8), 0.3, (1, 2, 4)) == (5, 4, 4)
        assert stride_of((8, 8, 8), 0.9, (2, 2, 4)) == (2, 2, 4)

    @pytest.mark.parametrize(
        "overlap", [1.0, -0.1, 8, 9, -1, float("nan"), (0.5, 8, 0), None, (0, None, 0)]
    )
    def test_refuses_overlaps_that_do_not_move(self, overlap):
        with pytest.raises(InvalidInput, match=r"overlap must be a fraction in \[0, 1\) or"):
            stride_of((8, 8, 8), overlap)

    @pytest.mark.parametrize("overlap", [(0.5, 0.5), (1, 1, 1, 1), (), "half"])
    def test_refuses_the_wrong_number_of_entries(self, overlap):
        with pytest.raises(InvalidInput, match=r"overlap needs one entry per axis \(3\)"):
            stride_of((8, 8, 8), overlap)


class TestBlockGrid:
    def test_numbers_go_through_in_c_order(self):
        grid = BlockGrid((10, 6, 7), (4, 3, 7))
        assert grid.counts == (3, 2, 1)
        indices = [grid.index(n) for n in range(6)]
        assert indices == [(z, y, 0) for z in range(3) for y in range(2)]
        assert [grid.number(index) for index in indices] == list(range(6))

    def test_blocks_are_cut_at_the_border(self):
        grid = BlockGrid((10, 6, 7), (4, 3, 7))
        assert grid[5] == Roi((8, 3, 0), (10, 6, 7))

    @pytest.mark.parametrize("number", [-1, 6])
    def test_there_are_no_more(self, number):
        with pytest.raises(IndexError, match=f"block {number} of 6"):
            BlockGrid((10, 6, 7), (4, 3, 7))[number]

    @pytest.mark.parametrize(
        ("shape", "block"), [((4, 4), (2,)), ((4, 4), (2, 0)), ((0, 4), (2, 2))]
    )
    def test_refuses_blocks_that_do_not_tile(self, shape, block):
        with pytest.raises(InvalidInput, match="does not tile a volume of shape"):
            BlockGrid(shape, block)


class TestPatchGrid:
    @pytest.mark.parametrize(
        ("n", "patch", "stride", "starts"),
        [
            (10, 4, 3, [0, 3, 6]),
            (10, 4, 4, [0, 4, 6]),  # the last one is shifted back to end at the border
            (10, 10, 3, [0]),
            (12, 4, 4, [0, 4, 8]),
            (11, 10, 10, [0, 1]),
            (4, 5, 5, [0]),  # one voxel of padding: behind
            (4, 6, 2, [-1]),
            (4, 7, 2, [-1]),  # half before, rounded down
            (1, 8, 1, [-3]),
        ],
    )
    def test_starts(self, n, patch, stride, starts):
        assert line(n, patch, stride).starts[2].tolist() == starts

    @pytest.mark.parametrize(
        ("n", "patch", "stride", "starts"),
        [(10, 4, 4, [0, 4, 8]), (12, 4, 4, [0, 4, 8]), (3, 8, 4, [0]), (9, 8, 4, [0, 4])],
    )
    def test_a_padded_tail_keeps_to_the_stride(self, n, patch, stride, starts):
        assert line(n, patch, stride, pad_tail=True).starts[2].tolist() == starts

    def test_neighbours_meet_in_the_middle_the_odd_voxel_to_the_lower(self):
        assert line(10, 4, 3).owned[2].tolist() == [[0, 4], [4, 7], [7, 10]]
        assert line(10, 4, 2).owned[2].tolist() == [[0, 3], [3, 5], [5, 7], [7, 10]]
        # The shifted patch overlaps by three: it gives two of these away.
        assert line(9, 4, 4).owned[2].tolist() == [[0, 4], [4, 7], [7, 9]]

    def test_order_is_lexicographic(self):
        grid = PatchGrid((5, 5, 5), (3, 3, 3), (2, 2, 2))
        assert [roi.start for roi in grid] == sorted(roi.start for roi in grid)
        assert len(list(grid)) == len(grid) == 8

    @pytest.mark.parametrize("stride", [(0, 4, 4), (4, 5, 4)])
    def test_refuses_strides_that_leave_gaps(self, stride):
        with pytest.raises(InvalidInput, match=r"must lie in 1\.\.patch"):
            PatchGrid((9, 9, 9), (4, 4, 4), stride)

    def test_is_reduced_with_its_starts(self):
        grid = PatchGrid((9, 10, 11), (4, 8, 4), (3, 4, 2), (False, True, True))
        half = grid.reduced((1, 4, 2))
        assert half.shape == (9, 3, 6)
        assert half.starts[0].tolist() == grid.starts[0].tolist()
        assert (half.starts[1] * 4).tolist() == grid.starts[1].tolist()
        assert (half.starts[2] * 2).tolist() == grid.starts[2].tolist()

    @pytest.mark.parametrize(
        ("patch", "stride", "pad", "scale"),
        [
            ((4, 4, 5), (2, 2, 2), (True,) * 3, (2, 2, 2)),
            ((4, 4, 4), (2, 2, 3), (True,) * 3, (2, 2, 2)),
            ((4, 4, 4), (2, 2, 2), (False, True, True), (2, 1, 1)),
        ],
    )
    def test_refuses_scales_that_do_not_divide(self, patch, stride, pad, scale):
        with pytest.raises(InvalidInput, match="must be multiples of the model's output scale"):
            PatchGrid((9, 9, 9), patch, stride, pad).reduced(scale)

    def test_a_grid_of_many_patches_stays_small(self):
        grid = PatchGrid((10**5, 10**5, 10**5), (64, 64, 64), (48, 48, 48))
        assert len(grid) > 10**9
        assert sum(s.nbytes for s in grid.starts) < 100_000
        assert grid.roi((7, 8, 9)).start == (336, 384, 432)
