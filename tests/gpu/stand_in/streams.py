"""Streams and events as ``torch.cuda`` has them, over the clocks of a machine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from tests.gpu.stand_in.clocks import StreamId

if TYPE_CHECKING:
    from tests.gpu.stand_in.machine import Machine

__all__ = ["StandInEvent", "StandInStream", "UsingDevice", "UsingStream", "bound"]


class StandInStream:
    """A stream; two objects of one stream are equal."""

    machine: ClassVar[Machine]

    def __init__(
        self, device: Any = None, priority: int = 0, *, id: StreamId | None = None
    ) -> None:
        if id is None:
            id = self.machine.new_stream(self.machine.device_of(device).index)
        self.id, self.priority = id, priority

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.id.device)

    @property
    def device_index(self) -> int:
        return self.id.device

    @property
    def stream_id(self) -> int:
        return self.id.number

    cuda_stream = stream_id

    def wait_event(self, event: StandInEvent) -> None:
        event.wait(self)

    def wait_stream(self, stream: StandInStream) -> None:
        self.machine.count("wait", self.id)
        self.machine.clocks.wait(self.id, self.machine.clocks.recorded(stream.id))

    def record_event(self, event: StandInEvent | None = None) -> StandInEvent:
        event = self.machine.Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        self.machine.count("sync/stream", self.id)
        with self.machine.lock:
            self.machine.clocks.host_waits(self.machine.clocks.recorded(self.id))

    def query(self) -> bool:
        return self.machine.asked(self.machine.clocks.recorded(self.id), self)

    def __enter__(self) -> StandInStream:
        self._using = UsingStream(self)
        self._using.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._using.__exit__(*error)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StandInStream) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<stream {self.id}>"


class StandInEvent:
    """An event; recorded where no stream is named on the current one of the current device."""

    machine: ClassVar[Machine]

    def __init__(
        self,
        enable_timing: bool = False,
        blocking: bool = False,
        interprocess: bool = False,
        external: bool = False,
    ) -> None:
        self.timing = enable_timing
        self.stream: StreamId | None = None
        self.known: dict[StreamId, int] = {}
        self.time_s = 0.0

    def record(self, stream: StandInStream | None = None) -> None:
        stream = self.machine.current_stream() if stream is None else stream
        if self.stream is not None and self.stream.device != stream.id.device:
            raise RuntimeError(
                f"Event device {self.stream.device} does not match recording stream's device"
                f" {stream.id.device}."
            )
        self.machine.count("event", stream.id)
        self.stream = stream.id
        self.known = self.machine.clocks.recorded(stream.id)
        self.time_s = time.perf_counter()

    def wait(self, stream: StandInStream | None = None) -> None:
        stream = self.machine.current_stream() if stream is None else stream
        self.machine.count("wait", stream.id)
        self.machine.clocks.wait(stream.id, self.known)

    def synchronize(self) -> None:
        if self.stream is not None:
            self.machine.count("sync/event", self.stream)
            with self.machine.lock:
                self.machine.clocks.host_waits(self.known)

    def query(self) -> bool:
        return self.stream is None or self.machine.asked(self.known, self)

    def elapsed_time(self, end_event: StandInEvent) -> float:
        if not (self.timing and end_event.timing):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.stream is None or end_event.stream is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        if not all(self.machine.clocks.covers(e.known) for e in (self, end_event)):
            raise RuntimeError("CUDA error: device not ready: wait for both events first")
        return 1000 * (end_event.time_s - self.time_s)


class UsingDevice:
    """``torch.cuda.device``: makes a device the current one of the thread."""

    machine: ClassVar[Machine]

    def __init__(self, device: Any) -> None:
        self.index = self.machine.device_of(device).index
        self.before = 0

    def __enter__(self) -> None:
        self.before, self.machine.here.device = self.machine.here.device, self.index

    def __exit__(self, *error: object) -> None:
        self.machine.here.device = self.before


class UsingStream:
    """``torch.cuda.stream``: makes a stream the current one of its device, and that current."""

    def __init__(self, stream: StandInStream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is None:
            return
        here, new = self.stream.machine.here, self.stream.id
        self.before = here.device, here.streams.get(new.device, StreamId(new.device, 0))
        here.device = new.device
        here.streams[new.device] = new

    def __exit__(self, *error: object) -> None:
        if self.stream is not None:
            here = self.stream.machine.here
            here.device, old = self.before
            here.streams[old.device] = old


def bound(kind: type, machine: Machine) -> type:
    """Return a class whose objects belong to a machine."""
    return type(kind.__name__, (kind,), {"machine": machine})
