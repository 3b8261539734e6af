"""What a plan says of memory is true: of the process that runs it, whatever the volume's size."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from volflow.geometry.roi import Roi
from volflow.store.create import create
from volflow.store.meta import Meta

pytestmark = pytest.mark.slow

MIB = 2**20
# The growth above the resident size after imports and a first, small prediction.
MEASURED = """
import ctypes, gc, json, sys
from pathlib import Path
import torch
import volflow as vf
from volflow.engine.cluster import connect
from volflow.ops.predict import plan_predict

def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024

if __name__ == "__main__":
    small, scan, out, options = sys.argv[1:]
    options = json.loads(options)
    torch.manual_seed(0)
    net = torch.nn.Conv3d(1, 2, 3, padding=1)
    with connect("threads") as client:
        vf.predict(small, net, out + ".small", cluster=client, progress=False, **options)
        plan = plan_predict(scan, net, out, cluster=client, **options)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        vf.predict(scan, net, out, cluster=client, progress=False, **options)
        growth = resident("VmHWM") - before
    print(json.dumps({"growth": growth, **plan.to_dict()}))
"""


@pytest.fixture
def measured(tmp_path, root):
    """Runs a prediction in a process of its own: its plan, and by how much it grew."""

    def stored(name, shape, dtype):
        volume = create(tmp_path / name, shape, dtype, Meta(), chunk=32, shard=64)
        rng = np.random.default_rng(0)
        for low in range(0, shape[0], 64):
            roi = Roi((low, 0, 0), (min(shape[0], low + 64), *shape[1:]))
            volume.write(roi, rng.integers(0, 9, roi.shape).astype(dtype))
        return volume.path

    def run(shape, dtype="float32", **options):
        small = stored(f"{shape[0]}-small.zarr", (32, 48, 48), dtype)
        scan = stored(f"{shape[0]}.zarr", shape, dtype)
        out = str(tmp_path / f"{shape[0]}-out.zarr")
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, small, scan, out, json.dumps(options)],
            env={**os.environ, "PYTHONPATH": str(root)}, text=True, check=False,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

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
        options = {"patch": 32, "memory": "250MiB", "chunk": 32, "shard": 32}
        small = measured((160, 160, 160), **options)
        large = measured((640, 160, 160), **options)
        assert large["peak_bytes"] == pytest.approx(small["peak_bytes"], rel=0.05)
        assert large["growth"] <= large["peak_bytes"]
        # Input and output together are 141 MiB larger.
        assert large["growth"] <= small["growth"] + 20 * MIB
