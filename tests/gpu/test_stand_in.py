"""The stand-in catches what it must catch, and lets pass what is right."""

from __future__ import annotations

import pytest
import torch


def test_a_tensor_claims_its_device_and_refuses_others(gpu):
    x = torch.arange(6.0).to("cuda")
    y = torch.ones(6, device="cuda:1")
    assert x.device == torch.device("cuda:0")
    assert x.is_cuda
    assert y.device == torch.device("cuda:1")
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        x.numpy()
    for other in (y, torch.ones(6)):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
            x + other
    assert (x + torch.tensor(1.0)).tolist() == [1, 2, 3, 4, 5, 6]
