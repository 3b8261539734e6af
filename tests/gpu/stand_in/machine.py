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
    place_of,
    whereabouts,
)
from tests.gpu.stand_in.copies import Copies, Pins
from tests.gpu.stand_in.counting import Counts
from tests.gpu.stand_in.dispatch import dispatch
from tests.gpu.stand_in.memory import Failure, Pool
from tests.gpu.stand_in.streams import StandInEvent, StandInStream, UsingDevice, bound
from tests.gpu.stand_in.tensors import DeviceTensor

__all__ = ["Machine"]

plain_to = torch._C.TensorBase.to


class _Here(threading.local):
    """The current device of a thread, and the current stream of each device."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, StreamId] = {}


class Machine:
    """Devices that are none, and the log of what was done with them.

    Parameters
    ----------
    devices
        Their number.
    total_memory
        Bytes of each, beyond which an allocation raises `torch.OutOfMemoryError`.
    bfloat16
        Whether they compute in it; then results may differ from the CPU's in float32.
    """

    def __init__(
        self, devices: int = 2, total_memory: int = 8 * 10**9, bfloat16: bool = False
    ) -> None:
        self.bfloat16 = bfloat16
        self.lock = threading.RLock()
        self.clocks = Clocks(on_host=lambda: self.copies.settle())
        self.copies = Copies(self.clocks)
        self.pins = Pins()
        self.pools = [Pool(index, total_memory) for index in range(devices)]
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
        return self.Stream(id=self.current(self.device_of(device).index))  # type: ignore[no-any-return]

    def default_stream(self, device: Any = None) -> StandInStream:
        """The default stream of a device."""
        return self.Stream(id=StreamId(self.device_of(device).index, 0))  # type: ignore[no-any-return]

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
            key = hash((id(by), tuple(sorted(known.items()))))
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
            block = self.pools[index].allocate(size, self.current(index), self.clocks)
        return DeviceTensor(self, inner, block, index)

    def view(self, inner: torch.Tensor, base: DeviceTensor) -> DeviceTensor:
        """Return a tensor that looks into the memory of another."""
        return DeviceTensor(self, inner, base.block, base.index, as_inference=base.is_inference())

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
        self._launch(
            self.current(index),
            name,
            [(x.block.accesses, place_of(x.inner), w) for x, w in touched],
        )

    def _launch(
        self, stream: StreamId, what: str, touched: list[tuple[Accesses, Place, bool]]
    ) -> int:
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
        with self.lock:
            self.clocks.host_waits_for_stream(stream)

    # Copies.

    def to(self, x: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        """``Tensor.to``, where a device or a tensor on one is among the arguments."""
        given = _to_arguments(args, kwargs)
        device, dtype = given.pop("device"), given.pop("dtype") or x.dtype
        if device is not None:
            device = (
                torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
            )
            if device.type == "cuda":
                device = self.device_of(device)
            if device.type == "meta":
                return torch.empty_strided(x.size(), x.stride(), dtype=dtype, device="meta")
        if device is None or device == x.device:
            given.pop("non_blocking")
            unchanged = dtype == x.dtype and given["memory_format"] is None and not given["copy"]
            return x if unchanged else plain_to(x, dtype, **_without_none(given))
        return plain_to(x, device, dtype, **_without_none(given))

    def moved(
        self, src: torch.Tensor, target: torch.device | None, given: dict[str, Any], always: bool
    ) -> torch.Tensor:
        """Run a cast or a copy to another device."""
        dtype = given.get("dtype") or src.dtype
        layout = {"memory_format": given.get("memory_format") or torch.preserve_format}
        copy, waits = bool(given.get("copy")) or always, not given.get("non_blocking")
        inner = src.inner if isinstance(src, DeviceTensor) else src
        if isinstance(src, DeviceTensor) and (target is None or target == src.device):
            cast = inner.to(dtype, copy=copy, **layout)
            if cast is inner:
                return src
            made = self.new(cast, src.index)
            self.kernel(src.index, "to", [src], [made])
            return made
        if target is None:
            return inner.to(dtype, copy=copy, **layout)
        empty = torch.empty_like(inner, dtype=dtype, device="cpu", pin_memory=False, **layout)
        if target.type == "cpu":
            if not waits:
                self.pins.add(empty)
            return self.copied(empty, src, not waits)
        return self.copied(self.new(empty, target.index), src, not waits)

    def copied(self, dst: torch.Tensor, src: torch.Tensor, non_blocking: bool) -> torch.Tensor:
        """Run ``dst.copy_(src)``."""
        if isinstance(dst, DeviceTensor) and isinstance(src, DeviceTensor):
            self._copied_between(dst, src)
        elif isinstance(dst, DeviceTensor):
            self._copied_to_device(dst, src, non_blocking)
        elif isinstance(src, DeviceTensor):
            self._copied_to_host(dst, src, non_blocking)
        return dst

    def _copied_between(self, dst: DeviceTensor, src: DeviceTensor) -> None:
        dst.inner.copy_(src.inner)
        if dst.index == src.index:
            self.kernel(dst.index, "copy_", [src], [dst])
            return
        # Torch copies on the source's stream and lets the two wait for each other around it.
        there, here = self.current(src.index), self.current(dst.index)
        self.count("peer", there)
        self.count("peer_bytes", there, dst.inner.nbytes)
        with self.lock:
            self.clocks.launch(here)
            self.clocks.wait(there, self.clocks.recorded(here))
            self.touch(src.index, "peer copy", [src], [dst])
            self.clocks.wait(here, self.clocks.recorded(there))

    def uploaded(self, src: torch.Tensor, index: int) -> None:
        """Count the copy of an index to a device."""
        stream = self.current(index)
        self._count_copy("h2d", stream, src.nbytes, pageable=True, waits=True)
        with self.lock:
            self.clocks.host_waits_for_stream(stream)

    def _copied_to_device(self, dst: DeviceTensor, src: torch.Tensor, non_blocking: bool) -> None:
        """Copy from the host; torch casts and gathers on the CPU, in memory that is not pinned."""
        dst.inner.copy_(src)
        stream = self.current(dst.index)
        memory = self.pins.find(src) if _same_layout(dst.inner, src) else None
        pageable = memory is None or not non_blocking
        self._count_copy("h2d", stream, dst.inner.nbytes, pageable=pageable, waits=pageable)
        touched = [(dst.block.accesses, place_of(dst.inner), True)]
        with self.lock:
            if memory is not None:
                touched.append((memory.accesses, memory.place(src), False))
            label = f"copy to {stream} at {whereabouts()}"
            number = self._launch(stream, "copy from the host", touched)
            if pageable or memory is None:
                self.clocks.host_waits_for_stream(stream)
            else:
                self.copies.from_host(src, memory, (stream, number, label))

    def _copied_to_host(self, dst: torch.Tensor, src: DeviceTensor, non_blocking: bool) -> None:
        """Copy to the host; torch casts on the device, unless it waits, and scatters on the CPU."""
        stream = self.current(src.index)
        if non_blocking and dst.dtype != src.dtype:
            self.count("kernel/to", stream)
        as_copied = src.dtype if not non_blocking else dst.dtype
        memory = self.pins.find(dst) if _same_layout(dst, src.inner, cast=non_blocking) else None
        pageable = memory is None or not non_blocking
        size = dst.numel() * as_copied.itemsize
        self._count_copy("d2h", stream, size, pageable=pageable, waits=pageable)
        touched = [(src.block.accesses, place_of(src.inner), False)]
        with self.lock:
            if memory is not None:
                touched.append((memory.accesses, memory.place(dst), True))
            label = f"copy from {stream} at {whereabouts()}"
            number = self._launch(stream, "copy to the host", touched)
            if pageable or memory is None:
                self.clocks.host_waits_for_stream(stream)
                dst.copy_(src.inner)
            else:
                values = torch.empty_like(dst, pin_memory=False).copy_(src.inner)
                self.copies.to_host(dst, memory, (stream, number, label), values)

    def _count_copy(
        self, kind: str, stream: StreamId, size: int, *, pageable: bool, waits: bool
    ) -> None:
        self.count(kind, stream)
        self.count(f"{kind}_bytes", stream, size)
        if pageable:
            self.count(f"pageable/{kind}", stream)
            self.count(f"pageable_bytes/{kind}", stream, size)
        if waits:
            self.count("sync/copy", stream)


def _to_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``Tensor.to`` by name."""
    found = {"device": None, "dtype": None, "non_blocking": False, "copy": False}
    found["memory_format"] = None
    rest = list(args)
    first = kwargs.get("other", rest[0] if rest else None)
    if isinstance(first, torch.Tensor):
        found.update(device=first.device, dtype=first.dtype)
        rest = rest[1:] if "other" not in kwargs else rest
        names = ["non_blocking", "copy"]
    elif isinstance(first, torch.dtype):
        names = ["dtype", "non_blocking", "copy"]
    else:
        names = ["device", "dtype", "non_blocking", "copy"]
    found.update(zip(names, rest, strict=False))
    found.update({k: v for k, v in kwargs.items() if k != "other"})
    return found


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if v is not None}


def _same_layout(one: torch.Tensor, other: torch.Tensor, cast: bool = False) -> bool:
    """Whether two tensors can be copied byte by byte, without a temporary on the CPU."""
    if one.shape != other.shape or (one.dtype != other.dtype and not cast):
        return False
    if cast:  # the device makes a contiguous tensor of the right dtype first
        return one.is_contiguous()
    if one.is_contiguous() and other.is_contiguous():
        return True
    return one.stride() == other.stride() and _dense(one)


def _dense(x: torch.Tensor) -> bool:
    """Whether the values of a tensor lie side by side, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
