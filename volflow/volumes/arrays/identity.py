"""What a Dask array is: a hash of what its graph reads and of what it does with that.

Dask's own names would do, but that they know a Zarr array by its path, and that what Dask cannot
hash gets another name each time. So each node of the graph is hashed from what goes into it, down
to the leaves; its name plays no part. A function of a user's module is that module and all that it
imports: Dask knows it by its name.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef
from dask.core import flatten

from volflow.model.imports import code_of
from volflow.store.slabs import Source
from volflow.volumes.arrays.graphs import Key, in_order, nodes_of, reached
from volflow.volumes.arrays.leaves import called, hash_of, identity_of, is_leaf, is_lock, is_voxels

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["Identity", "identify"]

# Whose functions make voxels from their arguments alone, but for those that read files.
_PURE = ("numpy.", "dask.array.", "volflow.")
_PLAIN = ("numpy", "dask", "volflow", "operator", "_operator", "builtins", "functools", "itertools")
_READERS = {"load", "fromfile", "loadtxt", "genfromtxt", "fromregex", "memmap", "open_memmap"}
_SCALARS = (str, bytes, int, float, complex, bool, type(None), type(...), np.generic, np.dtype)


@dataclass(frozen=True)
class Identity:
    """What a Dask array is.

    Parameters
    ----------
    token
        A hash that changes when the voxels may do.
    unknown
        What of it cannot be identified, for people; empty where everything can.
    """

    token: str
    unknown: str = ""


def identify(array: da.Array, results: Mapping[Key, str] | None = None) -> Identity:
    """What a Dask array is; its files are looked at, its voxels in memory are hashed.

    Parameters
    ----------
    array
        Any; what it computes is not computed.
    results
        Hashes of results that are kept on a cluster, by key.

    Examples
    --------
    >>> import dask.array as da
    >>> x = da.from_array(np.arange(8), chunks=4)
    >>> identify(x * 2) == identify(x * 2), identify(x * 2) == identify(x * 3)
    (True, False)
    >>> identify(x.map_blocks(np.sqrt)).unknown
    ''
    >>> from dask.delayed import delayed
    >>> identify(da.from_delayed(delayed(np.load)("a.npy"), (8,), float)).unknown
    'the function load'
    """
    keys = list(flatten(array.__dask_keys__()))
    nodes = reached(nodes_of(array.__dask_graph__()), keys)
    reader = _Reader({key: _Known(token, voxels=True) for key, token in (results or {}).items()})
    unknown = ""
    for key in in_order(nodes):
        known, blind = reader.read(nodes[key])
        reader.known[key] = known
        unknown = unknown or blind
    tokens = [reader.known[key].token if key in reader.known else "a result" for key in keys]
    if not unknown and any(d not in reader.known for n in nodes.values() for d in n.dependencies):
        unknown = "results on a cluster"
    code = code_of(sorted(reader.modules))
    return Identity(hash_of(array.shape, array.dtype, array.chunks, code, *tokens), unknown)


@dataclass(frozen=True)
class _Known:
    """A node: its hash, and whether it gives voxels or only instructions for making them."""

    token: str
    voxels: bool


@dataclass(frozen=True)
class _Seen:
    """What lies within an argument: voxels, functions of a user, what cannot be identified."""

    voxels: bool = False
    foreign: str = ""
    blind: str = ""

    def __or__(self, other: _Seen) -> _Seen:
        return _Seen(
            self.voxels or other.voxels, self.foreign or other.foreign, self.blind or other.blind
        )


@dataclass
class _Reader:
    """Hashes nodes from what goes into them."""

    known: dict[Key, _Known]
    seen: _Seen = _Seen()
    # Functions and large objects are met once per block; kept, so that no id is used again.
    memo: dict[int, tuple[Any, str, _Seen]] = field(default_factory=dict)
    # Where functions and classes of the user's come from.
    modules: set[str] = field(default_factory=set)

    def read(self, node: GraphNode) -> tuple[_Known, str]:
        """What is known of a node, and what of it cannot be."""
        self.seen = _Seen()
        token = hash_of(self.text(node))
        seen = self.seen
        if isinstance(node, Alias) and node.target in self.known:
            return self.known[node.target], ""
        if isinstance(node, DataNode):
            return _Known(token, seen.voxels or is_leaf(node.value)), seen.blind
        voxels = seen.voxels or any(
            k in self.known and self.known[k].voxels for k in node.dependencies
        )
        if voxels or not isinstance(node, Task):
            return _Known(token, voxels), seen.blind
        if seen.foreign:  # a function that makes voxels out of anything, such as a file
            return _Known(token, voxels=True), seen.blind or f"the function {seen.foreign}"
        return _Known(token, voxels=f"{_module(node.func)}.".startswith(_PURE)), seen.blind

    def text(self, x: Any) -> str:
        """What an argument is, in words without names of nodes."""
        if isinstance(x, TaskRef | Alias):
            key = x.key if isinstance(x, TaskRef) else x.target
            return f"@{self.known[key].token}" if key in self.known else "@?"
        if isinstance(x, DataNode):
            return self.text(x.value)
        if isinstance(x, Task):
            return f"task {self.text((x.func, x.args, x.kwargs))}"
        if isinstance(x, _SCALARS):
            return f"{type(x).__name__} {x!r}"
        if isinstance(x, slice):
            return f"slice {self.text((x.start, x.stop, x.step))}"
        if type(x) in (tuple, list):
            return f"{type(x).__name__}({', '.join(map(self.text, x))})"
        if type(x) in (set, frozenset):
            return f"set({', '.join(sorted(map(self.text, x)))})"
        if type(x) is dict:
            return f"dict({', '.join(sorted(self.text(item) for item in x.items()))})"
        if isinstance(x, partial):
            return f"partial {self.text((x.func, x.args, x.keywords))}"
        return self.object(x)

    def object(self, x: Any) -> str:
        """What an object is; each is looked at once."""
        if id(x) not in self.memo:
            before, self.seen = self.seen, _Seen()
            text = self.special(x)
            if text is None:
                text = self.pickled(x)
            self.memo[id(x)] = x, text, self.seen
            self.seen = before
        _, text, seen = self.memo[id(x)]
        self.seen |= seen
        return text

    def special(self, x: Any) -> str | None:
        """The text of leaves, locks and objects that identify themselves; None for others."""
        if is_lock(x):
            return "lock"
        if is_leaf(x):
            token = identity_of(x)
            blind = "" if token else called(x)
            self.seen |= _Seen(is_voxels(x), "", blind)
            return f"{type(x).__name__} {token}"
        if callable(x) and not _is_plain(x):
            self.modules.add(_module(x))
            self.seen |= _Seen(foreign=getattr(x, "__name__", type(x).__name__))
        if hasattr(x, "__dask_tokenize__") and not isinstance(x, type):
            # Sources go by the name that results are known by which were stored before.
            name = "Sliced" if isinstance(x, Source) else type(x).__qualname__
            return f"{name} {self.text(x.__dask_tokenize__())}"
        return None

    def pickled(self, x: Any) -> str:
        """What an object pickles to, with what is special within it in words."""
        file, before = io.BytesIO(), self.seen
        try:
            _IdentityPickler(file, x, self).dump(x)
        except Exception as error:  # objects raise what they like
            blind = f"an object of type {type(x).__name__} ({error})"
            self.seen |= _Seen(before.voxels, before.foreign, blind)
            return f"{type(x).__qualname__}"
        if _is_arraylike(x) and not self.seen.voxels:
            # Its pickle identifies it if that holds the voxels, not if it holds how to read them.
            whole = len(file.getvalue()) >= math.prod(x.shape) * getattr(x.dtype, "itemsize", 8)
            blind = "" if whole else f"an array of type {type(x).__name__}"
            self.seen |= _Seen(voxels=True, blind=blind)
        return hashlib.sha256(file.getvalue()).hexdigest()


class _IdentityPickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """Pickles what is special as the text that identifies it."""

    def __init__(self, file: io.BytesIO, whole: Any, reader: _Reader) -> None:
        super().__init__(file, protocol=5)
        self.whole = whole
        self.reader = reader

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, CodeType):  # not where it stands in which file
            consts = [sorted(map(repr, c)) if type(c) is frozenset else c for c in obj.co_consts]
            names = (obj.co_names, obj.co_varnames, obj.co_freevars, obj.co_cellvars)
            return tuple, ((obj.co_code, consts, names, obj.co_argcount, obj.co_flags),)
        if isinstance(obj, type | ModuleType) and not _is_plain(obj):
            self.reader.modules.add(_module(obj))
        if obj is not self.whole and not isinstance(obj, type):
            foreign = self.reader.seen.foreign
            text = self.reader.special(obj)
            # What a user's object calls within is part of it; a source is judged by its function.
            self.reader.seen = replace(self.reader.seen, foreign=foreign)
            if text is not None:
                return str, (text,)
        return super().reducer_override(obj)


def _module(func: Any) -> str:
    """The module that a function, a class, or a module itself is of."""
    while isinstance(func, partial):
        func = func.func
    if isinstance(func, ModuleType):
        return func.__name__
    return str(getattr(func, "__module__", None) or type(func).__module__)


def _is_plain(func: Any) -> bool:
    """Whether a function is not one of the user's, and reads no files."""
    root = _module(func).partition(".")[0]
    return root in _PLAIN and getattr(func, "__name__", "") not in _READERS


def _is_arraylike(x: Any) -> bool:
    named = all(hasattr(x, name) for name in ("shape", "dtype", "__getitem__"))
    return named and not isinstance(x, type | np.ndarray)
