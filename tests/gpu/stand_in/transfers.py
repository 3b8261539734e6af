"""Copies as torch makes them: what is cast where, what is pageable, and who waits for whom.

From the host torch casts and gathers on the CPU, in memory that is not pinned, and scatters on the
device. To the host it casts and gathers on the device, unless it waits, and scatters on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from tests.gpu.stand_in.clocks import StreamId, whereabouts
from tests.gpu.stand_in.tensors import DeviceTensor

if TYPE_CHECKING:
    from tests.gpu.stand_in.machine import Machine

__all__ = ["converted", "copied", "moved", "plain_to", "uploaded"]

plain_to = torch._C.TensorBase.to


def converted(
    machine: Machine, x: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.Tensor:
    """Run ``x.to``, where a device or a tensor on one may be among the arguments."""
    given = _to_arguments(args, kwargs)
    device, dtype = given.pop("device"), given.pop("dtype") or x.dtype
    if device is not None:
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type == "meta":
            return torch.empty_strided(x.size(), x.stride(), dtype=dtype, device="meta")
        if device.type == "cuda":
            device = machine.device_of(device)
    if device is not None and device != x.device:
        return plain_to(x, device, dtype, **_without_none(given))
    given.pop("non_blocking")
    if dtype == x.dtype and given["memory_format"] is None and not given["copy"]:
        return x
    return plain_to(x, dtype, **_without_none(given))


def _to_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ``Tensor.to`` by name."""
    found: dict[str, Any] = dict.fromkeys(("device", "dtype", "memory_format"))
    found |= {"non_blocking": False, "copy": False}
    rest, named = list(args), dict(kwargs)
    other = named.pop("other", None)
    if other is None and rest and isinstance(rest[0], torch.Tensor):
        other = rest.pop(0)
    if other is not None:
        found |= {"device": other.device, "dtype": other.dtype}
    elif rest and not isinstance(rest[0], torch.dtype):
        found["device"] = rest.pop(0)
    names = ["non_blocking", "copy"] if other is not None else ["dtype", "non_blocking", "copy"]
    return found | dict(zip(names, rest, strict=False)) | named


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if v is not None}


def moved(
    machine: Machine,
    src: torch.Tensor,
    target: torch.device | None,
    given: dict[str, Any],
    always: bool,
) -> torch.Tensor:
    """Run a cast, or a copy to another device."""
    dtype = given.get("dtype") or src.dtype
    layout = {"memory_format": given.get("memory_format") or torch.preserve_format}
    if isinstance(src, DeviceTensor) and (target is None or target == src.device):
        cast = src.held.to(dtype, copy=always or bool(given.get("copy")), **layout)
        if cast is src.held:
            return src
        made = machine.new(cast, src.ordinal)
        machine.kernel(src.ordinal, "to", [src], [made])
        return made
    assert target is not None, "a tensor of the CPU that stays there is none of ours"
    non_blocking = bool(given.get("non_blocking"))
    values = src.held if isinstance(src, DeviceTensor) else src
    empty = torch.empty_like(values, dtype=dtype, device="cpu", pin_memory=False, **layout)
    if target.type == "cuda":
        return copied(machine, machine.new(empty, target.index), src, non_blocking)
    if non_blocking:
        machine.pins.add(empty)
    return copied(machine, empty, src, non_blocking)


def copied(
    machine: Machine, dst: torch.Tensor, src: torch.Tensor, non_blocking: bool
) -> torch.Tensor:
    """Run ``dst.copy_(src)``."""
    if isinstance(dst, DeviceTensor) and isinstance(src, DeviceTensor):
        _between(machine, dst, src)
    elif isinstance(dst, DeviceTensor):
        _from_host(machine, dst, src, non_blocking)
    elif isinstance(src, DeviceTensor):
        _to_host(machine, dst, src, non_blocking)
    return dst


def _between(machine: Machine, dst: DeviceTensor, src: DeviceTensor) -> None:
    dst.held.copy_(src.held)
    if dst.ordinal == src.ordinal:
        machine.kernel(dst.ordinal, "copy_", [src], [dst])
        return
    # Torch copies on the source's stream, and lets the two wait for each other around it.
    there, here = machine.current(src.ordinal), machine.current(dst.ordinal)
    machine.count("peer", there)
    machine.count("peer_bytes", there, dst.held.nbytes)
    with machine.lock:
        machine.clocks.wait(there, machine.clocks.recorded(here))
        machine.touch(src.ordinal, "copy between devices", [src], [dst])
        machine.clocks.wait(here, machine.clocks.recorded(there))


def uploaded(machine: Machine, src: torch.Tensor, index: int) -> None:
    """Count the copy to a device of what indexes a tensor there."""
    stream = machine.current(index)
    _count(machine, "h2d", stream, src.nbytes, waits=True)
    machine.wait(stream)


def _from_host(machine: Machine, dst: DeviceTensor, src: torch.Tensor, non_blocking: bool) -> None:
    stream = machine.current(dst.ordinal)
    direct = _same_layout(dst.held, src)
    if not direct and dst.shape == src.shape and dst.dtype == src.dtype and src.is_contiguous():
        direct = True  # scattered on the device
        machine.count("kernel/copy_", stream)
    memory = machine.pins.find(src) if direct else None
    waits = memory is None or not non_blocking
    _count(machine, "h2d", stream, dst.held.nbytes, waits)
    touched = [(dst.block.accesses, dst.place, True)]
    with machine.lock:
        if memory is not None:
            touched.append((memory.accesses, memory.place(src), False))
        number = machine.launch(stream, "copy from the host", touched)
        if memory is not None:
            machine.copies.supersede(memory, memory.place(src))
        dst.held.copy_(src)
        if waits or memory is None:
            machine.wait(stream)
        else:
            label = f"copy to {stream} at {whereabouts()}"
            machine.copies.from_host(src, memory, (stream, number, label))


def _to_host(machine: Machine, dst: torch.Tensor, src: DeviceTensor, non_blocking: bool) -> None:
    stream = machine.current(src.ordinal)
    if non_blocking and not _same_layout(dst, src.held):
        machine.count("kernel/to", stream)  # cast or gathered on the device
    as_copied = dst.dtype if non_blocking else src.dtype
    memory = machine.pins.find(dst) if _same_layout(dst, src.held, cast=non_blocking) else None
    waits = memory is None or not non_blocking
    _count(machine, "d2h", stream, dst.numel() * as_copied.itemsize, waits)
    touched = [(src.block.accesses, src.place, False)]
    with machine.lock:
        if memory is not None:
            touched.append((memory.accesses, memory.place(dst), True))
        number = machine.launch(stream, "copy to the host", touched)
        if memory is not None:
            machine.copies.supersede(memory, memory.place(dst))
        if waits or memory is None:
            machine.wait(stream)
            dst.copy_(src.held)
        else:
            values = torch.empty_like(dst, pin_memory=False).copy_(src.held)
            label = f"copy from {stream} at {whereabouts()}"
            machine.copies.to_host(dst, memory, (stream, number, label), values)


def _count(machine: Machine, kind: str, stream: StreamId, size: int, waits: bool) -> None:
    machine.count(kind, stream)
    machine.count(f"{kind}_bytes", stream, size)
    if waits:
        machine.count(f"pageable/{kind}", stream)
        machine.count(f"pageable_bytes/{kind}", stream, size)
        machine.count("sync/copy", stream)


def _same_layout(one: torch.Tensor, other: torch.Tensor, cast: bool = False) -> bool:
    """Whether two tensors can be copied byte by byte, without a temporary on the CPU."""
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        return cast and one.is_contiguous()  # the device casts first
    if one.is_contiguous() and other.is_contiguous():
        return True
    return (one.stride() == other.stride() and _dense(one)) or (cast and one.is_contiguous())


def _dense(x: torch.Tensor) -> bool:
    """Whether the values of a tensor lie side by side, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
