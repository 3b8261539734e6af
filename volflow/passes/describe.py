"""Passes in words, for the plan of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from volflow.geometry.budget import format_bytes
from volflow.partition.graph import Graph
from volflow.passes.cost import Pass

__all__ = ["pass_facts"]


def pass_facts(graph: Graph, passes: Sequence[Pass]) -> tuple[tuple[str, str], ...]:
    """Return what a plan says of passes: their number and cost, then a line for each."""
    seconds = sum(step.seconds for step in passes)
    whole = sum(
        node.flops * node.depth * math.prod(graph.sizes(n)) for n, node in enumerate(graph.nodes)
    )
    computed = sum(step.flops for step in passes)
    facts = [
        (
            "passes",
            f"{len(passes)}, computing {computed / whole if whole else 1:.2f}× the network,"
            f" about {_duration(seconds)}",
        )
    ]
    for number, step in enumerate(passes, start=1):
        facts.append((f"pass {number}", _describe(graph, step, number == len(passes))))
    return tuple(facts)


def _describe(graph: Graph, step: Pass, last: bool) -> str:
    text = f"blocks of {'×'.join(map(str, step.block))}"
    read = [n for n in step.given if n]
    if read:
        text += f", reads {format_bytes(_bytes(graph, read))}"
    if step.statistics:
        text += f", measures {len(step.statistics)} statistics"
    if step.stores and not last:
        text += f", keeps {format_bytes(_bytes(graph, step.stores))}"
    return text + f", {format_bytes(step.peak_bytes)}, about {_duration(step.seconds)}"


def _bytes(graph: Graph, numbers: Sequence[int]) -> int:
    return sum(graph.nodes[n].value_bytes * math.prod(graph.sizes(n)) for n in numbers)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
