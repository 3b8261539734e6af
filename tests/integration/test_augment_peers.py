"""Transforms of MONAI, TorchIO and kornia take our place: a batch in, a batch out."""

from __future__ import annotations

import warnings
from functools import reduce

import pytest
import torch

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
