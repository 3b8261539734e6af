"""The graph of a Dask array as plain nodes, whichever way Dask has written it down.

Tasks that Dask fused are taken apart again, so that each node is one function and what goes into
it. What only cuts a box out of voxels in memory is cut at once: a block then carries its box and
not the array.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any

import numpy as np
from dask._task_spec import (
    Alias,
    DataNode,
    GraphNode,
    NestedContainer,
    Task,
    TaskRef,
    _execute_subgraph,
    convert_legacy_graph,
)
from dask.typing import Key

from volflow.volumes.arrays.leaves import mapped

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["Key", "Nodes", "carried", "cut", "in_order", "nodes_of", "reached"]

Nodes = dict[Key, GraphNode]


def carried(thing: Any, name: str) -> da.Array:
    """A thing as a Dask array without axes, for tasks that all need it.

    It is one object of the graph, which travels once to each worker and is not lost with one.
    Functions of `dask.array.map_blocks` get it by ``.item()``.
    """
    import dask.array as da

    array = np.empty((), object)
    array[()] = thing
    carrier: da.Array = da.from_array(array, chunks=(), name=name)
    return carrier


def nodes_of(graph: Mapping[Any, Any]) -> Nodes:
    """The nodes of a graph by key; results on a cluster are keys that no node has."""
    return _unfused(convert_legacy_graph(dict(graph)))


def _unfused(nodes: Mapping[Any, GraphNode]) -> Nodes:
    found: Nodes = {}
    for key, node in nodes.items():
        if isinstance(node, Task) and node.func is _execute_subgraph:
            found |= _unfused(_inner(key, node))
        else:
            found[key] = node
    return found


def _inner(key: Key, fused: Task) -> Nodes:
    """The nodes of a fused task under names of their own; the result has the task's."""
    inner, outkey, inkeys, *values = fused.args
    names: dict[Any, Any] = {name: ("within", key, name) for name in inner}
    nodes: Nodes = {}
    for name, value in zip(inkeys, values, strict=True):
        names[name] = ("within", key, name)
        if isinstance(value, TaskRef | Alias):
            names[name] = value.key if isinstance(value, TaskRef) else value.target
        elif isinstance(value, GraphNode) and value.dependencies:
            nodes[names[name]] = Task(names[name], _same, value)
        else:
            nodes[names[name]] = DataNode(names[name], _literal(value))
    names[outkey] = key
    nodes |= {names[name]: node.substitute(names, key=names[name]) for name, node in inner.items()}
    return nodes


def _same(x: Any) -> Any:
    return x


def reached(nodes: Mapping[Any, GraphNode], keys: Iterable[Key]) -> Nodes:
    """The nodes from which the keys are computed."""
    found: Nodes = {}
    pending = list(keys)
    while pending:
        key = pending.pop()
        if key in nodes and key not in found:
            found[key] = nodes[key]
            pending.extend(nodes[key].dependencies)
    return found


def in_order(nodes: Mapping[Any, GraphNode]) -> list[Key]:
    """The keys of the nodes, each behind those that it depends on."""
    sorter = TopologicalSorter({key: node.dependencies for key, node in nodes.items()})
    return [key for key in sorter.static_order() if key in nodes]


def cut(nodes: Mapping[Any, GraphNode]) -> Nodes:
    """The nodes, with boxes in place of the arrays in memory that they are cut out of.

    Where the array maps a file, the file's part stands in its place.
    """
    found: Nodes = {}
    for key in in_order(nodes):
        node = nodes[key]
        task = _cutting(node, found)
        if task is None:
            found[key] = node
            continue
        array, index, asarray = task
        part = mapped(array)
        if part is not None:
            found[key] = Task(key, operator.getitem, part, index)
        else:
            box = array[index]
            plain = asarray or isinstance(box, np.memmap)  # such as Dask copies into memory
            found[key] = DataNode(key, np.asarray(box) if plain else box)
    return found


def _cutting(node: GraphNode, found: Nodes) -> tuple[Any, Any, bool] | None:
    """Array, index and whether a plain array is asked for, of a task that cuts out a box."""
    from dask.array.chunk import getitem
    from dask.array.core import getter, getter_inline, getter_nofancy

    getters = (getter, getter_nofancy, getter_inline)
    if not isinstance(node, Task) or node.func not in (*getters, getitem, operator.getitem):
        return None
    array, index, *rest = (_literal(_followed(x, found)) for x in node.args)
    if not isinstance(array, np.ndarray) or isinstance(index, GraphNode | TaskRef):
        return None
    asarray = rest[0] if rest else node.kwargs.get("asarray", node.func in getters)
    return array, index, bool(_literal(asarray))


def _followed(x: Any, found: Nodes) -> Any:
    """The node that a name stands for."""
    while isinstance(x, TaskRef | Alias):
        x = found.get(x.key if isinstance(x, TaskRef) else x.target)
    return x


def _literal(x: Any) -> Any:
    """What a node holds that depends on no other."""
    return x({}) if isinstance(x, DataNode | NestedContainer) and not x.dependencies else x
