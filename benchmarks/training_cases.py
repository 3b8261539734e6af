"""What ``training.py`` measures in one process; each measurement is a process of its own.

``python training_cases.py KIND OPTIONS FOLDER`` writes ``result.json`` there. A step out of core
that was killed goes on from its scratch folder when it is run again with the same folder.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from training_nets import CLASSES, forward_flops, make_images, network, widest  # noqa: E402
from training_watch import Row, end_with_parent, load, measured, save  # noqa: E402

import volflow as vf  # noqa: E402


def images_of(folder: Path, sides: Sequence[int]) -> tuple[str, str]:
    """Paths of an image and its labels, which are made once for all measurements."""
    name = "x".join(map(str, sides))
    image, labels = (folder.parent / f"{what}{name}.zarr" for what in ("image", "labels"))
    make_images(image, labels, sides)
    return str(image), str(labels)


def forced(block: int | None) -> None:
    """Cut blocks of one size, where a small volume is to be cut at all."""
    if block:
        from volflow.training import planned

        assert hasattr(planned, "SIDES")
        planned.SIDES = (block,)


def make(folder: Path, sides: Sequence[int]) -> Row:
    """Make the image and the labels."""
    images_of(folder, sides)
    return {}


def rate(folder: Path, net: str, features: Sequence[int], sides: Sequence[int], side: int) -> Row:
    """The least CPU seconds of a step's convolutions, all at the best rate of the widest one.

    The volume is made on the way.
    """
    images_of(folder, sides)
    axes = len(sides)
    layer, shape = widest(network(net, features), (16,) * axes)
    x = torch.rand(*shape[:2], *(side,) * axes)
    flops = 2 * math.prod(layer.weight.shape) * side**axes  # type: ignore[operator,union-attr,arg-type]
    best = math.inf
    layouts = (
        torch.contiguous_format,
        torch.channels_last_3d if axes == 3 else torch.channels_last,
    )
    with torch.inference_mode():
        for layout in layouts:
            conv, given = layer.to(memory_format=layout), x.contiguous(memory_format=layout)
            conv(given)
            ends = time.perf_counter() + 1.0
            while time.perf_counter() < ends:
                began = time.process_time()  # whatever else runs on the machine
                conv(given)
                best = min(best, time.process_time() - began)
    work = forward_flops(network(net, features), sides)
    return {
        "gflop_per_cpu_s": flops / best / 1e9,
        "forward_gflop": work / 1e9,
        "bound_cpu_s": 3 * work * best / flops,
    }


def step(
    folder: Path, net: str, features: Sequence[int], sides: Sequence[int], memory: str,
    block: int | None = None,
) -> Row:  # fmt: skip
    """One step out of core, beside its plan."""
    image, labels = images_of(folder, sides)
    forced(block)
    whole = vf.WholeVolume(network(net, features), memory, folder / "scratch", device="cpu")
    began = time.perf_counter()
    plan = whole.plan(image)
    planning_s = time.perf_counter() - began
    first = folder / "plan.json"  # of the attempt that chose the passes
    if not first.exists():
        save(first, {**plan.to_dict(), "said": str(plan), "planning_s": planning_s})
    with counted(folder / "asked.json"):
        loss, used = measured(folder, lambda: whole.step(image, labels, vf.losses.dice_ce))
    whole.close()
    return {"loss": loss.item(), "plan": load(first, {}), "used": used}


@contextmanager
def counted(path: Path) -> Iterator[None]:
    """Count the bytes that passes ask for: of the image, of what is kept, and of gradients."""
    from volflow.passes.activations import ActivationStore
    from volflow.passes.backward.contributions import Contributions
    from volflow.training.images import Batch

    asked, saved = 0, time.monotonic()

    def add(count: int) -> None:
        nonlocal asked, saved
        asked += count
        if time.monotonic() - saved > 1:
            save(path, {"asked_bytes": asked})
            saved = time.monotonic()

    def counting(read: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def wrapped(self: Any, box: Any) -> Any:
            found = read(self, box)
            add(size(self, box, found))
            return found

        return wrapped

    def met(self: Any, box: Any, found: Any) -> int:
        voxels = sum(window.intersect(box).size for _, window in self.meeting(box))
        return 0 if found is None else voxels * self.depth * found.itemsize

    def whole(self: Any, box: Any, found: Any) -> int:
        # Labels are read by the loss alone, and are no part of the plan.
        return found.nbytes if getattr(self, "dtype", None) else 0

    originals = [(ActivationStore, "read", whole), (Contributions, "read", met),
                 (Batch, "__call__", whole)]  # fmt: skip
    reads = [getattr(owner, name) for owner, name, _ in originals]
    try:
        for (owner, name, size), read in zip(originals, reads, strict=True):
            setattr(owner, name, counting(read, size))
        yield
    finally:
        save(path, {"asked_bytes": asked})
        for (owner, name, _), read in zip(originals, reads, strict=True):
            setattr(owner, name, read)


def in_memory(
    folder: Path, net: str, features: Sequence[int], sides: Sequence[int], checkpointed: bool
) -> Row:
    """One step of plain autograd, or with each block of the network checkpointed."""
    module = network(net, features)
    module.checkpointed = checkpointed  # type: ignore[assignment]
    image, labels = (vf.open(path) for path in images_of(folder, sides))
    tried = network(net, features)  # for what is imported when it is first needed
    tried.checkpointed = checkpointed  # type: ignore[assignment]
    tried(torch.zeros(1, 1, *(16,) * len(sides))).sum().backward()
    del tried

    def take() -> float:
        x = torch.from_numpy(image[:]).reshape(1, 1, *sides)
        target = torch.from_numpy(labels[:]).reshape(1, *sides)
        loss = vf.losses.dice_ce(module(x), target)
        loss.backward()
        return loss.item()

    loss, used = measured(folder, take)
    return {"loss": loss, "used": used}


def precision(
    folder: Path, norm: str, features: Sequence[int], side: int, block: int, seeds: int,
    kinks: bool = True,
) -> Row:  # fmt: skip
    """How far float32 is from float64: the worst gradient, relative to its own size.

    With kinks, one voxel that rounding takes to the other side of a ReLU weighs more than all that
    sums lose, and whether there is one is chance, blocks or none.
    """
    from tests.nets import smooth
    from volflow.model.unet import UNet

    forced(block)
    rows = list[Row]()
    for seed in range(seeds):
        torch.manual_seed(seed)
        plain = UNet(1, CLASSES, tuple(features), norm=norm).train()  # type: ignore[arg-type]
        exact, ours = (UNet(**plain.arguments).train() for _ in range(2))
        for other in (exact, ours):
            other.load_state_dict(plain.state_dict())
        if not kinks:
            plain, exact, ours = (smooth(one) for one in (plain, exact, ours))
        exact.double()
        x, target = torch.randn(1, 1, *(side,) * 3), torch.randint(CLASSES, (1, *(side,) * 3))
        losses = {
            "exact": vf.losses.dice_ce(exact(x.double()), target),
            "plain": vf.losses.dice_ce(plain(x), target),
        }
        for loss in losses.values():
            loss.backward()
        whole = vf.WholeVolume(ours, "4GiB", folder / f"scratch/{seed}", device="cpu")
        blocks = whole.plan(x).passes
        losses["ours"] = whole.step(x, target, vf.losses.dice_ce)
        whole.close()
        rows.append({
            "passes": len(blocks),
            **{f"{name}_{what}": value
               for name, net in (("plain", plain), ("ours", ours))
               for what, value in errors(net, exact, losses[name] - losses["exact"]).items()},
        })  # fmt: skip
    return {name: max(row[name] for row in rows) for name in rows[0]}


def errors(net: torch.nn.Module, exact: torch.nn.Module, loss: torch.Tensor) -> Row:
    """Errors of gradients: the worst of a tensor by its own norm, and of all by the norm of all."""
    pairs = [
        (p.grad.double(), q.grad)
        for p, q in zip(net.parameters(), exact.parameters(), strict=True)
        if p.grad is not None and q.grad is not None
    ]
    every = sum(float(q.square().sum()) for _, q in pairs) ** 0.5
    off = [float((p - q).norm()) for p, q in pairs]
    # A bias in front of a norm has a true gradient of zero, which has no size of its own.
    sizes = [float(q.norm()) for _, q in pairs]
    own = [a / b for a, b in zip(off, sizes, strict=True) if b > 1e-9 * every]
    return {
        "worst": max(own),
        "together": sum(a * a for a in off) ** 0.5 / every,
        "loss": abs(float(loss.detach())),
    }


KINDS: dict[str, Callable[..., Row]] = {
    f.__name__: f for f in (make, rate, step, in_memory, precision)
}


def main() -> None:
    kind, options, folder = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    end_with_parent()
    warnings.simplefilter("ignore")
    threads = options.pop("threads", 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    if kind not in KINDS:
        import training_ranks

        KINDS.update(training_ranks.KINDS)
    save(folder / "result.json", KINDS[kind](folder, **options))


if __name__ == "__main__":
    main()
