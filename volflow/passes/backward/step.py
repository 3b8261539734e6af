"""A step of training out of core: passes forward, the head, and passes backward in reverse.

::

    step/
        000/, 001/, …         the journals of the passes forward (`volflow.passes.executor`)
        kept/7/               node 7, while a pass will read it
        backward/003/         the journal of pass 3 backward
            groups/           sums of each group of blocks
            totals.npz        the sums of all groups; the pass is done
        gradients/7/          what readers of node 7 gave, until its block has run backward

Each file has one writer and appears whole, so that a step may be interrupted at any moment.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from distributed import Client

from volflow.engine.cluster import workers
from volflow.engine.plan import Plan, runs_for
from volflow.engine.progress import Progress
from volflow.engine.run import run
from volflow.errors import RunFailed
from volflow.geometry.roi import Roi
from volflow.passes.activations import ActivationStore, making_room
from volflow.passes.backward.contributions import Contributions
from volflow.passes.backward.heads import Head
from volflow.passes.backward.tasks import (
    BackwardJob,
    LastJob,
    backward_groups,
    last_blocks,
    release,
    totals_path,
)
from volflow.passes.backward.totals import Totals, groups_of
from volflow.passes.executor import Passes, run_passes
from volflow.passes.keeping import partial_path
from volflow.store.journal.journal import Journal, Record

__all__ = ["StepOnDisk"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class StepOnDisk:
    """One step of training.

    Parameters
    ----------
    passes
        The passes, the last included, whose graph is traced for training.
    sizes
        Sides of the volume without its padding.
    fingerprint
        Everything that the values depend on.
    client, memory_bytes, progress
        As for `run_passes`.
    wants_image
        Whether the gradient of the image is wanted.
    """

    passes: Passes
    sizes: tuple[int, ...]
    fingerprint: Mapping[str, Any]
    client: Client
    memory_bytes: int
    progress: Progress = False
    wants_image: bool = False

    @property
    def last(self) -> int:
        """The number of the last pass."""
        return len(self.passes.steps) - 1

    def forward(self, head: Head, stored: Mapping[int, ActivationStore] | None = None) -> Array:
        """Run what is left of the passes forward; return the sums of the head over all blocks.

        Parameters
        ----------
        head
            Takes the outputs.
        stored
            Where it stores them, if it does.
        """
        needed = self._needed(self._behind - 1)
        run_passes(
            self.passes, self.fingerprint, self.client, self.memory_bytes, self.progress, needed
        )
        number, journal = self.last, self.passes.journal(self.last)
        grid, sums = self.passes.grid(number), self.passes.partials(number)
        with making_room(journal.folder):
            sums.mkdir(parents=True, exist_ok=True)
        for store in (stored or {}).values():
            store.open()
        done = journal.done() if journal.recorded() else {}
        left = [
            n for n in range(len(grid))
            if n not in done or not partial_path(sums, n).exists()
        ]  # fmt: skip
        journal.forget(left)
        job = LastJob(
            self.passes.inputs_of(number),
            self.passes.steps,
            self.sizes,
            head,
            sums,
            self.passes.threads,
            self.passes.peak_bytes(number),
        )
        self._run(
            f"pass {number + 1} of {number + 1}", last_blocks, job, left, journal, grid.voxels(left)
        )
        parts = [np.fromfile(partial_path(sums, n)) for n in range(len(grid))]
        return sum((part for part in parts if part.size), np.zeros(1))

    def backward(self, head: Head) -> Totals:
        """Run what is left of the passes backward; return the gradients of all weights.

        Parameters
        ----------
        head
            Gives the gradients of the outputs.
        """
        totals, behind = Totals(), self._behind
        for number in range(self.last, -1, -1):
            if number < behind:
                found = self._pass_backward(number, head, totals.statistics)
            else:
                found = self._passed(number)
            self._drop(number)
            totals.add(found)
        return totals

    def _passed(self, number: int) -> Totals:
        """Return the sums of a pass that has been run backward."""
        return self._read(self._totals(number))

    def _read(self, path: Path) -> Totals:
        """Read sums; where they are damaged, what they were computed from is deleted already."""
        found = Totals.read(path)
        if found is None:
            raise RunFailed(
                f"{path} is damaged; delete {self.passes.folder} and take the step again"
            )
        return found

    def statistics(self) -> dict[int, Array]:
        """Return the merged statistics of the whole volume, by node, once it has run forward."""
        found: dict[int, Array] = {}
        for number in range(self.last):
            found |= self.passes.statistics(number) or {}
        return found

    def image_gradient(self, sizes: Sequence[int]) -> Array | None:
        """Return the gradient of the image ``(N·C, *sizes)``, once it has run backward."""
        return self._contributions(0).read(Roi.full(tuple(sizes)))

    def _pass_backward(self, number: int, head: Head, pulls: Mapping[int, Array]) -> Totals:
        """Run what is left of a pass backward; return its sums."""
        step, journal = self.passes.steps[number], self._journal(number)
        groups = journal.folder / "groups"
        with making_room(journal.folder):
            groups.mkdir(parents=True, exist_ok=True)
        given = [n for n in step.given if n or self.wants_image]
        gives = {n: self._contributions(n) for n in given}
        for one in gives.values():
            one.open()
        blocks = groups_of(len(self.passes.grid(number)))
        left = [n for n in range(len(blocks)) if not totals_path(groups, n).exists()]
        journal.forget(left)
        job = BackwardJob(
            self._inputs_of(number),
            self.passes.steps,
            self.sizes,
            number,
            {n: self._contributions(n) for n in step.stores if number != self.last},
            {n: self.passes.store(n) for n in self._measured(number)},
            {n: pulls[n] for n in step.statistics if n in pulls},
            gives,
            groups,
            self.passes.threads,
            self.passes.peak_bytes(number),
            head if number == self.last else None,
        )
        grid = self.passes.grid(number)
        for n in {*range(len(blocks))}.difference(left):
            self._read(totals_path(groups, n))
            release(job, grid, blocks[n])  # the task may have been stopped before
        units = grid.voxels([block for n in left for block in blocks[n]])
        name = f"pass {number + 1} of {self.last + 1} backward"
        self._run(name, backward_groups, job, left, journal, units)
        totals = Totals()
        for n in range(len(blocks)):
            totals.add(self._read(totals_path(groups, n)))
        totals.write(self._totals(number))
        shutil.rmtree(groups, ignore_errors=True)
        return totals

    def _run(
        self, name: str, task: Any, job: Any, left: list[int], journal: Journal, units: int
    ) -> None:
        plan = Plan(
            name,
            task,
            job,
            runs_for(left, len(workers(self.client))),
            units=units,
            unit="voxels",
            peak_bytes=job.peak_bytes,
            memory_bytes=self.memory_bytes,
            exclusive=True,
            plugin=self.passes.model,
            journal=journal,
            record=Record("pass", {**self.fingerprint}, {}),
        )
        run(plan, cluster=self.client, progress=self.progress)

    def _inputs_of(self, number: int) -> Any:
        """Return what a pass reads backward: also the statistics that it measured."""
        inputs = self.passes.inputs_of(number)
        measured = self.passes.statistics(number) or {}
        return replace(inputs, statistics={**inputs.statistics, **measured})

    def _measured(self, number: int) -> set[int]:
        """Return the nodes that a pass stores and measures."""
        step = self.passes.steps[number]
        sources = {self.passes.graph.nodes[s].inputs[0] for s in step.statistics}
        return sources & set(step.stores)

    @property
    def _behind(self) -> int:
        """The number of the first pass that has been run backward, with all behind it."""
        number = self.last + 1
        while number and self._totals(number - 1).exists():
            number -= 1
        return number

    def _needed(self, number: int) -> set[int]:
        """Return the nodes that the passes backward from one on will read."""
        needed = set[int]()
        for earlier in range(number + 1):
            needed |= {n for n in self.passes.steps[earlier].given if n}
            needed |= self._measured(earlier)
        return needed

    def _drop(self, number: int) -> None:
        """Delete what no pass will read once one has run backward."""
        stored = {n for step in self.passes.steps[:-1] for n in step.stores}
        for node in stored - self._needed(number - 1):
            self.passes.store(node).drop()
        for node in self.passes.steps[number].stores:
            if number != self.last:
                self._contributions(node).drop()

    def _journal(self, number: int) -> Journal:
        return Journal(self.passes.folder / "backward" / f"{number:03d}")

    def _totals(self, number: int) -> Path:
        return self._journal(number).folder / "totals.npz"

    def _contributions(self, node: int) -> Contributions:
        found = self.passes.graph.nodes[node]
        dtype = "float64" if found.dtype.itemsize == 8 else "float32"
        folder = self.passes.folder / "gradients" / str(node)
        last = self.passes.blockwise.network.on_cpu
        # The gradient of the image is read whole.
        whole = tuple((0, side) for side in self.passes.graph.sizes(0))
        cuts = self.passes.store(node).cuts if node else whole
        return Contributions(folder, found.depth, cuts, dtype, last)
