"""Laws of boxes, blocks, patches and frames, against the plainest code that says the same."""

from __future__ import annotations

import itertools
import math
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from volflow.errors import InvalidInput
from volflow.geometry.budget import format_bytes, parse_bytes
from volflow.geometry.frame import Frame
from volflow.geometry.grid import BlockGrid, PatchGrid, stride_of
from volflow.geometry.roi import Roi
from volflow.geometry.windows import weights

small = st.integers(1, 25)


@st.composite
def rois(draw, low: int = -10, high: int = 20):
    ends = [sorted(draw(st.tuples(*[st.integers(low, high)] * 2))) for _ in range(3)]
    return Roi(tuple(a for a, _ in ends), tuple(b for _, b in ends))


@st.composite
def lines(draw):
    """A patch grid along one axis: size, patch, stride, padded tail."""
    n, patch = draw(st.integers(1, 60)), draw(st.integers(1, 30))
    return n, patch, draw(st.integers(1, patch)), draw(st.booleans())


def grid_of(n: int, patch: int, stride: int, pad_tail: bool) -> PatchGrid:
    return PatchGrid((1, n, 1), (1, patch, 1), (1, stride, 1), (False, pad_tail, False))


def voxels(roi: Roi) -> set[tuple[int, ...]]:
    return set(itertools.product(*(range(a, b) for a, b in roi)))


class TestRoi:
    @given(rois(0, 6), rois(0, 6))
    def test_intersection_is_that_of_the_voxels(self, a, b):
        assert voxels(a.intersect(b)) == voxels(a) & voxels(b)
        assert a.intersect(b).size == b.intersect(a).size

    @given(rois(), st.tuples(*[st.integers(-9, 9)] * 3))
    def test_shift_and_back(self, roi, offset):
        moved = roi.shift(offset)
        assert moved.shape == roi.shape
        assert moved.relative_to(offset) == roi

    @given(rois(), st.tuples(small, small, small))
    def test_what_is_clipped_lies_inside(self, roi, shape):
        inside = roi.clip(shape)
        assert inside == inside.clip(shape)
        assert inside.size <= min(roi.size, math.prod(shape))
        if inside.size:
            array = np.zeros(shape)
            assert array[inside.slices()].shape == inside.shape

    @given(rois(), st.tuples(*[st.integers(0, 5)] * 3), st.tuples(*[st.integers(0, 5)] * 3))
    def test_growing_is_undone_by_shrinking(self, roi, low, high):
        grown = roi.grow(low, high)
        assert grown.intersect(roi) == roi
        assert grown.grow([-v for v in low], [-v for v in high]) == roi


class TestBlocks:
    @given(st.tuples(small, small, small), st.tuples(*[st.integers(1, 12)] * 3))
    def test_each_voxel_is_written_once(self, shape, block):
        grid = BlockGrid(shape, block)
        written = np.zeros(shape, int)
        for number, one in enumerate(grid):
            written[one.slices()] += 1
            assert all(a % b == 0 for a, b in zip(one.start, block, strict=True))
            assert grid.number(grid.index(number)) == number
        assert (written == 1).all()


class TestPatchStarts:
    @given(lines())
    def test_every_voxel_is_covered(self, line):
        grid = grid_of(*line)
        covered = np.zeros(line[0], int)
        for start in grid.starts[1]:
            covered[max(0, start) : start + line[1]] += 1
        assert covered.min() >= 1

    @given(lines())
    def test_they_follow_the_rule(self, line):
        n, patch, stride, pad_tail = line
        starts = grid_of(*line).starts[1].tolist()
        if pad_tail:
            expected = list(range(0, max(1, n - patch + stride), stride))
        elif n <= patch:
            expected = [-((patch - n) // 2)]
        else:
            expected = list(range(0, n - patch + 1, stride))
            expected += [n - patch] if expected[-1] != n - patch else []
        assert starts == expected
        assert starts == sorted(set(starts))

    @given(st.integers(1, 200), st.integers(1, 64), st.floats(0, 0.95))
    def test_they_are_those_of_monai(self, n, roi, overlap):
        """`monai.data.utils.dense_patch_slices` of `sliding_window_inference`, written out."""
        interval = int(roi * (1 - overlap))  # _get_scan_interval
        interval = interval if interval > 0 else 1
        padded = max(n, roi)
        before = (padded - n) // 2  # sliding_window_inference pads half before, rounded down
        count = 1
        if roi != padded:
            total = math.ceil(padded / interval)
            count = next(d for d in range(total) if d * interval + roi >= padded) + 1
        expected = []
        for index in range(count):
            start = index * interval
            start -= max(start + roi - padded, 0)
            expected.append(start - before)
        stride = stride_of((roi,), overlap, (1,))[0]
        assert stride == interval or roi == padded
        assert line_starts(n, roi, stride) == expected

    @given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 63))
    def test_they_are_those_of_torchio(self, n, patch, overlap):
        """`torchio.GridSampler._get_patches_locations` (no padding), written out."""
        assume(overlap < patch <= n)
        step = patch - overlap
        indices = list(range(0, n + 1 - patch, step))
        if indices[-1] != n - patch:
            indices.append(n - patch)
        assert line_starts(n, patch, step) == sorted(set(indices))


def line_starts(n: int, patch: int, stride: int) -> list[int]:
    return grid_of(n, patch, stride, False).starts[1].tolist()


class TestOwnership:
    @given(lines())
    def test_is_a_partition_of_the_axis(self, line):
        grid = grid_of(*line)
        cuts = grid.owned[1]
        assert cuts[0, 0] == 0
        assert cuts[-1, 1] == line[0]
        assert (cuts[1:, 0] == cuts[:-1, 1]).all()
        assert (cuts[:, 0] <= cuts[:, 1]).all()

    @given(lines())
    def test_owners_see_what_they_own(self, line):
        grid = grid_of(*line)
        for (low, high), start in zip(grid.owned[1], grid.starts[1], strict=True):
            assert start <= low
            assert high <= start + line[1]

    @given(lines())
    def test_neighbours_halve_what_they_share_the_odd_voxel_to_the_lower(self, line):
        grid = grid_of(*line)
        for number in range(grid.counts[1] - 1):
            shared_from = int(grid.starts[1][number + 1])
            shared_to = int(grid.starts[1][number]) + line[1]
            cut = int(grid.owned[1][number, 1])
            lower, upper = cut - shared_from, shared_to - cut
            assert lower - upper in (0, 1)


class TestTouching:
    @given(lines(), st.integers(0, 59), st.integers(1, 30), st.booleans())
    def test_is_what_brute_force_finds(self, line, low, size, owned):
        n, patch = line[:2]
        assume(low < n)
        high = min(n, low + size)
        grid = grid_of(*line)
        if owned:
            spans = [(int(a), int(b)) for a, b in grid.owned[1]]
        else:
            spans = [(int(s), int(s) + patch) for s in grid.starts[1]]
        expected = [i for i, (a, b) in enumerate(spans) if max(a, low) < min(b, high)]
        assert [i for i in grid.touching(1, low, high, owned=owned) if spans[i][0] < spans[i][1]] \
            == expected  # fmt: skip

    @given(lines(), st.data())
    def test_the_hull_holds_what_the_patches_cover(self, line, data):
        patch = line[1]
        grid = grid_of(*line)
        first = data.draw(st.integers(0, grid.counts[1] - 1))
        last = data.draw(st.integers(first, grid.counts[1] - 1))
        read = {
            v
            for start in grid.starts[1][first : last + 1].tolist()
            for v in range(start, start + patch)
        }
        low, high = grid.hull(1, range(first, last + 1))
        assert set(range(low, high)) == read


@st.composite
def padded_lines(draw):
    """Size, patch, stride and padding of a grid along one axis."""
    n, patch = draw(st.integers(1, 60)), draw(st.integers(1, 30))
    return n, patch, draw(st.integers(1, patch)), draw(st.integers(0, patch - 1))


def padded_grid(n: int, patch: int, stride: int, padding: int) -> PatchGrid:
    return PatchGrid((1, n, 1), (1, patch, 1), (1, stride, 1), padding=(0, padding, 0))


class TestPadding:
    @given(padded_lines())
    def test_the_grid_is_that_of_the_padded_volume_counted_from_the_volume(self, line):
        n, patch, stride, padding = line
        wide = grid_of(n + 2 * padding, patch, stride, False)
        grid = padded_grid(*line)
        assert (grid.starts[1] + padding).tolist() == wide.starts[1].tolist()
        assert grid.starts[1][0] <= -padding
        assert grid.starts[1][-1] + patch >= n + padding
        assert grid.shape == (1, n, 1)

    @given(lines())
    def test_none_is_the_grid_without_it(self, line):
        n, patch, stride, pad_tail = line
        plain = PatchGrid((1, n, 1), (1, patch, 1), (1, stride, 1), (False, pad_tail, False))
        none = PatchGrid(plain.shape, plain.patch, plain.stride, plain.pad_tail, (0, 0, 0))
        assert plain == none
        assert plain.starts[1].tolist() == none.starts[1].tolist()

    @given(padded_lines())
    def test_every_voxel_is_covered_and_every_patch_meets_the_volume(self, line):
        n, patch, _, _ = line
        covered = np.zeros(n, int)
        for start in padded_grid(*line).starts[1]:
            covered[max(0, start) : start + patch] += 1
            assert start < n
            assert start + patch > 0
        assert covered.min() >= 1

    @given(padded_lines())
    def test_ownership_partitions_the_volume(self, line):
        grid = padded_grid(*line)
        owners = np.zeros(line[0], int)
        for (low, high), start in zip(grid.owned[1], grid.starts[1], strict=True):
            assert start <= low <= high <= start + line[1]
            owners[low:high] += 1
        assert (owners == 1).all()

    @given(padded_lines(), st.data())
    def test_touching_and_hull_are_what_brute_force_finds(self, line, data):
        n, patch = line[:2]
        grid = padded_grid(*line)
        low = data.draw(st.integers(0, n - 1))
        high = data.draw(st.integers(low + 1, n))
        starts = grid.starts[1].tolist()
        reaching = [i for i, s in enumerate(starts) if max(s, low) < min(s + patch, high)]
        assert list(grid.touching(1, low, high)) == reaching
        owners = [i for i, (a, b) in enumerate(grid.owned[1]) if max(a, low) < min(b, high)]
        found = grid.touching(1, low, high, owned=True)
        assert [i for i in found if grid.owned[1][i, 0] < grid.owned[1][i, 1]] == owners
        covered = {v for i in reaching for v in range(starts[i], starts[i] + patch)}
        assert set(range(*grid.hull(1, grid.touching(1, low, high)))) == covered

    @given(padded_lines())
    def test_axes_that_are_not_reduced_keep_it(self, line):
        n, patch, stride, padding = line
        grid = PatchGrid(
            (n, 8, 1), (patch, 4, 1), (stride, 2, 1), (False, True, False), (padding, 0, 0)
        )
        half = grid.reduced((1, 2, 1))
        assert half.starts[0].tolist() == grid.starts[0].tolist()
        assert (half.starts[1] * 2).tolist() == grid.starts[1].tolist()

    def test_is_refused_where_it_makes_no_sense(self):
        with pytest.raises(InvalidInput, match="must not be negative and be smaller than the pat"):
            PatchGrid((9, 9, 9), (4, 4, 4), (2, 2, 2), padding=(0, 4, 0))
        with pytest.raises(InvalidInput, match="must not be negative and be smaller than the pat"):
            PatchGrid((9, 9, 9), (4, 4, 4), (2, 2, 2), padding=(0, -1, 0))
        with pytest.raises(InvalidInput, match="padded behind the volume"):
            PatchGrid((9, 9, 9), (4, 4, 4), (2, 2, 2), (True,) * 3, (2, 0, 0))
        with pytest.raises(InvalidInput, match="multiples of the model's output scale"):
            PatchGrid((9, 9, 9), (4, 4, 4), (2, 2, 2), padding=(2, 0, 0)).reduced((2, 1, 1))


class TestReduced:
    @given(st.integers(1, 60), st.integers(1, 8), st.data())
    def test_starts_shrink_and_still_cover(self, n, parts, data):
        scale = data.draw(st.sampled_from([1, 2, 3, 4]))
        patch = parts * scale
        stride = data.draw(st.integers(1, parts)) * scale
        grid = grid_of(n, patch, stride, True)
        small = grid.reduced((1, scale, 1))
        assert small.shape[1] == -(-n // scale)
        assert (small.starts[1] * scale).tolist() == grid.starts[1].tolist()
        covered = np.zeros(small.shape[1], bool)
        for start in small.starts[1]:
            covered[start : start + small.patch[1]] = True
        assert covered.all()


class TestWindows:
    @given(lines(), st.sampled_from(["average", "gaussian", "hann"]))
    def test_no_voxel_is_without_weight(self, line, blend):
        grid = grid_of(*line)
        weight = weights(blend, grid.patch)[0, :, 0]
        total = np.zeros(line[0])
        for start in grid.starts[1]:
            inside = [v for v in range(line[1]) if 0 <= start + v < line[0]]
            total[[start + v for v in inside]] += weight[inside]
        assert total.min() >= 1e-3


ORIENTATIONS = [
    "".join(letters)
    for order in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*order)
]


class TestFrames:
    @given(st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS), rois(0, 6))
    def test_round_trips(self, stored, wanted, box):
        frame = Frame.between(stored, wanted)
        array = np.arange(7 * 8 * 9).reshape(7, 8, 9)
        assert np.array_equal(frame.store(frame.show(array)), array)
        assert frame.restore(frame.reorder(array.shape)) == array.shape
        there = frame.roi(box, array.shape)
        assert frame.stored_roi(there, array.shape) == box
        assert np.array_equal(frame.show(array)[there.slices()], frame.show(array[box.slices()]))

    @given(*[st.sampled_from(ORIENTATIONS)] * 3)
    def test_two_steps_are_one(self, a, b, c):
        array = np.arange(24).reshape(2, 3, 4)
        direct = Frame.between(a, c).show(array)
        assert np.array_equal(Frame.between(b, c).show(Frame.between(a, b).show(array)), direct)


class TestBytes:
    @given(st.integers(1, 2**50))
    def test_integers_pass(self, size):
        assert parse_bytes(size) == parse_bytes(str(size)) == size

    @given(st.integers(1, 2**50))
    def test_what_is_printed_can_be_read_again(self, size):
        assert parse_bytes(format_bytes(size)) == pytest.approx(size, rel=5e-3)

    @given(st.integers(1, 999), st.sampled_from("kMGT"), st.booleans(), st.booleans())
    def test_units(self, count, prefix, binary, lower):
        text = f"{count}{prefix}{'i' if binary else ''}B"
        base = 1024 if binary else 1000
        expected = count * base ** ("kMGT".index(prefix) + 1)
        assert parse_bytes(text.lower() if lower else text) == expected

    @pytest.mark.slow
    @given(st.text())
    def test_any_text_is_read_or_refused(self, text):
        with suppress(InvalidInput):
            assert parse_bytes(text) >= 1
