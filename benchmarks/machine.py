"""The machine a benchmark ran on, and where its result is filed."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from pathlib import Path


def describe(packages: list[str]) -> str:
    """Hardware, versions and date in a few lines."""
    versions = []
    for name in ("volflow", "numpy", *packages):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} absent")
    cpu = platform.processor() or platform.machine()
    memory = 0.0
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), cpu)
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return (
        f"{today} · {cpu}, {os.cpu_count()} cores, {memory:.0f} GiB ·"
        f" Python {platform.python_version()} · {', '.join(versions)}"
    )


def file_result(name: str, text: str) -> Path:
    """Write a result under ``benchmarks/results/``."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    path = Path(__file__).parent / "results" / f"{name}_{os.cpu_count()}cpu_{today}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# {name}\n\n{text}\n")
    return path
