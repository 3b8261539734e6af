"""What a plan of `resample` says of memory is true, whatever the volume's size and the layout."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

MIB = 2**20
MEASURED = """
from dataclasses import replace

def known(path):
    volume = vf.open(path)
    return replace(volume, meta=replace(volume.meta, unit="millimeter"))

if __name__ == "__main__":
    small, volume, out, memory, spacing, order = sys.argv[1:]
    asked = {"spacing": float(spacing), "order": int(order)}
    small, volume = known(small), known(volume)
    with connect("threads") as client:
        options = {"cluster": client, "memory": memory, **asked}
        vf.resample(small, out + "small.zarr", cluster=client, progress=False, **asked)
        plan = vf.plan_resample(volume, out, **options)
        report_growth(plan, lambda: vf.resample(volume, out, progress=False, **options))
"""


@pytest.fixture
def measured(grown, noise, tmp_path):
    """Resamples after a first, small volume: the plan, and by how much the process grew."""
    draw = np.random.default_rng(0).random  # nothing compresses

    def run(shape, memory, spacing, order, dtype="float32"):
        small = noise(f"{shape[0]}-small.zarr", (40, 40, 40), dtype, 128, draw)
        volume = noise(f"{shape[0]}.zarr", shape, dtype, 128, draw)
        out = tmp_path / f"{shape[0]}-out.zarr"
        return grown(MEASURED, small, volume, str(out), memory, str(spacing), str(order))

    return run


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
class TestGrowth:
    @pytest.mark.parametrize(
        ("memory", "spacing", "order"),
        [("400MiB", 1.5, 1), ("160MiB", 0.8, 3), ("120MiB", 1.5, 3), ("100MiB", 0.8, 0)],
    )
    def test_is_within_the_plan_and_the_plan_within_memory(self, measured, memory, spacing, order):
        found = measured((256, 256, 256), memory, spacing, order)
        assert found["peak_bytes"] <= found["memory_bytes"]
        tasks = min(2, found["memory_bytes"] // found["peak_bytes"])
        assert found["growth"] <= max(1, tasks) * found["peak_bytes"]
        # And the plan is no idle guess.
        assert found["growth"] >= found["peak_bytes"] / 6

    def test_does_not_follow_the_volume(self, measured):
        small = measured((256, 256, 256), "150MiB", 1.4, 3)
        large = measured((768, 256, 256), "150MiB", 1.4, 3)
        assert large["peak_bytes"] <= 1.1 * small["peak_bytes"]
        # What a process grows by within its plan is chance; the input alone has 192 MiB.
        assert large["growth"] <= large["peak_bytes"] <= 150 * MIB
