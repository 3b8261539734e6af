"""A tensor on a stand-in device: the values of a CPU tensor that claim ``cuda:N``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from tests.gpu.stand_in.clocks import Place, place_of

if TYPE_CHECKING:
    from tests.gpu.stand_in.machine import Machine
    from tests.gpu.stand_in.memory import Block

__all__ = ["DeviceTensor"]

# Inside torch's own code the tensor is one of the meta device: nothing that escapes the dispatch
# finds values there. What Python code asks a tensor is answered here.


class DeviceTensor(torch.Tensor):
    """Stands for a tensor on a CUDA device.

    Parameters
    ----------
    machine
        To which the device belongs.
    inner
        A CPU tensor, or a view of one, that holds the values.
    block
        The allocation that it looks into.
    index
        The number of the device.
    as_inference
        Whether it is an inference tensor; by default as torch's mode says.
    """

    machine: Machine
    held: torch.Tensor
    block: Block
    ordinal: int

    @staticmethod
    def __new__(
        cls,
        machine: Machine,
        inner: torch.Tensor,
        block: Block,
        index: int,
        as_inference: bool | None = None,
    ) -> DeviceTensor:
        """Make the tensor that torch sees: of the meta device, with the sizes of the inner one."""
        mode = nullcontext() if as_inference is None else torch.inference_mode(as_inference)
        with torch._C._DisableTorchDispatch(), mode:
            meta = torch.empty_strided(
                inner.size(), inner.stride(), dtype=inner.dtype, device="meta"
            )
            made = torch.Tensor._make_subclass(cls, meta, False)
        made.machine, made.held, made.block, made.ordinal = machine, inner, block, index
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Let the machine of the first such tensor run an op."""
        first = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, cls))
        return first.machine.dispatch(func, args, kwargs or {})

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function; what torch's code makes meanwhile on "its device" is made on ours."""
        if not all(issubclass(kind, OURS) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        first = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, cls))
        here = first.machine.here
        before, here.inside = here.inside, first.device
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        finally:
            here.inside = before

    @property
    def place(self) -> Place:
        """The bytes that it covers in its block."""
        return place_of(self.held)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", self.ordinal)

    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    def get_device(self) -> int:
        return self.ordinal

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        from tests.gpu.stand_in.transfers import converted

        return converted(self.machine, self, args, kwargs)

    def cpu(self, memory_format: torch.memory_format = torch.preserve_format) -> torch.Tensor:
        return self.to("cpu", memory_format=memory_format)

    def cuda(self, device: Any = None, non_blocking: bool = False, **kwargs: Any) -> torch.Tensor:
        return self.to(self.machine.device_of(device), non_blocking=non_blocking, **kwargs)

    def numpy(self, *, force: bool = False) -> np.ndarray[Any, Any]:
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy"
                " the tensor to host memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return self.numpy()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def pin_memory(self, device: Any = None) -> torch.Tensor:
        raise RuntimeError(f"cannot pin '{self.device}' only dense CPU tensors can be pinned")

    def is_pinned(self, device: Any = None) -> bool:
        return False

    def record_stream(self, stream: Any) -> None:
        self.block.recorded.add(stream.id)

    def new_tensor(self, data: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.pop("device", self.device)
        return torch.tensor(data, dtype=kwargs.pop("dtype", self.dtype), **kwargs).to(device)

    def __setitem__(self, where: Any, value: Any) -> None:
        if isinstance(value, bool | int | float | complex):
            # Torch would make it on the meta device; a number is an argument of the kernel.
            value = torch.tensor(value, dtype=self.dtype)
            if _takes_a_view(where):
                part = self[where]
                part.fill_(value) if part.dim() else part.copy_(value)
                return
        super().__setitem__(where, value)

    def refresh(self) -> None:
        """Take over the sizes of the inner tensor after an op that changes them in place."""
        if self.shape != self.held.shape or self.stride() != self.held.stride():
            with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunctionSubclass():
                if self.numel() < self.held.numel():
                    self.resize_(self.held.size())
                self.as_strided_(self.held.size(), self.held.stride())

    def __deepcopy__(self, memo: dict[int, Any]) -> DeviceTensor:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("only tensors created by the user can be copied deeply")
        made = self.detach().clone().requires_grad_(self.requires_grad)
        made._is_param = getattr(self, "_is_param", False)
        memo[id(self)] = made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        parameter = getattr(self, "_is_param", False)
        return _rebuilt, (self.detach().cpu(), self.ordinal, self.requires_grad, parameter)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def __repr__(self) -> str:
        return f"tensor of {tuple(self.shape)}, {self.dtype}, on {self.device}"


OURS = (DeviceTensor, torch.nn.Parameter)


def _takes_a_view(where: Any) -> bool:
    parts = where if isinstance(where, tuple) else (where,)
    return all(
        part is None or part is Ellipsis or isinstance(part, slice) or type(part) is int
        for part in parts
    )


def _rebuilt(values: torch.Tensor, index: int, grad: bool, parameter: bool) -> torch.Tensor:
    made = values.to(torch.device("cuda", index)).requires_grad_(grad)
    if parameter:
        made._is_param = True
    return made
