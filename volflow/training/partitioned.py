"""A step divided over the processes of a torch group: each owns a box of the volume."""

from __future__ import annotations

import hashlib
import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from volflow.engine.cluster import DEFAULT_SHARE, free_memory_bytes
from volflow.geometry.budget import parse_bytes
from volflow.geometry.roi import Roi
from volflow.model.device import device_memory
from volflow.partition.exchange.agreement import agree, installed, structure
from volflow.partition.exchange.division import Division
from volflow.partition.exchange.gathering import added
from volflow.partition.exchange.mesh import Mesh, mesh_of
from volflow.partition.exchange.ranks import Rank
from volflow.partition.gradients import Segmented, Upstream, loss_upstream
from volflow.partition.graph import Graph
from volflow.partition.reach import alignment_of
from volflow.partition.stages import segments_for_ranks
from volflow.passes.network import Network
from volflow.training.images import Batch
from volflow.training.out_of_core import refuse_not_finite
from volflow.training.scores import Found
from volflow.training.share_plan import plan_shares
from volflow.training.targets import TargetLoss

__all__ = ["Partitioned", "mesh_for"]


def mesh_for(partition: Sequence[int], device: torch.device) -> Mesh:
    """Return the mesh of all processes; a script that torchrun started needs no more than this.

    Parameters
    ----------
    partition
        Number of boxes along each axis.
    device
        Of the network in this process. GPUs speak NCCL if each process has its own; else tensors
        are sent through the memory of the host, by gloo.
    """
    if dist.is_available() and not dist.is_initialized() and "WORLD_SIZE" in os.environ:
        alone = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) <= torch.cuda.device_count()
        if device.type == "cuda" and alone:
            torch.cuda.set_device(device)
            dist.init_process_group("nccl")
        else:
            dist.init_process_group("gloo")
    return mesh_of(math.prod(partition))


def memory_of_share(mesh: Mesh, memory: str | int | None, device: torch.device) -> int:
    """Return the bytes that every process may use: those of the one with the least.

    Parameters
    ----------
    mesh
        The processes, all of which take part.
    memory
        What the user gave; None takes a share of what the machine, the cgroup or SLURM leaves
        free, divided among the processes of the machine, or of what is free on a GPU.
    device
        Of the network in this process.
    """
    here = socket.gethostname()
    hosts = [told["host"] for told in mesh.world.told({"host": here})]
    if memory is not None:
        mine = parse_bytes(memory)
    elif device.type == "cuda":
        mine = device_memory(device, None)
    else:
        mine = int(DEFAULT_SHARE * free_memory_bytes() / hosts.count(here))
    return min(int(told["memory"]) for told in mesh.world.told({"memory": str(mine)}))


@dataclass(frozen=True, eq=False)
class Partitioned:
    """One step over one batch, divided; a `volflow.training.scores.StepRun`.

    Parameters
    ----------
    module, network
        The module, and as what it is followed.
    batch
        The images, of which this process reads what it needs.
    mesh, partition
        The processes, and into how many boxes the volume is cut along each axis.
    memory
        Budget of a process, if the user gave one.
    fitting
        The steps that were found to fit; what is found is added.
    """

    module: nn.Module
    network: Network
    batch: Batch
    mesh: Mesh
    partition: tuple[int, ...]
    memory: str | int | None = None
    fitting: set[object] = field(default_factory=set)

    def graph(self) -> Graph:
        """Return the network's graph, over the caller's own module."""
        return self._graph

    @property
    def box(self) -> Roi:
        """The box of the volume that this process owns."""
        return self._boxes[self.mesh.space.rank].clip(self.batch.sizes)

    @cached_property
    def _boxes(self) -> tuple[Roi, ...]:
        graph = self._graph
        return Division.even(graph.sizes(0), self.partition, alignment_of(graph)).boxes

    @cached_property
    def _graph(self) -> Graph:
        return self.network.graph(self.module)

    @cached_property
    def _rank(self) -> Rank:
        graph = self._graph
        net = Segmented(graph, segments_for_ranks(graph), self.batch.sizes)
        self._agree(net)
        self._refuse_memory()
        return Rank(net, self.mesh, self._boxes, self._read)

    def _agree(self, net: Segmented) -> None:
        """Stop all processes where they do not run the same."""
        agree(
            self.mesh.world,
            {
                **installed(),
                "the network": structure(net.graph, net.segments),
                "the weights": self.network.digest[:16],
                "the shape of the volume": str((len(self.batch.images), *self.batch.sizes)),
                "the partition": str(self.partition),
                "the precision": f"{self.network.dtype} {self.network.precision}",
                "seed and step": str(self.network.draws),
            },
        )
        volume = hashlib.sha256(repr(self.batch.identity()).encode()).hexdigest()[:16]
        agree(self.mesh.space, {"the volume": volume})

    def _refuse_memory(self) -> None:
        """Stop all processes, before any work, where one has not the memory."""
        step = self.network.followed, self.batch.sizes, self.network.precision
        if step not in self.fitting:
            budget = memory_of_share(self.mesh, self.memory, self._graph.device)
            plan_shares(self._graph, self.batch.sizes, self.partition, budget)
            self.fitting.add(step)

    def _read(self, box: Roi) -> Tensor:
        voxels = replace(self.batch, dtype=self.network.dtype)(box)
        shape = self._graph.nodes[0].shape[:2]
        return torch.from_numpy(voxels).reshape(*shape, *box.shape).to(self._graph.device)

    def forward(self, *, gradient: bool, image: bool) -> dict[int, Tensor]:
        """Return this process's part of the outputs by node."""
        with self.network.training():
            outputs = self._rank.forward()
        self._update()
        graph = self._graph
        return {
            node: outputs[node].values.detach() if node in outputs else _empty(graph, node)
            for node in graph.ends
        }

    def backward(self, gradients: Mapping[int, Tensor], *, image: bool) -> Found:
        """Return what follows from the gradients of the outputs of all processes."""

        def upstream(
            outputs: Mapping[int, Tensor], boxes: Mapping[int, Roi]
        ) -> Mapping[int, Tensor]:
            return {n: g for n, g in gradients.items() if n in outputs}

        return self._backward(upstream, image=image)

    def _backward(self, upstream: Upstream, *, image: bool) -> Found:
        with self.network.training():
            self._rank.backward(upstream, wants_image=image)
        found = Found(self._rank.weight_gradients())
        return replace(found, image=self._image_gradient()) if image else found

    def _image_gradient(self) -> Tensor:
        """Return the gradient of the image, zero beyond the box of this process."""
        part, image = self._rank.image_gradient(), self._graph.nodes[0]
        whole = torch.zeros(image.shape, dtype=part.dtype, device=part.device)
        inside: Any = (..., *self._rank.box.slices())
        whole[inside] = part
        return whole

    def loss(self, loss: TargetLoss, weight: float, *, gradient: bool) -> tuple[Tensor, Found]:
        """Return the loss of the whole volume, and its gradients, the same on every process."""
        with self.network.training():
            self._rank.forward()
        total, found = self._rank.total(loss), Found()
        value = loss.finish(total.requires_grad_(gradient))
        # The volumes of all groups count, so that either all processes go on or none does.
        values = self.mesh.world.gathered(value.detach().reshape(1))
        mean = added(values[:: len(self.mesh.space)]).squeeze() / self.mesh.volumes
        refuse_not_finite(mean)
        if gradient:
            (vector,) = torch.autograd.grad(value * weight, total)
            found = self._backward(loss_upstream(loss, vector), image=False)
        self._update()
        return mean, found

    def _update(self) -> None:
        updates = self._graph.updates
        merged: Mapping[int, Any] = self._rank.statistics() if updates else {}
        for update in updates:
            update.apply(merged)


def _empty(graph: Graph, node: int) -> Tensor:
    found = graph.nodes[node]
    shape = [n if axis is None else 0 for n, axis in zip(found.shape, found.dims, strict=True)]
    return torch.empty(shape, dtype=found.dtype, device=graph.device)
