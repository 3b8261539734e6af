"""How ``gpu.py`` measures a GPU: time by events, how busy it was, what a whole prediction takes."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, supported_activities

import volflow as vf


def timed_ms(run: Callable[[], Any], least_s: float) -> float:
    """Return the milliseconds of a call on the device: warm, the median of at least three."""
    run()
    torch.cuda.synchronize()
    found, began = [], time.perf_counter()
    while len(found) < 3 or time.perf_counter() - began < least_s:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        found.append(first.elapsed_time(last))
    return statistics.median(found)


class Utilization:
    """What NVML says of this GPU every 20 ms, in per cent."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
            handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except Exception as error:  # without NVML the column is empty
            print(f"no NVML: {error}", file=sys.stderr)
            return
        while not self.stopped.wait(0.02):
            self.samples.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)

    def share(self) -> float | str:
        self.stopped.set()
        self.thread.join()
        return statistics.mean(self.samples) / 100 if self.samples else ""


@contextmanager
def kernel_union() -> Iterator[dict[str, float]]:
    """Fill in the share of the block's wall time in which a kernel ran, and that of copies."""
    found: dict[str, float] = {}
    # Without a GPU, as on the tests' stand-in, only the CPU can be profiled: nothing is found then.
    seen = {ProfilerActivity.CUDA} & supported_activities() or {ProfilerActivity.CPU}
    with profile(activities=seen) as profiler:
        began = time.perf_counter()
        yield found
        torch.cuda.synchronize()
        wall_ns = 1e9 * (time.perf_counter() - began)
    kernels: list[tuple[int, int]] = []
    copies: list[tuple[int, int]] = []
    for event in profiler.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            moved = event.name().startswith(("Memcpy", "Memset"))
            span = event.start_ns(), event.start_ns() + event.duration_ns()
            (copies if moved else kernels).append(span)
    found |= {"busy": union(kernels) / wall_ns, "copying": union(copies) / wall_ns}
    found["kernels"] = len(kernels)


def union(intervals: list[tuple[int, int]]) -> int:
    """Return the length of the union of intervals.

    Examples
    --------
    >>> union([(0, 4), (2, 5), (7, 8)])
    6
    """
    total, until = 0, 0
    for low, high in sorted(intervals):
        total += max(0, high - max(low, until))
        until = max(until, high)
    return total


def predicted(scan: Path, net: Any, out: Path, **options: Any) -> dict[str, Any]:
    """Predict twice, plainly and under the profiler; return the figures of both."""

    def once() -> float:
        for path in (out, Path(f"{out}.volflow")):
            shutil.rmtree(path, ignore_errors=True)
        began = time.perf_counter()
        vf.predict(str(scan), net, str(out), device="cuda", progress=False, **options)
        return time.perf_counter() - began

    torch.cuda.reset_peak_memory_stats()
    utilization = Utilization()
    row: dict[str, Any] = {"wall_s": once(), "nvml": utilization.share()}
    reserved = torch.cuda.max_memory_reserved()
    with kernel_union() as found:
        once()
    settings = json.loads((Path(f"{out}.volflow") / "plan.json").read_text())["settings"]
    return {
        **row, **found, "batch": settings["batch_size"],
        "layout": settings.get("layout", "contiguous"), "reserved_gib": reserved / 2**30,
        "planned_gib": settings.get("device_peak_bytes", 0) / 2**30,
    }  # fmt: skip
