"""Tiny networks are computed on one thread, as more cost more than they gain, and drawn alike."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _drawn_alike():
    """The weights of a test's networks do not depend on the tests before it."""
    torch.manual_seed(0)
