"""The devices that tests of the GPU path run on."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.stand_in import stand_in


@pytest.fixture
def gpu():
    """The stand-in: two devices, cuda:0 and cuda:1; at its end nothing may have raced."""
    with stand_in() as machine:
        yield machine


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
