"""The stand-in machine: its devices, what they know, what they hold, and what was counted."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import torch

from tests.gpu.stand_in.clocks import (
    Access,
    Accesses,
    Clocks,
    Place,
    Race,
    StreamId,
    whereabouts,
)
from tests.gpu.stand_in.copies import Copies, Pins
from tests.gpu.stand_in.counting import Counts
from tests.gpu.stand_in.dispatch import dispatch
from tests.gpu.stand_in.memory import Failure, Pool
from tests.gpu.stand_in.streams import StandInEvent, StandInStream, UsingDevice, bound
from tests.gpu.stand_in.tensors import DeviceTensor

__all__ = ["Machine"]


class _Here(threading.local):
    """The current device of a thread, and the current stream of each device."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, StreamId] = {}
        self.inside: torch.device | None = None  # whose tensors the torch function at work has


class Machine:
    """Devices that are none, and the log of what was done with them.

    Parameters
    ----------
    devices
        Their number.
    total_memory
        Bytes of each, beyond which an allocation raises `torch.OutOfMemoryError`.
    bfloat16
        Whether they compute in it; then autocast casts, and results differ from the CPU's.
    """

    def __init__(
        self, devices: int = 2, total_memory: int = 8 * 10**9, bfloat16: bool = False
    ) -> None:
        self.active = False
        self.bfloat16 = bfloat16
        self.lock = threading.RLock()
        self.clocks = Clocks(on_host=lambda: self.copies.settle())
        self.copies = Copies(self.clocks)
        self.pins = Pins()
        self.pools = [Pool(index, total_memory, self.clocks) for index in range(devices)]
        self.here = _Here()
        self.Stream: Any = bound(StandInStream, self)
        self.Event: Any = bound(StandInEvent, self)
        self.Device: Any = bound(UsingDevice, self)
        self._counted: Counter[tuple[str, str]] = Counter()
        self._streams = Counter[int]()
        self._asked: set[int] = set()

    # What tests ask.

    def counts(self) -> Counts:
        """What was counted so far."""
        with self.lock:
            return Counts(self._counted)

    @property
    def races(self) -> list[str]:
        """The races found so far."""
        return self.clocks.races

    def check(self) -> None:
        """End all copies under way and raise if there was any race.

        Raises
        ------
        Race
            With all of them.
        """
        with self.lock:
            self.copies.end_all()
            races = list(dict.fromkeys(self.races))
            self.races.clear()
        if races:
            raise Race("\n".join(races))

    def fail_allocations(
        self,
        times: int,
        above_bytes: int = 0,
        message: str = "CUDA out of memory.",
        error: type[Exception] | None = None,
    ) -> None:
        """Let the next allocations of more than a size fail, on any device.

        By default `torch.OutOfMemoryError` where the message says out of memory, else RuntimeError.
        """
        if error is None:
            error = torch.OutOfMemoryError if "out of memory" in message else RuntimeError
        failure = Failure(times, above_bytes, message, error)
        for pool in self.pools:
            pool.failures.append(failure)

    # Devices and streams.

    def device_of(self, device: Any = None) -> torch.device:
        """Return a device with its number."""
        if isinstance(device, int) and device >= 0:
            device = torch.device("cuda", device)
        elif device is None or isinstance(device, int):
            device = torch.device("cuda")
        device = torch.device(device)
        if device.type != "cuda":
            raise ValueError(f"Expected a cuda device, but got: {device}")
        index = self.here.device if device.index is None else device.index
        if index >= len(self.pools):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def pool(self, device: Any = None) -> Pool:
        """The allocator of a device, all that was freed taken back."""
        pool = self.pools[self.device_of(device).index]
        pool.settle()
        return pool

    def new_stream(self, device: int) -> StreamId:
        """Number a new stream of a device."""
        with self.lock:
            self._streams[device] += 1
            return StreamId(device, self._streams[device])

    def current(self, device: int) -> StreamId:
        """The current stream of a device in this thread."""
        return self.here.streams.get(device, StreamId(device, 0))

    def current_stream(self, device: Any = None) -> StandInStream:
        """The same as torch gives it."""
        return self.Stream(id=self.current(self.device_of(device).index))

    def default_stream(self, device: Any = None) -> StandInStream:
        """The default stream of a device."""
        return self.Stream(id=StreamId(self.device_of(device).index, 0))

    def synchronize(self, device: Any = None) -> None:
        """Wait for all work of a device."""
        index = self.device_of(device).index
        self.count("sync/device", self.current(index))
        with self.lock:
            self.clocks.host_waits_for_device(index)

    def asked(self, known: dict[StreamId, int], by: object) -> bool:
        """Whether what an event knows is done: the first answer is no, unless the host knows."""
        with self.lock:
            if self.clocks.covers(known):
                return True
            key = hash((id(by), *sorted(known.items())))
            if key not in self._asked:
                self._asked.add(key)
                return False
            self.clocks.host_waits(known)
            return True

    # Work on the devices.

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an op."""
        return dispatch(self, func, args, kwargs)

    def count(self, kind: str, stream: StreamId, number: int = 1) -> None:
        """Add to a count."""
        with self.lock:
            self._counted[kind, str(stream)] += number

    def new(self, inner: torch.Tensor, index: int) -> DeviceTensor:
        """Return a tensor in memory of its own."""
        with self.lock:
            size = inner.untyped_storage().nbytes()
            block = self.pools[index].allocate(size, self.current(index))
        return DeviceTensor(self, inner, block, index)

    def view(self, inner: torch.Tensor, base: DeviceTensor) -> DeviceTensor:
        """Return a tensor that looks into the memory of another."""
        return DeviceTensor(self, inner, base.block, base.ordinal, as_inference=base.is_inference())

    def kernel(
        self, index: int, name: str, reads: list[DeviceTensor], writes: list[DeviceTensor]
    ) -> None:
        """Count a kernel and note what it touches."""
        self.count(f"kernel/{name}", self.current(index))
        self.touch(index, name, reads, writes)

    def touch(
        self, index: int, name: str, reads: list[DeviceTensor], writes: list[DeviceTensor]
    ) -> None:
        """Launch something on the current stream that reads and writes tensors."""
        touched = [(x, False) for x in reads] + [(x, True) for x in writes]
        self.launch(self.current(index), name, [(x.block.accesses, x.place, w) for x, w in touched])

    def launch(
        self, stream: StreamId, what: str, touched: list[tuple[Accesses, Place, bool]]
    ) -> int:
        """Number a launch, and note what it touches and whether it writes there."""
        where = whereabouts()
        with self.lock:
            number = self.clocks.launch(stream)
            for accesses, place, writes in touched:
                if 0 not in place.shape:
                    accesses.add(Access(stream, number, place, writes, what, where), self.clocks)
        return number

    def wait_for_result(self, index: int, kind: str) -> None:
        """Let the host wait for the current stream, as an op does whose result it needs."""
        stream = self.current(index)
        self.count(f"sync/{kind}", stream)
        self.wait(stream)

    def wait(self, stream: StreamId) -> None:
        """Let the host wait for a stream."""
        with self.lock:
            self.clocks.host_waits_for_stream(stream)
