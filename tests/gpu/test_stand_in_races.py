"""The stand-in finds work that nothing puts in order, and only that."""

from __future__ import annotations

import gc
import re
from functools import partial

import numpy as np
import pytest
import torch

from tests.gpu.stand_in import Race, stand_in

SIZE = 1000


@pytest.fixture
def side(gpu):
    """A stream beside the default one."""
    return torch.cuda.Stream()


@pytest.fixture
def raced(gpu):
    """Raises unless the work until now raced in this way; forgets it."""

    def found(*words):
        with pytest.raises(Race, match=".*".join(map(re.escape, words))):
            gpu.check()

    return found


# Ways in which the default stream may come to wait for another, by themselves sufficient.
WAYS = {
    "wait_stream": lambda side: torch.cuda.current_stream().wait_stream(side),
    "wait_event": lambda side: torch.cuda.current_stream().wait_event(side.record_event()),
    "event.wait": lambda side: side.record_event().wait(),
    "event": lambda side: side.record_event().synchronize(),
    "stream": lambda side: side.synchronize(),
    "device": lambda side: torch.cuda.synchronize(),
    "query": lambda side: [side.query() for _ in range(2)],
}


class TestKernels:
    @pytest.mark.parametrize("way", [None, *WAYS])
    def test_a_reader_waits_for_the_writer(self, gpu, side, raced, way):
        x = torch.zeros(SIZE, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)
        if way is not None:
            WAYS[way](side)
        x.sum()
        if way is None:
            raced("sum reads on cuda:0 stream 0", "add_ writes on cuda:0 stream 1")
        torch.cuda.synchronize()

    @pytest.mark.parametrize("way", [None, *WAYS])
    def test_a_writer_waits_for_the_readers(self, gpu, side, raced, way):
        x = torch.zeros(SIZE, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            total = x.sum()
        if way is not None:
            WAYS[way](side)
        x.add_(1)
        if way is None:
            raced("add_ writes on cuda:0 stream 0", "sum reads on cuda:0 stream 1")
        torch.cuda.synchronize()
        assert total.is_cuda

    def test_where_it_happened_is_told(self, gpu, side, raced):
        x = torch.zeros(SIZE, device="cuda")
        with torch.cuda.stream(side):
            x.sum()
        raced("test_stand_in_races.py:", "test_stand_in_races.py:")
        torch.cuda.synchronize()

    def test_readers_need_not_wait_for_each_other(self, gpu, side):
        x = torch.zeros(SIZE, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.sum()
        x.sum()
        torch.cuda.synchronize()

    def test_waiting_before_is_not_enough(self, gpu, side, raced):
        x = torch.zeros(SIZE, device="cuda")
        event = side.record_event()
        with torch.cuda.stream(side):
            torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
            x.add_(1)
        event.synchronize()
        x.sum()
        raced("sum reads")
        torch.cuda.synchronize()

    @pytest.mark.parametrize("apart", [True, False])
    def test_parts_of_one_buffer_are_told_apart(self, gpu, side, raced, apart):
        """Interleaved ones, too: rows of several channels."""
        x = torch.zeros(3, 8, 5, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x[:, :4].fill_(1)
        x[:, 4 if apart else 3 :].fill_(2)
        if not apart:
            raced("fill_ writes", "fill_ writes")
        torch.cuda.synchronize()

    def test_knowledge_is_passed_on(self, gpu, side):
        third = torch.cuda.Stream()
        x = torch.zeros(SIZE, device="cuda")
        third.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(third):
            x.add_(1)
        side.wait_stream(third)
        torch.cuda.current_stream().wait_stream(side)
        x.add_(1)

    def test_devices_wait_for_each_other_in_copies_between_them(self, gpu):
        x = torch.zeros(SIZE, device="cuda:0")
        y = x.to("cuda:1", non_blocking=True)
        y.add_(1)
        x.add_(1)


class TestFreedMemory:
    @pytest.mark.slow
    @pytest.mark.parametrize("kept", ["nothing", "record_stream", "event", "waited"])
    def test_another_stream_may_still_use_it(self, gpu, side, raced, kept):
        x = torch.zeros(SIZE, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.sum()
        if kept == "record_stream":
            x.record_stream(side)
        elif kept == "event":
            side.record_event().synchronize()
        elif kept == "waited":
            torch.cuda.current_stream().wait_stream(side)
        del x
        gc.collect()
        if kept == "nothing":
            raced("memory of cuda:0 stream 0 is freed while it may be in use: sum reads")

    def test_its_own_stream_needs_nothing(self, gpu, side):
        with torch.cuda.stream(side):
            x = torch.zeros(SIZE, device="cuda")
            x.add_(1)
            del x

    def test_what_a_side_stream_made_is_used_elsewhere(self, gpu, side, raced):
        """A batch copied ahead: the loader's pattern, right and without its record_stream."""
        for right in (True, False):
            with torch.cuda.stream(side):
                batch = torch.zeros(SIZE, pin_memory=True).to("cuda", non_blocking=True)
                event = side.record_event()
            torch.cuda.current_stream().wait_event(event)
            batch.sum()
            if right:
                batch.record_stream(torch.cuda.current_stream())
            del batch
            if not right:
                raced("memory of cuda:0 stream 1 is freed")


class TestCopiesToTheHost:
    def test_nothing_is_there_before_the_host_waited(self, gpu):
        x = torch.arange(SIZE, device="cuda")
        for dtype in (torch.float32, torch.bfloat16, torch.uint16, torch.bool, torch.complex64):
            values = x.to(dtype)
            expected = values.cpu()
            pinned = torch.empty(SIZE, dtype=dtype, pin_memory=True)
            for copied in (
                partial(values.to, "cpu", non_blocking=True),
                partial(pinned.copy_, values, non_blocking=True),
            ):
                seen = copied().view(torch.uint8).numpy()
                there = expected.view(torch.uint8).numpy()
                assert not np.array_equal(seen, there)
                torch.cuda.synchronize()
                assert np.array_equal(seen, there)

    @pytest.mark.parametrize("way", WAYS)
    def test_whichever_way_the_host_waits(self, gpu, side, way):
        x = torch.ones(SIZE, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        x.record_stream(side)
        with torch.cuda.stream(side):
            host = x.to("cpu", non_blocking=True)
        WAYS[way](side)
        host_knows = way in ("event", "stream", "device", "query")
        assert np.array_equal(host.numpy(), np.ones(SIZE, "float32")) == host_knows
        torch.cuda.synchronize()

    def test_what_inference_mode_made_may_arrive_outside_it(self, gpu):
        with torch.inference_mode():
            host = torch.ones(SIZE, device="cuda").to("cpu", non_blocking=True)
        torch.cuda.synchronize()
        assert host.sum() == SIZE

    def test_an_op_that_reads_too_early_is_logged(self, gpu, raced):
        host = torch.ones(SIZE, device="cuda").to("cpu", non_blocking=True)
        assert host[3:].view(-1, 1).shape == (SIZE - 3, 1)  # looks at no value
        gpu.check()
        host = torch.ones(SIZE, device="cuda").to("cpu", non_blocking=True)
        host[3:].sum()
        raced("the host reads (997,) while it may be under way: copy from cuda:0 stream 0")

    def test_writing_into_the_destination_is_logged(self, gpu, raced):
        host = torch.ones(SIZE, device="cuda").to("cpu", non_blocking=True)
        host.numpy()[7] = 0
        torch.cuda.synchronize()
        raced("the host changed the destination of a copy before it knew it done")

    def test_an_event_before_the_copy_does_not_help(self, gpu):
        x = torch.ones(SIZE, device="cuda")
        event = torch.cuda.current_stream().record_event()
        host = x.to("cpu", non_blocking=True)
        event.synchronize()
        assert not np.any(host.numpy() == 1)
        torch.cuda.synchronize()

    def test_the_source_may_go_and_the_destination_too(self, gpu):
        x = torch.ones(SIZE, device="cuda")
        host = torch.empty(SIZE, pin_memory=True).copy_(x, non_blocking=True)
        del x, host
        torch.zeros(SIZE, device="cuda")

    def test_memory_that_is_not_pinned_is_waited_for(self, gpu):
        host = torch.empty(SIZE).copy_(torch.ones(SIZE, device="cuda"), non_blocking=True)
        assert host.numpy().sum() == SIZE

    def test_side_streams_that_copy_into_one_destination(self, gpu, side, raced):
        x, host = torch.ones(SIZE, device="cuda"), torch.empty(SIZE, pin_memory=True)
        side.wait_stream(torch.cuda.current_stream())
        host.copy_(x, non_blocking=True)
        with torch.cuda.stream(side):
            host.copy_(x, non_blocking=True)
        raced("copy to the host writes on cuda:0 stream 1", "copy to the host writes on cuda:0")
        torch.cuda.synchronize()


class TestCopiesFromTheHost:
    @pytest.mark.parametrize("through", ["torch", "numpy"])
    @pytest.mark.parametrize("waited", [True, False])
    def test_the_source_stays_as_it_is_until_it_was_read(self, gpu, raced, through, waited):
        host = torch.zeros(SIZE, pin_memory=True)
        x = host[:500].to("cuda", non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        host[500:].fill_(1)  # another part of it
        if waited:
            event.synchronize()
        if through == "torch":
            host.fill_(2)
        else:
            host.numpy()[499] = 2
        torch.cuda.synchronize()
        if not waited:
            raced("the host")
        assert x.sum().item() == 0

    def test_at_the_end_it_is_looked_at(self, gpu, raced):
        host = torch.zeros(SIZE, pin_memory=True)
        host.to("cuda", non_blocking=True)
        host.numpy()[0] = 2
        raced("the host changed the source of a copy before it knew it done")

    def test_the_source_may_go(self, gpu):
        for value in range(5):
            host = torch.full((SIZE,), value, pin_memory=True)
            host.to("cuda", non_blocking=True)
            del host

    def test_reading_the_source_is_no_race(self, gpu):
        host = torch.ones(SIZE, pin_memory=True)
        host.to("cuda", non_blocking=True)
        assert host.sum() == SIZE

    def test_down_and_up_again_in_one_stream(self, gpu):
        host = torch.empty(SIZE, pin_memory=True)
        host.copy_(torch.full((SIZE,), 3.0, device="cuda"), non_blocking=True)
        x = host.to("cuda", non_blocking=True)
        assert x.tolist() == [3.0] * SIZE

    @pytest.mark.parametrize("current", [0, 1])
    def test_an_event_of_another_device_tells_nothing(self, gpu, raced, current):
        """Recorded without a stream it is one of the current device, wherever the tensors are."""
        host = torch.zeros(SIZE, pin_memory=True)
        with torch.cuda.device(current):
            host.to("cuda:1", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            event.synchronize()
            host.numpy()[:] = 1
        torch.cuda.synchronize("cuda:1")
        if current == 0:
            raced("the host changed the source of a copy", "cuda:1 stream 0")


def test_an_error_tells_of_the_races_before_it():
    def fails():
        with stand_in():
            host = torch.ones(SIZE, device="cuda").to("cpu", non_blocking=True)
            assert host.sum() == SIZE

    with pytest.raises(AssertionError) as raised:
        fails()
    assert "the host reads (1000,) while it may be under way" in raised.value.__notes__[0]


class TestEvents:
    def test_time_is_told_when_both_are_done(self, gpu):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        torch.ones(3, device="cuda")
        last.record()
        with pytest.raises(RuntimeError, match="not ready"):
            first.elapsed_time(last)
        last.synchronize()
        assert 0 < first.elapsed_time(last) < 1000
        with pytest.raises(ValueError, match="enable_timing"):
            first.elapsed_time(torch.cuda.Event())

    def test_an_event_belongs_to_the_device_of_its_first_stream(self, gpu):
        event = torch.cuda.Event()
        event.record()
        event.record(torch.cuda.Stream())
        with pytest.raises(RuntimeError, match="does not match recording stream's device"):
            event.record(torch.cuda.current_stream("cuda:1"))

    def test_one_that_was_never_recorded_waits_for_nothing(self, gpu, side):
        event = torch.cuda.Event()
        event.synchronize()
        side.wait_event(event)
        assert event.query()
        assert gpu.counts().syncs == 0

    def test_asked_early_it_says_no(self, gpu):
        torch.ones(3, device="cuda")
        event = torch.cuda.current_stream().record_event()
        assert [event.query(), event.query()] == [False, True]
        assert gpu.counts().syncs == 0

    def test_streams_nest_and_are_restored(self, gpu, side):
        other = torch.cuda.Stream("cuda:1", priority=-1)
        with torch.cuda.stream(side):
            with torch.cuda.stream(other):
                assert torch.cuda.current_device() == 1
                assert torch.cuda.current_stream() == other
                assert torch.cuda.current_stream(0) == side
            assert torch.cuda.current_stream() == side
        with torch.cuda.stream(None), side:
            assert torch.cuda.current_stream() == side
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert side != other
        assert len({side, torch.cuda.Stream()}) == 2
