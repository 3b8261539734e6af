"""Options: what was given, else what the model says, else the house; nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from volflow.errors import InvalidInput
from volflow.infer.merge import order_inputs, settings_of
from volflow.infer.methods import checked_options
from volflow.infer.predict_options import PredictOptions
from volflow.model.spec import make_spec

PLAIN = make_spec({})
RICH = make_spec(
    {
        "patch": [8, 16, 16], "overlap": 0.5, "blend": "hann", "frame": "RAS",
        "normalize": "zscore", "activation": "softmax", "output": "classes",
        "classes": ["a", "b", "c"], "background": 2,
    }
)  # fmt: skip


def merged(spec=PLAIN, **given) -> PredictOptions:
    return checked_options(PredictOptions(**{"patch": 8} | given), spec)


class TestMerge:
    def test_the_house_fills_the_rest(self):
        options = merged()
        assert (options.sides, options.overlap, options.blend) == ((8, 8, 8), 0.25, "gaussian")
        assert (options.output, options.dtype, options.fill) == ("scores", None, 0)
        assert (options.frame, options.normalize, options.activation) == (None, None, None)

    def test_the_model_goes_before_the_house(self):
        options = merged(RICH, patch=None)
        assert (options.sides, options.overlap, options.blend) == ((8, 16, 16), 0.5, "hann")
        assert (options.frame, options.normalize) == ("RAS", "zscore")
        assert options.activation == "softmax"
        assert (options.output, options.dtype, options.fill) == ("classes", "uint8", 2)

    def test_the_caller_goes_before_both(self):
        options = merged(
            RICH, patch=4, overlap=0, blend="crop", frame="LPS", normalize="minmax",
            activation="sigmoid", output="scores", fill=7, dtype="float16",
        )  # fmt: skip
        assert (options.sides, options.overlap, options.blend) == ((4, 4, 4), 0, "crop")
        assert (options.frame, options.normalize) == ("LPS", "minmax")
        assert (options.activation, options.output) == ("sigmoid", "scores")
        assert (options.fill, options.dtype) == (7, "float16")

    def test_no_overlap_is_not_no_choice(self):
        assert merged(RICH, overlap=0).overlap == 0

    def test_many_classes_take_two_bytes(self):
        many = make_spec({"classes": [str(n) for n in range(257)]})
        assert merged(many, output="classes").dtype == "uint16"

    @pytest.mark.parametrize("dtype", ["float16", "f2", np.float16, np.dtype("f2"), ">f2"])
    def test_a_dtype_has_one_name(self, dtype):
        assert merged(dtype=dtype).dtype == "float16"
        assert settings_of(merged(dtype=dtype)) == settings_of(merged(dtype="float16"))


class TestSettings:
    @pytest.mark.parametrize(
        "change",
        [{"patch": 9}, {"patch": (8, 8, 9)}, {"overlap": 0.5}, {"overlap": 1}, {"blend": "hann"},
         {"frame": "RAS"}, {"normalize": "minmax"}, {"normalize": np.sqrt},
         {"activation": "softmax"}, {"activation": torch.relu}, {"output": "classes"},
         {"dtype": "float16"}, {"flips": "x"}, {"skip_below": 0.0}, {"fill": 1.0}],
    )  # fmt: skip
    def test_hold_all_that_decides_the_result(self, change):
        assert settings_of(merged(**change)) != settings_of(merged())

    @pytest.mark.parametrize(
        "change",
        [{"device": "cpu"}, {"batch_size": 3}, {"chunk": 8}, {"shard": 8},
         {"precision": "float32"}],
    )  # fmt: skip
    def test_and_nothing_else(self, change):
        assert settings_of(merged(**change)) == settings_of(merged())

    def test_tell_functions_apart_by_what_they_do(self):
        one = settings_of(merged(activation=lambda s: s * 2))
        same = settings_of(merged(activation=lambda s: s * 2))
        other = settings_of(merged(activation=lambda s: s * 3))
        assert one["activation"] != other["activation"]
        assert one["activation"].split()[0] == same["activation"].split()[0] == "function"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patch": None}, r"^patch is needed: this model does not say its own; e.g. patch=96$"),
        ({"patch": 0}, r"^patch must be a positive integer or 3 of them \(zyx\); got 0$"),
        ({"patch": (8, 8)}, r"patch must be .* got \(8, 8\)$"),
        ({"patch": "big"}, r"patch must be .* got 'big'$"),
        ({"overlap": 8}, r"overlap must be a fraction .* voxels below the patch \(8\); got 8$"),
        ({"overlap": 1.0}, r"overlap must be a fraction .* got 1.0$"),
        ({"overlap": -1}, r"overlap must be a fraction .* got -1$"),
        ({"overlap": (0.5, 0.5)}, r"^overlap needs one entry per axis \(3\); got \(0.5, 0.5\)$"),
        ({"overlap": (1, 2, 8)}, r"below the patch \(8\); got 8$"),
        ({"sigma_scale": 0}, r"^sigma_scale must be a positive number, .* got 0; the default is"),
        ({"sigma_scale": "wide"}, r"^sigma_scale must be a positive number"),
        ({"sigma_scale": float("nan")}, r"^sigma_scale must be a positive number"),
        (
            {"sigma_scale": 0.2, "blend": "exact"},
            r"^sigma_scale 0.2 is that of blend 'gaussian', and the blend is 'exact'; leave one of",
        ),
        ({"blend": "linear"}, r"^unknown blend 'linear'; use one of crop, average, gaussian, hann"),
        (
            {"blend": "exact", "overlap": 8},
            r"^overlap 8 is that of patches, and blend .exact. has none",
        ),
        ({"frame": "RAX"}, r"^frame must be three letters, one of each pair .* got 'RAX'$"),
        ({"frame": "RLS"}, r"^frame must be three letters"),
        ({"normalize": "max"}, r"^unknown normalize 'max'; use minmax, zscore, zscore:fore"),
        ({"normalize": "percentile:9,2"}, r"^normalize 'percentile:9,2' needs two ascending perc"),
        ({"normalize": 3}, r"^unknown normalize '3'"),
        ({"activation": "tanh"}, r"^unknown activation 'tanh'; use one of None, softmax, sigmoid$"),
        ({"output": "label"}, r"^unknown output 'label'; use one of scores, classes$"),
        (
            {"precision": "fp16"},
            r"^unknown precision 'fp16'; use one of auto, float32, bfloat16, float16, tf32$",
        ),
        ({"device_memory": "lots"}, r'^device_memory must be a positive amount like "2GiB"'),
        (
            {"device_memory": "2GiB", "device": "cpu"},
            r"^device_memory '2GiB' is that of a GPU, and the device is cpu; leave one of them out",
        ),
        ({"flips": "w"}, r"^flips must name model axes among z, y, x, each once; got 'w'$"),
        ({"flips": "xx"}, r"^flips must name model axes"),
        ({"flips": True}, r"^flips must name model axes"),
        ({"batch_size": 0}, r'^batch_size must be "auto" or a whole number from 1; got 0$'),
        ({"batch_size": 2.0}, r"^batch_size must be"),
        ({"batch_size": "big"}, r"^batch_size must be"),
        ({"dtype": "complex64"}, r"^dtype of scores must be a floating or integer type; got 'com"),
        ({"dtype": "bool"}, r"^dtype of scores must be"),
        ({"dtype": "nonsense"}, r"^dtype of scores must be .* got 'nonsense'$"),
        ({"output": "classes", "dtype": "float32"}, r"^dtype of classes must be an integer type"),
        ({"output": "classes", "fill": 300}, r"^fill 300 does not fit in uint8; choose another$"),
        ({"dtype": "uint8", "fill": -1}, r"^fill -1 does not fit in uint8"),
        ({"dtype": "int16", "fill": 0.5}, r"^fill 0.5 does not fit in int16"),
        ({"dtype": "uint8", "fill": float("nan")}, r"^fill nan does not fit in uint8"),
        ({"skip_below": "dark"}, r"^skip_below must be a number; got 'dark'$"),
        ({"skip_below": float("nan")}, r"^skip_below must be a number; got nan$"),
        ({"fill": "none"}, r"^fill must be a number; got 'none'$"),
    ],
)
def test_nonsense_is_refused_in_one_line(given, message):
    with pytest.raises(InvalidInput, match=message) as refused:
        merged(**given)
    assert "\n" not in str(refused.value)


class TestInputs:
    def test_one_has_no_name(self):
        assert order_inputs("a.zarr", RICH) == {"": "a.zarr"}

    def test_several_keep_their_order_where_the_model_has_none(self):
        assert list(order_inputs({"t2": 1, "t1": 2}, PLAIN)) == ["t2", "t1"]

    def test_the_model_orders_them(self):
        spec = make_spec({"channels": ["t1", "t2"]})
        assert order_inputs({"t2": 1, "t1": 2}, spec) == {"t1": 2, "t2": 1}
        assert list(order_inputs({"t2": 1, "t1": 2}, spec)) == ["t1", "t2"]

    @pytest.mark.parametrize("names", [["t1"], ["t1", "t2", "t3"], ["t1", "flair"]])
    def test_it_wants_just_these(self, names):
        spec = make_spec({"channels": ["t1", "t2"]})
        with pytest.raises(InvalidInput, match=r"the model wants the volumes t1, t2; got t1"):
            order_inputs(dict.fromkeys(names, 0), spec)

    def test_none_is_refused(self):
        with pytest.raises(InvalidInput, match="no input volume was given"):
            order_inputs({}, PLAIN)


def test_an_exact_run_takes_no_notice_of_a_bundles_overlap():
    assert checked_options(PredictOptions(blend="exact"), make_spec({"overlap": 8})).overlap is None


def test_a_batch_size_means_nothing_to_the_exact_method():
    given = PredictOptions(blend="exact", batch_size=4)
    assert checked_options(given, PLAIN).batch_size == "auto"


def test_the_sigma_of_a_model_is_that_of_its_blend():
    spec = make_spec({"patch": 8, "sigma_scale": 0.2})
    assert checked_options(PredictOptions(), spec).sigma_scale == 0.2
    assert checked_options(PredictOptions(sigma_scale=0.3), spec).sigma_scale == 0.3
    assert checked_options(PredictOptions(blend="hann"), spec).sigma_scale is None
    with pytest.raises(InvalidInput, match="sigma_scale is that of blend gaussian, and blend is h"):
        make_spec({"sigma_scale": 0.2, "blend": "hann"})


def test_outputs_of_the_usual_sigma_are_known_as_before():
    plain = settings_of(checked_options(PredictOptions(patch=8), make_spec({})))
    usual = settings_of(checked_options(PredictOptions(patch=8, sigma_scale=0.125), make_spec({})))
    assert usual == plain
    wide = settings_of(checked_options(PredictOptions(patch=8, sigma_scale=1), make_spec({})))
    assert wide == {**plain, "sigma_scale": 1.0}
