"""What a plan of levels says of memory is true, whatever the volume's size."""

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
# The growth above the resident size after imports and a first, small pyramid.
MEASURED = """
import ctypes, gc, json, sys
from pathlib import Path
import volflow as vf
from volflow.engine.cluster import connect
from volflow.ops.pyramid import plan_pyramid

def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024

if __name__ == "__main__":
    small, volume, memory = sys.argv[1:]
    with connect("threads") as client:
        vf.pyramid(small, levels=2, cluster=client, progress=False)
        plan = plan_pyramid(volume, cluster=client, memory=memory)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        vf.pyramid(volume, cluster=client, memory=memory, progress=False)
        growth = resident("VmHWM") - before
    print(json.dumps({"growth": growth, **plan.to_dict()}))
"""


@pytest.fixture
def measured(tmp_path, root):
    """Makes levels in a process of its own: the plan, and by how much the process grew."""

    def stored(name, shape, dtype):
        volume = create(tmp_path / name, shape, dtype, Meta(), chunk=32, shard=128)
        rng = np.random.default_rng(0)
        for low in range(0, shape[0], 128):
            roi = Roi((low, 0, 0), (min(shape[0], low + 128), *shape[1:]))
            volume.write(roi, rng.random(roi.shape).astype(dtype))  # noise: nothing compresses
        return volume.path

    def run(shape, memory, dtype="float32"):
        small = stored(f"{shape[0]}-small.zarr", (40, 40, 40), dtype)
        volume = stored(f"{shape[0]}.zarr", shape, dtype)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, small, volume, memory],
            env={**os.environ, "PYTHONPATH": str(root)}, text=True, check=False,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
class TestGrowth:
    @pytest.mark.parametrize("memory", ["300MiB", "90MiB"])
    def test_is_within_the_plan_and_the_plan_within_memory(self, measured, memory):
        found = measured((256, 256, 256), memory)
        assert found["peak_bytes"] <= found["memory_bytes"]
        tasks = min(2, found["memory_bytes"] // found["peak_bytes"])
        assert found["growth"] <= max(1, tasks) * found["peak_bytes"]
        # And the plan is no idle guess.
        assert found["growth"] >= found["peak_bytes"] / 6

    def test_does_not_follow_the_volume(self, measured):
        small = measured((256, 256, 256), "110MiB")
        large = measured((768, 256, 256), "110MiB")
        assert large["peak_bytes"] == small["peak_bytes"]
        assert large["growth"] <= large["peak_bytes"]
        # Input and output together are 144 MiB larger.
        assert large["growth"] <= small["growth"] + 25 * MIB
