"""What ``training.py`` measures over processes: bytes that are kept and sent, steps per second.

Processes are started here and form a gloo group of their own, one thread each.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from training_nets import CLASSES, network, saved_bytes
from training_watch import Row, end_with_parent, load, measured, save

import volflow as vf
from volflow.geometry.roi import Roi
from volflow.partition.draws import Draws
from volflow.partition.exchange.division import Division
from volflow.partition.exchange.mesh import mesh_of
from volflow.partition.exchange.projection import exchanged_bytes, kept_bytes
from volflow.partition.exchange.ranks import Rank
from volflow.partition.fusion import fused
from volflow.partition.gradients import Segmented, loss_upstream
from volflow.partition.reach import alignment_of, trace_any
from volflow.partition.stages import segments_for_ranks
from volflow.training.share_plan import plan_shares

PARTITIONS = {1: (1, 1, 1), 2: (1, 1, 2), 3: (1, 1, 3), 4: (1, 2, 2), 8: (2, 2, 2), 16: (2, 2, 4)}


def divided(
    module: nn.Module, side: int, count: int, dtype: torch.dtype | None = None
) -> tuple[Segmented, Sequence[Roi]]:
    """A network in segments as a partition has it, and the boxes of its processes."""
    cast = torch.autocast("cpu", dtype=dtype) if dtype else torch.autocast("cpu", enabled=False)
    with cast:
        graph = fused(trace_any(module, 1, (side,) * 3, training=Draws(0, 0)))
    net = Segmented(graph, segments_for_ranks(graph), (side,) * 3)
    return net, Division.even((side,) * 3, PARTITIONS[count], alignment_of(graph)).boxes


class SavedNow(AbstractContextManager["SavedNow"]):
    """Counts the bytes that autograd saves at a time, each storage once; weights are left out."""

    def __init__(self, module: nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.users: dict[int, int] = {}
        self.now = self.most = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: Saved(self, tensor), lambda saved: saved.tensor
        )

    def __enter__(self) -> SavedNow:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)

    def add(self, storage: Any) -> None:
        place = storage.data_ptr()
        if place not in self.own:
            self.users[place] = self.users.get(place, 0) + 1
            self.now += storage.nbytes() * (self.users[place] == 1)
            self.most = max(self.most, self.now)

    def remove(self, storage: Any) -> None:
        place = storage.data_ptr()
        if place in self.users:
            self.users[place] -= 1
            if not self.users[place]:
                self.now -= storage.nbytes()
                del self.users[place]


class Saved:
    """A tensor that autograd saves, as long as it does."""

    def __init__(self, counts: SavedNow, tensor: Tensor) -> None:
        # Without its history, which would hold itself.
        self.counts, self.tensor = counts, tensor.detach()
        counts.add(self.tensor.untyped_storage())

    def __del__(self) -> None:
        self.counts.remove(self.tensor.untyped_storage())


def started(folder: Path, count: int, work: Callable[..., Row], *given: Any) -> list[Row]:
    """Run a function in processes of one group; what each returned."""
    (folder / "group").unlink(missing_ok=True)
    mp.spawn(_begin, (folder, count, work, given), nprocs=count)
    return [load(folder / f"rank{rank}.json", {}) for rank in range(count)]


def _begin(
    rank: int, folder: Path, count: int, work: Callable[..., Row], given: Sequence[Any]
) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=rank, world_size=count
    )
    save(folder / f"rank{rank}.json", work(rank, count, *given))
    dist.barrier()
    # Threads of gloo may still run while an interpreter ends, which then aborts.
    os._exit(0)


def data(side: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, 1, *(side,) * 3), torch.randint(CLASSES, (1, *(side,) * 3))


class BoxLoss:
    """The loss of a part of the outputs, beside the same part of a target."""

    def __init__(self, target: Tensor) -> None:
        self.target = target

    def sums(self, outputs: dict[int, Tensor], boxes: dict[int, Roi]) -> Tensor:
        ((node, scores),) = outputs.items()
        return vf.losses.dice_ce.partial(scores, self.target[(..., *boxes[node].slices())])

    def finish(self, total: Tensor) -> Tensor:
        return vf.losses.dice_ce.finish(total)


def _kept(
    rank: int, count: int, folder: Path, norm: str, features: Sequence[int], side: int
) -> Row:
    module = network(norm, features)
    net, boxes = divided(module, side, count)
    x, target = data(side)
    mesh = mesh_of(count)
    mine = Rank(net, mesh, boxes, lambda box: x[(..., *box.slices())].clone())
    loss, before = BoxLoss(target), mesh.space.sent_bytes

    def take() -> tuple[int, int]:
        with SavedNow(module) as saved:
            mine.forward()
            held = mine.held_bytes + saved.now
            total = mine.total(loss).requires_grad_()
            (vector,) = torch.autograd.grad(loss.finish(total), total)
            mine.backward(loss_upstream(loss, vector))
        return held, saved.most

    place = folder / f"rank{rank}"
    place.mkdir(exist_ok=True)
    (held, saved), used = measured(place, take)
    found = {
        "kept_bytes": held,
        "saved_bytes": saved,
        "growth_bytes": used["growth_bytes"],
        "sent_bytes": mesh.space.sent_bytes - before,
    }
    if rank == 0:
        found |= {
            "total_bytes": saved_bytes(module, (side,) * 3),
            "projected_bytes": kept_bytes(net, boxes),
            "peak_bytes": plan_shares(net.graph, (side,) * 3, PARTITIONS[count]).peak_bytes,
            "closed_form_bytes": exchanged_bytes(net, boxes),
        }
    return found


def kept(folder: Path, norm: str, features: Sequence[int], side: int, count: int) -> Row:
    """What each process keeps between forward and backward, and what all send, both projected."""
    found = started(folder, count, _kept, folder, norm, features, side)
    return {
        **found[0],
        "kept_bytes": [row["kept_bytes"] for row in found],
        "saved_bytes": [row["saved_bytes"] for row in found],
        "growth_bytes": max(row["growth_bytes"] for row in found),
        "sent_bytes": sum(row["sent_bytes"] for row in found),
    }


def _timed(
    rank: int, count: int, norm: str, features: Sequence[int], side: int, rounds: int
) -> Row:
    x, target = data(side)
    plain, module = network(norm, features), network(norm, features)
    divided_over = vf.WholeVolume(module, partition=PARTITIONS[count])
    times: dict[str, list[float]] = {"one": [], "divided": []}
    used: dict[str, list[float]] = {"one": [], "divided": []}
    for number in range(rounds + 1):
        for name, spent in times.items():
            dist.barrier()
            began, cpu = time.perf_counter(), time.process_time()
            if name == "divided":
                divided_over.step(x, target, vf.losses.dice_ce)
            elif rank == 0:
                torch.set_num_threads(count)
                vf.losses.dice_ce(plain(x), target).backward()
                torch.set_num_threads(1)
            if number:  # the first does not count
                spent.append(time.perf_counter() - began)
                used[name].append(time.process_time() - cpu)
    divided_over.close()
    found = {f"{name}_s": statistics.median(spent) for name, spent in times.items()}
    span = {f"{name}_span_s": max(spent) - min(spent) for name, spent in times.items()}
    cpu_s = {f"{name}_cpu_s": statistics.median(spent) for name, spent in used.items()}
    most = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**found, **span, **cpu_s, "peak_bytes": most}


def speed(
    folder: Path, norm: str, features: Sequence[int], side: int, count: int, rounds: int
) -> Row:
    """Steps of some processes with a thread each, and of one process with as many threads."""
    found = started(folder, count, _timed, norm, features, side, rounds)
    names = ("one_s", "divided_s", "one_span_s", "divided_span_s", "one_cpu_s")
    return {
        **{name: found[0][name] for name in names},
        "divided_cpu_s": sum(row["divided_cpu_s"] for row in found),
    }


def projection(
    folder: Path, norm: str, features: Sequence[int], side: int, counts: Sequence[int]
) -> Row:
    """What processes would keep and send for a volume that is too large to try it here."""
    module, found = network(norm, features), Row()
    for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
        rows = []
        for count in counts:
            net, _ = divided(module, side, count, dtype)
            plan = plan_shares(net.graph, (side,) * 3, PARTITIONS[count])
            sent = plan.sent_bytes / count
            rows.append({
                "kept_bytes": plan.kept_bytes, "peak_bytes": plan.peak_bytes, "sent_bytes": sent
            })  # fmt: skip
        found[name] = {"plain_bytes": saved_bytes(module, (side,) * 3, dtype), "rows": rows}
    return found


KINDS: dict[str, Callable[..., Row]] = {f.__name__: f for f in (kept, speed, projection)}
