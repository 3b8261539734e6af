"""A network is as good on cases of another spacing as on those that it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

import volflow as vf

pytestmark = pytest.mark.nightly

TRAINED, HELD_OUT, STEPS, BATCH = 60, 8, 240, 4
ANEW = {"overwrite": True, "progress": False}


def trained(cases, folder):
    """A small U-Net, trained on patches of hippocampi for two minutes."""
    torch.manual_seed(0)
    net = vf.UNet(1, 3, features=(12, 24, 48))
    stream = vf.PatchStream(
        vf.convert_cases(cases, folder / "cases", progress=False), vf.LabelSampler(32),
        patches_per_epoch=STEPS * BATCH, reuse=4, memory="1GiB", seed=0, normalize="zscore",
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for batch in stream.loader(batch_size=BATCH):
        scores, label = net(batch["image"]), batch["label"][:, 0].long()
        shares, truth = scores.softmax(1), one_hot(label, 3).permute(0, 4, 1, 2, 3)
        both, all_ = (shares * truth).sum((2, 3, 4)), (shares + truth).sum((2, 3, 4))
        loss = cross_entropy(scores, label) + 1 - ((2 * both + 1) / (all_ + 1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return vf.save_model(
        net, folder / "bundle", patch=32, spacing=[1, 1, 1], unit="millimeter",
        normalize="zscore", activation="softmax", output="classes",
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of the scheduler's first step
def test_hippocampi(shared_data, tmp_path):
    data = shared_data("hippocampus_msd")
    labels = sorted(p.name for p in (data / "labels").glob("*.nii*"))
    names = [name for name in labels if (data / "images" / name).exists()]
    held_out = names[:: len(names) // HELD_OUT][:HELD_OUT]
    cases = {
        name.partition(".")[0]: {what: str(data / f"{what}s" / name) for what in ("image", "label")}
        for name in names
        if name not in held_out
    }
    bundle = trained(dict(list(cases.items())[:TRAINED]), tmp_path)
    found: dict[float, list[tuple[float, float]]] = {}

    def score(spacing, scan, truth):
        seg = vf.predict(scan, bundle, tmp_path / "seg.zarr", **ANEW)
        dice = vf.evaluate(seg, truth, distances=False, progress=False).dice
        found.setdefault(spacing, []).append((dice[1], dice[2]))

    for name in held_out:
        scan = vf.convert(data / "images" / name, tmp_path / "scan.zarr", **ANEW)
        truth = vf.convert(data / "labels" / name, tmp_path / "truth.zarr", labels=True, **ANEW)
        score(1.0, scan, truth)
        for spacing in (0.7, 0.8, 1.25):
            other = vf.resample(scan, tmp_path / "o.zarr", spacing=spacing, order=3, **ANEW)
            score(spacing, other, vf.resample(truth, tmp_path / "t.zarr", like=other, **ANEW))
    means = {spacing: np.mean(dice, axis=0) for spacing, dice in found.items()}
    print({spacing: mean.round(4).tolist() for spacing, mean in means.items()})  # noqa: T201
    assert means[1.0].min() > 0.8
    for spacing in (0.7, 0.8):
        assert abs(means[spacing] - means[1.0]).max() < 0.01
    # Voxels of twice the size hold less: borders are theirs.
    assert abs(means[1.25] - means[1.0]).max() < 0.03
