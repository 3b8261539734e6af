"""Fingerprints of what volflow computes and stores, to tell whether a change kept every bit.

    python tests/house/same_bits.py --write before.json        # of this tree
    python tests/house/same_bits.py --against before.json      # compare with a file
    python tests/house/same_bits.py --against 455252b          # compare with a revision
    python tests/house/same_bits.py --only exact --show       # a part; print the lines

A fixed set of tiny predictions (every blend, exact, scaled, several outputs, frames), lazy arrays,
streams, aggregations, pyramids, conversions, statistics and exports becomes one line of text each:
what is known of the result, and a hash of its voxels. Where a volume is stored, a second hash
covers the bytes of its files. With ``--against`` each line that differs is named, and the exit code
is 1. Seeds are fixed and torch runs on one thread, so two runs of one tree on one machine agree.

Only public names are used, so the script runs on older and newer trees as it is: set ``PYTHONPATH``
to the tree that is meant. A case that raises is recorded by its error and does not stop the others.
Results whose blocks follow from measured times are hashed after rounding and marked with ``~``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import bits_models
import bits_patches
import bits_volumes
import numpy as np
import torch
from bits_inputs import Work
from bits_lines import line_of
from revisions import package_of

PARTS = (
    bits_models.blends,
    bits_models.values,
    bits_models.frames,
    bits_models.exact,
    bits_models.lazy,
    bits_patches.streams,
    bits_patches.aggregations,
    bits_volumes.conversions,
    bits_volumes.writes,
    bits_volumes.pyramids,
    bits_volumes.numbers,
    bits_volumes.exports,
)


def run(only: str = "", times: dict[str, float] | None = None) -> dict[str, str]:
    """The lines of all cases whose name begins so, made in a scratch folder."""
    torch.set_num_threads(1)
    lines: dict[str, str] = {}
    home = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
        os.chdir(folder)
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        try:
            for part in PARTS:
                for name, work in part():
                    if name.startswith(only):
                        began = time.perf_counter()
                        lines[name] = _line(work, folder)
                        if times is not None:
                            times[name] = time.perf_counter() - began
        finally:
            os.chdir(home)
    return lines


def _line(work: Work, folder: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return line_of(work()).replace(folder, "")
        except Exception as error:
            return f"raised {type(error).__name__}: {error}".replace(folder, "").splitlines()[0]


def of_revision(revision: str, only: str) -> dict[str, str]:
    """The lines of this script on another revision of the package."""
    with package_of(revision) as tree, tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, __file__, "--write", file.name, "--only", only]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tree)})
        found: dict[str, str] = json.loads(Path(file.name).read_text())["lines"]
    return found


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One paragraph for each name whose lines differ."""
    found = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, "absent"), after.get(name, "absent")
        if old != new:
            found.append(f"{name}\n    before: {old}\n    after:  {new}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", metavar="FILE", help="keep the lines as JSON")
    parser.add_argument("--against", metavar="FILE|REV", help="compare with these lines")
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--show", action="store_true", help="print the lines")
    parser.add_argument("--times", action="store_true", help="print what took longest")
    options = parser.parse_args()
    before: dict[str, str] = {}
    if options.against and Path(options.against).is_file():
        kept = json.loads(Path(options.against).read_text())["lines"]
        before = {name: line for name, line in kept.items() if name.startswith(options.only)}
    elif options.against:
        before = of_revision(options.against, options.only)
    times: dict[str, float] = {}
    lines = run(options.only, times)
    if not lines:
        parser.error(f"no case begins with {options.only!r}; --show names them")
    raised = [name for name, line in lines.items() if line.startswith("raised ")]
    print(f"{len(lines)} results in {sum(times.values()):.0f} s, {len(raised)} raised")
    for name in lines if options.show else raised:
        print(f"{name}: {lines[name]}")
    for name in sorted(times, key=times.__getitem__, reverse=True)[: 15 * options.times]:
        print(f"{times[name]:6.2f} s {name}")
    if options.write:
        known = {"versions": {"torch": torch.__version__, "numpy": np.__version__}}
        Path(options.write).write_text(json.dumps({**known, "lines": lines}, indent=1) + "\n")
    if not options.against:
        return 0
    found = differences(before, lines)
    print("\n".join(found) if found else f"all {len(lines)} equal to {options.against}")
    if found:
        print(f"{len(found)} of {len(lines)} differ from {options.against}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
