"""volflow on a GPU in eight minutes: right, busy, bounded, and beside its peers; one table.

    python benchmarks/gpu.py                          # all stages; the result is filed
    python benchmarks/gpu.py --stages predict,exact   # some of them
    python benchmarks/gpu.py --stand-in               # no GPU: all stages, small, on the stand-in of the
                                                      # tests, which counts; times mean nothing there

Each stage is a process of its own with its own limit of time, and adds its rows to one file, so that
a stage that fails or hangs costs only itself. What a stage measures stands in ``gpu_stages.py``;
``gpu_counts.py`` counts copies, waits and kernels of a larger run on the stand-in. MONAI's rows are
left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from machine import describe, file_result  # noqa: E402

# Seconds that each stage may take, eight minutes in all.
LIMITS = {"correct": 110, "kernels": 75, "predict": 100, "exact": 90, "peers": 95}
PACKAGES = ["torch", "zarr", "dask", "monai"]

Row = dict[str, Any]


def run_stage(name: str, rows: Path, folder: Path, *also: str) -> bool:
    """Run a stage in a new process; what goes wrong becomes a row of its own, and False."""
    command = [sys.executable, str(HERE / "gpu_stages.py"), name, str(rows), str(folder), *also]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=LIMITS[name]
        )
        failure = "" if done.returncode == 0 else done.stderr.strip()[-600:]
    except subprocess.TimeoutExpired:
        failure = f"cut off after {LIMITS[name]} s"
    if failure:
        print(f"{name}: {failure}", file=sys.stderr)
        with rows.open("a") as file:
            file.write(json.dumps({"stage": name, "what": "failed", "failed": failure}) + "\n")
    return not failure


def table(rows: list[Row]) -> str:
    """Return one table per stage, with a column for each figure that it has."""
    parts = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        mine = [row for row in rows if row["stage"] == stage]
        columns = list(dict.fromkeys(key for row in mine for key in row if key != "stage"))
        lines = [
            f"### {stage}",
            "",
            "| " + " | ".join(columns) + " |",
            "|" + "---|" * len(columns),
            *("| " + " | ".join(shown(row.get(key, "")) for key in columns) + " |" for row in mine),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def shown(value: Any) -> str:
    """Return a figure with three digits, and text in one line."""
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value).replace("\n", " ").replace("|", "/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", default=",".join(LIMITS), help="names, with commas between")
    parser.add_argument("--stand-in", action="store_true", help="counts on the tests' stand-in")
    parser.add_argument("--out", help="folder for the result instead of benchmarks/results")
    options = parser.parse_args()
    gpu, also = "stand-in", ["--stand-in"]
    if not options.stand_in:
        gpu, also = gpu_here(), []
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "rows.jsonl"
        rows.touch()
        done = [run_stage(stage, rows, Path(name), *also) for stage in options.stages.split(",")]
        found = [json.loads(line) for line in rows.read_text().splitlines()]
    text = f"{describe(PACKAGES)} · {gpu}\n\n{table(found)}"
    print(text)
    if options.out:
        (Path(options.out) / "gpu.md").write_text(f"# gpu\n\n{text}\n")
    elif not options.stand_in:
        file_result("gpu", text)
    raise SystemExit(0 if all(done) else 1)


def gpu_here() -> str:
    """Return what GPU this machine has; says so and exits where it has none."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no GPU here: benchmarks/gpu.py was not run; --stand-in counts without")
    found = torch.cuda.get_device_properties(0)
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB · {versions}"


if __name__ == "__main__":
    main()
