"""Boxes of a Dask array as tasks of their own: each with the part of the graph that it needs.

In this process a task finds the array by name and takes its box of it, so that nothing need
pickle. To other processes the part travels: files as how to open them, voxels in memory as the
boxes that are needed, what every box needs whole once per worker, results that are kept on the
cluster as what the task waits for.
"""

from __future__ import annotations

import io
import pickle
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np
from dask._task_spec import DataNode, GraphNode, Task, TaskRef
from dask.base import optimize
from dask.core import flatten
from dask.local import get_sync
from distributed import Client, Future, futures_of, get_client

from volflow.engine.clusters.held import InProcess, Keeping, hold
from volflow.errors import InvalidInput, first_line
from volflow.geometry.roi import Roi
from volflow.volumes.arrays.graphs import Key, Nodes, cut, nodes_of, reached
from volflow.volumes.arrays.identity import Identity, identify
from volflow.volumes.arrays.leaves import identity_of, reopening

if TYPE_CHECKING:
    import dask.array as da

__all__ = [
    "Parcel",
    "Piece",
    "Pieces",
    "compute_parcel",
    "gathered",
    "identities_of",
    "packed",
    "piece_of",
    "settled",
]

LARGE_BYTES = 2**20  # of arrays that are worth sending apart from the tasks that need them


@dataclass(frozen=True)
class Piece:
    """A box of an array: the nodes that it is computed from.

    Parameters
    ----------
    nodes
        The part of the graph.
    keys
        Of its chunks, nested by axis.
    join
        The function and its arguments that put the chunks together.
    """

    nodes: Nodes
    keys: Any
    join: tuple[Any, tuple[Any, ...]]

    @property
    def needs(self) -> list[Key]:
        """Results on the cluster that it is computed from."""
        used = {key for node in self.nodes.values() for key in node.dependencies}
        used.update(flatten(self.keys))
        return sorted(used - self.nodes.keys(), key=str)

    def compute(self, results: Mapping[Key, Any], get: Any = get_sync) -> Any:
        """Its voxels, in this thread or by another of Dask's own schedulers."""
        nodes = self.nodes | {key: DataNode(key, value) for key, value in results.items()}
        func, arguments = self.join
        return func(get(nodes, self.keys), *arguments)

    @property
    def values(self) -> Iterator[Any]:
        """What its nodes hold beside names of others."""
        for node in self.nodes.values():
            if isinstance(node, DataNode):
                yield node.value
            elif isinstance(node, Task):
                yield from (*node.args, *node.kwargs.values())


def piece_of(array: da.Array, roi: Roi) -> Piece:
    """The box of an array as a piece."""
    part = array[roi.slices()]
    if hasattr(part, "expr"):  # Dask's query planning
        part = part.optimize()
    else:
        (part,) = optimize(part)
    keys = part.__dask_keys__()
    nodes = reached(nodes_of(part.__dask_graph__()), flatten(keys))
    return Piece(reached(cut(nodes), flatten(keys)), keys, part.__dask_postcompute__())


Parcel = bytes | tuple[InProcess, Roi]
"""A piece on its way to a task: its pickle, or the array by name and the box."""


def compute_parcel(parcel: Parcel, results: Mapping[Key, Any]) -> Any:
    """The voxels of a box that came to this task, computed in this thread."""
    if not isinstance(parcel, bytes):
        held, roi = parcel
        return piece_of(held.get(), roi).compute(results)
    piece: Piece = pickle.loads(parcel)
    return piece.compute(results)


@dataclass(frozen=True)
class Pieces:
    """An array whose boxes are computed by tasks of a client.

    Parameters
    ----------
    array
        Any Dask array.
    client
        Where the tasks run.
    here
        Whether that is this process.
    results
        What the array holds of results that are kept on the client's cluster.
    kept
        What travels apart from the tasks, by name, and its pickle.
    """

    array: da.Array
    client: Client
    here: bool
    results: Mapping[Key, Future[Any]] = field(default_factory=dict)
    kept: Mapping[str, tuple[Any, bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, array: da.Array, client: Client, here: bool) -> Pieces:
        """The pieces of an array.

        Raises
        ------
        InvalidInput
            Where the array holds results on another cluster, or results that are lost.
        """
        return cls(array, client, here, results_of(array, client))

    def identity(self) -> Identity:
        """What the array is; results on the cluster are hashed where they are."""
        tokens = identities_of(self.results)
        found = identify(self.array, tokens)
        if not all(tokens.values()):
            return Identity(found.token, found.unknown or "results on a cluster")
        return found

    def shared(self, rois: Sequence[Roi]) -> Pieces:
        """The same, with what all of the boxes need whole to be sent apart.

        Raises
        ------
        InvalidInput
            Where the array cannot be sent to another process, naming what stands in the way, or
            its graph is not whole.
        """
        lacking = set(piece_of(self.array, rois[0]).needs) - self.results.keys()
        if lacking:
            raise InvalidInput(
                f"the graph of the Dask array lacks {_layer_of(lacking.pop())}, on which it depends"
                " (Dask's query planning loses large arguments of map_blocks); set"
                " DASK_ARRAY__QUERY_PLANNING=false"
            )
        if self.here:
            return self
        # What the first and the last box have in common is needed by all.
        met: list[dict[int, Any]] = []
        for roi in {rois[0]: None, rois[-1]: None}:
            piece, within = piece_of(self.array, roi), dict[int, Any]()
            packed(piece, met=within)
            met.append({id(x): x for x in piece.values} | within)
        common = [x for n, x in met[0].items() if n in met[-1]] if len(met) > 1 else []
        kept = {}
        for thing in common:
            if isinstance(thing, GraphNode | TaskRef) or callable(thing):
                continue
            content = _dumps(thing, {}, None)
            if len(content) >= LARGE_BYTES:
                kept[uuid.uuid4().hex] = thing, content
        return replace(self, kept=kept)

    @property
    def kept_bytes(self) -> int:
        """Of what is sent to each worker apart from its tasks."""
        return sum(len(content) for _, content in self.kept.values())

    @property
    def plugin(self) -> Keeping | None:
        """What brings to the workers what is sent apart."""
        contents = {name: content for name, (_, content) in self.kept.items()}
        return Keeping(contents) if contents else None

    def held(self) -> AbstractContextManager[InProcess | None]:
        """Makes the array known to tasks that run in this process."""
        return hold(self.array) if self.here else nullcontext()

    def parcel(self, roi: Roi, held: InProcess | None) -> tuple[Parcel, dict[Key, Future[Any]]]:
        """What a task needs for a box, and the results that it waits for."""
        if held is not None and not self.results:
            return (held, roi), {}
        piece = piece_of(self.array, roi)
        needed = {key: self.results[key] for key in piece.needs}
        if held is not None:
            return (held, roi), needed
        kept = {id(thing): name for name, (thing, _) in self.kept.items()}
        return packed(piece, kept), needed


def results_of(array: da.Array, client: Client) -> dict[Key, Future[Any]]:
    """The results on a cluster that an array holds, as futures of the client."""
    found: dict[Key, Future[Any]] = {}
    for future in futures_of(array):
        there, here = future.client.scheduler, client.scheduler
        if there is None or here is None or there.address != here.address:
            raise InvalidInput(
                "the array holds results that are kept on the Dask cluster at"
                f" {getattr(there, 'address', 'an address that is closed')}, but this run works on"
                f" {getattr(here, 'address', 'another')}; pass the client that persisted it as"
                " cluster=, or give the array as it was before persist()"
            )
        if future.status in ("error", "cancelled", "lost"):
            raise InvalidInput(
                f"the array holds results on a Dask cluster of which {future.key} is"
                f" {'failed' if future.status == 'error' else future.status}; persist it again, or"
                " give the array as it was before persist()"
            )
        found[future.key] = future
    if any(future.client is not client for future in found.values()):
        _wait(found.values())
        return {key: _of_client(key, client) for key in found}
    return found


def settled(array: da.Array) -> da.Array:
    """The array, once what it holds of results on a cluster is there, or has failed.

    Where it is sent to nobody waits for them, and nobody may wait while it is pickled: the client
    holds a lock then.
    """
    _wait(futures_of(array))
    return array


def _wait(results: Iterable[Future[Any]]) -> None:
    for future in results:
        if future.client is not None and not future.done():
            future.exception()


def _of_client(key: Key, client: Client) -> Future[Any]:
    """A result that is there already, as a future of another client of the same cluster."""
    return Future(key, client, state="memory")  # type: ignore[arg-type] # as Dask does it


def identities_of(results: Mapping[Key, Future[Any]]) -> dict[Key, str]:
    """Hashes of results on a cluster, made where they are; empty where there can be none."""
    if not results:
        return {}
    client = next(iter(results.values())).client
    hashed = client.map(_identity_of, list(results.values()), pure=False)
    return dict(zip(results, client.gather(hashed), strict=True))


def gathered(results: Mapping[Key, Future[Any]]) -> dict[Key, Any]:
    """Results on a cluster, brought to this process.

    Raises
    ------
    InvalidInput
        Where this process is not part of the cluster.
    """
    if not results:
        return {}
    try:
        # A future that came with a task has no client yet; that of the worker is meant.
        client = next(iter(results.values())).client or get_client()
    except ValueError:
        raise InvalidInput(
            "the array holds results that are kept on a Dask cluster to which this process does not"
            " belong; read it in the process that persisted it, or give the array as it was before"
            " persist()"
        ) from None
    futures = [_of_client(key, client) for key in results]
    return dict(zip(results, client.gather(futures), strict=True))


def packed(
    x: da.Array | Piece, kept: Mapping[int, str] | None = None, met: dict[int, Any] | None = None
) -> bytes:
    """An array with its graph, or a piece, as bytes; files in it as how to open them.

    Parameters
    ----------
    x
        What is sent.
    kept
        Names of what travels apart, by id.
    met
        Takes the large arrays within it, by id.

    Raises
    ------
    InvalidInput
        Where it cannot be sent to another process, naming what stands in the way.
    """
    try:
        return _dumps(x, kept or {}, met)
    except Exception as error:  # objects raise what they like
        nodes = x.nodes if isinstance(x, Piece) else nodes_of(x.__dask_graph__())
        raise InvalidInput(
            f"the Dask array cannot be sent to another process: {_culprit(nodes, error)}; run it"
            ' in this process (cluster="threads"), or open files and make locks within the function'
            " that uses them"
        ) from error


def _identity_of(result: Any) -> str:
    return identity_of(result) if isinstance(result, np.ndarray) else ""


def _culprit(nodes: Nodes, error: Exception) -> str:
    """Which task holds what cannot be pickled, and why."""
    for key, node in nodes.items():
        try:
            _dumps(node, {}, None)
        except Exception as found:
            func = getattr(node, "func", None)
            name = getattr(func, "__name__", type(func).__name__)
            task = f"the function {name} of " if isinstance(node, Task) else ""
            return f"{task}{_layer_of(key)} holds what does not pickle ({first_line(found)})"
    return first_line(error)


def _layer_of(key: Any) -> str:
    """The name that Dask gave to the nodes of an operation."""
    while isinstance(key, tuple):
        key = key[1] if key[0] == "within" else key[0]
    return str(key)


def _dumps(x: Any, kept: Mapping[int, str], met: dict[int, Any] | None) -> bytes:
    file = io.BytesIO()
    _LeafPickler(file, kept, met).dump(x)
    return file.getvalue()


class _LeafPickler(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle has no types
    """Pickles leaves as how to open them."""

    def __init__(
        self, file: io.BytesIO, kept: Mapping[int, str], met: dict[int, Any] | None
    ) -> None:
        super().__init__(file, protocol=5)
        self.kept = kept
        self.met = met

    def reducer_override(self, obj: Any) -> Any:
        opening = reopening(obj)
        if opening is not None:
            return opening
        if id(obj) in self.kept:
            return InProcess.get, (InProcess(self.kept[id(obj)]),)
        if self.met is not None and isinstance(obj, np.ndarray) and obj.nbytes >= LARGE_BYTES:
            self.met[id(obj)] = obj
        return super().reducer_override(obj)
