"""What this machine leaves to one process: CPU cores and memory, by kernel, cgroups and SLURM."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from psutil import virtual_memory

__all__ = ["DEFAULT_SHARE", "cores", "free_memory_bytes"]

# The rest is left to the allocator's slack, the page tables and Dask itself.
DEFAULT_SHARE = 0.6

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def cores() -> int:
    """Return the CPU cores of this process, by its affinity and its cgroups' quota."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Rounded up: half a core of a quota of 2.5 would be idle, and at least one is needed.
    return min(here, math.ceil(_cgroup_cpus() or here))


def free_memory_bytes() -> int:
    """Return the bytes that this process could still allocate on this machine."""
    candidates: list[int | None] = [virtual_memory().available, _cgroup_free(), _slurm_limit()]
    return min(c for c in candidates if c is not None)


def _cgroup_free() -> int | None:
    """Return the free bytes of this process's cgroups, version 1 or 2, up to the outermost."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    rooms = [_room(at, *names[version]) for at, version in _cgroups("memory")]
    return min((room for room in rooms if room is not None), default=None)


def _cgroup_cpus() -> float | None:
    """Return the CPU quota of this process's cgroups in cores; None without a quota."""
    quotas = [_quota(at, version) for at, version in _cgroups("cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _cgroups(controller: str) -> Iterator[tuple[Path, int]]:
    """Yield folder and version of this process's cgroups, up to the outermost."""
    try:
        own = OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in own:
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            base, version = CGROUPS, 2
        elif controller in kinds.split(","):
            base, version = CGROUPS / controller, 1
        else:
            continue
        here = base / path.lstrip("/")
        yield from ((at, version) for at in (here, *here.parents) if at.is_relative_to(base))


def _quota(cgroup: Path, version: int) -> float | None:
    try:
        if version == 2:
            quota, period = map(int, (cgroup / "cpu.max").read_text().split())
        else:
            quota = int((cgroup / "cpu.cfs_quota_us").read_text())
            period = int((cgroup / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):  # absent, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None  # -1 means no quota


def _room(cgroup: Path, limit: str, used: str, cache: str) -> int | None:
    try:
        room = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
        # Page cache counts as used memory, but is reclaimable.
        room += sum(int(line.split()[1]) for line in lines if line.split()[0] == cache)
    except (OSError, ValueError):  # absent, or "max"
        return None
    return max(1, room)


def _slurm_limit() -> int | None:
    """Return the bytes that SLURM grants on this node, from its MiB per node or per CPU."""
    per_node = _slurm("SLURM_MEM_PER_NODE")
    per_cpu = _slurm("SLURM_MEM_PER_CPU") * _slurm("SLURM_CPUS_ON_NODE")
    return (per_node or per_cpu) * 1024**2 or None


def _slurm(name: str) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else 0
