"""What torch and Python's threads are changed to while the stand-in is there, and back again."""

from __future__ import annotations

import concurrent.futures.thread as pool_threads
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from tests.gpu.stand_in.dispatch import Mode
from tests.gpu.stand_in.machine import Machine
from tests.gpu.stand_in.streams import StandInStream, UsingStream
from tests.gpu.stand_in.tensors import DeviceTensor
from tests.gpu.stand_in.transfers import converted, plain_to

__all__ = ["installed"]

# Tensors of other kinds, such as those that only follow a network, are left to their own ways.
PLAIN = (torch.Tensor, torch.nn.Parameter, getattr(torch.nn, "Buffer", None), DeviceTensor)


@contextmanager
def installed(machine: Machine) -> Iterator[None]:
    """Make a machine the CUDA devices of this process, for this thread and all that start."""
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for owner, functions in _patches(machine):
            for name, function in functions.items():
                # Not autospec: these stand in for classes, functions and methods alike.
                stack.enter_context(mock.patch.object(owner, name, function, create=True))
        # Else a moved module would exchange the memory of its CPU tensors, which cannot claim CUDA.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.enter_context(Mode(machine))
        machine.active = True
        stack.callback(setattr, machine, "active", False)
        yield


def _patches(machine: Machine) -> Iterator[tuple[Any, dict[str, Any]]]:
    yield torch.cuda, {**_devices(machine), **_streams(machine), **_random(), **_memory(machine)}
    yield torch.cuda.memory, _memory(machine)
    yield torch.cuda.streams, {"Stream": machine.Stream, "Event": machine.Event}
    yield torch.Tensor, {"to": _to(machine), "cuda": _cuda(machine)}
    makers = ("tensor", "as_tensor", "asarray")
    yield torch, {name: _maker(machine, getattr(torch, name)) for name in makers}
    yield torch, {"Generator": _generator(torch.Generator)}
    yield threading.Thread, {"start": _start(machine, threading.Thread.start)}
    item = pool_threads._WorkItem
    yield item, {"run": _in_mode(machine, item.run)}  # of threads that were there before


def _devices(machine: Machine) -> dict[str, Any]:
    def set_device(device: Any) -> None:
        machine.here.device = machine.device_of(device).index

    def properties(device: Any = None) -> Any:
        index = machine.device_of(device).index
        return types.SimpleNamespace(
            name=f"Stand-in {index}", major=9, minor=0, multi_processor_count=16,
            total_memory=machine.pools[index].total, uuid=uuid.UUID(int=index + 1),
            is_integrated=False, warp_size=32,
        )  # fmt: skip

    return {
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "is_initialized": lambda: True,
        "is_available": lambda: bool(machine.pools),
        "device_count": lambda: len(machine.pools),
        "current_device": lambda: machine.here.device,
        "set_device": set_device,
        "device": machine.Device,
        "synchronize": machine.synchronize,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: properties(device).name,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: (
            including_emulation or machine.bfloat16
        ),
        "is_current_stream_capturing": lambda: False,
        "ipc_collect": lambda: None,
    }


def _streams(machine: Machine) -> dict[str, Any]:
    def set_stream(stream: StandInStream | None) -> None:
        if stream is not None:
            UsingStream(stream).__enter__()

    return {
        "Stream": machine.Stream,
        "Event": machine.Event,
        "stream": UsingStream,
        "StreamContext": UsingStream,
        "current_stream": machine.current_stream,
        "default_stream": machine.default_stream,
        "set_stream": set_stream,
    }


def _random() -> dict[str, Any]:
    return {
        "manual_seed": torch.random.default_generator.manual_seed,
        "manual_seed_all": lambda seed: None,
    }


def _memory(machine: Machine) -> dict[str, Any]:
    def asks(name: str) -> Callable[..., int]:
        return lambda device=None: getattr(machine.pool(device), name)

    def info(device: Any = None) -> tuple[int, int]:
        pool = machine.pool(device)
        return pool.total - pool.reserved, pool.total

    def empty_cache() -> None:
        for pool in machine.pools:
            pool.empty_cache()

    def fraction(fraction: float, device: Any = None) -> None:
        pool = machine.pool(device)
        pool.limit = int(fraction * pool.total)

    return {
        "memory_allocated": asks("allocated"),
        "max_memory_allocated": asks("peak"),
        "memory_reserved": asks("reserved"),
        "max_memory_reserved": asks("reserved_peak"),
        "reset_peak_memory_stats": lambda device=None: machine.pool(device).reset_peak(),
        "memory_stats": lambda device=None: machine.pool(device).stats(),
        "mem_get_info": info,
        "empty_cache": empty_cache,
        "set_per_process_memory_fraction": fraction,
    }


def _to(machine: Machine) -> Callable[..., torch.Tensor]:
    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if type(self) in PLAIN and any(map(_is_ours, (*args, *kwargs.values()))):
            return converted(machine, self, args, kwargs)
        return plain_to(self, *args, **kwargs)

    return to


def _is_ours(x: Any) -> bool:
    if isinstance(x, str):
        return x.startswith("cuda")
    if isinstance(x, torch.device):
        return x.type == "cuda"
    return isinstance(x, DeviceTensor) or type(x) is int


def _cuda(machine: Machine) -> Callable[..., torch.Tensor]:
    plain = torch.Tensor.cuda

    def cuda(
        self: torch.Tensor, device: Any = None, non_blocking: bool = False, **rest: Any
    ) -> Any:
        if type(self) not in PLAIN:
            return plain(self, device, non_blocking, **rest)
        return self.to(machine.device_of(device), non_blocking=non_blocking, **rest)

    return cuda


def _maker(machine: Machine, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A function that makes a tensor of data: on the CPU first, as torch does."""

    def make(data: Any, *args: Any, **kwargs: Any) -> Any:
        device = kwargs.pop("device", None)
        ours = device is not None and _is_ours(device)
        if isinstance(data, DeviceTensor):
            kwargs = {k: v for k, v in kwargs.items() if k == "dtype" and v is not None}
            return data.to(data.device if device is None else device, **kwargs)
        if not ours:
            return plain(data, *args, **kwargs, **({} if device is None else {"device": device}))
        grad = kwargs.pop("requires_grad", False)
        made = plain(data, *args, **kwargs).to(machine.device_of(device))
        return made.requires_grad_() if grad else made

    return make


def _generator(plain: type[torch.Generator]) -> type[torch.Generator]:
    class Generator(plain):
        def __new__(cls, device: Any = "cpu") -> Any:
            return plain.__new__(cls, "cpu" if _is_ours(device) else device)

    return Generator


def _start(machine: Machine, plain: Callable[..., None]) -> Callable[..., None]:
    """Start threads in the mode, as modes are a thread's own."""

    def start(self: threading.Thread) -> None:
        run = self.run

        def in_mode() -> None:
            del self.run  # which would keep the thread alive
            _in_mode(machine, run)()

        self.run = in_mode
        plain(self)

    return start


def _in_mode(machine: Machine, plain: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        modes = torch.utils._python_dispatch._get_current_dispatch_mode_stack()
        if not machine.active or any(isinstance(m, Mode) and m.machine is machine for m in modes):
            return plain(*args, **kwargs)
        with Mode(machine):
            return plain(*args, **kwargs)

    return run
