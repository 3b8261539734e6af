"""Run passes on any Dask cluster under journals of their own, keeping activations on disk.

::

    passes/
        000/                  the journal of the first pass
            partials/         partial statistics, one file per block
            statistics.f64    the merged statistics of all blocks
        kept/7/               activations of node 7, while a later pass needs them

An interrupted pass is resumed. If its activations are needed again, because blocks of the last pass
are repaired, it is run again for them, with the statistics measured before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from distributed import Client

from volflow.engine.plan import Plan, runs_for
from volflow.engine.progress import Progress
from volflow.engine.run import run
from volflow.engine.workers import expected_workers
from volflow.errors import RunFailed
from volflow.geometry.grid import BlockGrid
from volflow.model.resident import ModelPlugin
from volflow.partition.graph import Graph
from volflow.partition.reductions import statistic_of
from volflow.passes.activations import ActivationStore, making_room
from volflow.passes.cost import Pass
from volflow.passes.keeping import PassJob, numbers_of, partial_path, pass_blocks
from volflow.passes.network import Blockwise
from volflow.store.atomic import write_file
from volflow.store.journal.journal import Journal, Record

__all__ = ["Passes", "run_passes"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Passes:
    """The passes over one network and one image, and their state on disk.

    Parameters
    ----------
    steps
        In order. The last one is run by the caller, with `inputs_of` it.
    graph
        The network, on the CPU.
    blockwise
        The image and the network.
    model
        Holds the network on the workers while a pass runs; None where the caller does so.
    folder
        Folder of journals and activations.
    threads
        Torch threads per worker.
    beside_bytes
        Projected memory of a worker beside the tensors and buffers of a block.
    """

    steps: tuple[Pass, ...]
    graph: Graph
    blockwise: Blockwise
    model: ModelPlugin | None
    folder: Path
    threads: int
    beside_bytes: int

    def journal(self, number: int) -> Journal:
        """Return the journal of a pass."""
        return Journal(self.folder / f"{number:03d}")

    def partials(self, number: int) -> Path:
        """Return the folder of a pass's partial statistics."""
        return self.journal(number).folder / "partials"

    def grid(self, number: int) -> BlockGrid:
        """Return the blocks of a pass."""
        return self.steps[number].grid(self.graph)

    def peak_bytes(self, number: int) -> int:
        """Return the projected memory of a worker in a pass."""
        return self.beside_bytes + self.steps[number].peak_bytes

    def store(self, node: int) -> ActivationStore:
        """Return the store of a node, in the blocks of the pass that writes it."""
        step = next(p for p in self.steps[:-1] if node in p.stores)
        whole, sizes = self.graph.sizes(0), self.graph.sizes(node)
        cuts = tuple(
            tuple(a * m // n for a in (*range(0, n, b), n))
            for n, b, m in zip(whole, step.block, sizes, strict=True)
        )
        found = self.graph.nodes[node]
        dtype = "float64" if found.dtype == torch.float64 else "float32"
        folder, last = self.folder / "kept" / str(node), self.blockwise.network.on_cpu
        return ActivationStore(folder, found.depth, cuts, dtype, last)

    def inputs_of(self, number: int) -> Blockwise:
        """Return the computation of a pass's blocks, with the results of earlier passes."""
        stores = {n: self.store(n) for n in self.steps[number].given if n}
        statistics: dict[int, Array] = {}
        for earlier in range(number):
            statistics |= self.statistics(earlier) or {}
        return replace(self.blockwise, stores=stores, statistics=statistics)

    def statistics(self, number: int) -> dict[int, Array] | None:
        """Return the merged statistics of a pass by node; None if the pass is not done."""
        wanted = self.steps[number].statistics
        if not wanted:
            return {}
        return self._numbers(wanted, self.journal(number).folder / "statistics.f64")

    def _partial(self, number: int, block: int) -> dict[int, Array] | None:
        """Return a block's partial statistics by node; None if they are missing or damaged."""
        path = partial_path(self.partials(number), block)
        return self._numbers(self.steps[number].statistics, path)

    def _numbers(self, statistics: tuple[int, ...], path: Path) -> dict[int, Array] | None:
        """Read the numbers of several statistics; None if the file's size does not fit."""
        try:
            flat = np.fromfile(path)
        except FileNotFoundError:
            return None
        return numbers_of(self.graph, statistics, flat)

    def merge(self, number: int) -> None:
        """Merge the partial statistics of a pass, in the order of the blocks."""
        step, journal = self.steps[number], self.journal(number)
        if not step.statistics or self.statistics(number) is not None:
            return
        partials = []
        for block in range(len(self.grid(number))):
            part = self._partial(number, block)
            if part is None:
                journal.forget([block])
                raise RunFailed(
                    f"{partial_path(self.partials(number), block)} is damaged; run the same"
                    " command again to measure it again"
                )
            partials.append(part)
        merged = [
            statistic_of(self.graph, s).merged(part[s] for part in partials).ravel()
            for s in step.statistics
        ]
        with making_room(journal.folder):
            write_file(journal.folder / "statistics.f64", np.concatenate(merged).tobytes())
        shutil.rmtree(self.partials(number), ignore_errors=True)

    def left(self, number: int, wanted: set[int]) -> list[int]:
        """Return the blocks of a pass that are not done, or lack their part of a wanted node."""
        journal, grid = self.journal(number), self.grid(number)
        done = journal.done() if journal.recorded() else {}
        stores = [self.store(node) for node in self.steps[number].stores if node in wanted]
        unmeasured = self.statistics(number) is None

        def undone(block: int) -> bool:
            if any(store.missing(grid.index(block)) for store in stores):
                return True
            return unmeasured and (block not in done or self._partial(number, block) is None)

        return [block for block in range(len(grid)) if undone(block)]

    def todo(self, needed: Iterable[int]) -> list[tuple[int, set[int]]]:
        """Return the passes to run before the last, in order, and the nodes each must keep.

        Parameters
        ----------
        needed
            Nodes that are to be read.
        """
        needed = {n for n in needed if n}
        found: list[tuple[int, set[int]]] = []
        for number in range(len(self.steps) - 2, -1, -1):
            wanted = needed & set(self.steps[number].stores)
            if self.left(number, wanted) or self.statistics(number) is None:
                found.append((number, wanted))
                needed |= {n for n in self.steps[number].given if n}
        return found[::-1]

    def drop(self, number: int) -> None:
        """Delete the activations that no pass behind this one reads."""
        later = {n for step in self.steps[number + 1 :] for n in step.given}
        for node in {n for step in self.steps[:-1][: number + 1] for n in step.stores} - later:
            self.store(node).drop()


def run_passes(
    passes: Passes,
    fingerprint: Mapping[str, Any],
    client: Client,
    memory_bytes: int,
    progress: Progress,
    needed: Iterable[int] | None = None,
) -> None:
    """Run the rest of the passes before the last; to be called under the output's lock.

    Parameters
    ----------
    passes
        The passes.
    fingerprint
        Everything that the values depend on; recorded in each journal, which is resumed only with
        the same.
    client, memory_bytes, progress
        The cluster, the budget of a worker, and as in `volflow.engine.run.run`.
    needed
        Nodes that are to be kept, and then all of them. By default those that the last pass reads,
        and what is not read any more is deleted on the way.
    """
    for number, wanted in passes.todo(passes.steps[-1].given if needed is None else needed):
        journal = passes.journal(number)
        with making_room(journal.folder):
            passes.partials(number).mkdir(parents=True, exist_ok=True)
        left = passes.left(number, wanted)
        journal.forget(left)
        stores = {node: passes.store(node) for node in wanted}
        for store in stores.values():
            store.open()
        step, grid = passes.steps[number], passes.grid(number)
        # Statistics that are known already are not measured again.
        known = passes.statistics(number) is not None
        job = PassJob(
            passes.inputs_of(number),
            replace(step, statistics=()) if known else step,
            stores,
            passes.partials(number),
            passes.threads,
            passes.peak_bytes(number),
        )
        plan = Plan(
            f"pass {number + 1} of {len(passes.steps)}",
            pass_blocks,
            job,
            runs_for(left, expected_workers(client)),
            units=grid.voxels(left),
            unit="voxels",
            peak_bytes=step.peak_bytes,
            memory_bytes=memory_bytes,
            exclusive=True,
            plugin=passes.model,
            journal=journal,
            record=Record("pass", {**fingerprint}, {"grid": [len(grid)]}),
            grid=grid,
        )
        run(plan, cluster=client, progress=progress)
        passes.merge(number)
        if needed is None:
            passes.drop(number)
