"""MONAI's and TorchIO's sliding windows give what ours gives, where their definitions agree."""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
import pytest
import torch

import volflow as vf
from tests.nets import random_net
from tests.oracle import sliding_window

pytestmark = pytest.mark.peers

needs_monai = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None, reason="MONAI comes with the extra peers"
)
needs_torchio = pytest.mark.skipif(
    importlib.util.find_spec("torchio") is None, reason="TorchIO comes with the extra peers"
)

SHAPES = [(22, 25, 19), (16, 40, 21), (9, 30, 30)]


def scan_of(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(5).random(shape, "float32")


@needs_monai
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.875])
@pytest.mark.parametrize(("theirs", "ours"), [("constant", "average"), ("gaussian", "gaussian")])
def test_monai(tmp_path, shape, overlap, theirs, ours):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of MONAI's imports
        from monai.inferers import sliding_window_inference
    scan, net = scan_of(shape), random_net()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = sliding_window_inference(
            torch.from_numpy(scan)[None, None], (16, 16, 16), 1, net, overlap=overlap, mode=theirs
        )[0].numpy()
    span = np.ptp(reference)
    oracle = sliding_window(scan[None], net, (16, 16, 16), overlap, ours)
    assert np.abs(oracle - reference).max() <= 1e-5 * span
    result = vf.predict(
        scan, net, tmp_path / "out.zarr", patch=16, overlap=overlap, blend=ours, progress=False
    )
    assert np.abs(result[:] - reference).max() <= 1e-5 * span


@needs_torchio
@pytest.mark.parametrize("shape", [(30, 33, 37), (16, 40, 21)])
@pytest.mark.parametrize("overlap", [0, 4, 8])
@pytest.mark.parametrize("blend", ["average", "hann"])
def test_torchio(tmp_path, shape, overlap, blend):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchio as tio
    scan, net = scan_of(shape), random_net()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = tio.Subject(image=tio.ScalarImage(tensor=torch.from_numpy(scan)[None]))
        sampler = tio.inference.GridSampler(subject, 16, overlap)
        aggregator = tio.inference.GridAggregator(sampler, overlap_mode=blend)
        for batch in tio.SubjectsLoader(sampler, batch_size=2):
            aggregator.add_batch(net(batch["image"][tio.DATA]), batch[tio.LOCATION])
        reference = aggregator.get_output_tensor().numpy()
    span = np.ptp(reference)
    oracle = sliding_window(scan[None], net, (16, 16, 16), overlap, blend)
    assert np.abs(oracle - reference).max() <= 1e-5 * span
    result = vf.predict(
        scan, net, tmp_path / "out.zarr", patch=16, overlap=overlap, blend=blend, progress=False
    )
    assert np.abs(result[:] - reference).max() <= 1e-5 * span
