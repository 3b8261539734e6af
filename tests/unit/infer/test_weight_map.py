"""One's own weights of a patch: the global sliding window with them, however they are given."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import torch

import volflow as vf
from tests.nets import random_net
from tests.oracle import sliding_window
from volflow.cli import run
from volflow.errors import InvalidInput, ResumeRefused
from volflow.geometry.windows import WeightMap, weight_map
from volflow.infer.predict_options import PredictOptions

PATCH = (8, 6, 10)


def some_weights(shape=PATCH, seed=3):
    """Weights that no symmetry hides the place of."""
    return np.random.default_rng(seed).uniform(0.1, 4, shape)


def double(channels=1):
    return random_net(channels).double()


@pytest.fixture
def data():
    return np.random.default_rng(1).normal(size=(20, 17, 23)).astype("float32")


@pytest.mark.parametrize("shape", [PATCH, (6, 1), (10,), (1, 1, 1)])
def test_equals_the_global_sliding_window(predict, data, shape):
    own, net = some_weights(shape), double()
    options = {"patch": PATCH, "overlap": 0.5}
    result = predict(data, net, **options, blend=own, dtype="float64")
    truth = sliding_window(data[None].astype(float), net, **options, blend=weight_map(own))
    np.testing.assert_allclose(result[:], truth, rtol=0, atol=1e-12)
    lazy = vf.map_model(data, net, **options, blend=own)
    np.testing.assert_array_equal(lazy.compute(), result[:])


def test_lies_along_the_axes_of_the_frame(predict, stored, data):
    """A volume stored otherwise is seen, cut and weighted as the one that lies in the frame."""
    own, net = some_weights(), double()
    options = {"patch": PATCH, "overlap": 0.5, "blend": own, "dtype": "float64"}
    straight = stored(data, "straight.zarr", orientation="RAS", spacing=(1, 1, 1))
    turned = np.ascontiguousarray(data.transpose(2, 0, 1)[:, ::-1])
    turned = stored(turned, "turned.zarr", orientation="SLA", spacing=(1, 1, 1))
    one = predict(straight, net, "one.zarr", frame="RAS", **options)[:]
    other = predict(turned, net, "other.zarr", frame="RAS", **options)[:]
    np.testing.assert_allclose(other[:, :, ::-1].transpose(0, 2, 3, 1), one, rtol=0, atol=1e-12)
    truth = sliding_window(data[None].astype(float), net, PATCH, 0.5, blend=weight_map(own))
    np.testing.assert_allclose(one, truth, rtol=0, atol=1e-12)


def test_lies_along_them_where_a_run_goes_along_the_second(predict, data):
    """A slab of one patch, whose first two axes are exchanged."""
    own, net, slab = some_weights(), double(), data[:8]
    options = {"patch": PATCH, "overlap": 0.5}
    result = predict(slab, net, **options, blend=own, dtype="float64")
    truth = sliding_window(slab[None].astype(float), net, **options, blend=weight_map(own))
    np.testing.assert_allclose(result[:], truth, rtol=0, atol=1e-12)


def test_blends_the_outputs_of_ones_own_loop(tmp_path, data):
    own, net = some_weights(), double()
    stream = vf.PatchStream(data, vf.GridSampler(PATCH, overlap=0.5))
    with (
        torch.inference_mode(),
        vf.GridAggregator(tmp_path / "own.zarr", stream, blend=own) as aggregator,
    ):
        for batch in stream.loader(batch_size=4):
            aggregator.add_batch(net(batch["image"].double()), batch)
    (result,) = aggregator.close().values()
    truth = sliding_window(data[None].astype(float), net, PATCH, 0.5, blend=weight_map(own))
    np.testing.assert_allclose(result[:], truth, rtol=0, atol=1e-12)


def test_is_part_of_the_fingerprint_by_its_values(predict, tmp_path, data):
    own, net = some_weights(), random_net()
    predict(data, net, patch=PATCH, blend=own)
    np.save(tmp_path / "own.npy", own.astype("float32"))
    predict(data, net, patch=PATCH, blend=tmp_path / "own.npy")  # the same: nothing is refused
    with pytest.raises(ResumeRefused, match=r"options\.blend: weights [0-9a-f]+.* → weights "):
        predict(data, net, patch=PATCH, blend=some_weights(seed=4))
    lazy = [vf.map_model(data, net, patch=PATCH, blend=some_weights(seed=n)).name for n in (3, 4)]
    assert lazy[0] != lazy[1]


def test_a_run_is_computed_anew_with_the_weights_given_again(predict, stored, tmp_path, data):
    own, net = some_weights(), random_net()
    result = predict(stored(data), net, patch=PATCH, blend=own)
    assert vf.verify(result.path, recompute=2, model=net, blend=own, progress=False).ok
    with pytest.raises(InvalidInput, match="blend was a weight map, of which a journal holds the"):
        vf.verify(result.path, recompute=2, model=net)


def test_a_command_takes_a_file(tmp_path, monkeypatch, data, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", data)
    np.save("own.npy", some_weights())
    np.save("wrong.npy", some_weights((4, 4, 4)))
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    net = "torch.nn:Identity"
    line = f"predict scan.npy out.zarr -m {net} --patch 8,6,10 --quiet --blend".split()
    assert run([*line, "own.npy"]) == 0
    np.testing.assert_allclose(vf.open("out.zarr")[0], data, atol=1e-6)
    for name, said in {
        "wrong.npy": "blend is a weight map of shape (4, 4, 4), and the patch is (8, 6, 10); give",
        "objects.npy": "the weight map objects.npy cannot be read: Object arrays cannot be loaded",
        "missing.npy": "the weight map missing.npy cannot be read: [Errno 2] No such file",
    }.items():
        capsys.readouterr()
        assert run([*line, name]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.array([1.0, 0]), r"a weight of 0\.0; each must be finite and above 0"),
        ([1, -1], r"a weight of -1\.0; each"),
        ([1, np.nan], "a weight of nan; each"),
        ([1, np.inf], "a weight of inf; each"),
        ([1, 1e-60], "a weight of 1e-60; each"),
        ([1, 1e60], r"a weight of 1e\+60; each"),
        (np.ones((1, 1, 1, 1)), "an array of shape .1, 1, 1, 1., float64; a weight map holds"),
        (["a", "b"], "a weight map holds a number for each voxel"),
        ([], "an array of shape .0,., float64"),
        ([[1], [1, 2]], "blend must be a name, such as gaussian, or an array of weights"),
    ],
)
def test_what_is_no_weight_map_is_refused_in_one_line(given, said):
    with pytest.raises(InvalidInput, match=said) as refused:
        PredictOptions(blend=given)
    assert "\n" not in str(refused.value)


def test_the_shape_is_that_of_the_patch(data, tmp_path):
    with pytest.raises(InvalidInput, match=r"map of shape \(4, 6, 10\), and the patch is \(8, 6,"):
        vf.map_model(data, random_net(), patch=PATCH, blend=some_weights((4, 6, 10)))
    stream = vf.PatchStream(data, vf.GridSampler(PATCH))
    with pytest.raises(InvalidInput, match=r"map of shape \(4, 6, 10\), and the patch is"):
        vf.GridAggregator(tmp_path / "own.zarr", stream, blend=some_weights((4, 6, 10)))


def test_refuses_outputs_of_larger_voxels(data, tmp_path):
    pool = torch.nn.AvgPool3d(2)
    with pytest.raises(InvalidInput, match=r"outputs are coarser by \(2, 2, 2\); use crop, av"):
        vf.map_model(data, pool, patch=PATCH, blend=some_weights())
    with pytest.raises(InvalidInput, match=r"outputs are coarser by \(2, 2, 2\)"):
        vf.predict(data, pool, tmp_path / "out.zarr", patch=PATCH, blend=some_weights())


def test_goes_with_no_sigma_and_certifies_nothing(data):
    with pytest.raises(InvalidInput, match=r"sigma_scale 0\.2 is that of blend 'gaussian'"):
        vf.map_model(data, random_net(), patch=PATCH, blend=some_weights(), sigma_scale=0.2)
    with pytest.raises(InvalidInput, match="unknown blend array"):
        vf.certify_seams(data, random_net(), patch=PATCH, blends=[some_weights()])


def test_equal_weights_are_one():
    one, same, other = (weight_map(some_weights(seed=n)) for n in (1, 1, 2))
    assert one == same != other
    assert len({one, same, other}) == 2
    assert one.exchanged() == WeightMap(one.values.swapaxes(0, 1))
    assert isinstance(PredictOptions(blend=da.ones(3)).blend, WeightMap)


def test_a_step_of_a_pipeline_runs_again_where_the_file_changed(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", data)
    np.save("own.npy", some_weights())
    step = "volume: scan.npy, model: 'torch.nn:Identity', out: out.zarr, patch: [8, 6, 10]"
    (tmp_path / "p.yaml").write_text(
        f"steps:\n  - name: seg\n    predict: {{{step}, blend: own.npy}}\n"
    )
    steps = [vf.run("p.yaml", progress=False).steps[0] for _ in range(2)]
    assert [step.outcome for step in steps] == ["done", "skipped"]
    np.save("own.npy", some_weights(seed=4))
    with pytest.raises(ResumeRefused, match=r"options\.blend: weights"):
        vf.run("p.yaml", progress=False)
