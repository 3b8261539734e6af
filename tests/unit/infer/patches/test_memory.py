"""What a plan says of memory is true: of the process that runs it, whatever the volume's size."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch

from volflow.infer.predict import plan_predict

pytestmark = pytest.mark.slow

MIB = 2**20
MEASURED = """
import torch
from volflow.infer.predict import plan_predict

if __name__ == "__main__":
    small, scan, out, options = sys.argv[1:]
    options = json.loads(options)
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, 2, 3, padding=1)
    with connect("threads") as client:
        options |= {"cluster": client}
        vf.predict(small, net, out.replace(".zarr", "-small.zarr"), progress=False, **options)
        plan = plan_predict(scan, net, out, **options)
        report_growth(plan, lambda: vf.predict(scan, net, out, progress=False, **options))
"""


@pytest.fixture
def measured(tmp_path, grown, noise):
    """Runs a prediction after a first, small one: its plan, and by how much it grew."""
    rng = np.random.default_rng(0)

    def draw(shape):
        return rng.integers(0, 9, shape)

    def run(shape, dtype="float32", **options):
        small = noise(f"{shape[0]}-small.zarr", (32, 48, 48), dtype, 64, draw)
        scan = noise(f"{shape[0]}.zarr", shape, dtype, 64, draw)
        out = str(tmp_path / f"{shape[0]}-out.zarr")
        return grown(MEASURED, small, scan, out, json.dumps(options))

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
class TestGrowth:
    @pytest.mark.parametrize("memory", ["300MiB", "130MiB"])
    @pytest.mark.parametrize(
        "options",
        [{"blend": "gaussian"}, {"blend": "crop", "dtype": "uint8", "activation": "softmax"}],
    )
    def test_is_within_the_plan_and_the_plan_within_memory(self, measured, memory, options):
        found = measured((128, 256, 256), patch=32, memory=memory, **options)
        assert found["memory_bytes"] == int(memory.removesuffix("MiB")) * MIB
        assert found["growth"] <= found["peak_bytes"] <= found["memory_bytes"]
        # And the plan is no idle guess.
        assert found["growth"] >= found["peak_bytes"] / 6

    def test_does_not_follow_the_volume(self, measured):
        """How far reading runs ahead and writing behind is chance, so only bounds are compared."""
        shape, channels = (960, 160, 160), 2
        found = measured(shape, patch=32, memory="250MiB", chunk=32, shard=32)
        stored = (1 + channels) * math.prod(shape) * np.dtype("float32").itemsize
        assert found["growth"] <= found["peak_bytes"] < stored / 2


def test_the_plan_does_not_follow_the_volume(tmp_path, noise, monkeypatch):
    """What a trial forward takes is measured, and other threads add to it: here it is set."""
    monkeypatch.setattr("volflow.model.trial.mark_peak", lambda device: 0)
    monkeypatch.setattr("volflow.model.trial.read_peak", lambda device: 2**24)
    net = torch.nn.Conv3d(1, 2, 3, padding=1)
    options = {"patch": 32, "memory": "250MiB", "chunk": 32, "shard": 32, "cluster": "threads"}
    peaks = []
    for depth in (160, 640):
        scan = noise(f"{depth}.zarr", (depth, 160, 160), "float32", depth, np.zeros)
        peaks.append(plan_predict(scan, net, tmp_path / "out.zarr", **options).peak_bytes)
    assert peaks[0] == peaks[1]
