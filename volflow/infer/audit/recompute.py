"""Random blocks of a prediction, computed anew and judged: the audit behind ``verify``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from volflow.engine.cluster import memory_per_worker
from volflow.engine.progress import Progress
from volflow.engine.run import run
from volflow.errors import InvalidInput
from volflow.infer.audit.blocks_anew import AuditJob, Compared, compare_blocks
from volflow.infer.audit.recorded import Recorded
from volflow.infer.input_copies import drop_copies
from volflow.infer.method import adopt
from volflow.infer.methods import method_of, working
from volflow.infer.request import Request, normalized
from volflow.infer.settings import Settings
from volflow.store.coverage import Recomputed
from volflow.store.create import open_begun
from volflow.store.journal.journal import Journal
from volflow.store.journal.outputs import computed_first
from volflow.store.journal.provenance import Machine, noted_machines
from volflow.store.volume import Volume

__all__ = ["recompute"]

# Shares of the range of scores within which other machines agree, by precision.
TOLERANCES = {"float32": 1e-6, "tf32": 2e-3, "float16": 2e-3, "bfloat16": 2e-2}
# On another kind of device sums are taken in another order throughout.
OTHER_DEVICE = 1e-5


def recompute(
    recorded: Recorded, count: int, seed: int | None, device: str, progress: Progress
) -> Recomputed:
    """Compute random blocks of a prediction anew, compare them, and mark wrong ones undone.

    Parameters
    ----------
    recorded
        The prediction, whose inputs and model are those of the record.
    count, seed
        How many of the finished blocks are drawn, and the seed of the draw; None for a new one.
    device
        ``"auto"`` for that of the run, or ``"cpu"``.
    progress
        As in `predict`.

    Raises
    ------
    InvalidInput
        If no block is finished, or the output is one of several exact passes and not complete.
    MemoryRefused
        If a block does not fit within the budget, saying what would.
    """
    request, journal, record = recorded.request, recorded.journal, recorded.record
    method, seed = method_of(request), secrets.randbits(32) if seed is None else seed
    with working(request) as client, journal.lock():
        settings = _on_device(adopt(method, request, record), device)
        memory_bytes = memory_per_worker(client, request.options.memory)
        done = [block for block in journal.done() if block < recorded.total]
        _check_done(recorded, settings, done)
        drawn = _draw(done, count, seed)
        request = normalized(request, cluster=client, memory=memory_bytes, progress=progress)
        # What comes before the blocks, such as passes, may take longer than they do.
        request = replace(request, options=replace(request.options, progress=progress))
        everything = frozenset(range(recorded.total))
        within = (request, settings, client, memory_bytes)
        with method.prepared(*within, everything):
            pass  # what a run that was killed kept of its passes is computed anew, too
        with method.prepared(*within, everything.difference(drawn)):
            plan = method.plan(*within, _stored(recorded, settings), everything.difference(drawn))
            plan = replace(
                plan,
                operation="recompute",
                task=compare_blocks,
                job=AuditJob(plan.job, settings.device, _machines(journal)),
                runs=tuple((block,) for block in drawn),
            )
            plan.require_memory("give more memory, or let a worker with more do it")
            results = run(plan, cluster=client, progress=progress).results
        limits = Limits.of(request, settings, record.settings["device"])
        wrong, compared, differing = limits.judged(results)
        journal.forget(block for block, _ in wrong)
        if request.copies and not wrong:  # they were made for this alone
            drop_copies(request)
    return Recomputed(len(done), tuple(drawn), seed, compared, wrong, differing)


def _draw(done: Sequence[int], count: int, seed: int) -> list[int]:
    """Return the numbers of distinct blocks, ascending."""
    drawn = np.random.default_rng(seed).choice(done, min(count, len(done)), replace=False)
    return sorted(drawn.tolist())


def _check_done(recorded: Recorded, settings: Settings, done: Sequence[int]) -> None:
    out = recorded.request.file or recorded.request.out
    if not done:
        raise InvalidInput(f"no block of {out} is finished, so none can be compared")
    if settings.keeps and len(done) < recorded.total:
        raise InvalidInput(
            f"{len(done)} of {recorded.total} blocks of {out} are done, and what its run keeps"
            " for the others would be lost; finish it first, with the command that began it"
        )


def _on_device(settings: Settings, device: str) -> Settings:
    """Return the settings of the run, on the CPU if it is to compute instead."""
    if device in ("auto", settings.device):
        return settings
    if device != "cpu":
        raise InvalidInput(
            f"device must be 'auto', for {settings.device!r}, on which it was made, or 'cpu'; given"
            f" {device!r}"
        )
    return settings.on_cpu()


def _stored(recorded: Recorded, settings: Settings) -> dict[str, Volume]:
    """Open the volumes that are compared, by output."""
    out = recorded.request.out
    return {o.name: open_begun(out / o.name) for o in settings.outputs}


def _machines(journal: Journal) -> frozenset[Machine]:
    """Return the kinds of machines that computed a run, and the passes before it."""
    passes = computed_first(journal)
    found = noted_machines(journal)
    return found.union(*map(noted_machines, passes)) if found else found


@dataclass(frozen=True)
class Limits:
    """How far blocks may be from what is computed.

    Parameters
    ----------
    tolerance
        As a share of the range of scores.
    classes
        Whether classes are stored, which two scores decide.
    dtype
        Of what is stored, which may round scores.
    """

    tolerance: float
    classes: bool
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, request: Request, settings: Settings, before: str) -> Limits:
        """Return the limits for a run that was made on another kind of machine."""
        other = torch.device(before).type != torch.device(settings.device).type
        tolerance = max(TOLERANCES[settings.precision], OTHER_DEVICE if other else 0.0)
        dtype = np.dtype(request.options.stored_dtype(settings.dtype))
        return cls(tolerance, request.options.output == "classes", dtype)

    def allowed(self, found: Sequence[Compared], array: str) -> float:
        """Return how much scores of an output may differ, from the range of all that are known."""
        own = [one for one in found if one.array == array and one.low <= one.high]
        span = max((o.high for o in own), default=0.0) - min((o.low for o in own), default=0.0)
        if self.classes:
            return 2 * self.tolerance * span
        step = 1.0 if self.dtype.kind in "iu" else float(np.finfo(self.dtype).eps) * span
        return self.tolerance * span + step

    def judged(
        self, results: Mapping[int, Sequence[Compared]]
    ) -> tuple[tuple[tuple[int, str], ...], str, int]:
        """Return the wrong blocks with reasons, how all were compared, and what else differs."""
        found = [one for block in results.values() for one in block]
        allowed = {array: self.allowed(found, array) for array in {one.array for one in found}}
        wrong, differing = [], 0
        for block in sorted(results):
            faults = [one for one in results[block] if one.is_wrong(allowed[one.array])]
            if faults:
                wrong.append((block, "; ".join(map(self.reason, faults))))
            else:
                differing += sum(one.differing for one in results[block])
        if all(one.exact for one in found):
            return tuple(wrong), "bit for bit", differing
        how = f"within {self.tolerance:g} of the range of scores, as on another kind of machine"
        return tuple(wrong), how, differing

    def reason(self, one: Compared) -> str:
        """Return what is wrong with an output of a block."""
        assert one.box is not None
        box = ", ".join(f"{low}:{high}" for low, high in one.box)
        text = (
            f"array {one.array} at [{box}]: {one.differing:,} of {one.voxels:,} voxels are not what"
            " the model computes"
        )
        return text if self.classes else f"{text}, by up to {one.worst:.3g}"
