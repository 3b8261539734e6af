"""Transforms of MONAI, TorchIO, batchgeneratorsv2 and kornia take our place."""

from __future__ import annotations

import warnings
from functools import reduce

import numpy as np
import pytest
import torch

import volflow as vf
from volflow.errors import InvalidInput
from volflow.sampling.augment.augment import Augment

pytestmark = pytest.mark.peers


def quiet(module):
    """Import a peer, or skip; warnings of its import are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module)


def batch_of(count=3):
    source = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(count, 1, 8, 8, 8, generator=source),
        "label": torch.randint(0, 3, (count, 1, 8, 8, 8), generator=source),
        "location": torch.zeros(count, 6, dtype=torch.int64),
        "case": ["a", "b", "c"][:count],
        "key": torch.arange(count),
    }


def check(steps, given):
    """As a stream applies a sequence of callables."""
    batch = reduce(lambda so_far, step: step(so_far), steps, given)
    assert set(batch) == set(given)
    for name in ("image", "label"):
        assert batch[name].shape == given[name].shape
        assert batch[name].dtype == given[name].dtype
    assert batch["case"] == given["case"]
    return batch


def test_monai_by_sample():
    quiet("monai")
    from monai.transforms import Compose, RandFlipd, RandGaussianNoised

    transform = Compose(
        [
            RandFlipd(keys=["image", "label"], prob=1, spatial_axis=0),
            RandGaussianNoised(keys=["image"], prob=1, std=0.01),
        ]
    ).set_random_state(0)

    def peer(batch):
        names = ("image", "label")
        samples = [
            transform(dict(zip(names, sample, strict=True)))
            for sample in zip(*(batch[name] for name in names), strict=True)
        ]
        return {**batch, **{n: torch.stack([s[n].as_tensor() for s in samples]) for n in names}}

    given = batch_of()
    batch = check([peer], given)
    assert torch.equal(batch["label"], given["label"].flip(2))
    assert torch.allclose(batch["image"], given["image"].flip(2), atol=0.1)
    check([Augment(rotate=10), peer], given)


def test_torchio_by_sample():
    tio = quiet("torchio")
    transform = tio.RandomFlip(axes=(0, 1, 2), flip_probability=1)

    def peer(batch):
        subjects = [
            transform(tio.Subject(image=tio.ScalarImage(tensor=i), label=tio.LabelMap(tensor=k)))
            for i, k in zip(batch["image"], batch["label"], strict=True)
        ]
        return {
            **batch,
            **{name: torch.stack([s[name].data for s in subjects]) for name in ("image", "label")},
        }

    given = batch_of()
    batch = check([peer], given)
    for name in ("image", "label"):
        assert torch.equal(batch[name], given[name].flip(2, 3, 4))
    check([peer, Augment(noise=0.1)], given)


def test_kornia_by_batch():
    kornia = quiet("kornia.augmentation")
    transform = kornia.RandomDepthicalFlip3D(p=1.0)
    given = batch_of()
    batch = check([lambda b: {**b, "image": transform(b["image"])}, Augment(flip=0)], given)
    assert torch.equal(batch["image"], given["image"].flip(2))


def monai_transforms():
    monai = quiet("monai.transforms")
    names = ["image", "label"]
    return monai.Compose(
        [monai.RandFlipd(names, prob=0.5), monai.RandGaussianNoised(["image"], prob=1, std=0.1)]
    )


def torchio_transforms():
    tio = quiet("torchio")
    return tio.Compose(
        [tio.RandomFlip(axes=(1, 2)), tio.RandomAffine(p=0.5), tio.RandomNoise(std=0.1)]
    )


def batchgenerators_transforms():
    quiet("batchgeneratorsv2")
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms

    return ComposeTransforms([MirrorTransform((0, 1)), GaussianNoiseTransform((0.01, 0.02))])


GIVEN = [monai_transforms, torchio_transforms, batchgenerators_transforms]


@pytest.mark.parametrize("patch", [(8, 8, 8), (1, 8, 8)])
@pytest.mark.parametrize("make", GIVEN)
def test_given_directly_they_follow_the_keys_and_move_all_arrays_together(make, patch):
    scan = np.random.default_rng(0).integers(0, 4, (20, 20, 20)).astype("u1")
    case = {"image": scan, "label": scan, "extra": scan}

    def batches(batch_size, augment):
        stream = vf.PatchStream(
            case, vf.UniformSampler(patch), 24, augment=augment, classes=["label"]
        )
        return list(stream.loader(batch_size))

    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    (whole,) = batches(24, make())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    torch.rand(3), np.random.rand(3)
    parts = batches(5, make())
    for name in ("image", "label", "extra"):
        assert torch.equal(whole[name], torch.cat([part[name] for part in parts]))
    (plain,) = batches(24, None)
    assert whole["image"].shape == plain["image"].shape
    assert whole["label"].dtype == torch.int64
    changed = (whole["label"] != plain["label"]).flatten(1).any(1)
    assert 0 < changed.sum() < 24
    if make is not torchio_transforms:  # whose affine interpolates
        assert ((whole["image"] - whole["label"]).abs() < 1).float().mean() > 0.99


def test_array_transforms_of_monai_change_the_image_only():
    monai = quiet("monai.transforms")
    scan = np.arange(512, dtype="i2").reshape(8, 8, 8)
    stream = vf.PatchStream(
        {"image": scan, "label": scan}, vf.UniformSampler(8), 4, augment=monai.Flip(0)
    )
    (batch,) = stream.loader(4)
    assert torch.equal(batch["image"].flip(2), batch["label"].float())


def test_what_cuts_several_patches_is_refused():
    monai = quiet("monai.transforms")
    crops = monai.RandSpatialCropSamplesd(["image"], 4, num_samples=2)
    stream = vf.PatchStream(np.zeros((8, 8, 8), "f4"), vf.UniformSampler(8), 4, augment=crops)
    with pytest.raises(InvalidInput, match=r"RandSpatialCropSamplesd must give one sample .* list"):
        list(stream.loader(4))
