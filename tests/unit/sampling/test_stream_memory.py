"""Memory of a stream: within its plan, the plan within the budget, and flat as the volume grows."""

from __future__ import annotations

import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

MIB = 2**20
MEASURED = """
from volflow.sampling.epoch import superchunks

superchunks.HELD_VOXELS = 128**3

if __name__ == "__main__":
    small, volume, memory = sys.argv[1:]

    def stream(path, patches, **options):
        return vf.PatchStream(path, vf.UniformSampler(32), patches, lanes=2, **options)

    def drain(stream):
        for batch in stream.loader(4):
            pass

    drain(stream(small, 50))
    measured = stream(volume, 4000, reuse=1, memory=memory)
    report_growth(measured.plan, lambda: drain(measured))
"""


TINY = """
if __name__ == "__main__":
    (volume,) = sys.argv[1:]
    stream = vf.PatchStream(volume, vf.UniformSampler(16), 200, memory="32MiB", threads=4)
    report_growth(stream.plan, lambda: [batch for batch in stream.loader(4)][:0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_a_tiny_volume_needs_little(grown, noise):
    """It was projected at 48 MiB for each of four threads, and 48 more."""
    run = grown(TINY, noise("tiny.zarr", (40, 40, 40), "uint16", 64, np.zeros))
    assert run["growth"] <= run["peak_bytes"] <= 32 * MIB


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_is_within_the_plan_and_does_not_follow_the_volume(grown, noise):
    rng = np.random.default_rng(0)

    def draw(shape):
        return rng.integers(0, 2000, shape)

    small = noise("small.zarr", (40, 40, 40), "uint16", 128, draw)
    found = []
    for depth in (256, 2048):
        volume = noise(f"{depth}.zarr", (depth, 256, 256), "uint16", 128, draw)
        found.append(grown(MEASURED, small, volume, "200MiB"))
    for run in found:
        assert run["peak_bytes"] <= run["memory_bytes"]
        assert run["growth"] <= run["peak_bytes"]
        assert run["growth"] >= run["peak_bytes"] / 6  # the plan is no idle guess
    # What a process grows by within its plan is chance; the second volume has 256 MiB.
    assert found[1]["peak_bytes"] == found[0]["peak_bytes"] < 200 * MIB
