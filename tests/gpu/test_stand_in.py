"""The stand-in refuses what a CUDA device refuses, does what it does, and counts it."""

from __future__ import annotations

import copy
import pickle
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from tests.gpu.stand_in import stand_in

SAME_DEVICE = "Expected all tensors to be on the same device"


def during(gpu, work):
    """What a piece of work added to the counts."""
    before = gpu.counts()
    work()
    return gpu.counts() - before


class TestDevices:
    def test_a_tensor_claims_its_device(self, gpu):
        x, y = torch.arange(6.0).to("cuda"), torch.ones(6, device="cuda:1")
        assert (x.device, y.device) == (torch.device("cuda:0"), torch.device("cuda:1"))
        assert (x.is_cuda, x.is_cpu, x.is_meta, x.get_device()) == (True, False, False, 0)
        assert torch.zeros_like(y).device == y.new_zeros(2).device == y[2:].device == y.device

    def test_there_are_two_and_no_more(self, gpu):
        assert torch.cuda.is_available()
        assert torch.cuda.device_count() == 2
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.empty(1, device="cuda:2")

    def test_cuda_without_a_number_is_the_current_one(self, gpu):
        with torch.cuda.device(1):
            assert torch.cuda.current_device() == 1
            assert torch.ones(1, device="cuda").device == torch.device("cuda:1")
            assert torch.ones(1).cuda().device == torch.device("cuda:1")
            assert torch.cuda.current_stream().device == torch.device("cuda:1")
        assert torch.tensor([1.0], device="cuda").device == torch.device("cuda:0")
        torch.cuda.set_device(1)
        assert torch.as_tensor(np.ones(1), device="cuda").device == torch.device("cuda:1")
        torch.cuda.set_device("cuda:0")

    def test_numpy_is_refused_unless_forced(self, gpu):
        x = torch.arange(3.0, device="cuda")
        for asked in (x.numpy, lambda: np.asarray(x)):
            with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
                asked()
        assert x.numpy(force=True).tolist() == x.cpu().numpy().tolist() == x.tolist() == [0, 1, 2]

    def test_tensors_of_several_devices_are_not_mixed(self, gpu):
        x = torch.ones(6, device="cuda")
        for other in (torch.ones(6), torch.ones(6, device="cuda:1")):
            with pytest.raises(RuntimeError, match=SAME_DEVICE):
                x + other
            with pytest.raises(RuntimeError, match=SAME_DEVICE):
                torch.cat([other, x])
            with pytest.raises(RuntimeError, match=SAME_DEVICE):
                torch.add(x, x, out=other)

    def test_numbers_are(self, gpu):
        x = torch.ones(3, device="cuda")
        assert (x + torch.tensor(1.0)).tolist() == [2, 2, 2]
        assert torch.where(x > 0, x, 0.0).tolist() == [1, 1, 1]

    def test_moving_to_where_it_is_does_nothing(self, gpu):
        x = torch.ones(3, device="cuda")
        assert x.to("cuda") is x.to(torch.device("cuda:0")) is x.cuda() is x.to(x) is x
        assert x.to("cuda", copy=True) is not x
        assert during(gpu, lambda: x.to("cuda", torch.float32)).of == {}

    def test_properties_are_told(self, gpu):
        found = torch.cuda.get_device_properties(1)
        assert found.total_memory == torch.cuda.mem_get_info(1)[1] == 8 * 10**9
        assert found.multi_processor_count > 0
        assert str(found.uuid) != str(torch.cuda.get_device_properties(0).uuid)
        assert found.name == torch.cuda.get_device_name("cuda:1")

    def test_bfloat16_is_as_was_asked(self):
        for wanted in (False, True):
            with stand_in(bfloat16=wanted):
                assert torch.cuda.is_bf16_supported(including_emulation=False) is wanted
                assert torch.cuda.is_bf16_supported()

    def test_nothing_stays_when_it_ends(self):
        owners = (torch.cuda, torch.cuda.memory, torch.Tensor, torch, threading.Thread)
        before = [dict(vars(owner)) for owner in owners]
        with stand_in():
            assert torch.cuda.is_available()
        assert [dict(vars(owner)) for owner in owners] == before
        assert not torch.cuda.is_available()
        assert torch.ones(1).to("cpu").numpy() == 1


class TestOps:
    def test_a_network_computes_what_it_computes_on_the_cpu(self, gpu):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ReLU(), nn.MaxPool3d(2),
            nn.ConvTranspose3d(4, 2, 2, 2), nn.BatchNorm3d(2), nn.Softmax(1),
        ).eval()  # fmt: skip
        there = copy.deepcopy(net).to("cuda")
        image = torch.rand(2, 1, 8, 8, 8)
        for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
            with mode():
                assert torch.equal(there(image.cuda()).cpu(), net(image))

    def test_modules_are_moved_copied_and_pickled(self, gpu):
        net = nn.Linear(2, 2).to("cuda:1")
        for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert isinstance(one.weight, nn.Parameter)
            assert one.weight.device == torch.device("cuda:1")
            assert one.weight.requires_grad
            assert torch.equal(one.weight.cpu(), net.weight.cpu())
        assert type(net.cpu().weight) is nn.Parameter

    def test_training_works(self, gpu):
        net = nn.Linear(3, 1).cuda()
        step = torch.optim.SGD(net.parameters(), 0.1)
        before = net.weight.tolist()
        net(torch.ones(2, 3, device="cuda")).square().mean().backward()
        step.step()
        assert net.weight.tolist() != before

    def test_inference_tensors_are_such(self, gpu):
        with torch.inference_mode():
            x = torch.ones(3).cuda()
        assert x.is_inference()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            (torch.ones(3, device="cuda", requires_grad=True) * x).sum()

    def test_views_share_memory_and_copies_do_not(self, gpu):
        x = torch.zeros(2, 3, 4, device="cuda")
        held = torch.cuda.memory_allocated()
        x.permute(2, 0, 1)[1].fill_(1)
        torch.moveaxis(x, 1, 0)[0, :, 2] += 4
        first, second = torch.split(x, 1)
        second[...] = 7
        x[0, 0, 0] = 5
        assert torch.cuda.memory_allocated() == held
        assert x[0].tolist() == [[5, 1, 4, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
        assert first.shape == (1, 3, 4)
        assert x[1].unique().tolist() == [7]

    def test_indices_masks_and_out(self, gpu):
        x = torch.arange(4.0, device="cuda")
        x[torch.tensor([0, 3])] = torch.tensor([7.0, 8.0], device="cuda")
        x[x == 1] = 0.0
        x.index_put_((torch.tensor([1], device="cuda"),), torch.tensor(2.0), accumulate=True)
        out = torch.empty(4, device="cuda")
        assert torch.multiply(x, x, out=out) is out
        assert out.tolist() == [49, 4, 4, 64]
        assert x[x > 2].tolist() == [7, 8]

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
    def test_what_torch_makes_on_the_way_is_on_the_device(self, gpu, mode):
        with mode():
            x = torch.arange(4.0, device="cuda")
            assert torch.quantile(x, 0.5).item() == 1.5
            assert nn.functional.one_hot(x.long()).tolist() == torch.eye(4).tolist()
            assert nn.functional.cross_entropy(x[None], x[1:2].long()).is_cuda
            assert torch.ones(2, device="meta").is_meta

    def test_out_may_grow_and_axes_may_swap_in_place(self, gpu):
        out = torch.empty(0, device="cuda")
        torch.add(torch.ones(2, 3, device="cuda"), 1, out=out)
        assert out.tolist() == [[2, 2, 2], [2, 2, 2]]
        assert out.t_().shape == (3, 2)
        assert out.unsqueeze_(0).shape == (1, 3, 2)

    def test_memory_formats_are_kept(self, gpu):
        x = torch.rand(1, 2, 3, 4, 5).cuda().to(memory_format=torch.channels_last_3d)
        assert x.is_contiguous(memory_format=torch.channels_last_3d)
        assert (x + 1).stride() == x.stride() == x.cpu().stride() == (120, 1, 40, 10, 2)

    @pytest.mark.parametrize("name", ["uint8", "uint16", "uint32", "int16", "bool", "float64"])
    def test_stored_dtypes_are_cast_on_the_device(self, gpu, name):
        stored = np.arange(6).astype(name)
        there = torch.from_numpy(stored).cuda()
        found = during(gpu, lambda: there.to(torch.float32))
        assert (found.kernels, found.h2d) == (1, 0)
        assert there.to(torch.float32).tolist() == stored.astype("float32").tolist()

    @pytest.mark.parametrize("bfloat16", [True, False])
    def test_autocast_casts_where_the_device_can(self, bfloat16):
        net = nn.Sequential(nn.Conv3d(1, 2, 1), nn.InstanceNorm3d(2), nn.ReLU(), nn.Softmax(1))
        with (
            stand_in(bfloat16=bfloat16),
            torch.inference_mode(),
            torch.autocast("cuda", dtype=torch.bfloat16),
        ):
            there = copy.deepcopy(net).cuda()
            image = torch.rand(1, 1, 2, 2, 2, device="cuda")
            assert there[:3](image).dtype == (torch.bfloat16 if bfloat16 else torch.float32)
            assert there(image).dtype == torch.float32

    def test_switches_that_leave_numbers_open_are_counted(self, gpu):
        there = nn.Conv3d(1, 1, 1).cuda()
        image = torch.rand(1, 1, 2, 2, 2, device="cuda")
        assert during(gpu, lambda: there(image)).by_kind("loose") == {"tf32": 1, "undetermined": 1}
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            assert during(gpu, lambda: there(image)).loose == 0
        with torch.backends.cudnn.flags(deterministic=True, allow_tf32=False):
            found = during(gpu, lambda: there(image)).by_kind("loose")
        assert found == {"no cudnn": 1}

    def test_memory_that_nobody_wrote_is_no_number(self, gpu):
        assert torch.empty(3, device="cuda").isnan().all()
        assert torch.empty(3, pin_memory=True).isnan().all()
        assert torch.empty(2, dtype=torch.uint8, device="cuda").tolist() == [91, 91]

    def test_random_numbers_follow_their_generator(self, gpu):
        source = torch.Generator("cuda").manual_seed(3)
        first = torch.randn(4, generator=source, device="cuda")
        again = torch.randn(4, generator=source.manual_seed(3), device="cuda")
        assert torch.equal(first, again)


class TestThreads:
    def test_threads_that_start_see_the_devices(self, gpu):
        found = queue.Queue()

        class Own(threading.Thread):
            def run(self):
                found.put(torch.zeros(2, device="cuda:1").device)

        plain = threading.Thread(target=lambda: found.put(torch.ones(2).cuda().device))
        for thread in (Own(), plain):
            thread.start()
            thread.join()
        assert [str(found.get(timeout=1)) for _ in range(2)] == ["cuda:1", "cuda:0"]

    def test_pools_that_were_there_before_see_them_too(self):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()
            with stand_in() as gpu:
                made = pool.submit(torch.zeros, 2, device="cuda").result()
                assert made.is_cuda
                assert gpu.counts().kernels == 1
            assert pool.submit(torch.zeros, 2).result().tolist() == [0, 0]

    def test_threads_that_outlive_one_serve_the_next(self):
        with stand_in(), ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.zeros, 2, device="cuda").result().is_cuda
            other = ThreadPoolExecutor(1)
            other.submit(int).result()
        with other:
            assert other.submit(torch.zeros, 2).result().tolist() == [0, 0]
            with stand_in(devices=4) as gpu:
                assert other.submit(torch.zeros, 2, device="cuda:3").result().is_cuda
                assert gpu.counts().kernels == 1

    def test_a_thread_has_its_own_current_device_and_streams(self, gpu):
        torch.cuda.set_device(1)
        with torch.cuda.stream(torch.cuda.Stream()), ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.cuda.current_device).result() == 0
            stream = pool.submit(torch.cuda.current_stream, 1).result()
        assert stream == torch.cuda.default_stream(1)
        torch.cuda.set_device(0)


class TestCounts:
    def test_copies_tell_what_they_cost(self, gpu):
        pinned, plain = torch.zeros(100, pin_memory=True), torch.zeros(100)
        x = torch.zeros(100, device="cuda")
        free = {
            "h2d": [lambda: pinned.to("cuda", non_blocking=True),
                    lambda: pinned[10:].cuda(non_blocking=True),
                    lambda: x.copy_(pinned, non_blocking=True),
                    lambda: x[::2].copy_(pinned[:50], non_blocking=True)],
            "d2h": [lambda: x.to("cpu", non_blocking=True),
                    lambda: pinned.copy_(x, non_blocking=True),
                    lambda: pinned[:50].copy_(x[::2], non_blocking=True)],
        }  # fmt: skip
        dear = {
            "h2d": [lambda: pinned.to("cuda"),
                    lambda: plain.to("cuda", non_blocking=True),
                    lambda: pinned.to("cuda", torch.float64, non_blocking=True),
                    lambda: pinned[::2].to("cuda", non_blocking=True),
                    lambda: x.copy_(plain),
                    lambda: torch.tensor([1.0, 2.0], device="cuda")],
            "d2h": [x.cpu, x.tolist, lambda: x.numpy(force=True),
                    lambda: plain.copy_(x, non_blocking=True), lambda: pinned.copy_(x),
                    lambda: pinned[::2].copy_(x[:50], non_blocking=True)],
        }  # fmt: skip
        for kinds, pageable in ((free, 0), (dear, 1)):
            for kind, works in kinds.items():
                for work in works:
                    found = during(gpu, work)
                    assert (found[kind], found.pageable, found["sync/copy"]) == (
                        1,
                        pageable,
                        pageable,
                    )
                    torch.cuda.synchronize()
        assert during(gpu, lambda: pinned.to("cuda", non_blocking=True)).h2d_bytes == 400

    def test_casts_on_the_way_are_where_torch_makes_them(self, gpu):
        """Up: on the CPU. Down: on the device, unless the host waits."""
        x = torch.zeros(100, device="cuda")
        found = during(gpu, lambda: x.to("cpu", torch.uint8, non_blocking=True))
        assert (found.d2h_bytes, found.kernels, found.pageable) == (100, 1, 0)
        found = during(gpu, lambda: x.to("cpu", torch.uint8))
        assert (found.d2h_bytes, found.kernels, found.pageable) == (400, 0, 1)
        found = during(gpu, lambda: torch.zeros(100, dtype=torch.uint8).to("cuda", torch.float32))
        assert (found.h2d_bytes, found.kernels) == (400, 0)

    def test_pinned_memory_is_known_through_views_and_numpy(self, gpu):
        pinned = torch.empty(8, 8, pin_memory=True)
        for one in (pinned, pinned[3:, 2], torch.from_numpy(pinned.numpy()[4:])):
            assert one.is_pinned()
        assert torch.ones(3).pin_memory().is_pinned()
        assert torch.zeros_like(pinned, pin_memory=True).is_pinned()
        assert not pinned.clone().is_pinned()
        assert not torch.ones(3).is_pinned()
        assert gpu.pins.bytes == 256
        del pinned, one
        assert gpu.pins.bytes == 0
        assert gpu.pins.peak >= 512

    @pytest.mark.parametrize(
        ("work", "kind"),
        [
            (lambda x: x[0].item(), "item"),
            (lambda x: float(x[0]), "item"),
            (lambda x: bool(x[0] > 0), "item"),
            (lambda x: int(x.argmax()), "item"),
            (lambda x: torch.equal(x, x), "item"),
            (lambda x: x.nonzero(), "nonzero"),
            (lambda x: x[x > 0], "nonzero"),
            (lambda x: x.masked_select(x > 0), "nonzero"),
            (lambda x: x.unique(), "nonzero"),
            (lambda x: torch.where(x > 0), "nonzero"),
            (lambda x: x.cpu(), "copy"),
            (lambda x: torch.cuda.synchronize(), "device"),
            (lambda x: torch.cuda.current_stream().synchronize(), "stream"),
            (lambda x: torch.cuda.current_stream().record_event().synchronize(), "event"),
        ],
    )
    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
    def test_whatever_waits_is_a_synchronisation(self, gpu, work, kind, mode):
        with mode():
            x = torch.ones(5, device="cuda")
            found = during(gpu, lambda: work(x))
        assert found.by_kind("sync") == {kind: 1}

    def test_a_number_put_through_a_mask_waits_for_nobody(self, gpu):
        x = torch.ones(5, device="cuda")
        mask = x > 0
        assert during(gpu, lambda: x.__setitem__(mask, 0.0)).syncs == 0
        assert during(gpu, lambda: x.masked_fill_(mask, 0.0)).syncs == 0

    def test_kernels_are_what_computes(self, gpu):
        x = torch.ones(4, 4, device="cuda")
        views = [
            x.T,
            x[1:],
            x.reshape(-1),
            x.detach(),
            x.contiguous(),
            x.float(),
            x.expand(2, 4, 4),
        ]
        assert len(views) == 7
        assert gpu.counts().by_kind("kernel") == {"ones": 1}
        torch.empty(3, device="cuda")
        x.add_(1).mul_(2)
        x.sum()
        assert gpu.counts().by_kind("kernel") == {"ones": 1, "add_": 1, "mul_": 1, "sum": 1}

    def test_counts_are_by_stream(self, gpu):
        side = torch.cuda.Stream()
        x = torch.ones(4, device="cuda")
        with torch.cuda.stream(side):
            torch.ones(4, device="cuda")
            torch.ones(4, device="cuda:1")
        assert {stream: gpu.counts().on(stream).kernels for stream in gpu.counts().streams} == {
            "cuda:0 stream 0": 1,
            "cuda:0 stream 1": 1,
            "cuda:1 stream 0": 1,
        }
        assert x.is_cuda


class TestMemory:
    def test_what_is_held_and_its_peak(self, gpu):
        assert torch.cuda.memory_allocated() == 0
        x = torch.zeros(2**20, device="cuda")
        y = x[5:]
        z = x + 1
        assert torch.cuda.memory_allocated() == 8 * 2**20
        del x, z
        assert torch.cuda.memory_allocated() == 4 * 2**20  # y looks into it
        assert torch.cuda.max_memory_allocated() == 8 * 2**20
        del y
        assert torch.cuda.memory_allocated() == 0
        torch.cuda.reset_peak_memory_stats()
        assert torch.cuda.max_memory_allocated() == 0
        assert torch.cuda.memory_reserved() == torch.cuda.max_memory_reserved() == 8 * 2**20
        assert torch.cuda.mem_get_info()[0] == 8 * 10**9 - 8 * 2**20
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() == 0
        assert torch.cuda.max_memory_allocated(1) == 0

    def test_what_another_stream_may_use_is_not_handed_on(self, gpu):
        """As torch has it: freed at once, active and reserved until the stream is done."""
        side = torch.cuda.Stream()
        for times in (1, 2, 3):
            x = torch.zeros(2**20, device="cuda")
            with torch.cuda.stream(side):
                side.wait_stream(torch.cuda.default_stream())
                x.sum()
            x.record_stream(side)
            del x
            assert torch.cuda.memory_allocated() < 2**20
            assert torch.cuda.memory_stats()["active_bytes.all.current"] // 2**22 == times
            assert torch.cuda.memory_reserved() // 2**22 == times
        side.synchronize()
        assert torch.cuda.memory_stats()["active_bytes.all.current"] < 2**20
        torch.cuda.empty_cache()
        assert torch.cuda.memory_reserved() == 0

    def test_beyond_the_total_there_is_none(self):
        with stand_in(total_memory=2**20) as gpu:
            kept = torch.empty(2**19, dtype=torch.uint8, device="cuda")
            with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
                torch.empty(2**20, dtype=torch.uint8, device="cuda")
            assert torch.empty(2**20, dtype=torch.uint8, device="cuda:1").is_cuda
            del kept
            assert torch.empty(2**20, dtype=torch.uint8, device="cuda").is_cuda
            assert gpu.pool(0).stats()["num_ooms"] == 1
            torch.cuda.set_per_process_memory_fraction(0.25)
            with pytest.raises(torch.OutOfMemoryError):
                torch.empty(2**19, dtype=torch.uint8, device="cuda")

    @pytest.mark.parametrize(
        ("message", "error"),
        [
            ("CUDA out of memory.", torch.OutOfMemoryError),
            ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", RuntimeError),
            ("Unable to find an engine", RuntimeError),
        ],
    )
    def test_allocations_fail_as_told(self, gpu, message, error):
        gpu.fail_allocations(2, above_bytes=1000, message=message)
        small = torch.zeros(10, device="cuda")
        for _ in range(2):
            with pytest.raises(error, match=message) as raised:
                torch.zeros(1000, device="cuda")
            assert type(raised.value) is error
        assert torch.zeros(1000, device="cuda").shape == (1000,)
        assert small.shape == (10,)
