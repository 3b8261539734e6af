"""A step out of core: where it lies, what it is resumed by, and what comes back from it."""

from __future__ import annotations

import math
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import Client
from torch import Tensor, nn

from volflow.engine.cluster import Cluster, connect, memory_per_worker
from volflow.engine.clusters.plugins import with_plugin
from volflow.engine.progress import Progress
from volflow.errors import Damaged, MemoryRefused, NoExactRule, RunFailed
from volflow.geometry.budget import format_bytes, parse_bytes
from volflow.infer.exact.choose import budget_of
from volflow.infer.method import threads_per_worker
from volflow.model.digest import digest_of
from volflow.model.resident import ModelPlugin, held
from volflow.partition.graph import Graph
from volflow.partition.segments import output_box
from volflow.passes.activations import ActivationStore
from volflow.passes.backward.heads import LossHead, ScoresHead
from volflow.passes.backward.step import StepOnDisk
from volflow.passes.cost import Pass
from volflow.passes.executor import Passes
from volflow.passes.network import Blockwise, Network
from volflow.store.atomic import plain, read_json, write_json
from volflow.store.journal.journal import Journal
from volflow.store.journal.records import typed
from volflow.training.images import Batch
from volflow.training.scores import Found
from volflow.training.step_folders import StepFolders
from volflow.training.targets import TargetLoss

__all__ = ["OutOfCore", "Work", "refuse_not_finite", "refuse_other_than_images"]

# Raised when the same step gives other gradients than before, or other files on the way; part of
# the fingerprint.
TRAINING_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where and how steps are computed.

    Parameters
    ----------
    memory
        Budget of a worker; by default what this machine allows.
    cluster, progress
        As for `volflow.predict`.
    device
        Of the workers.
    """

    memory: str | int | None = None
    cluster: Cluster = None
    progress: Progress = False
    device: str = "auto"


@dataclass(frozen=True, eq=False)
class OutOfCore:
    """One step over one batch on disk; a `volflow.training.scores.StepRun`.

    Parameters
    ----------
    module, network
        The module, and as what it is followed.
    batch
        The images.
    work
        Where it is computed.
    scratch
        Holds its folder.
    choose
        Returns its passes, where no interrupted step has chosen them; the cluster of the work that
        it is given is connected.
    """

    module: nn.Module
    network: Network
    batch: Batch
    work: Work
    scratch: StepFolders
    choose: Callable[[Work], tuple[Pass, ...]]

    @cached_property
    def folder(self) -> Path:
        """Folder of the step."""
        draws = self.network.draws
        return self.scratch.step(0 if draws is None else draws.step)

    def graph(self) -> Graph:
        """Return the network's graph, over the caller's own module."""
        return self.network.graph(self.module)

    def forward(self, *, gradient: bool, image: bool) -> dict[int, Tensor]:
        """Return the outputs by node; buffers are updated as training mode does."""
        graph = self.graph()
        with self._step(self._scores, image=image) as step:
            stores = self._outputs(step.passes.steps[-1].block)
            step.forward(ScoresHead(stores), stores)
            self._update(step)
        outputs = {node: self._whole(graph, node, store) for node, store in stores.items()}
        if gradient:
            # Scores that never run backward leave nothing; a process that ends leaves what it kept.
            self._unused.atexit = False
        else:
            self.drop()
        return outputs

    def backward(self, gradients: Mapping[int, Tensor], *, image: bool) -> Found:
        """Return what follows from the gradients of the outputs; once."""
        if _begun(self.folder).get("fingerprint") != plain(self._scores):
            raise RunFailed(
                "this volume has run backward already, or another network took its scratch folder,"
                f" and what was kept for it in {self.folder} is gone; call the network again, and"
                " give each network a scratch folder of its own"
            )
        paths = {node: self._saved(f"gradient-{node}", g) for node, g in gradients.items()}
        of_image = None
        with self._step(self._scores, image=image) as step:
            weights = step.backward(ScoresHead({}, paths)).weights
            found = step.image_gradient(self.network.sizes) if step.wants_image else None
            if found is not None:
                of_image = torch.from_numpy(found).reshape(*step.passes.graph.nodes[0].shape)
        self.drop()
        return Found({n: torch.from_numpy(g) for n, g in weights.items()}, of_image)

    def loss(self, loss: TargetLoss, weight: float, *, gradient: bool) -> tuple[Tensor, Found]:
        """Return a loss of the outputs, and the gradients of it times the weight if wanted."""
        fingerprint = self._fingerprint(
            loss=digest_of(loss.loss), target=loss.target.identity(), weight=float(weight)
        )
        with self._step(fingerprint) as step:
            loss = replace(loss, target=loss.target.stored(self.folder, "target"))
            total, weights = torch.from_numpy(step.forward(LossHead(loss))), {}
            value = loss.finish(total.requires_grad_(gradient))
            refuse_not_finite(value)
            if gradient:
                (vector,) = torch.autograd.grad(value * weight, total)
                weights = step.backward(LossHead(loss, vector.numpy())).weights
            self._update(step)
        self.drop()
        return value.detach(), Found({n: torch.from_numpy(g) for n, g in weights.items()})

    def drop(self) -> None:
        """Delete all that the step left."""
        if "_unused" in self.__dict__:  # only scores have one
            self._unused.detach()
        shutil.rmtree(self.folder, ignore_errors=True)

    @cached_property
    def _unused(self) -> weakref.finalize[..., OutOfCore]:
        """Deletes what is kept for scores, with the last of them."""
        return weakref.finalize(self, _delete, self.folder, plain(self._scores))

    def _update(self, step: StepOnDisk) -> None:
        merged = step.statistics()
        for update in self.graph().updates:
            update.apply(merged)

    @cached_property
    def _scores(self) -> dict[str, Any]:
        """Fingerprint of scores: once made, it does not follow what is done to the volume."""
        return self._fingerprint(output="scores")

    def _fingerprint(self, **more: Any) -> dict[str, Any]:
        """Return everything that the values of a step depend on, by part."""
        draws = self.network.draws
        return {
            "weights": self.network.digest,
            "training": "".join(str(int(part.training)) for part in self.module.modules()),
            "trained": "".join(str(int(p.requires_grad)) for p in self.module.parameters()),
            "volume": self.batch.identity(),
            "draws": None if draws is None else asdict(draws),
            "precision": self.network.precision,
            "version": TRAINING_VERSION,
            **more,
        }

    @contextmanager
    def _step(self, fingerprint: Mapping[str, Any], *, image: bool = False) -> Iterator[StepOnDisk]:
        """Yield the step, connected and under the lock of its folder.

        What another step left in the folder is deleted.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        plugin = ModelPlugin(self.module, self.network.digest, self.work.device)
        with (
            Journal(self.folder).lock(), connect(self.work.cluster) as client, held(plugin),
            with_plugin(client, plugin),  # once for all passes, which each worker follows once
        ):  # fmt: skip
            passes, threads, image = self._adopted(fingerprint, client, image=image)
            batch = self.batch.stored(self.folder, "image")
            blockwise = Blockwise(self.network, replace(batch, dtype=self.network.dtype))
            yield StepOnDisk(
                Passes(passes, self.graph(), blockwise, None, self.folder, threads, 0),
                batch.sizes,
                fingerprint,
                client,
                memory_per_worker(client, self.work.memory),
                self.work.progress,
                image,
            )

    def _adopted(
        self, fingerprint: Mapping[str, Any], client: Client, *, image: bool
    ) -> tuple[tuple[Pass, ...], int, bool]:
        """Return what an interrupted step in the folder was begun with, else what is chosen now.

        That is its passes, the threads of a worker, and whether the gradient of the image is
        wanted.
        """
        before, given = _begun(self.folder), plain(dict(fingerprint))
        if before.get("fingerprint") == given:
            passes = tuple(typed(Pass, step) for step in before["passes"])
            self._refuse_larger(passes)
            return passes, int(before["threads"]), bool(before["image"])
        passes = self.choose(replace(self.work, cluster=client))
        threads = threads_per_worker(client)
        self._clear()
        names = [field.name for field in fields(Pass)]
        steps = [{name: getattr(step, name) for name in names} for step in passes]
        begun = {"passes": plain(steps), "threads": threads, "image": image}
        write_json(self.folder / "step.json", {"fingerprint": given, **begun})
        return passes, threads, image

    def _refuse_larger(self, passes: Sequence[Pass]) -> None:
        """Refuse to go on with passes of another budget in a memory that a user now names."""
        if self.work.memory is None:
            return
        least = budget_of(self.graph(), max(step.peak_bytes for step in passes))
        if least > parse_bytes(self.work.memory):
            most = math.ceil(least / 2**20)
            raise MemoryRefused(
                f"the step that was interrupted in {self.folder} was planned for blocks of {most}"
                f" MiB, and memory is {format_bytes(parse_bytes(self.work.memory))}; give"
                f' memory="{most}MiB" to go on with it, or delete the folder to take it anew'
            )

    def _clear(self) -> None:
        """Delete what is in the folder, but its lock."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != "lock":
                path.unlink(missing_ok=True)

    def _outputs(self, block: Sequence[int]) -> dict[int, ActivationStore]:
        """Return where the outputs are stored whole, by node, in the blocks of the last pass."""
        graph, found = self.graph(), dict[int, ActivationStore]()
        for node in graph.ends:
            sides, most = graph.sizes(node), output_box(graph, node, self.batch.sizes).stop
            cuts = tuple(
                tuple(min(a * m // n, end) for a in (*range(0, n, b), n))
                for n, b, m, end in zip(graph.sizes(0), block, sides, most, strict=True)
            )
            dtype = "float64" if graph.nodes[node].dtype == torch.float64 else "float32"
            depth = graph.nodes[node].depth
            found[node] = ActivationStore(self.folder / "outputs" / str(node), depth, cuts, dtype)
        return found

    def _whole(self, graph: Graph, node: int, store: ActivationStore) -> Tensor:
        """Return an output in memory, on the device of the weights, and delete it on disk."""
        values = torch.from_numpy(store.read(output_box(graph, node, self.batch.sizes)))
        store.drop()
        batch, channels = graph.nodes[node].shape[:2]
        place = next((w.source.device for w in graph.weights), graph.device)
        return values.reshape(batch, channels, *values.shape[1:]).to(place, graph.nodes[node].dtype)

    def _saved(self, name: str, values: Tensor) -> str:
        """Store a tensor whole in a file that workers map, and return its path."""
        path = self.folder / f"{name}.npy"
        wide = values.detach().float() if values.dtype.itemsize < 4 else values.detach()
        np.save(path, wide.cpu().numpy(), allow_pickle=False)
        return str(path)


def _begun(folder: Path) -> dict[str, Any]:
    """Return the record of the step in a folder; nothing where there is none."""
    try:
        return dict(read_json(folder / "step.json"))
    except (OSError, ValueError):
        return {}


def _delete(folder: Path, fingerprint: Any) -> None:
    """Delete a step's folder, unless another step has taken it."""
    if _begun(folder).get("fingerprint") == fingerprint:
        shutil.rmtree(folder, ignore_errors=True)


def refuse_not_finite(loss: Tensor) -> None:
    """Refuse a loss of which no gradient is a number."""
    if not bool(torch.isfinite(loss)):
        raise Damaged(
            f"the loss is {loss.item()}, so that no gradient would be a number; look for such"
            " voxels in the volume, the target and the weights, or train with a lower learning"
            " rate; no gradient and no buffer was changed"
        )


def refuse_other_than_images(graph: Graph) -> None:
    """Refuse outputs that a step cannot store: those whose dims are not those of an image."""
    for name, node in graph.outputs.items():
        found = graph.nodes[node]
        if found.dims != (None, None, *range(graph.ndim)):
            raise NoExactRule(
                f"the output {name or 'of the model'} has shape {found.shape}, whose dims are not"
                " batch, channels and the axes of the volume, in this order; return such an image,"
                " and pool or permute the scores behind the model"
            )
