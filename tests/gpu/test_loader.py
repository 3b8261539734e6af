"""Batches of a stream on a device: as stored through pinned memory, cast and augmented there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import volflow as vf
from volflow.errors import InvalidInput

PATCH, BATCH = 8, 4
CHANGES = {
    "plain": None,
    "flip, rotate, elastic": vf.Augment(flip=True, rotate=15, scale=0.1, elastic=2),
    "intensity": vf.Augment(gamma=0.3, brightness=0.2, contrast=0.2, blur=1, bias=0.3),
}


@pytest.fixture
def case(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 4000, (24, 32, 40), dtype=np.uint16)
    label = (image > 3000).astype(np.uint8)
    vf.write(image, tmp_path / "image.zarr", progress=False)
    vf.write(label, tmp_path / "label.zarr", progress=False)
    return {"image": tmp_path / "image.zarr", "label": tmp_path / "label.zarr"}


def stream_of(case, augment=None):
    sampler = vf.UniformSampler(PATCH)
    return vf.PatchStream(case, sampler, patches_per_epoch=24, seed=3, augment=augment)


def batches(case, device, augment=None):
    stream = stream_of(case, augment)
    return [dict(batch) for batch in stream.loader(batch_size=BATCH, device=device)]


@pytest.mark.slow
@pytest.mark.parametrize("augment", CHANGES.values(), ids=CHANGES)
def test_batches_are_those_of_the_cpu(device, case, augment):
    there, here = batches(case, device, augment), batches(case, "cpu", augment)
    assert len(there) == len(here) == 6
    for one, other in zip(there, here, strict=True):
        assert one["image"].device.type == one["label"].device.type == "cuda"
        assert torch.equal(one["location"], other["location"])
        assert torch.equal(one["label"].cpu(), other["label"])
        torch.testing.assert_close(one["image"].cpu(), other["image"], rtol=1e-5, atol=1e-5)


def test_voxels_are_sent_as_stored_and_nobody_waits(gpu, case):
    before = gpu.counts()
    found = batches(case, "cuda")
    counted = gpu.counts() - before
    voxels = len(found) * BATCH * PATCH**3
    assert counted.h2d_bytes == voxels * (2 + 1)  # uint16 and uint8
    assert (counted.pageable, counted.syncs, counted.d2h) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("augment", list(CHANGES.values())[1:], ids=list(CHANGES)[1:])
def test_augmentations_copy_nothing_pageable(gpu, case, augment):
    before = gpu.counts()
    batches(case, "cuda", augment)
    assert (gpu.counts() - before).pageable == 0


def test_training_reads_batches_on_another_stream_than_they_were_made(gpu, case):
    net = torch.nn.Conv3d(1, 2, 3, padding=1).to("cuda")
    for batch in stream_of(case).loader(batch_size=BATCH, device="cuda"):
        loss = net(batch["image"]).mean(0).square().sum()
        loss.backward()
    assert net.weight.grad is not None
    gpu.check()


def test_the_second_device_is_as_good_as_the_first(gpu, case):
    for batch in stream_of(case).loader(batch_size=BATCH, device="cuda:1"):
        assert batch["image"].device == torch.device("cuda:1")
        batch["image"].sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_aggregator_takes_outputs_of_a_device(device, case, tmp_path, dtype):
    stream = vf.PatchStream(case["image"], vf.GridSampler(16, overlap=0.25))

    def aggregated(name, where):
        with vf.GridAggregator(tmp_path / name / "{case}.zarr", stream, blend="hann") as grid:
            for batch in stream.loader(batch_size=BATCH, device=where):
                grid.add_batch(batch["image"].to(dtype), batch)
        (found,) = grid.close().values()
        return found[:]

    (tmp_path / "there").mkdir()
    (tmp_path / "here").mkdir()
    assert np.array_equal(aggregated("there", device), aggregated("here", "cpu"))


def test_an_aggregator_takes_outputs_once_in_their_dtype(gpu, case, tmp_path):
    stream = vf.PatchStream(case["image"], vf.GridSampler(16, overlap=0.25))
    with vf.GridAggregator(tmp_path / "{case}-out.zarr", stream) as grid:
        for batch in stream.loader(batch_size=BATCH, device="cuda"):
            outputs = batch["image"].to(torch.float16) / 4096
            before = gpu.counts()
            grid.add_batch(outputs, batch)
            counted = gpu.counts() - before
            assert counted.d2h_bytes == 2 * outputs.numel()
            assert (counted.pageable, counted.syncs) == (0, 1)


def test_outputs_that_are_no_numbers_are_refused_where_they_come_from_a_device(gpu, case, tmp_path):
    stream = vf.PatchStream(case["image"], vf.GridSampler(16, overlap=0.25))
    grid = vf.GridAggregator(tmp_path / "{case}-out.zarr", stream)
    batch = next(iter(stream.loader(batch_size=BATCH, device="cuda")))
    with pytest.raises(vf.errors.Damaged, match="NaN"):
        grid.add_batch(batch["image"] * float("nan"), batch)
    with pytest.raises(InvalidInput, match="never added"):
        grid.close()
