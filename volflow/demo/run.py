"""The demo: the whole journey of a scan, on real data, in a few minutes."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from volflow.demo.data import BUNDLE, HELD_OUT_Y, held_out_dice, load_mni, true_classes
from volflow.errors import InvalidInput, RunFailed
from volflow.ops.convert import convert
from volflow.ops.predict import predict
from volflow.report.preview import preview, save
from volflow.store.verify import verify
from volflow.store.volume import open_volume

__all__ = ["DemoResult", "run_demo"]


@dataclass(frozen=True)
class DemoResult:
    """Where the demo left its files, and how well its network did on what it never saw."""

    scan: Path
    result: Path
    picture: Path
    dice: dict[str, float]


def run_demo(out: str | os.PathLike[str] = "demo-output") -> DemoResult:
    """Convert a real MRI, segment it, verify the result, draw it; says each step.

    Parameters
    ----------
    out
        Folder for the scan, the result and the picture; made if missing. A demo that was
        interrupted is resumed there.

    Raises
    ------
    InvalidInput
        Where the scan's package is not installed or the folder cannot be made.
    RunFailed
        Where the result does not verify.
    """
    mni = load_mni()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"the folder {folder} cannot be made: {error.strerror}") from error
    began = time.monotonic()
    scan, result, picture = folder / "t1.zarr", folder / "tissue.zarr", folder / "tissue.png"

    _say(f"1. convert   the MNI152 T1 template → {scan}")
    volume = convert(mni.t1, scan)
    _say(f"             {volume}")
    _say(f"2. predict   grey and white matter → {result}")
    predict(volume, BUNDLE, result)
    _say("3. verify    every stored block against its checksum")
    coverage = verify(result)
    _say(f"             {coverage}")
    if not coverage.ok:
        raise RunFailed(f"{coverage}; run volflow demo again to repair it")
    dice = dict(held_out_dice(open_volume(result)[:], true_classes(mni)))
    scores = ", ".join(f"{name} {score:.3f}" for name, score in dice.items())
    _say(f"             Dice on the part never trained on (y ≥ {HELD_OUT_Y}): {scores}")
    _say(f"4. preview   {picture}")
    save(preview(result, over=volume), picture)
    _say(f"done in {time.monotonic() - began:.0f} s; look at {picture.resolve()}")
    return DemoResult(scan, result, picture, dice)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
