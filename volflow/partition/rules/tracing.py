"""A tensor without values that records operations on it, and the recorded calls."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from volflow.errors import NoExactRule
from volflow.partition.draws import Draws
from volflow.partition.graph import Compute, Node
from volflow.partition.ranges import AxisMap, Same, Whole
from volflow.partition.rules.kernels import Local
from volflow.partition.rules.precision import autocast_of, tried_dtype
from volflow.partition.weights import Update, WeightsInUse

__all__ = ["Memory", "OpCall", "RecordCall", "Traced", "Tracer", "leaves", "mapped"]

# Records one call of a function: tracer, function, arguments.
RecordCall = Callable[["Tracer", Any, tuple[Any, ...], dict[str, Any]], Any]


# Arguments that are told by their values, and tensors that are.
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype)
SMALL = 16


class Memory:
    """Memory shared by views; counts its changes in place."""

    def __init__(self) -> None:
        self.changes = 0


class Traced(Tensor):
    """Stands for a node's values: a shape and a number, no voxels."""

    tracer: Tracer
    number: int
    meta: Tensor
    memory: Memory
    seen: int

    @property
    def stale(self) -> bool:
        """True if it was changed through another view, so that its node no longer describes it."""
        return self.seen != self.memory.changes

    def become(self, other: Traced) -> None:
        """Change in place to represent the node of another."""
        self.number, self.meta = other.number, other.meta
        self.memory.changes += 1
        self.seen = self.memory.changes

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the call instead of making it."""
        kwargs = kwargs or {}
        tracer = next(one.tracer for one in leaves((args, kwargs)) if isinstance(one, Traced))
        with torch._C.DisableTorchFunctionSubclass():
            return tracer.record(tracer, func, args, kwargs)


class OpCall:
    """One call of a function with traced tensors.

    Parameters
    ----------
    tracer
        The tracer that records it.
    name
        The function's bare name.
    func, args, kwargs
        The arguments of the call; in-place calls are recorded as their out-of-place equivalent.
    """

    def __init__(
        self, tracer: Tracer, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self.tracer, self.name, self.func = tracer, name, func
        self.args, self.kwargs = args, kwargs
        self.weights: tuple[int, ...] = ()
        self.result: Any = None

    def refuse(self, why: str) -> NoExactRule:
        """Return the error for an op that cannot be cut into blocks."""
        return self.tracer.refusal(self.name, self.tracer.path, why)

    def with_leaves(self) -> OpCall:
        """Return the same call on leaves in place of the weights that require a gradient."""
        found: dict[int, None] = {}
        user = f"{self.name}@{self.tracer.path}"

        def leaf(x: Tensor) -> Tensor:
            if isinstance(x, Traced) or not x.requires_grad:
                return x
            number = self.tracer.weights.number(x, user)
            if number is None:
                raise self.refuse(
                    f"a tensor of shape {tuple(x.shape)} requires a gradient, but is neither a"
                    " parameter of the model nor computed from its parameters; register it"
                )
            found[number] = None
            return self.tracer.weights.found[number].leaf

        args, kwargs = mapped((self.args, self.kwargs), leaf)
        call = OpCall(self.tracer, self.name, self.func, args, kwargs)
        call.weights = tuple(found)
        return call

    def named(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the arguments by name, for functions without a Python signature."""
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    @property
    def constants(self) -> tuple[str, ...]:
        """Plain arguments, and small tensors that are no part of the module's state."""
        found = []
        for x in leaves((self.args, self.kwargs)):
            if not isinstance(x, Tensor):
                found.append(repr(x) if isinstance(x, PLAIN) else type(x).__name__)
            elif not isinstance(x, Traced) and id(x) not in self.tracer.state:
                small = x.numel() <= SMALL and x.device.type != "meta" and not x.requires_grad
                found.append(repr(x.tolist() if small else tuple(x.shape)))
        return tuple(found)

    @property
    def inputs(self) -> list[Traced]:
        """Traced tensors among the arguments, in order, repeated if an argument is."""
        return [x for x in leaves((self.args, self.kwargs)) if isinstance(x, Traced)]

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """Call the function with these tensors in place of the traced ones."""
        stream = iter(tensors)
        args, kwargs = mapped(
            (self.args, self.kwargs), lambda x: next(stream) if isinstance(x, Traced) else x
        )
        return self.func(*args, **kwargs)

    def local(
        self,
        x: Traced,
        dims: Sequence[int | None],
        function: Callable[[Tensor, tuple[int, ...]], Tensor],
        meta: Tensor | None = None,
        over: Callable[[Tensor, tuple[int, ...]], Tensor] | None = None,
    ) -> Traced:
        """Record a function of one tensor that is independent of positions.

        Parameters
        ----------
        x, dims
            The tensor, and the axis along each dim of the result.
        function
            Called with a window of the tensor, and the sizes of the box per axis.
        meta
            The result on the meta device; that of the call by default.
        over
            The same function, if there is one that may overwrite its tensor. Then neither shares
            memory with anything else.
        """
        reads = [self.tracer.straight(x, self.tracer.sizes(x))]
        compute = Local(lambda tensors, sizes: function(tensors[0], sizes), over is not None, over)
        return self.tracer.add(
            self, [x], reads, compute, self.metas() if meta is None else meta, dims
        )

    def as_is(self, dims: Sequence[int | None] | None = None) -> Any:
        """Record the call itself, which is independent of positions; one node per result.

        The axes stay along their dims unless ``dims`` is given.
        """
        tracer, inputs, metas = self.tracer, self.inputs, self.metas()
        sizes, axes = tracer.sizes(inputs[0]), tracer.dims(inputs[0]) if dims is None else dims
        reads = [tracer.straight(x, sizes) for x in inputs]

        def node(meta: Tensor, which: int | None) -> Traced:
            def values(tensors: Sequence[Tensor], sizes: tuple[int, ...]) -> Any:
                raw = self.run(tensors)
                return raw if which is None else raw[which]

            return tracer.add(self, inputs, reads, Local(values), meta, axes)

        if isinstance(metas, Tensor):
            return node(metas, None)
        if not all(isinstance(meta, Tensor) for meta in metas):
            raise self.refuse("it returns more than tensors")
        nodes = tuple(node(meta, which) for which, meta in enumerate(metas))
        named = hasattr(type(metas), "n_sequence_fields")  # (values, indices)
        return type(metas)(nodes) if named else nodes

    def metas(self) -> Any:
        """Return torch's result on the meta device."""
        if self.result is None:
            self.result = self.tracer.infer(self)
        return self.result


class Tracer:
    """Collects nodes while a module runs.

    Parameters
    ----------
    module, ndim, device
        What is traced, the axes of its image, and where it computes.
    record
        Records one call.
    draws
        If given, it is traced for training.
    """

    def __init__(
        self,
        module: nn.Module,
        ndim: int,
        device: torch.device,
        record: RecordCall,
        draws: Draws | None = None,
    ) -> None:
        self.state = {id(one) for one in (*module.parameters(), *module.buffers())}
        self.paths: dict[int, str] = {id(child): name for name, child in module.named_modules()}
        self.ndim = ndim
        self.record = record
        self.device = device
        self.draws = draws
        self.precision = autocast_of(device)
        self.nodes: list[Node] = []
        self.weights = WeightsInUse(module)
        self.updates: list[Update] = []
        self.given: dict[int, Tensor] = {}
        self._metas: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def training(self) -> bool:
        """True if the graph is for training, with gradients."""
        return self.draws is not None

    def refusal(self, what: str, where: str, why: str) -> NoExactRule:
        """Return the error for what cannot be done in blocks, in a module of this path."""
        purpose, remedy = "", "use blend='gaussian' (or hann, average, crop; --blend), whose result"
        remedy += " depends on the patch"
        if self.training:
            purpose, remedy = " in training", "train on patches instead (vf.PatchStream)"
        return NoExactRule(
            f"{what} in {where or 'the model'} has no exact rule{purpose}: {why}; {remedy}"
        )

    @property
    def path(self) -> str:
        """Return the path of the innermost module whose method is being called.

        Hooks cannot be used, as the module may run in other threads at the same time.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            at_work = id(frame.f_locals.get("self"))
            if at_work in self.paths:
                return self.paths[at_work]
            frame = frame.f_back
        return ""

    def add(
        self,
        call: OpCall,
        inputs: Sequence[Traced],
        reads: Sequence[Sequence[AxisMap]],
        compute: Compute,
        meta: Tensor,
        dims: Sequence[int | None],
        *,
        flops: int = 0,
        statistic: bool = False,
    ) -> Traced:
        """Append a node; return the tensor that represents it."""
        node = Node(
            name=call.name,
            where=self.path,
            inputs=tuple(x.number for x in inputs),
            reads=tuple(tuple(axes) for axes in reads),
            compute=compute,
            shape=tuple(meta.shape),
            dims=tuple(dims),
            dtype=meta.dtype,
            flops=flops,
            statistic=statistic,
            weights=() if statistic else call.weights,
            constants=call.constants,
        )
        if self.precision is not None and self.training and not statistic:
            node = replace(node, dtype=tried_dtype(self.nodes, node, self.ndim, self.device))
            meta = meta.to(node.dtype)
        self.nodes.append(node)
        return self.stand_in(len(self.nodes) - 1, meta)

    def note_given(self, call: OpCall) -> None:
        """Remember the memory of the plain tensors that a recorded op will be given."""
        for x in leaves((call.args, call.kwargs)):
            if isinstance(x, Tensor) and not isinstance(x, Traced):
                self.given[x.untyped_storage()._cdata] = x  # kept, so that it is not reused

    def stand_in(self, number: int, meta: Tensor, memory: Memory | None = None) -> Traced:
        """Return a traced tensor for a node, with its own memory unless it is a view."""
        traced: Traced = Tensor._make_subclass(Traced, meta)
        traced.tracer, traced.number, traced.meta = self, number, meta
        traced.memory = memory or Memory()
        traced.seen = traced.memory.changes
        return traced

    def dims(self, x: Traced) -> tuple[int | None, ...]:
        """Return the axis along each dim."""
        return self.nodes[x.number].dims

    def sizes(self, x: Traced) -> tuple[int, ...]:
        """Return voxels per axis."""
        return self.nodes[x.number].sizes(self.ndim)

    def straight(self, x: Traced, sizes: Sequence[int]) -> tuple[AxisMap, ...]:
        """Return maps that compute each voxel from the voxel at its position."""
        return tuple(
            Same() if mine == theirs else Whole(mine)
            for mine, theirs in zip(self.sizes(x), sizes, strict=True)
        )

    def infer(self, call: OpCall) -> Any:
        """Run a call on meta tensors, weights included."""
        args, kwargs = mapped((call.args, call.kwargs), lambda x: self._meta(x, call))
        try:
            return call.func(*args, **kwargs)
        except RuntimeError:
            if self.precision is None:
                raise
        # Tensors of several dtypes, which autocast would bring to one: that decides no shape.
        args, kwargs = mapped((args, kwargs), lambda x: x.float() if x.is_floating_point() else x)
        return call.func(*args, **kwargs)

    def _meta(self, x: Tensor, call: OpCall) -> Tensor:
        if isinstance(x, Traced):
            return x.meta
        if x.device.type == "meta":
            raise call.refuse("it is given a tensor that was made without values")
        if id(x) not in self._metas:  # the tensor is kept, so that its id is not reused
            self._metas[id(x)] = (x, x.detach().to("meta"))
        return self._metas[id(x)][1]


def leaves(tree: Any) -> Iterator[Any]:
    """Yield all leaves of nested arguments, in order."""
    if isinstance(tree, tuple | list):
        for one in tree:
            yield from leaves(one)
    elif isinstance(tree, dict):
        for one in tree.values():
            yield from leaves(one)
    elif isinstance(tree, slice):
        yield from (tree.start, tree.stop, tree.step)
    else:
        yield tree


def mapped(tree: Any, change: Any) -> Any:
    """Return nested arguments with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, tuple | list):
        changed = [mapped(one, change) for one in tree]
        plain = type(tree) in (tuple, list) or hasattr(type(tree), "n_sequence_fields")
        return type(tree)(changed) if plain else tuple(changed)
    if isinstance(tree, dict):
        return {name: mapped(one, change) for name, one in tree.items()}
    return tree
