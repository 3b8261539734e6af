"""The plan of a step: its passes, and what they take of memory, disk and time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from volflow.engine.cluster import connect, memory_per_worker
from volflow.engine.workers import expected_workers
from volflow.errors import MemoryRefused
from volflow.geometry.budget import format_bytes
from volflow.infer.exact.choose import ALLOCATED, SCRATCH_SHARE, budget_of, slack_bytes
from volflow.infer.method import threads_per_worker
from volflow.model.resident import ModelPlugin, held
from volflow.partition.reach import alignment_of
from volflow.passes.activations import free_bytes, used_bytes
from volflow.passes.cost import UNLIMITED, Costs
from volflow.passes.cuts import SIDES as CUT_SIDES
from volflow.passes.cuts import WHOLE
from volflow.passes.network import Network
from volflow.passes.peaks import VoxelBytes
from volflow.passes.planning.gradient_profile import profile_training
from volflow.passes.planning.training_cost import TrainingCosts, TrainingPass
from volflow.passes.planning.training_facts import training_facts
from volflow.passes.planning.training_schedule import TrainingPlan, TrainingPlanner
from volflow.passes.profile import OpProfile
from volflow.training.images import Batch
from volflow.training.out_of_core import Work, refuse_other_than_images

__all__ = ["StepPlan", "plan_step"]

SIDES = (WHOLE, *CUT_SIDES)
# Share of the free disk that a step may use in a folder that a user named for it.
NAMED_SHARE = 0.95


@dataclass(frozen=True)
class StepPlan:
    """What a step takes; printed, it says so to people.

    Parameters
    ----------
    passes
        In the order in which they are run forward; backward they are run in reverse.
    peak_bytes, memory_bytes
        Projected memory of a worker, and its budget.
    disk_bytes, free_bytes
        The most on disk at a time, and what is free there or held by the step itself.
    read_bytes, written_bytes
        From and to the disk.
    forward_s, backward_s
        Seconds, by the times of the ops on a worker.
    facts
        Lines of the description: name and value.
    """

    passes: tuple[TrainingPass, ...]
    peak_bytes: int
    memory_bytes: int
    disk_bytes: int
    free_bytes: int
    read_bytes: int
    written_bytes: int
    forward_s: float
    backward_s: float
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return self.forward_s + self.backward_s

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for machines."""
        names = (
            "peak_bytes", "memory_bytes", "disk_bytes", "free_bytes", "read_bytes",
            "written_bytes", "forward_s", "backward_s",
        )  # fmt: skip
        passes = [
            {"block": list(step.block), "given": list(step.given), "stores": list(step.stores)}
            for step in self.passes
        ]
        return {**{name: getattr(self, name) for name in names}, "passes": passes}

    def describe(self) -> str:
        """Return the plan as text, for people."""
        facts = (
            *self.facts,
            (
                "peak memory",
                f"{format_bytes(self.peak_bytes)} of {format_bytes(self.memory_bytes)} per worker",
            ),
            (
                "peak disk",
                f"{format_bytes(self.disk_bytes)} of {format_bytes(self.free_bytes)} that are free",
            ),
        )
        width = max(len(name) for name, _ in facts)
        return "\n".join(["step", *(f"  {name:{width}}  {value}" for name, value in facts)])

    def __str__(self) -> str:
        return self.describe()


def plan_step(
    module: nn.Module,
    network: Network,
    batch: Batch,
    work: Work,
    folder: Path,
    *,
    named: bool = False,
) -> StepPlan:
    """Choose the passes of a step with the least time, on a worker of the cluster.

    Parameters
    ----------
    module, network, batch
        The network, and the volumes that it is shown.
    work
        Where it is computed.
    folder
        Of the step. What an interrupted one left there takes no room from it: it is gone on with,
        or deleted.
    named
        Whether a user named where it lies.

    Raises
    ------
    MemoryRefused, StoreFull
        Where none fits, naming what would.
    """
    plugin = ModelPlugin(module, network.digest, work.device)
    with connect(work.cluster) as client, held(plugin):
        memory_bytes = memory_per_worker(client, work.memory)
        found = profile_training(network, plugin, client, threads_per_worker(client), memory_bytes)
        graph = network.graph(module)
        refuse_other_than_images(graph)
        count = expected_workers(client)
    room = free_bytes(folder) + used_bytes(folder)
    read = int(batch.channels or 1) * len(batch.images) * np.dtype(network.dtype).itemsize
    costs = Costs(
        graph,
        VoxelBytes(read=2 * read, finished=0, stored=0),
        ops=found.costs,
        workers=count,
        on_gpu=found.network.device.startswith("cuda"),
    )
    planner = TrainingPlanner(
        TrainingCosts(costs, found.gradients),
        alignment_of(graph),
        int((memory_bytes - slack_bytes(network.dtype)) / ALLOCATED),
        int((NAMED_SHARE if named else SCRATCH_SHARE) * room),
        SIDES,
        int(found.device_memory_bytes / ALLOCATED) if costs.on_gpu else UNLIMITED,
    )
    plan = _chosen(planner, memory_bytes, found)
    return StepPlan(
        plan.passes,
        budget_of(graph, plan.peak_bytes),
        memory_bytes,
        plan.disk_bytes,
        room,
        plan.read_bytes,
        plan.written_bytes,
        plan.forward_s,
        plan.backward_s,
        training_facts(graph, plan),
    )


def _chosen(planner: TrainingPlanner, memory_bytes: int, found: OpProfile) -> TrainingPlan:
    """Return the plan; refuse budgets in which none fits, in the words of those who set them."""
    try:
        return planner.choose()
    except MemoryRefused as error:
        small = replace(
            planner, memory_bytes=UNLIMITED, scratch_bytes=UNLIMITED, device_bytes=UNLIMITED,
            sides=planner.sides[-1:],
        ).choose()  # fmt: skip
        wants = []
        least = budget_of(planner.graph, small.peak_bytes)
        if least > memory_bytes:
            most = math.ceil(least / 2**20)
            wants.append(
                f"{most} MiB per worker, and memory is {format_bytes(memory_bytes)}; give"
                f' memory="{most}MiB" or more'
            )
        if small.device_peak_bytes > planner.device_bytes:
            wants.append(
                f"{format_bytes(small.device_peak_bytes)} of the device, of which"
                f" {format_bytes(found.device_memory_bytes)} are free; end what else runs there"
            )
        if not wants:
            raise
        sides = "×".join(map(str, small.passes[-1].block))
        raise MemoryRefused(
            f"training in the smallest blocks, of {sides} voxels, needs {'; and '.join(wants)}, or"
            " train on patches (vf.PatchStream)"
        ) from error
