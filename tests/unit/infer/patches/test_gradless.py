"""A generator computes without gradients, and its consumer's mode is as it was."""

from __future__ import annotations

import pytest
import torch

from volflow.infer.patches.gradless import without_gradients


def steps(seen: list[bool]):
    try:
        for n in range(3):
            seen.append(torch.is_inference_mode_enabled())
            yield n
        seen.append(torch.is_inference_mode_enabled())
    finally:
        seen.append(True)  # it was closed


def test_each_step_has_the_mode_and_the_consumer_has_not():
    seen: list[bool] = []
    for n in without_gradients(steps(seen)):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        weight = torch.ones(1, requires_grad=True)
        (weight * n).backward()
    assert seen == [True] * 5


def test_a_consumer_that_stops_closes_it():
    seen: list[bool] = []
    rest = without_gradients(steps(seen))
    next(rest)
    rest.close()
    assert seen == [True, True]
    assert torch.is_grad_enabled()


def test_an_error_leaves_the_mode():
    def failing():
        yield 1
        raise KeyError("in a step")

    rest = without_gradients(failing())
    next(rest)
    with pytest.raises(KeyError):
        next(rest)
    assert not torch.is_inference_mode_enabled()
