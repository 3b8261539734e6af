"""What a training plan says: its passes, what they keep and compute again, and what they take."""

from __future__ import annotations

from volflow.geometry.budget import format_bytes
from volflow.partition.graph import Graph
from volflow.passes.cost import duration
from volflow.passes.planning.training_cost import TrainingPass
from volflow.passes.planning.training_schedule import TrainingPlan

__all__ = ["training_facts"]


def training_facts(graph: Graph, plan: TrainingPlan) -> tuple[tuple[str, str], ...]:
    """Return a plan's facts: all passes together, then a line for each."""
    facts = [
        (
            "passes",
            f"{len(plan.passes)}, about {duration(plan.forward_s)} forward and"
            f" {duration(plan.backward_s)} backward",
        ),
        (
            "disk",
            f"{format_bytes(plan.disk_bytes)} at most, {format_bytes(plan.read_bytes)} read,"
            f" {format_bytes(plan.written_bytes)} written",
        ),
    ]
    before, measured = set[int](), set[int]()
    for number, step in enumerate(plan.passes, start=1):
        computed = _convolutions(graph, step, measured)
        facts.append((f"pass {number}", _describe(graph, step, computed & before)))
        before |= computed
        measured |= set(step.statistics)
    return tuple(facts)


def _convolutions(graph: Graph, step: TrainingPass, measured: set[int]) -> set[int]:
    targets = {*step.stores, *(graph.nodes[s].inputs[0] for s in step.statistics)}
    above = graph.above(targets, {*step.given, *measured})
    return {n for n in above if graph.nodes[n].flops}


def _describe(graph: Graph, step: TrainingPass, again: set[int]) -> str:
    parts = [f"blocks of {'×'.join(map(str, step.block))}"]
    read = [n for n in step.given if n]
    if read:
        parts.append(f"reads {format_bytes(graph.bytes_of(read))}")
    if step.statistics:
        parts.append(f"measures {len(step.statistics)} statistics")
    if step.keeps:
        parts.append(f"keeps {format_bytes(sum(size for _, size in step.keeps))}")
    if again:
        names = [graph.nodes[n].where or graph.nodes[n].name for n in sorted(again)]
        parts.append(f"computes {', '.join(names)} again")
    parts.append(format_bytes(step.peak_bytes))
    if step.device_peak_bytes:
        parts[-1] += f" and {format_bytes(step.device_peak_bytes)} on the device"
    parts.append(f"about {duration(step.forward_s)} and {duration(step.backward_s)}")
    return ", ".join(parts)
