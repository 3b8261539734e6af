"""Run the passes of an exact prediction that come before the last, under journals of their own.

::

    out.zarr.volflow/passes/
        000/                  the journal of the first pass
            partials/         what each of its blocks knows of the statistics
            statistics.f64    what all of them know
        kept/7/               node 7, while a later pass needs it

A pass that was interrupted goes on; one whose kept nodes are needed again, because blocks of the
result have to be repaired, is run again for these, with the statistics that are known.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client

from volflow.engine.cluster import memory_per_worker, workers
from volflow.engine.events import State
from volflow.engine.plan import Plan, split_runs
from volflow.errors import ResumeRefused, RunFailed
from volflow.geometry.grid import BlockGrid
from volflow.infer.exact.job import Blockwise
from volflow.infer.exact.plan import ExactSettings, network_of
from volflow.infer.exact.task import PassJob, exact_pass, partial_path
from volflow.infer.request import Request
from volflow.model.resident import ModelPlugin
from volflow.partition.graph import Graph
from volflow.partition.moments import statistic_of
from volflow.passes.activations import Kept, making_room
from volflow.store.atomic import write_file
from volflow.store.journal.journal import Journal, Record, journal_dir
from volflow.volumes.session import run_journalled

__all__ = ["Passes", "run_passes"]

Array = npt.NDArray[Any]


def _check(exact: ExactSettings, graph: Graph, request: Request) -> None:
    """Refuse passes of a journal that are none of this network."""
    known = range(len(graph.nodes))
    for step in exact.passes:
        nodes = (*step.given, *step.stores, *step.statistics)
        sides = len(step.block) == len(graph.sizes(0)) and min(step.block) >= 1
        if not sides or not all(n in known for n in nodes):
            raise ResumeRefused(
                f"the journal of {request.out} names passes that the model has not; begin again"
                " (overwrite=True, --overwrite)"
            )


@dataclass(frozen=True)
class Passes:
    """The passes of one output, and where what they keep lies.

    Parameters
    ----------
    request, exact
        What is predicted, and how.
    graph
        The network.
    blockwise
        The image and the network.
    threads, peak_bytes
        Of torch, per worker; what a worker is thought to take.
    """

    request: Request
    exact: ExactSettings
    graph: Graph
    blockwise: Blockwise
    threads: int
    peak_bytes: int

    @classmethod
    def of(cls, request: Request, exact: ExactSettings, settings: Any) -> Passes:
        """The passes of a run with these settings."""
        network = network_of(request, exact.sizes, settings.device, settings.precision)
        graph = replace(network, device="cpu").graph(request.model.module)
        _check(exact, graph, request)
        return cls(
            request,
            exact,
            graph,
            Blockwise(request.inputs, network),
            settings.threads,
            settings.peak_bytes,
        )

    @property
    def folder(self) -> Path:
        """Of all passes."""
        return Journal(journal_dir(self.request.out)).passes

    def journal(self, number: int) -> Journal:
        """Of one pass."""
        return Journal(self.folder / f"{number:03d}")

    def kept(self, node: int) -> Kept:
        """Where a node is kept, in the blocks of the pass that stores it."""
        step = next(p for p in self.exact.passes[:-1] if node in p.stores)
        whole, sizes = self.graph.sizes(0), self.graph.sizes(node)
        cuts = tuple(
            tuple(a * m // n for a in (*range(0, n, b), n))
            for n, b, m in zip(whole, step.block, sizes, strict=True)
        )
        found = self.graph.nodes[node]
        dtype = "float64" if found.dtype == torch.float64 else "float32"
        return Kept(self.folder / "kept" / str(node), found.depth, cuts, dtype)

    def at_hand(self, number: int) -> Blockwise:
        """What computes the blocks of a pass: with what earlier passes kept and measured."""
        given = {n: self.kept(n) for n in self.exact.passes[number].given if n}
        statistics: dict[int, Array] = {}
        for earlier in range(number):
            statistics |= self.statistics(earlier) or {}
        return replace(self.blockwise, given=given, statistics=statistics)

    def statistics(self, number: int) -> dict[int, Array] | None:
        """What a pass measured, by node; None where it is not done."""
        wanted = self.exact.passes[number].statistics
        path = self.journal(number).directory / "statistics.f64"
        if not wanted:
            return {}
        try:
            flat = np.fromfile(path)
        except FileNotFoundError:
            return None
        return self._split(wanted, flat)

    def _split(self, statistics: tuple[int, ...], flat: Array) -> dict[int, Array] | None:
        """Numbers of several statistics by node; None where their number is another."""
        rules = [statistic_of(self.graph, s) for s in statistics]
        counts = [math.prod(rule.partial_shape) for rule in rules]
        if sum(counts) != flat.size:
            return None
        parts = np.split(flat, np.cumsum(counts)[:-1])
        return {
            s: part.reshape(rule.partial_shape)
            for s, rule, part in zip(statistics, rules, parts, strict=True)
        }

    def _partial(self, number: int, block: int) -> dict[int, Array] | None:
        """What a block of a pass measured; None where that is gone or damaged."""
        try:
            flat = np.fromfile(partial_path(self.journal(number), block))
        except FileNotFoundError:
            return None
        return self._split(self.exact.passes[number].statistics, flat)

    def merge(self, number: int) -> None:
        """Merge what the blocks of a pass know, in their order."""
        step, journal = self.exact.passes[number], self.journal(number)
        if not step.statistics or self.statistics(number) is not None:
            return
        partials = []
        for block in range(len(self.grid(number))):
            path = partial_path(journal, block)
            part = self._partial(number, block)
            if part is None:
                journal.forget([block])
                raise RunFailed(f"{path} is damaged; run the same command again to measure it anew")
            partials.append(part)
        merged = [
            statistic_of(self.graph, s).merged(part[s] for part in partials).ravel()
            for s in step.statistics
        ]
        with making_room(journal.directory):
            write_file(journal.directory / "statistics.f64", np.concatenate(merged).tobytes())
        shutil.rmtree(journal.directory / "partials", ignore_errors=True)

    def peak_of(self, number: int) -> int:
        """What a worker is thought to take in a pass."""
        beside = self.peak_bytes - max(step.peak_bytes for step in self.exact.passes)
        return beside + self.exact.passes[number].peak_bytes

    def grid(self, number: int) -> BlockGrid:
        """The blocks of a pass."""
        return self.exact.passes[number].grid(self.graph)

    def left(self, number: int, wanted: set[int]) -> list[int]:
        """Blocks of a pass that are not done, or whose part of a node that is wanted is gone."""
        journal, grid = self.journal(number), self.grid(number)
        done = journal.done() if journal.recorded() else {}
        kept = [self.kept(node) for node in self.exact.passes[number].stores if node in wanted]
        unmeasured = self.statistics(number) is None

        def undone(block: int) -> bool:
            if any(store.missing(grid[block].index) for store in kept):
                return True
            return unmeasured and (block not in done or self._partial(number, block) is None)

        return [block for block in range(len(grid)) if undone(block)]

    def todo(self) -> list[tuple[int, set[int]]]:
        """The passes to run before the last, in order, and which nodes each must keep."""
        passes = self.exact.passes
        needed = {n for n in passes[-1].given if n}
        found: list[tuple[int, set[int]]] = []
        for number in range(len(passes) - 2, -1, -1):
            wanted = needed & set(passes[number].stores)
            if self.left(number, wanted) or self.statistics(number) is None:
                found.append((number, wanted))
                needed |= {n for n in passes[number].given if n}
        return found[::-1]

    def drop(self, number: int) -> None:
        """Delete what no pass behind this one reads."""
        passes = self.exact.passes
        later = {n for step in passes[number + 1 :] for n in step.given}
        for node in {n for step in passes[:-1][: number + 1] for n in step.stores} - later:
            self.kept(node).drop()


def run_passes(
    passes: Passes,
    client: Client,
    memory: Any,
    progress: bool | Callable[[State], object] | None,
) -> None:
    """Run what is left of the passes before the last; under the output's lock.

    Parameters
    ----------
    passes
        Of the output.
    client, memory, progress
        As in `predict`.
    """
    for number, wanted in passes.todo():
        step = passes.exact.passes[number]
        journal = passes.journal(number)
        with making_room(journal.directory):
            (journal.directory / "partials").mkdir(parents=True, exist_ok=True)
        left = passes.left(number, wanted)
        journal.forget(left)
        stores = {node: passes.kept(node) for node in step.stores if node in wanted}
        for store in stores.values():
            store.open()
        record = Record("pass", passes.request.fingerprint(), {"grid": [len(passes.grid(number))]})
        plan = _plan(passes, number, left, stores, client, memory)
        run_journalled(plan, journal, record, _bind, cluster=client, progress=progress)
        passes.merge(number)
        passes.drop(number)


def _bind(job: PassJob, session: str) -> PassJob:
    return replace(job, session=session)


def _plan(
    passes: Passes,
    number: int,
    left: list[int],
    stores: dict[int, Kept],
    client: Client,
    memory: Any,
) -> Plan:
    step = passes.exact.passes[number]
    # What is measured already is not measured again.
    measured = passes.statistics(number) is not None
    step = replace(step, statistics=() if measured else step.statistics)
    memory_bytes = memory_per_worker(client, memory)
    job = PassJob(
        passes.at_hand(number),
        step,
        stores,
        passes.journal(number),
        "",
        passes.threads,
        memory_bytes,
        passes.peak_of(number),
    )
    model, grid = passes.request.model, passes.grid(number)
    count = max(1, len(workers(client)))
    return Plan(
        f"pass {number + 1} of {len(passes.exact.passes)}",
        exact_pass,
        job,
        split_runs(left, count if count == 1 else 4 * count),
        units=sum(grid[block].write_roi.size for block in left),
        unit="voxels",
        peak_bytes=step.peak_bytes,
        memory_bytes=memory_bytes,
        exclusive=True,
        plugin=ModelPlugin(model.module, model.digest),
    )
