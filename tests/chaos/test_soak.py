"""Hours of small forwards with a thread busy in Python beside them: nothing is taken for dead.

``VOLFLOW_SOAK_S`` shortens the hour of each.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

import volflow as vf

pytestmark = [pytest.mark.chaos, pytest.mark.nightly]

SOAK_S = float(os.environ.get("VOLFLOW_SOAK_S", 3600))
SIDE, PATCH = 256, 16


class Counted(torch.nn.Module):
    """A small network that notes the first voxel of each patch that it sees."""

    def __init__(self, notes: str) -> None:
        super().__init__()
        self.notes = notes
        self.conv = torch.nn.Conv3d(1, 4, 3, padding=1)

    def forward(self, x):
        file = os.open(self.notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, x[:, 0, 0, 0, 0].to(torch.int64).numpy().tobytes())
        os.close(file)
        return self.conv(x / SIDE**3)


@pytest.fixture
def busy():
    """A thread that holds Python's lock as long as it may."""
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(100_000))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


@pytest.mark.parametrize("cluster", ["threads", 2])
def test_an_hour_without_a_retry(cluster, busy, tmp_path, record_property):
    # Each voxel is its own number, from 1: a patch is known by its first one.
    scan = 1 + np.arange(SIDE**3, dtype="float32").reshape((SIDE,) * 3)
    corners = scan[::PATCH, ::PATCH, ::PATCH].ravel().astype(np.int64)
    volume = vf.convert(scan, tmp_path / "scan.zarr", progress=False)
    retries: list[int] = []
    runs = patches = 0
    end_s = time.monotonic() + SOAK_S
    while time.monotonic() < end_s:
        notes = tmp_path / f"notes-{runs}"
        result = vf.predict(
            volume, Counted(str(notes)), tmp_path / "out.zarr", patch=PATCH, overlap=0,
            batch_size=1, cluster=cluster, overwrite=True,
            progress=lambda state: retries.append(state.retries) if state.retries else None,
        )  # fmt: skip
        seen = Counter(np.fromfile(notes, np.int64).tolist())
        again = {c: seen[c] for c in corners.tolist() if seen[c] != 1}
        assert not again
        assert vf.verify(result.path).ok
        runs, patches = runs + 1, patches + len(corners)
        Path(notes).unlink()
        sys.stderr.write(f"{cluster}: {runs} runs, {patches} patches, {len(retries)} retries\n")
    record_property("patches", patches)
    assert retries == []
