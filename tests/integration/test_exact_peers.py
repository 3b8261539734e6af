"""Exact inference with MONAI's and nnU-Net's networks is the network run on the whole volume."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import volflow as vf
from tests.peers import peer
from volflow.engine.cluster import connect
from volflow.errors import NoExactRule
from volflow.infer.method import SLACK_BYTES
from volflow.infer.predict import plan_predict

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:::monai")]
pytest.importorskip("monai", reason="MONAI comes with the extra peers")

SHAPE = (40, 25, 29)
OF_VNET = (32, 13, 15)  # its kernels of 5³ are slow in float64, and take memory
# Memory for a block, as a share of what the whole takes: too little for it in one piece.
SHARE, SHARE_OF_VNET = 0.15, 0.35

BLOCKS = re.compile(r"^blocks of (\d+)×(\d+)×(\d+)")

LEVELS = (4, 8, 8)
NETS = {
    "UNet": {"num_res_units": 2},
    "BasicUNet": {"features": (2, 2, 2, 2, 2, 2)},
    "SegResNet": {},
    "DynUNet": {},
    "AttentionUnet": {},
    "VNet": {},
    "PlainConvUNet": {},
    "ResidualEncoderUNet": {},
}


@pytest.fixture(scope="module")
def client():
    with connect("threads") as client:
        yield client


def made(name: str) -> nn.Module:
    """A network in float64 whose norms have known other values than those they begin with."""
    net = peer(name, LEVELS, **NETS[name]).double().eval()
    with torch.no_grad():
        for part, value in itertools.chain(net.named_buffers(), net.named_parameters()):
            if part.endswith(("running_mean", "running_var")) or value.ndim == 1:
                value.uniform_(0.5, 1.5)
    return net


@pytest.mark.parametrize("name", NETS)
def test_the_result_is_that_of_the_whole(tmp_path, client, name):
    net = made(name)
    shape, share = (OF_VNET, SHARE_OF_VNET) if name == "VNet" else (SHAPE, SHARE)
    scan = np.random.default_rng(0).normal(size=shape)
    halo = vf.halo(net, shape=shape)
    sides = zip(shape, halo.alignment, strict=True)
    padded = np.pad(scan, [(0, -n % a) for n, a in sides])
    with torch.inference_mode():
        whole = net(torch.from_numpy(padded)[None, None])[0].numpy()
    wanted = whole[(slice(None), *map(slice, shape))]
    out = tmp_path / "out.zarr"
    memory = SLACK_BYTES + int(share * halo.activation_bytes(padded.shape))
    options = {"blend": "exact", "memory": memory, "cluster": client}
    found = vf.predict(scan, net, out, progress=False, **options)
    passes = [fact for name, fact in plan_predict(scan, net, out, **options).facts]
    blocks = {tuple(map(int, sides)) for fact in passes for sides in BLOCKS.findall(fact)}
    assert min(map(math.prod, blocks)) < padded.size, "the volume was not cut"
    assert np.abs(found[:] - wanted).max() <= 1e-12 * np.ptp(wanted)


def test_attention_over_the_volume_is_refused():
    from monai.networks.nets import SwinUNETR

    net = SwinUNETR(1, 2, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)).eval()
    with pytest.raises(NoExactRule, match=r"^view in swinViT\.layers1.* mixes axes"):
        vf.halo(net, shape=(64, 64, 64))
