"""What an exact run adds to its process stays within `memory`, whatever the volume's size."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

MIB = 2**20
MEASURED = """
import torch
from torch import nn
from volflow.model.unet import UNet
from volflow.infer.predict import plan_predict

def meshnet():
    layers, before = [], 1
    for dilation in (1, 2, 4, 8, 1):
        layers += [nn.Conv3d(before, 8, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        before = 8
    return nn.Sequential(*layers, nn.Conv3d(8, 3, 1))

if __name__ == "__main__":
    small, scan, out, name, options = sys.argv[1:]
    options = json.loads(options)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    net = (meshnet() if name == "meshnet" else UNet(1, 3, (8, 16, 32), norm=name)).eval()
    with connect("threads") as client:
        options |= {"cluster": client, "blend": "exact"}
        vf.predict(small, net, out.replace(".zarr", "-small.zarr"), progress=False, **options)
        plan = plan_predict(scan, net, out, **options)
        report_growth(plan, lambda: vf.predict(scan, net, out, progress=False, **options))
"""


@pytest.fixture
def measured(tmp_path, grown, noise):
    """Runs a prediction after a first, small one: its plan, and by how much it grew."""
    rng = np.random.default_rng(0)

    def draw(shape):
        return rng.random(shape, "float32")

    def run(shape, network, **options):
        name = "x".join(map(str, shape))
        small = noise(f"{name}-small.zarr", (24, 24, 24), "float32", 32, draw)
        scan = noise(f"{name}.zarr", shape, "float32", 32, draw)
        out = str(tmp_path / f"{name}-out.zarr")
        return grown(MEASURED, small, scan, out, network, json.dumps(options))

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
@pytest.mark.parametrize(
    "network",
    [
        "instance",
        pytest.param("none", marks=pytest.mark.nightly),
        pytest.param("meshnet", marks=pytest.mark.nightly),
    ],
)
def test_growth_is_within_memory_however_large_the_volume(measured, network):
    options = {"memory": "200MiB", "chunk": 16, "shard": 16, "output": "classes"}
    for shape in ((64, 72, 64), (192, 72, 64)):
        found = measured(shape, network, **options)
        assert found["growth"] <= found["peak_bytes"] <= found["memory_bytes"] == 200 * MIB
