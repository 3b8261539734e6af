"""From scores to what is stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volflow.errors import InvalidInput
from volflow.infer.finish import Finish


def scores(*channels) -> np.ndarray:
    """Scores of one voxel per value: one list per channel."""
    return np.array(channels, "float32")[:, None, None, :]


def both(values: np.ndarray):
    """As rows come on the CPU, and as they come from a GPU."""
    return [values.copy(), torch.from_numpy(values.copy())]


class TestScores:
    def test_pass_as_they_are(self):
        for rows in both(scores([0.5, -2.0], [7.0, 1e-9])):
            found = Finish("scores", None, "float32")(rows)
            assert found.dtype == np.float32
            assert np.array_equal(found, scores([0.5, -2.0], [7.0, 1e-9]))

    @pytest.mark.parametrize(
        ("dtype", "values", "stored"),
        [
            ("uint8", [-3.0, -0.4, 0.5, 1.5, 2.5, 254.6, 300.0], [0, 0, 0, 2, 2, 255, 255]),
            ("int8", [-500.0, -1.5, 127.4, 128.0], [-128, -2, 127, 127]),
            ("uint16", [65534.6, 7e4], [65535, 65535]),
            ("int32", [3e9, -3e9], [2**31 - 1, -(2**31)]),
            ("uint32", [5e9, -1.0], [2**32 - 1, 0]),
        ],
    )
    def test_integers_round_to_even_and_clip(self, dtype, values, stored):
        for rows in both(scores(values)):
            found = Finish("scores", None, dtype)(rows)
            assert found.dtype == dtype
            assert found.ravel().tolist() == stored

    @pytest.mark.parametrize("dtype", ["int64", "uint64"])
    def test_the_largest_integers_do_not_wrap(self, dtype):
        for rows in both(scores([3e19, 5.0])):
            found = Finish("scores", None, dtype)(rows)
            assert found.ravel()[0] > 2**62
            assert found.ravel()[1] == 5

    def test_float16_is_rounded_once(self):
        values = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype("f4")
        for rows in both(values):
            found = Finish("scores", None, "float16")(rows)
            assert np.array_equal(found, values.astype("f2"))

    def test_what_float16_cannot_hold_is_refused(self):
        for rows in both(scores([1.0, -70000.0])):
            with pytest.raises(
                InvalidInput, match="reach 70000, which float16 cannot hold; use dt"
            ):
                Finish("scores", None, "float16")(rows)


class TestActivation:
    def test_softmax_over_channels(self):
        values = scores([1.0, 800.0], [2.0, -800.0], [3.0, 799.0])
        expected = torch.from_numpy(values).softmax(0).numpy()
        for rows in both(values):
            found = Finish("scores", "softmax", "float32")(rows)
            np.testing.assert_allclose(found, expected, atol=1e-7)
            np.testing.assert_allclose(found.sum(0), 1, rtol=1e-6)

    def test_sigmoid_also_of_very_low_scores(self):
        values = scores([-1000.0, -88.0, -1.0, 0.0, 1.0, 1000.0])
        for rows in both(values):
            found = Finish("scores", "sigmoid", "float32")(rows).ravel()
            np.testing.assert_allclose(found[2:], 1 / (1 + np.exp(-values.ravel()[2:])), rtol=1e-6)
            assert found[0] == 0
            assert 0 <= found[1] < 1e-37

    def test_float64_stays_float64(self):
        values = scores([0.1, 0.7], [0.3, -2.0]).astype("f8")
        for rows in both(values):
            found = Finish("scores", "softmax", "float64")(rows)
            expected = torch.from_numpy(values).softmax(0).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-15)

    def test_a_function_gets_a_tensor_of_all_channels(self):
        shapes = []

        def cubed(s_CZYX):
            shapes.append((type(s_CZYX), tuple(s_CZYX.shape)))
            return s_CZYX**3

        for rows in both(scores([1.0, 2.0], [3.0, 4.0])):
            found = Finish("scores", cubed, "float32")(rows)
            assert found.ravel().tolist() == [1, 8, 27, 64]
        assert shapes == [(torch.Tensor, (2, 1, 1, 2))] * 2

    def test_a_function_that_changes_the_shape_is_refused(self):
        with pytest.raises(InvalidInput, match="activation must keep the shape of the scores: got"):
            Finish("scores", lambda s: s[:1], "float32")(scores([1.0], [2.0]))


class TestClasses:
    def test_are_the_first_of_the_highest(self):
        values = scores([1.0, 5.0, 2.0, 0.0], [1.0, 7.0, 2.0, -1.0], [0.0, 7.0, 3.0, -1.0])
        for rows in both(values):
            found = Finish("classes", None, "uint8")(rows)
            assert found.dtype == np.uint8
            assert found.ravel().tolist() == [0, 1, 2, 0]

    def test_softmax_does_not_change_them(self):
        values = np.random.default_rng(0).standard_normal((4, 5, 6, 7)).astype("f4")
        for activation in (None, "softmax"):
            for rows in both(values):
                found = Finish("classes", activation, "uint8")(rows)
                assert np.array_equal(found, values.argmax(0))

    def test_of_one_channel_exceed_half(self):
        for rows in both(scores([0.5, 0.51, -3.0])):
            assert Finish("classes", None, "uint8")(rows).ravel().tolist() == [0, 1, 0]
        for rows in both(scores([0.0, 0.01, -3.0])):
            assert Finish("classes", "sigmoid", "uint8")(rows).ravel().tolist() == [0, 1, 0]


class TestFill:
    @pytest.mark.parametrize(
        ("output", "dtype"),
        [("scores", "float32"), ("scores", "uint16"), ("scores", "uint64"), ("scores", "float16"),
         ("classes", "uint8"), ("classes", "int32")],
    )  # fmt: skip
    def test_is_where_no_patch_was(self, output, dtype):
        covered = np.array([[[True, False, True]]])
        values = scores([1.0, 0.0, 2.0], [0.0, 0.0, 3.0])
        plain = Finish(output, None, dtype)(values.copy())
        for rows, seen in zip(both(values), (covered, torch.from_numpy(covered)), strict=True):
            found = Finish(output, None, dtype, fill=9)(rows, seen)
            assert (found[..., 1] == 9).all()
            assert np.array_equal(found[..., [0, 2]], plain[..., [0, 2]])

    def test_is_not_activated(self):
        covered = np.array([[[False]]])
        found = Finish("scores", "sigmoid", "float32", fill=0)(scores([0.0]), covered)
        assert found.item() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("output", ["scores", "classes"])
def test_what_is_no_number_is_refused(bad, output):
    for rows in both(scores([1.0, bad], [2.0, 3.0])):
        with pytest.raises(InvalidInput, match="the model produced NaN or infinity; check its wei"):
            Finish(output, None, "uint8")(rows)


def test_large_sums_of_finite_scores_are_no_infinity():
    values = np.full((1, 2, 3, 4), 3e38, "float32")
    for rows in both(values):
        assert np.array_equal(Finish("scores", None, "float32")(rows), values)


def test_infinities_of_both_signs_are_refused_without_a_warning():
    for rows in both(scores([np.inf, -np.inf])):
        with pytest.raises(InvalidInput, match="the model produced NaN or infinity"):
            Finish("scores", None, "float32")(rows)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float32"])
@pytest.mark.parametrize("computed", ["float32", "float64"])
def test_tensors_become_what_arrays_become(dtype, computed):
    values = (np.random.default_rng(0).standard_normal((3, 4, 5, 6)) * 3e4).astype(computed)
    values[:, 0] = np.array([0.5, 1.5, -2.5, 254.5, 65534.5])[:, None]
    expected, found = (Finish("scores", None, dtype)(rows) for rows in both(values))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
