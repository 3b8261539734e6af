"""Devices have numbers, places and memory to give; their arithmetic is that of the precision."""

from __future__ import annotations

import fcntl
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import volflow as vf
from tests import nets
from volflow.errors import InvalidInput, MemoryRefused
from volflow.model import device as rooms
from volflow.model import places
from volflow.model.device import (
    arithmetic,
    device_memory,
    numbered,
    on_device,
    pick_device,
    timed,
)
from volflow.model.resident import ModelPlugin, held

CUDA = torch.device("cuda")


def in_a_thread(function):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


@pytest.fixture
def other(gpu, tmp_path):
    """Lets another process take a place on a device."""
    handles = []

    def take(number):
        name = torch.cuda.get_device_properties(number).uuid
        folder = tmp_path / f"volflow-devices-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        handles.append(os.open(folder / f"{name}.7", os.O_RDWR | os.O_CREAT))
        fcntl.flock(handles[-1], fcntl.LOCK_EX)

    yield take
    for handle in handles:
        os.close(handle)


class TestNumbers:
    def test_one_is_taken_where_nobody_else_works(self, other):
        other(0)
        assert numbered(CUDA) == torch.device("cuda:1")
        assert str(pick_device("cuda")) == "cuda"  # as journals name it: each process has its own
        assert numbered(torch.device("cuda:0")) == torch.device("cuda:0")
        assert numbered(torch.device("cpu")) == torch.device("cpu")

    def test_the_users_choice_holds_in_the_threads_of_a_run(self, gpu):
        torch.cuda.set_device(1)
        with held(ModelPlugin(torch.nn.Identity(), "chosen")):
            assert in_a_thread(lambda: numbered(CUDA)) == torch.device("cuda:1")

    def test_it_holds_for_an_array_that_is_computed_later(self, gpu):
        scan, net = np.ones((8, 8, 8), "float32"), nets.random_net()
        torch.cuda.set_device(1)
        lazy, before = vf.map_model(scan, net, patch=8, precision="float32"), gpu.counts()
        in_a_thread(lambda: lazy.compute(scheduler="synchronous"))
        used = (gpu.counts() - before).streams
        assert used
        assert all(stream.startswith("cuda:1") for stream in used)

    @pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
    def test_a_worker_takes_its_place_before_its_first_task(self, gpu, name):
        plugin = ModelPlugin(torch.nn.Identity(), "placed", name)
        plugin.setup(worker=object())
        try:
            assert list(places._places_here().locks) == [0]
        finally:
            plugin.teardown(worker=object())

    @pytest.mark.parametrize("name", ["cpu", "cuda:9", "toaster"])
    def test_no_other_does(self, gpu, name):
        plugin = ModelPlugin(torch.nn.Identity(), "elsewhere", name)
        plugin.setup(worker=object())
        plugin.teardown(worker=object())
        assert places._places_here().locks == {}

    def test_a_task_is_on_its_device(self, gpu):
        with on_device(torch.device("cuda:1")):
            assert torch.empty(1, device="cuda").device == torch.device("cuda:1")
        assert torch.empty(1, device="cuda").device == torch.device("cuda:0")

    def test_one_that_is_not_there_is_refused(self, gpu):
        with pytest.raises(InvalidInput, match="device 'cuda:9' cannot be used here: "):
            pick_device("cuda:9")


class TestMemory:
    def test_it_is_shared_by_the_processes_on_a_device(self, other):
        alone = device_memory(torch.device("cuda:0"), None)
        assert alone == int(rooms.SHARE * torch.cuda.mem_get_info(0)[0])
        other(0)
        assert device_memory(torch.device("cuda:0"), None) == int(
            rooms.SHARE * (torch.cuda.mem_get_info(0)[0] - rooms.CONTEXT_BYTES) / 2
        )
        assert device_memory(torch.device("cuda:0"), 10**9) == 10**9

    def test_what_torch_keeps_is_free(self, gpu):
        before = device_memory(CUDA, None)
        large = torch.empty(10**8, device="cuda")
        less = device_memory(CUDA, None)
        assert before - less >= 10**8
        del large
        assert torch.cuda.memory_reserved() >= 10**8
        assert device_memory(CUDA, None) >= before - 2**22

    def test_more_than_is_free_is_refused(self, gpu):
        with pytest.raises(MemoryRefused, match=r"^device_memory is 1 TiB, and cuda:1 has .* free"):
            device_memory(torch.device("cuda:1"), 2**40)


class TestArithmetic:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "tf32"])
    def test_it_is_that_of_the_precision(self, gpu, precision):
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        cudnn.benchmark, before = True, (cudnn.allow_tf32, matmul.allow_tf32)
        try:
            with arithmetic(CUDA, precision):
                assert cudnn.deterministic
                assert not cudnn.benchmark
                assert cudnn.enabled
                assert cudnn.allow_tf32 == (precision == "tf32")
                if hasattr(matmul, "fp32_precision"):
                    assert (matmul.fp32_precision == "tf32") == (precision == "tf32")
                low = precision in ("bfloat16", "float16")
                assert torch.is_autocast_enabled("cuda") == low
                assert not low or torch.get_autocast_dtype("cuda") == getattr(torch, precision)
            assert cudnn.benchmark
            assert not cudnn.deterministic
            assert (cudnn.allow_tf32, matmul.allow_tf32) == before
        finally:
            cudnn.benchmark = False

    @pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="before torch 2.9")
    @pytest.mark.parametrize("chosen", ["ieee", "tf32"])
    def test_what_a_user_set_for_one_op_by_its_newer_name_is_no_obstacle(self, gpu, chosen):
        conv = torch.backends.cudnn.conv
        before, conv.fp32_precision = conv.fp32_precision, chosen
        try:
            with arithmetic(CUDA, "float32"):
                assert conv.fp32_precision == "ieee"
            with arithmetic(CUDA, "tf32"):
                assert conv.fp32_precision == "tf32"
            assert conv.fp32_precision == chosen
        finally:
            conv.fp32_precision = before

    def test_it_is_put_back_after_an_error(self, gpu):
        before = torch.backends.cudnn.allow_tf32
        with pytest.raises(ZeroDivisionError), arithmetic(CUDA, "float32"):
            raise ZeroDivisionError
        assert torch.backends.cudnn.allow_tf32 == before


def test_time_is_that_of_the_device_once_it_is_warm(device):
    calls = []

    def run():
        calls.append(torch.cuda.current_device())
        return torch.zeros(10, device="cuda") + 1

    assert 0 <= timed(numbered(CUDA), run, most=2) < 10
    assert len(calls) == 3
