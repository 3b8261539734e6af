"""What a prediction asks of a GPU, counted on the stand-in device of the tests: needs none.

    python benchmarks/gpu_counts.py                          # the table below
    PYTHONPATH=/another/tree python benchmarks/gpu_counts.py  # of another revision

A U-Net with instance norms over an uint16 volume, blended and exact, classes and scores. Counted
are the blocks of the run itself, from after the trial forward or the profile of the ops:

- ``in``: bytes copied to the device per byte of the stored input; 1 is once in its stored dtype;
- ``out``: bytes copied to the host per byte of the output; 1 is once in its dtype;
- ``pageable``: copies that are not from or to pinned memory, or that the host waited for;
- ``waits``: synchronisations per block, of passes that measure statistics, too;
- ``kernels``: per patch (blended) or per block (exact);
- ``peak``: most bytes allocated on the device at a time; ``reserved`` and ``pinned``: the most that
  torch takes there, and of pinned memory, where the device lags behind until the host waits for it;
- ``races``: work that nothing put in order.

Seconds would say nothing here.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import volflow as vf
from volflow.engine import run as engine
from volflow.model.unet import UNet

# Only now, so that PYTHONPATH may name another tree: its tests may lack the stand-in.
sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.gpu.stand_in import Counts, stand_in

SHAPE, PATCH, OVERLAP = (96, 160, 160), 64, 0.25
HEAD = "| method | output | blocks | in | out | pageable | waits per block | kernels | peak MiB | reserved | pinned | races |"


class Windows:
    """What was counted while blocks were run, trials left out."""

    def __init__(self, gpu: Any) -> None:
        self.gpu = gpu
        self.counts = Counts({})
        self.blocks = self.peak_bytes = self.reserved_bytes = 0

    def run(self, plain: Any, plan: Any, *args: Any, **kwargs: Any) -> Any:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = self.gpu.counts()
        found = plain(plan, *args, **kwargs)
        if plan.plugin is not None and plan.unit != "trial":
            self.counts += self.gpu.counts() - before
            self.blocks += sum(map(len, plan.runs))
            self.peak_bytes = max(self.peak_bytes, torch.cuda.max_memory_allocated())
            self.reserved_bytes = max(self.reserved_bytes, torch.cuda.max_memory_reserved())
        return found


@contextmanager
def counted(gpu: Any) -> Iterator[Windows]:
    windows, plain = Windows(gpu), engine.run
    for caller in ("infer.prediction", "passes.executor", "model.trial"):
        importlib.import_module(f"volflow.{caller}")
    callers = [
        module
        for name, module in list(sys.modules.items())
        if name.startswith("volflow.") and getattr(module, "run", None) is plain
    ]
    for module in callers:
        module.run = functools.partial(windows.run, plain)
    try:
        yield windows
    finally:
        for module in callers:
            module.run = plain


def patches() -> int:
    stride = PATCH - int(PATCH * OVERLAP)
    return math.prod(1 + math.ceil((n - PATCH) / stride) for n in SHAPE)


def row(blend: str, output: str, folder: Path, memory: int) -> str:
    torch.manual_seed(0)
    net = UNet(1, 3, features=(8, 16, 32), norm="instance").eval()
    scan = np.random.default_rng(0).integers(0, 1000, SHAPE, dtype=np.uint16)
    vf.write(scan, folder / "scan.zarr", overwrite=True, progress=False)
    exact = blend == "exact"
    method = {"blend": "exact"} if exact else {"patch": PATCH, "overlap": OVERLAP, "blend": blend}
    with stand_in(total_memory=memory) as gpu, counted(gpu) as windows:
        vf.predict(
            folder / "scan.zarr", net, folder / f"{blend}-{output}.zarr",
            normalize="zscore", output=output, device="cuda", cluster="threads", progress=False,
            **method,
        )  # fmt: skip
        races = len(set(gpu.races))
        gpu.races.clear()  # they are told in the table
    made = vf.open(folder / f"{blend}-{output}.zarr")
    out_bytes = math.prod(made.shape) * np.dtype(made.dtype).itemsize
    found, blocks = windows.counts, windows.blocks
    kernels = found.kernels / (blocks if exact else patches())
    return (
        f"| {blend} | {output} | {blocks} | {found.h2d_bytes / scan.nbytes:.2f}"
        f" | {found.d2h_bytes / out_bytes:.2f} | {found.pageable} | {found.syncs / blocks:.1f}"
        f" | {kernels:.1f} | {windows.peak_bytes / 2**20:.0f}"
        f" | {windows.reserved_bytes / 2**20:.0f} | {gpu.pins.peak / 2**20:.0f} | {races} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device-memory", type=int, default=1024, help="MiB, for patches")
    parser.add_argument("--exact-memory", type=int, default=384, help="MiB, for several blocks")
    args = parser.parse_args()
    print(f"{SHAPE} uint16, patch {PATCH}, overlap {OVERLAP}: {patches()} patches;", vf.__file__)
    print(HEAD)
    print("|---|---|" + "---:|" * 10)
    for blend, memory in (("gaussian", args.device_memory), ("exact", args.exact_memory)):
        for output in ("classes", "scores"):
            with tempfile.TemporaryDirectory() as folder:
                print(row(blend, output, Path(folder), memory * 2**20), flush=True)


if __name__ == "__main__":
    main()
