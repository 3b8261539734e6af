"""`WholeVolume`: a network trained on whole volumes, with exact gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from volflow.engine.cluster import Cluster
from volflow.engine.progress import Progress
from volflow.errors import InvalidInput, NoExactRule, VolflowError, first_line
from volflow.geometry.budget import parse_bytes
from volflow.geometry.roi import Roi
from volflow.model.digest import digest_of
from volflow.model.forward import compute_dtype
from volflow.model.resident import ModelPlugin, held
from volflow.partition.draws import Draws
from volflow.partition.exchange.mesh import Mesh
from volflow.partition.reach import padded_sizes
from volflow.passes.cost import Pass
from volflow.passes.network import Network
from volflow.training.arguments import boxes_along, network_itself, share_of, whole_number
from volflow.training.images import Batch, opened
from volflow.training.losses import Loss
from volflow.training.out_of_core import OutOfCore, Work
from volflow.training.partitioned import Partitioned, mesh_for
from volflow.training.planned import StepPlan, plan_step
from volflow.training.scores import Scores, computed_scores
from volflow.training.share_plan import SharePlan, plan_shares
from volflow.training.step_folders import StepFolders
from volflow.training.targets import TargetLoss
from volflow.volumes.arrays.inputs import VolumeLike

__all__ = ["WholeVolume"]


class WholeVolume(nn.Module):
    """A network that is trained on whole volumes of any size, with exact gradients.

    The gradients are those of plain autograd on the volume, zero-padded at its far end to the
    network's alignment, whose scores are cropped before the loss; statistics of norms are those of
    the whole volume, padding included. Its activations are kept on disk, or computed again, as
    the memory allows; or they are divided over processes.

    Parameters
    ----------
    net
        Any module of convolutions, pools, norms and voxelwise ops. Its parameters and buffers are
        its own: an optimizer of either trains both.
    memory
        Budget of a worker, such as ``"4GiB"``; by default what this machine allows.
    scratch
        Folder of what is kept between forward and backward; a temporary one by default. In a
        folder that is named, a step that was interrupted goes on where it stopped.
    cluster
        As for `volflow.predict`: the blocks of a step are tasks of any Dask cluster.
    partition
        Number of boxes into which the volume is cut along each axis, such as ``(1, 2, 2)``: one
        for each process of a torch process group, as torchrun starts them. Each reads its own
        part of the volume only, and all is kept in its memory.
    seed
        Of dropout, whose masks follow from it, the step, and the place in the volume.
    device
        That computes: ``"auto"``, ``"cpu"`` or ``"cuda"``; of a partition always that of the
        weights.
    progress
        Whether bars are shown.

    Examples
    --------
    >>> import volflow as vf
    >>> net = vf.UNet(1, 2, features=(4, 8))
    >>> whole = vf.WholeVolume(net, memory="1GiB", device="cpu")
    >>> volume, target = torch.rand(1, 20, 24, 32), torch.randint(2, (20, 24, 32))
    >>> loss = whole.step(volume, target, vf.losses.dice_ce)
    >>> whole(volume).shape
    torch.Size([1, 2, 20, 24, 32])
    >>> whole.close()
    """

    def __init__(
        self,
        net: nn.Module,
        memory: str | int | None = None,
        scratch: str | Path | None = None,
        cluster: Cluster = None,
        partition: Sequence[int] | None = None,
        seed: int = 0,
        *,
        device: str = "auto",
        progress: Progress = False,
    ) -> None:
        super().__init__()
        self.net = network_itself(net)
        self.seed = whole_number(seed, "seed")
        self.steps = 0
        if memory is not None:
            parse_bytes(memory)
        self._work = Work(memory=memory, cluster=cluster, device=device, progress=progress)
        self._partition = None if partition is None else boxes_along(partition)
        self._networks: dict[Network, Network] = {}
        self._plans: dict[tuple[object, ...], StepPlan] = {}
        self._fitting = set[object]()
        self._scratch = StepFolders.of(scratch)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a copy makes for itself: it is no member of this one's groups."""
        return {name: value for name, value in self.__dict__.items() if name != "_mesh"}

    def get_extra_state(self) -> dict[str, int]:
        """Return what a checkpoint holds beside the network's state: the number of the step."""
        return {"step": self.steps}

    def set_extra_state(self, state: Mapping[str, int]) -> None:
        """Go on at the step of a checkpoint."""
        self.steps = int(state["step"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *options: Any) -> None:
        """Take the state of the network alone, too, which was trained without this."""
        alone = {prefix + name for name in self.net.state_dict()}
        if alone and alone == {name for name in state_dict if name.startswith(prefix)}:
            for name in alone:
                state_dict[f"{prefix}net.{name.removeprefix(prefix)}"] = state_dict.pop(name)
            state_dict[f"{prefix}_extra_state"] = self.get_extra_state()
        super()._load_from_state_dict(state_dict, prefix, *options)

    def forward(self, volume: VolumeLike | Sequence[VolumeLike]) -> Scores:
        """Return what the network returns for a volume, in memory, with a gradient.

        Parameters
        ----------
        volume
            A path, `Volume`, array or tensor, channels first; with the batch before them, or a
            list, for a batch.

        Returns
        -------
        Tensor
            ``(N, C, *axes)``, cropped to the volume; several as the network returns them. In a
            partition those of this process's box; the loss then is the sum over processes.

        Raises
        ------
        NoExactRule
            Where an op of the network has no exact rule, naming it and its module.
        MemoryRefused
            Where the memory does not suffice, naming what would.
        StoreFull
            Where the disk does not.
        InvalidInput
            Where the network does not take such a volume.
        """
        if not isinstance(volume, Tensor):
            _refuse_gradient(volume, "in a list, a volume", "give one tensor (N, C, *axes)")
        with self._run(volume) as run:
            outputs = computed_scores(run, volume if isinstance(volume, Tensor) else None)
        if torch.is_grad_enabled():
            self.steps += 1
        return outputs

    def step(
        self,
        volume: VolumeLike | Sequence[VolumeLike],
        target: VolumeLike | Sequence[VolumeLike],
        loss: Loss,
        weight: float = 1.0,
    ) -> Tensor:
        """Add the gradient of the loss of a volume to the ``.grad`` of the parameters.

        Nothing of the volume's size is in memory, not even the scores. Under `torch.no_grad` the
        loss is all that is computed.

        Parameters
        ----------
        volume
            As for `forward`.
        target
            On the same grid, as the loss takes it; a list for a batch.
        loss
            One of `volflow.losses`.
        weight
            By which gradients are multiplied: the share of this volume among those of several
            steps before the optimizer's, or the scale of a gradient scaler.

        Returns
        -------
        Tensor
            The loss, without the weight.

        Raises
        ------
        Damaged
            Where the loss is not a number. No gradient and no buffer is changed then.
        InvalidInput
            Where the target does not suit the volume; else as `forward`.
        """
        weight = share_of(weight)
        _refuse_gradient(volume, "in a step, the volume", "call the network itself for the scores")
        _refuse_gradient(target, "in a step, the target", "call the network itself for the scores")
        with self._run(volume) as run:
            ndim = len(run.network.sizes)
            batched = _batched(target, ndim, len(run.batch.images))
            targets = opened(batched, ndim, "target", self._scratch.inputs)
            graph = run.graph()
            aimed = TargetLoss.of(loss, targets, run.batch, graph)
            wanted = torch.is_grad_enabled() and bool(graph.weights)
            value, found = run.loss(aimed, weight, gradient=wanted)
            pairs = [(graph.weights[n].source, g) for n, g in sorted(found.weights.items())]
            # Weights that the module computed take their gradients on to the parameters.
            torch.autograd.backward(
                [source for source, _ in pairs],
                [gradient.to(source.device, source.dtype) for source, gradient in pairs],
            )
        if torch.is_grad_enabled():
            self.steps += 1
        return value

    def box(self, volume: VolumeLike | Sequence[VolumeLike]) -> Roi:
        """Return the box of a volume whose scores `forward` returns: in a partition this process's.

        Every process of a partition must call it.
        """
        with self._run(volume) as run:
            return run.box if isinstance(run, Partitioned) else Roi.full(run.batch.sizes)

    def plan(self, volume: VolumeLike | Sequence[VolumeLike]) -> StepPlan | SharePlan:
        """Return what a step over a volume takes; nothing of the volume is read.

        That of a partition needs no process group.

        Raises
        ------
        MemoryRefused, StoreFull
            Where it does not fit, saying what would.
        """
        with self._followed(volume) as (network, batch):
            if self._partition is None:
                return self._plan(network, batch, self._work)
            memory = self._work.memory
            budget = None if memory is None else parse_bytes(memory)
            return plan_shares(network.graph(self.net), batch.sizes, self._partition, budget)

    def close(self) -> None:
        """Delete what is kept in the scratch folder, and leave the process groups."""
        self._scratch.clear()
        mesh = self.__dict__.pop("_mesh", None)
        if mesh is not None:
            mesh.close()

    @cached_property
    def _mesh(self) -> Mesh:
        assert self._partition is not None
        return mesh_for(self._partition, self._place)

    @property
    def _place(self) -> torch.device:
        """Device of the network's weights."""
        return next((p.device for p in self.net.parameters()), torch.device("cpu"))

    @property
    def _folder(self) -> Path:
        return self._scratch.step(self.steps)

    @contextmanager
    def _followed(self, volume: Any) -> Iterator[tuple[Network, Batch]]:
        """Yield the network for a volume, and the volume; its graph is kept within the block."""
        batch = opened(volume, _axes_of(self.net), "volume", self._scratch.inputs)
        digest = digest_of(self.net)
        with held(ModelPlugin(self.net, digest, self._work.device)):
            yield self._network(digest, batch), batch

    def _network(self, digest: str, batch: Batch) -> Network:
        """Return the network for a volume, padded, as what it is followed.

        Of a network that is what it was in the step before, this takes one look.
        """
        channels = max(1, batch.channels)
        device = self._work.device
        if self._partition is not None:
            device = str(self._place)
        draws = Draws(self.seed, self.steps)
        network = Network(
            digest,
            channels,
            batch.sizes,
            device,
            _precision(),
            compute_dtype(self.net),
            draws=draws,
            batch=len(batch.images),
        )
        network = network.resolved()
        key = replace(network, digest="", draws=None)  # weights and step change, the network stays
        if key in self._networks:
            known = replace(self._networks[key], digest=digest, draws=draws)
            with suppress(VolflowError):  # what the user has changed is followed anew
                known.graph(self.net)
                return known
        network = replace(network, sizes=self._padded(channels, batch.sizes, draws))
        network = replace(network, followed=network.graph(self.net).identity)
        network.graph(self.net)  # once more: what changes from call to call is refused
        self._networks[key] = network
        return network

    def _padded(self, channels: int, sizes: tuple[int, ...], draws: Draws) -> tuple[int, ...]:
        """Return the sides of a volume padded to the network's alignment."""
        try:
            return padded_sizes(self.net, channels, sizes, draws)
        except NoExactRule:
            raise
        except InvalidInput as error:
            first = _first_convolution(self.net)
            takes = f" (its first convolution takes {first.in_channels})" if first else ""
            raise InvalidInput(
                f"the network takes no volume of {channels} channels{takes} and sides {sizes}:"
                f" {first_line(error.__cause__ or error)}; give channels first, or a batch as"
                " (N, C, *axes)"
            ) from error

    @contextmanager
    def _run(self, volume: Any) -> Iterator[OutOfCore | Partitioned]:
        """Yield the step over a volume."""
        with self._followed(volume) as (network, batch):
            if self._partition is not None:
                yield Partitioned(
                    self.net, network, batch, self._mesh, self._partition, self._work.memory,
                    self._fitting,
                )  # fmt: skip
                return

            def choose(work: Work) -> tuple[Pass, ...]:
                return self._plan(network, batch, work).passes

            yield OutOfCore(self.net, network, batch, self._work, self._scratch, choose)

    def _plan(self, network: Network, batch: Batch, work: Work) -> StepPlan:
        """Return the plan of a step, which is made once for volumes of one shape."""
        key = batch.sizes, network.precision, network.device, network.followed
        if key not in self._plans:
            named = self._scratch.home is not None
            self._plans[key] = plan_step(self.net, network, batch, work, self._folder, named=named)
        return self._plans[key]


def _axes_of(net: nn.Module) -> int:
    """Return the number of axes of a network's images: those of its first convolution."""
    first = _first_convolution(net)
    return len(first.kernel_size) if first else 3


def _first_convolution(net: nn.Module) -> _ConvNd | None:
    return next((part for part in net.modules() if isinstance(part, _ConvNd)), None)


def _batched(target: Any, ndim: int, count: int) -> Any:
    """Return a target of a batch without channels as a list, of which an array cannot tell."""
    array = isinstance(target, Tensor) or hasattr(target, "ndim")
    if count > 1 and array and target.ndim == ndim + 1 and len(target) == count:
        return list(target)
    return target


def _precision() -> str:
    """Return the precision that the caller has asked for by `torch.autocast`."""
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
    return "float32"


def _refuse_gradient(given: Any, what: str, remedy: str) -> None:
    """Refuse a tensor whose gradient would silently be none."""
    for one in given if isinstance(given, list | tuple) else [given]:
        if torch.is_grad_enabled() and isinstance(one, Tensor) and one.requires_grad:
            raise InvalidInput(
                f"{what} gets no gradient, and it asks for one; {remedy}, or give it without one:"
                " tensor.detach()"
            )
