"""The devices that tests of the GPU path run on."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.stand_in import stand_in
from volflow.model import places, resident, search


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The stand-in: two devices, cuda:0 and cuda:1; at its end nothing may have raced.

    No other process has a place on it, and no trial was made on an earlier one. Its times mean
    nothing, so each forward takes as long as any other: the layout stays contiguous, and a batch
    grows while it fits.
    """
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(places, "_places", {})
    monkeypatch.setattr(resident, "_residents", {})
    monkeypatch.setattr(search, "timed", lambda device, run: 1.0 if run() else 2.0)
    with stand_in() as machine:
        yield machine
    for one in places._places.values():
        one.leave()


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.gpu)])
def device(request):
    """The name of a device: of the stand-in, and of a real one with ``-m gpu``.

    A test that counts asks for ``gpu`` alone, which is never a real one.
    """
    if request.param == "stand-in":
        request.getfixturevalue("gpu")
    elif not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return "cuda"
