"""What a plan of levels says of memory is true, whatever the volume's size."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

MIB = 2**20
MEASURED = """
from volflow.volumes.pyramid.pyramid import plan_pyramid

if __name__ == "__main__":
    small, volume, memory = sys.argv[1:]
    with connect("threads") as client:
        options = {"cluster": client, "memory": memory}
        vf.pyramid(small, levels=2, cluster=client, progress=False)
        plan = plan_pyramid(volume, **options)
        report_growth(plan, lambda: vf.pyramid(volume, progress=False, **options))
"""


@pytest.fixture
def measured(grown, noise):
    """Makes levels after a first, small pyramid: the plan, and by how much the process grew."""
    draw = np.random.default_rng(0).random  # nothing compresses

    def run(shape, memory, dtype="float32"):
        small = noise(f"{shape[0]}-small.zarr", (40, 40, 40), dtype, 128, draw)
        volume = noise(f"{shape[0]}.zarr", shape, dtype, 128, draw)
        return grown(MEASURED, small, volume, memory)

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
        # What a process grows by within its plan is chance; the input alone has 192 MiB.
        assert large["growth"] <= large["peak_bytes"] <= 110 * MIB
