"""What ``stream.py`` asks of volflow alone: memory as the volume grows, stalls, start-up."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from stream_peers import Setup, Tally, volflow_stream

BATCH, REUSE, SLACK_BYTES = 4, 4, 150 << 20
# An epoch that does not end while it is measured, and the batches that fill its window: every lane
# has given a patch by then.
PATCHES, FILLING = 100_000, 2


def stall(setup: Setup) -> dict[str, float]:
    """A loader that is asked for batches as fast as it can, then by a trainer 1.2 times as slow.

    The trainer sleeps. It waits for as long as ``next`` takes; the start of the epoch, when the
    window is filled, is counted by itself.
    """
    import torch  # noqa: F401

    import volflow as vf

    vf.PatchStream  # noqa: B018 - loaded on first use
    began = time.perf_counter()
    stream = volflow_stream(setup, Tally(), REUSE, BATCH, patches=PATCHES)
    batches = endless(stream)
    next(batches)
    first_s = time.perf_counter() - began
    for _ in range(FILLING - 1):
        next(batches)
    filled_s = time.perf_counter() - began
    for_some_s(batches, setup.warm_s, 0)
    fast = for_some_s(batches, setup.seconds, 0)
    step_s = 1.2 * (fast.wall_s + fast.waited_s) / fast.batches
    for_some_s(batches, setup.warm_s, step_s)
    slow = for_some_s(batches, setup.seconds, step_s)
    return {
        "first_s": first_s,
        "filled_s": filled_s,
        "step_ms": 1e3 * step_s,
        "waited": slow.waited_s / (slow.wall_s + slow.waited_s),
    }


@dataclass
class Asked:
    """Batches, seconds waited for them, all other seconds."""

    batches: int = 0
    wall_s: float = 0.0
    waited_s: float = 0.0


def endless(stream: Any) -> Iterator[Any]:
    while True:
        yield from stream.loader(batch_size=BATCH)


def for_some_s(batches: Iterator[Any], seconds: float, step_s: float) -> Asked:
    asked, began = Asked(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        next(batches)
        there = time.perf_counter()
        asked.waited_s += there - before
        asked.batches += 1
        if step_s:
            time.sleep(step_s)
        asked.wall_s += time.perf_counter() - there
    return asked


CHILDREN = {"stall": stall}


def report(
    grown: dict[int, list[dict[str, float]]], stalls: list[dict[str, float]], memory: str
) -> list[str]:
    from volflow.geometry.budget import parse_bytes

    lines = [
        f"### Memory as the volume grows 8-fold: volflow, reuse {REUSE}, memory {memory}",
        "",
        "| volume | growth MiB | held MiB |",
        "|---|---|---|",
    ]
    for side, found in grown.items():
        growth, held = (
            statistics.median(f[key] for f in found) / 2**20
            for key in ("growth_bytes", "held_bytes")
        )
        lines.append(f"| {side}³ | {growth:,.0f} | {held:,.0f} |")
    limit = parse_bytes(memory) + SLACK_BYTES
    most = max(f["growth_bytes"] for found in grown.values() for f in found)
    middle = {key: statistics.median(f[key] for f in stalls) for key in stalls[0]}
    return [
        *lines,
        "",
        f"### Stalls and start-up: loader, batches of {BATCH}, reuse {REUSE}",
        "",
        "| | measured | goal | |",
        "|---|---|---|---|",
        f"| peak above the imports | {most / 2**20:,.0f} MiB | ≤ memory + 150 MiB |"
        f" {verdict(most <= limit)} |",
        f"| first batch after | {middle['first_s']:.2f} s | < 2 s | {verdict(middle['first_s'] < 2)} |",
        f"| waited for batches, step {middle['step_ms']:.1f} ms = 1.2 × production |"
        f" {middle['waited']:.2%} | ≤ 2 % | {verdict(middle['waited'] <= 0.02)} |",
        f"| the window filled, as at the start of every epoch | {middle['filled_s']:.2f} s | | |",
        "",
    ]


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"
