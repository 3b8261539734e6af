"""What a device has to give, and how long it takes."""

from __future__ import annotations

import time

import torch

from volflow.model.device import device_memory, timed

CPU = torch.device("cpu")


def test_a_cpu_has_no_memory_of_its_own():
    assert device_memory(CPU, None) == device_memory(CPU, 2**20) == 0


class TestTimed:
    def test_the_fastest_call_counts(self):
        waits = iter([0.03, 0.0, 0.02])
        assert timed(CPU, lambda: time.sleep(next(waits))) < 0.02

    def test_what_takes_long_is_called_once(self):
        calls = []
        timed(CPU, lambda: calls.append(time.sleep(0.01)), most=5, long_s=0.001)
        assert len(calls) == 1
