"""The exact method: passes over the volume, equal to the network run on it whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from distributed import Client

from volflow.engine.plan import Plan
from volflow.errors import InvalidInput
from volflow.infer.exact.exact_boxes import exact_boxes
from volflow.infer.exact.plan import ExactSettings, decide, last_pass, passes_of
from volflow.infer.method import BoxFunction, Hull, Target, out_blocks
from volflow.infer.predict_options import PredictOptions
from volflow.infer.request import Request
from volflow.passes.executor import run_passes

__all__ = ["boxes", "check", "decide", "plan", "plans", "read"]


def check(given: PredictOptions, options: PredictOptions) -> PredictOptions:
    """Refuse what leaves patches out; of a patch only whether the network takes slices counts."""
    if given.overlap is not None:
        raise InvalidInput(
            f"overlap {given.overlap} is that of patches, and blend 'exact' has none; leave it"
            " out, or use blend='gaussian'"
        )
    if options.mask is not None or options.skip_below is not None:
        raise InvalidInput(
            "mask and skip_below leave patches out, and blend 'exact' has none: every voxel may"
            " depend on every other; leave them out, or use blend='gaussian'"
        )
    slices = options.patch is not None and 1 in options.sides
    # Any side above 1 stands for the whole of its axis.
    z, y, x = (min(side, 2) for side in options.sides) if slices else (0, 0, 0)
    return replace(options, patch=(z, y, x) if slices else None, overlap=None)


def read(saved: Mapping[str, Any]) -> ExactSettings | None:
    """The settings of a journal; None where a run in patches wrote it."""
    exact = saved.get("exact")
    if exact is None:
        return None
    return ExactSettings.from_dict(saved, {name: exact[name] for name in ("sizes", "passes")})


def plan(
    request: Request,
    settings: ExactSettings,
    client: Client,
    memory_bytes: int,
    targets: tuple[Target, ...] = (),
    done: frozenset[int] = frozenset(),
) -> Plan:
    """Return the plan of the last pass, with what is known of those before it."""
    passes = passes_of(request, settings)
    return last_pass(passes, request, settings, client, memory_bytes, targets, done)


def plans(
    request: Request,
    settings: ExactSettings,
    client: Client,
    memory_bytes: int,
    targets: tuple[Target, ...],
    done: frozenset[int],
) -> Iterator[Plan]:
    """Run the passes before the last, then yield the plan of that one."""
    passes = passes_of(request, settings)
    if len(done) < len(out_blocks(request, settings)):
        run_passes(passes, request.fingerprint(), client, memory_bytes, request.options.progress)
    yield last_pass(passes, request, settings, client, memory_bytes, targets, done)
    passes.drop(len(passes.steps) - 1)


def boxes(request: Request, *, computed: bool) -> tuple[BoxFunction, Hull]:
    """Each box from its own margin; statistics of a stored volume are measured now."""
    return exact_boxes(request, measurable=not computed)
