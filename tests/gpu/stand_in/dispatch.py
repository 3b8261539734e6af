"""Every op that torch dispatches while the stand-in is there: checked, counted, run on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.gpu.stand_in.numerics import autocast, loose_switches, spoil
from tests.gpu.stand_in.tensors import DeviceTensor
from tests.gpu.stand_in.transfers import copied, moved, uploaded

if TYPE_CHECKING:
    from tests.gpu.stand_in.machine import Machine

__all__ = ["Mode", "dispatch"]

HOST_TENSORS = (torch.Tensor, torch.nn.Parameter)

Given = dict[str, Any]

# Ops for whose result, or for the size of whose result, the host waits.
WAITS = {
    **dict.fromkeys(("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"), "item"),
    **dict.fromkeys(
        (
            "nonzero", "nonzero_numpy", "argwhere", "masked_select", "bincount",
            "unique_dim", "_unique", "_unique2", "unique_consecutive",
        ),
        "nonzero",
    ),
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# They read a number, or make memory without touching it: no kernel runs.
READS = {"item", "_local_scalar_dense", "is_nonzero"}
HOST_SPECIAL = {"is_pinned", "_pin_memory", "pin_memory"}
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


class Mode(TorchDispatchMode):
    """Sees the ops of one thread, those that make tensors among them."""

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self.machine = machine

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it means to import all of it

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.machine.active:  # a thread of an earlier one lives on
            return func(*args, **(kwargs or {}))
        return dispatch(self.machine, func, args, kwargs or {})


@dataclass(frozen=True)
class Op:
    """One op as it was called.

    Parameters
    ----------
    func, args, kwargs
        The call.
    name
        The op's without namespace and overload.
    tensors, ours
        The tensors among the arguments, and those of them on a stand-in device.
    written
        Those that the op changes.
    target
        The device that the result shall be on, where the call says so and it concerns us.
    """

    func: Any
    args: tuple[Any, ...]
    kwargs: Given
    name: str
    tensors: list[torch.Tensor]
    ours: list[DeviceTensor]
    written: list[torch.Tensor]
    target: torch.device | None

    @property
    def named(self) -> Given:
        """The arguments by name."""
        return _named(self.func, self.args, self.kwargs)


def dispatch(machine: Machine, func: Any, args: tuple[Any, ...], kwargs: Given) -> Any:
    """Run an op of which any tensor may be on a stand-in device."""
    name = func._schema.name.split("::")[1]
    if name == "_has_compatible_shallow_copy_type":
        return False
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    ours = [x for x in tensors if isinstance(x, DeviceTensor)]
    target = _target(machine, args, kwargs, ours)
    special = machine.copies.pending or name in HOST_SPECIAL or kwargs.get("pin_memory")
    if not ours and target is None and not special:
        return func(*args, **kwargs)
    op = Op(func, args, kwargs, name, tensors, ours, _written(func, args, kwargs), target)
    if not ours and target is None:
        return _on_host(machine, op)
    if name in ("_to_copy", "to"):
        return moved(machine, args[0], target, op.named, always=name == "_to_copy")
    if name == "copy_":
        given = op.named
        return copied(machine, args[0], given["src"], bool(given.get("non_blocking", False)))
    return _on_device(machine, op)


def _named(func: Any, args: tuple[Any, ...], kwargs: Given) -> Given:
    names = [a.name for a in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _written(func: Any, args: tuple[Any, ...], kwargs: Given) -> list[torch.Tensor]:
    changing = [
        a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write
    ]
    if not changing:
        return []
    given = _named(func, args, kwargs)
    values = tree_leaves([given.get(name) for name in changing])
    return [x for x in values if isinstance(x, torch.Tensor)]


def _target(
    machine: Machine, args: tuple[Any, ...], kwargs: Given, ours: list[DeviceTensor]
) -> torch.device | None:
    device = kwargs.get("device")
    if device is None:
        device = next((x for x in args if isinstance(x, torch.device)), None)
    if device is None:
        return None
    if device.type == "meta":  # as torch's own code sees our tensors
        return ours[0].device if ours else machine.here.inside
    if device.type == "cuda":
        return machine.device_of(device)
    return device if ours else None


def _on_host(machine: Machine, op: Op) -> Any:
    """Run an op of CPU tensors; one that touches what a copy may be at work in is logged."""
    if op.name in ("is_pinned", "_pin_memory", "pin_memory"):
        return _pinning(machine, op.name, op.args[0])
    if op.kwargs.get("pin_memory"):
        made = op.func(*op.args, **{**op.kwargs, "pin_memory": False})
        machine.pins.add(made)
        return spoil(made) if op.name in EMPTY else made
    with machine.lock:
        wrong = [
            text
            for x in op.tensors
            if type(x) in HOST_TENSORS and (memory := machine.pins.find(x)) is not None
            for text in machine.copies.touched(x, memory, any(x is w for w in op.written))
        ]
    made = op.func(*op.args, **op.kwargs)
    if wrong and (op.written or not _all_views(made, {_storage(x) for x in op.tensors})):
        for text in wrong:
            machine.clocks.report(text)
    return made


def _pinning(machine: Machine, name: str, tensor: torch.Tensor) -> Any:
    pinned = machine.pins.find(tensor) is not None
    if name == "is_pinned":
        return pinned
    if pinned:
        return tensor
    made = tensor.clone()
    machine.pins.add(made)
    return made


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _all_views(made: Any, storages: set[int]) -> bool:
    tensors = [x for x in tree_leaves(made) if isinstance(x, torch.Tensor)]
    return bool(tensors) and all(_storage(x) in storages for x in tensors)


def _on_device(machine: Machine, op: Op) -> Any:
    """Run an op of tensors on one device, or one that makes a tensor there."""
    index = _one_device(machine, op)
    made = _computed(machine, op)
    inners = {id(x.held): x for x in op.ours}
    bases = {_storage(x.held): x for x in op.ours}
    results: list[DeviceTensor] = []

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in inners:
            return inners[id(x)]
        base = bases.get(_storage(x))
        if base is not None:
            return machine.view(x, base)
        results.append(machine.new(x, index))
        return results[-1]

    wrapped = tree_map(wrap, made)
    written = [x for x in op.written if isinstance(x, DeviceTensor)]
    for x in written:
        x.refresh()
    _account(machine, op, index, [*results, *written], _all_views(made, set(bases)))
    return wrapped


def _computed(machine: Machine, op: Op) -> Any:
    """Run an op on the CPU tensors that hold the values."""

    def inner(x: Any) -> Any:
        if isinstance(x, DeviceTensor):
            return x.held
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return x

    args, kwargs = tree_map(inner, (op.args, op.kwargs))
    if kwargs.get("pin_memory"):
        raise RuntimeError("Only dense CPU tensors can be pinned")
    args, kwargs = autocast(op.name, (args, kwargs), bfloat16=machine.bfloat16)
    made = op.func(*args, **kwargs)
    return spoil(made) if op.name in EMPTY else made


def _account(machine: Machine, op: Op, index: int, writes: list[DeviceTensor], views: bool) -> None:
    """Count what an op does, note what it touches, and wait where torch waits."""
    if op.name in READS:
        machine.touch(index, op.name, op.ours, [])
    elif op.name not in EMPTY and (writes or not views):
        reads = [x for x in op.ours if not any(x is w for w in writes)]
        machine.kernel(index, op.name, reads, writes)
        if op.ours:
            for switch in loose_switches(op.name, op.ours[0].dtype):
                machine.count(f"loose/{switch}", machine.current(index))
    wait = "nonzero" if op.func is torch.ops.aten.where.default else WAITS.get(op.name)
    masks = any(x.dtype in (torch.bool, torch.uint8) for x in _indices(op))
    if masks and not _fills_masked(op):
        wait = "nonzero"
    if wait is not None:
        machine.wait_for_result(index, wait)


def _fills_masked(op: Op) -> bool:
    """Whether an assignment through a mask only puts a number there, so that nobody counts."""
    given = op.named
    value = given.get("values")
    number = isinstance(value, torch.Tensor) and value.numel() == 1
    return number and not isinstance(value, DeviceTensor) and not given.get("accumulate")


def _indices(op: Op) -> list[torch.Tensor]:
    """The tensors that an op indexes another with."""
    if op.name not in INDEXING:
        return []
    return [x for x in tree_leaves(op.args[1]) if isinstance(x, torch.Tensor)]


def _one_device(machine: Machine, op: Op) -> int:
    """Return the number of the device of all tensors; raise, as torch does, where they are several.

    Numbers on the CPU go with the launch; indices on the CPU are copied to the device.
    """
    here = {x.ordinal for x in op.ours}
    allowed = []
    if op.args and isinstance(op.args[0], DeviceTensor):
        allowed = [x for x in _indices(op) if not isinstance(x, DeviceTensor)]
    strangers = [
        x
        for x in op.tensors
        if not isinstance(x, DeviceTensor) and x.dim() and not any(x is a for a in allowed)
    ]
    if len(here) > 1 or (here and strangers):
        names = sorted({str(x.device) for x in (*op.ours, *strangers)})
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices,"
            f" {' and '.join(names)}! (in {op.func}, of shapes"
            f" {[tuple(x.shape) for x in op.tensors]})"
        )
    if not here and op.target is not None:
        return int(op.target.index)
    index = next(iter(here))
    for x in allowed:
        uploaded(machine, x, index)
    return index
